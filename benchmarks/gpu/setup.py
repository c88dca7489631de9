"""What the parts share: the two scales, the models, a trainer without the stage's files."""

import dataclasses
import gc
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import published
from benchmarks.published import NOISE
from stages.diffusion.parameters import NetworkParams, OptimizationParams, Variant
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import build_training

OPTIMIZATION = published.optimization(
    warmup=500, ema=0.999, compile=False, checkpoint_every=2000, keep=1, log_every=50
)  # of trainings that last minutes
MODELS = {
    "conditioning": {"form": "conditioning"},
    "unconditioning": {"form": "unconditioning"},
    **{
        f"temperature {c}/sigma": {
            "form": "temperature", "temperature": f"{c}/sigma", "neighbors": {"space": "pixel", "k": 10},
        }
        for c in (1, 7, 10)
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is.

    Attributes:
        cost: network, images, batch, neighbours, steps per turn and turns of the cost table.
        small: the network that copies, its optimization, the training images of each class, the held-out images.
        side: the images' width and height in pixels (their own, or halved by averaging).
        samples, levels, batch: per model; predictor and corrector at every level.
        probe: levels and batch of the part samplers.
        rate: network and batch of the part rate.
        queries: of the part search.
        peer: channels, batch and rounds of the part peer.
    """

    cost: tuple[NetworkParams, int, int, int, int, int]
    small: tuple[NetworkParams, OptimizationParams, tuple[int, int], int]
    side: int
    samples: int
    levels: int
    batch: int
    probe: tuple[int, int]
    rate: tuple[str, int]
    queries: int
    peer: tuple[int, int, int]


def scale(name: str, compiled: bool) -> Scale:
    """The two sizes: a GPU's, and one that a CPU ends in minutes."""
    if name == "full":
        copier = published.network(channels=64, blocks=2, dropout=0.0)
        optimization = OPTIMIZATION.model_copy(update={"learning_rate": 5e-4, "compile": compiled, "steps": 40_000})
        return Scale(
            cost=(published.network(), 50_000, 128, 30, 20, 3), small=(copier, optimization, (1000, 200), 1000),
            side=32, samples=1000, levels=250, batch=500, probe=(20, 256), rate=("cifar10", 128), queries=10_000,
            peer=(128, 128, 10),
        )  # fmt: skip
    tiny = published.network(channels=16, multipliers=[1, 2], blocks=1, attention=[])
    copier = tiny.model_copy(update={"dropout": 0.0})
    changes = {"batch": 16, "learning_rate": 2e-3, "warmup": 20, "ema": 0.99, "steps": 400, "precision": "float32"}
    return Scale(
        cost=(tiny, 500, 8, 5, 2, 2), small=(copier, OPTIMIZATION.model_copy(update=changes), (25, 5), 30), side=16,
        samples=30, levels=15, batch=30, probe=(3, 8), rate=("default", 2), queries=40, peer=(32, 2, 1),
    )  # fmt: skip


def spec(model: dict[str, Any], sampler: dict[str, Any]) -> Variant:
    """A network's variant."""
    return Variant(score="network", sampler=sampler, **model)


def make_trainer(
    variant: Variant, network: NetworkParams, optimization: OptimizationParams, images: np.ndarray,
    neighbors: np.ndarray | None, device: torch.device, scratch: Path,
) -> Trainer:  # fmt: skip
    """The trainer of stage train, without its files. images: uint8 (M, H, W, C)."""
    identity = {
        "spec": variant.model_dump(mode="json"),
        "network": network.model_dump(mode="json"),
        "optimization": optimization.model_dump(mode="json", exclude={"max_seconds"}),  # more time may be given later
        "seed": published.SEED,
        "images": hashlib.sha256(images.tobytes()).hexdigest(),
    }
    training = build_training(variant, NOISE, network, optimization, images, neighbors, device, published.SEED)
    return Trainer(training, scratch, identity)


def synchronise(device: torch.device) -> None:
    """Wait for what the GPU still does."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget() -> None:
    """Free what is no longer used, compiled code included: the compiler gives up on code that it has met too often."""
    gc.collect()
    torch.compiler.reset()


def show(name: str, row: dict[str, Any]) -> None:
    """One row, as it is ready."""
    print(f"  {name:22}", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
