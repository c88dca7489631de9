"""Section verify of params.yaml and its blocks at sizes that a test can afford."""

from pathlib import Path
from typing import Any

from stages.protocol import load_tree

BLOCKS: dict[str, Any] = load_tree(Path(__file__).parents[2] / "pipeline" / "toy_blocks.yaml")

SECTION: dict[str, Any] = {"mode": "quick", "seed": 3, "dataset": None, "resolution": None, "cifar10": True}


def section(**changes: Any) -> dict[str, Any]:
    """The section with some of its keys or blocks changed."""
    own = {key: value for key, value in changes.items() if key not in BLOCKS}
    return {**SECTION, **own, "blocks": {**BLOCKS, **{key: changes[key] for key in changes if key in BLOCKS}}}
