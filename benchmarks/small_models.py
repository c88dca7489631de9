"""Small networks on a few digits, trained in this process: what onset, halves, risk, adaptive and thermometer share.

Noise levels, network, optimization and variants are those of pipeline/presets/onset.yaml over params.yaml.
"""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.beyond import small_models as small
from stages.beyond.measures import flat as flat
from stages.beyond.small_models import CPU as CPU
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.diffusion.training import Training
from stages.files.artifacts import sha256_json
from stages.files.tensors import load_tensors, save_tensors
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.protocol import load_tree

ROOT = Path(__file__).parent.parent
BASE = load_tree(ROOT / "params.yaml")
PRESETS = ROOT / "pipeline" / "presets"
PRESET = load_tree(PRESETS / "onset.yaml")
ENTRIES = load_tree(PRESETS / "adaptive-temperature.yaml")["variants"] | PRESET["variants"]
ENTRIES["one-temperature"] = ENTRIES["smoothed"] | {"smooth_below": None, "neighbors": {"space": "pixel", "k": 25}}
"""The presets' variants, and one whose target over 25 images is the closed form at one temperature at every level."""

NOISE = NoiseParams(**PRESET["train"]["noise"])
SIDE = PRESET["ingest"]["resolution"]


def network() -> NetworkParams:
    """The preset's network."""
    return NetworkParams(**{**BASE["train"]["network"], **PRESET["train"]["network"]})


def optimization(**changes: Any) -> OptimizationParams:
    """The preset's optimization, with some keys changed."""
    return OptimizationParams(**{**BASE["train"]["optimization"], **PRESET["train"]["optimization"], **changes})


def variant(name: str) -> Variant:
    """A variant of preset onset or adaptive-temperature, which extends it."""
    return Variant(**ENTRIES[name])


@functools.lru_cache(maxsize=1)
def digits(source: str = "mnist5k", side: int = SIDE, label: int | None = None) -> np.ndarray:
    """All images of a source, or of one of its classes, uint8 (N, side, side, C)."""
    opened = open_source(source)
    wanted = np.arange(len(opened)) if label is None else np.flatnonzero(opened.labels == label)
    return read_subset(opened, wanted, side)


def drawn(count: int, held_out: int, seed: int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`count` training and `held_out` other images of a seed's order; smaller training sets lie within larger ones."""
    pool = digits() if images is None else images
    order = np.random.default_rng(seed).permutation(len(pool))
    return pool[order[held_out : held_out + count]], pool[order[:held_out]]


def training(name: str, train: np.ndarray, seed: int, params: OptimizationParams) -> Training:
    """The training of a variant on images uint8 (M, H, W, C), before its first step."""
    return small.new_training(variant(name), NOISE, network(), params, train, seed)


def snapshots(
    name: str, train: np.ndarray, seed: int, steps: Sequence[int], keep: Path | None
) -> Iterator[tuple[int, torch.nn.Module]]:
    """Yield (step, averaged network) of a variant at each of the ascending steps; from the folder `keep`, where it is.

    The preset's rate is constant, so that a network does not depend on how long its training was meant to be: those of
    one training serve every benchmark that asks for the same step. Training begins where the first one is missing.
    """
    kept = [None if keep is None else keep / _file(name, train, seed, step) for step in steps]
    there = next((i for i, place in enumerate(kept) if place is None or not place.exists()), len(steps))
    for step, place in zip(steps[:there], kept):
        yield step, _read(name, train, seed, place)
    left = training(name, train, seed, optimization(steps=steps[-1])) if there < len(steps) else None
    for step, average in small.trained(left, steps[there:]) if left is not None else ():
        if keep is not None:
            save_tensors(kept[steps.index(step)], average.state_dict(), {})
        yield step, average


def network_of(name: str, train: np.ndarray, seed: int, steps: int, keep: Path | None) -> torch.nn.Module:
    """The averaged network of a variant after `steps` steps; from the folder `keep`, if it was trained before."""
    ((_, average),) = snapshots(name, train, seed, [steps], keep)
    return average


def _file(name: str, train: np.ndarray, seed: int, step: int) -> str:
    how = optimization().model_dump(exclude={"steps"}), PRESET["train"], ENTRIES[name]
    settings = [name, seed, step, *how]
    return f"{sha256_json([*settings, hashlib.sha256(train.tobytes()).hexdigest()])[:16]}.safetensors"


def _read(name: str, train: np.ndarray, seed: int, place: Path) -> torch.nn.Module:
    made = training(name, train, seed, optimization()).network
    made.load_state_dict(load_tensors(place)[0])
    return made.requires_grad_(False).eval()


def samples(spec: Variant, network: torch.nn.Module | None, train: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Samples 0..count-1 of a network, or of a closed form (None), uint8 (count, H, W, C)."""
    return small.samples(spec, NOISE, train, count, seed, network)


def picture(image: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, C) as a picture."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
