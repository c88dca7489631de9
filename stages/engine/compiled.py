"""The compiled loops of the search: `compiled.NAME` is the loop NAME, imported when the first one is asked for.

This is the engine's one lazy import. numba takes 0.25 s to import, and where its cache is empty the loops take half a
minute to compile; planning a stage and small searches need none of them.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    from stages.engine import row_kernels, search_kernels

    for module in (search_kernels, row_kernels):
        if not name.startswith("_") and hasattr(module, name):
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"no compiled loop is called {name}")
