"""The compiled loops: `compiled.NAME` is the loop NAME, whose module is imported when the first one is asked for.

This is the engine's one lazy import. numba and the loops take 0.25 s to import, and where numba's cache is empty half a
minute to compile; planning a stage and small searches need none of them.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from stages.engine import (
        alignment_kernels,
        candidate_kernels,
        row_kernels,
        score_kernels,
        search_kernels,
        tile_kernel,
    )

    for module in (search_kernels, tile_kernel, row_kernels, alignment_kernels, candidate_kernels, score_kernels):
        if not name.startswith("_") and hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"no compiled loop is called {name}")
