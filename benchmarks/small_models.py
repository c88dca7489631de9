"""Small networks on a few images, trained in this process: what onset, halves, risk, adaptive and thermometer share.

Images, noise levels, network, optimization and variants are those of preset onset, or of another one (`use`).
"""

import argparse
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.preset import parameters
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
DEFAULT = "onset"


def entries(tree: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The variants of a preset, those that differ from them in their temperature alone, and one-temperature.

    The target of one-temperature, over 25 images, is the closed form at one temperature at every level.
    """
    found = tree["variants"]
    smoothed = found["smoothed"]
    rules = {"five-over-sigma": "5/sigma", "nonexpansive": "nonexpansive", "perplexity-3": "perplexity(3)"}
    others = {name: smoothed | {"temperature": rule} for name, rule in rules.items()}
    others["one-temperature"] = smoothed | {"smooth_below": None, "neighbors": {"space": "pixel", "k": 25}}
    return found | others


def use(preset: str, device: str = "cpu") -> None:
    """Take source, side, levels, network, rates and variants from a preset, and a device, from here on."""
    global TREE, ENTRIES, NOISE, SIDE, DEVICE
    TREE = parameters(preset, ROOT / "params.yaml")
    ENTRIES, NOISE, SIDE = entries(TREE), NoiseParams(**TREE["train"]["noise"]), TREE["ingest"]["resolution"]
    DEVICE = torch.device(device)


use(DEFAULT)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `use_options`, and the number of threads."""
    parser.add_argument("--preset", default=DEFAULT, help="images, network and rates; onset-cifar10 is for a GPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)


def use_options(options: argparse.Namespace) -> None:
    """Take preset, device and threads from the command line."""
    torch.set_num_threads(options.threads)
    use(options.preset, options.device)


def network() -> NetworkParams:
    """The preset's network."""
    return NetworkParams(**TREE["train"]["network"])


def optimization(**changes: Any) -> OptimizationParams:
    """The preset's optimization, with some keys changed."""
    return OptimizationParams(**{**TREE["train"]["optimization"], **changes})


def variant(name: str) -> Variant:
    """One of `entries`."""
    return Variant(**ENTRIES[name])


def pool() -> np.ndarray:
    """All images of the preset's source, uint8 (N, side, side, C)."""
    return digits(TREE["ingest"]["source"], SIDE)


@functools.lru_cache(maxsize=1)
def digits(source: str = "mnist5k", side: int = 8, label: int | None = None) -> np.ndarray:
    """All images of a source, or of one of its classes, uint8 (N, side, side, C)."""
    opened = open_source(source)
    wanted = np.arange(len(opened)) if label is None else np.flatnonzero(opened.labels == label)
    return read_subset(opened, wanted, side)


def drawn(count: int, held_out: int, seed: int, images: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """`count` training and `held_out` other images of a seed's order; smaller training sets lie within larger ones."""
    some = pool() if images is None else images
    order = np.random.default_rng(seed).permutation(len(some))
    return some[order[held_out : held_out + count]], some[order[:held_out]]


def training(name: str, train: np.ndarray, seed: int, params: OptimizationParams) -> Training:
    """The training of a variant on images uint8 (M, H, W, C), before its first step."""
    return small.new_training(variant(name), NOISE, network(), params, train, seed, DEVICE)


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
    rates = optimization().model_dump(exclude={"steps"})
    settings = [name, seed, step, rates, network().model_dump(), NOISE.model_dump(), ENTRIES[name]]
    return f"{sha256_json([*settings, hashlib.sha256(train.tobytes()).hexdigest()])[:16]}.safetensors"


def _read(name: str, train: np.ndarray, seed: int, place: Path) -> torch.nn.Module:
    made = training(name, train, seed, optimization()).network
    made.load_state_dict(load_tensors(place)[0])
    return made.requires_grad_(False).eval()


def samples(spec: Variant, network: torch.nn.Module | None, train: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Samples 0..count-1 of a network, or of a closed form (None), uint8 (count, H, W, C)."""
    return small.samples(spec, NOISE, train, count, seed, network, DEVICE)


def picture(image: np.ndarray) -> Image.Image:
    """An image uint8 (H, W, C) as a picture."""
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
