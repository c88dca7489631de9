"""The published CIFAR-10 set-up, as the benchmarks use it: read from pipeline/presets/cifar10.yaml."""

from pathlib import Path
from typing import Any

from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams
from stages.protocol import load_tree

ROOT = Path(__file__).parent.parent
PRESET = load_tree(ROOT / "pipeline" / "presets" / "cifar10.yaml")
SEED = PRESET["train"]["seeds"][0]
NOISE = NoiseParams(**PRESET["train"]["noise"])
SHAPE = (PRESET["ingest"]["channels"], PRESET["ingest"]["resolution"], PRESET["ingest"]["resolution"])


def network(**changes: Any) -> NetworkParams:
    """The published network, with some keys changed."""
    return NetworkParams(**{**PRESET["train"]["network"], **changes})


def optimization(**changes: Any) -> OptimizationParams:
    """The published optimization, with some keys changed. Keys that the preset leaves out come from params.yaml."""
    defaults = load_tree(ROOT / "params.yaml")["train"]["optimization"]
    return OptimizationParams(**{**defaults, **PRESET["train"]["optimization"], **changes})
