"""Runs of benchmarks.risk: training sets of which some images are repeated, and which of them a model copies.

A run is a training set of which a tenth of the images is repeated up to three times, as in the block copied_images of
stage verify, and two independent sets of samples of a model: SAMPLES per training image, from which its label comes (an
image is copied if a sample copies it), and AGAIN per training image, from which the probability of that comes.

FashionMNIST is the Debian package dataset-fashion-mnist: its files, in the folder FashionMNIST/raw of a folder ROOT,
are the source torchvision:FashionMNIST?root=ROOT.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import small_models
from stages.beyond.copied_images import CLOSED, copies_of, form, with_repeats
from stages.beyond.small_models import closed_form
from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.memorization.groups import duplicates_among

SIDE, SAMPLES, AGAIN, HELD_OUT = 8, 5, 100, 500
STEPS = 14  # of a network's training, per training image: about a quarter of its samples are copies then
NETWORKS = ("plain", "smoothed")
CLASSES = (1, 7)  # of CIFAR-10: cars and horses
READ = 1_500  # images of each
AT_ONCE = 500  # samples
FASHION = 3_000  # of FashionMNIST: the first, of all classes


@functools.lru_cache(maxsize=1)
def sources(
    cifar: Path | None, fashion: str | None = None, classes: tuple[int, ...] = CLASSES
) -> dict[str, np.ndarray]:
    """Images of 8 x 8 by name. cifar: train.parquet of CIFAR-10, and which classes; fashion: FashionMNIST's source."""
    from sklearn.datasets import load_digits

    found = {"digits": small_models.digits("mnist5k", SIDE)}
    found["scikit-learn digits"] = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    if cifar is not None:
        opened = open_source(f"parquet:{cifar}")
        for wanted in classes:
            rows = np.flatnonzero(opened.labels == wanted)[:READ]
            found[f"CIFAR-10 class {wanted}"] = read_subset(opened, rows, SIDE)
    if fashion is not None:
        found["FashionMNIST"] = read_subset(open_source(fashion), np.arange(FASHION), SIDE)
    return found


def repeated(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images of a seed's order, of which a tenth stands in place of others up to three more times."""
    return with_repeats(small_models.drawn(count, HELD_OUT, seed, images)[0], seed)


def groups(train: np.ndarray) -> np.ndarray:
    """The duplicate group of every image."""
    return duplicates_among(train).group


def model(name: str, train: np.ndarray, seed: int, steps: int | None, keep: Path | None) -> Model:
    """A closed form over the training images, or a network after `steps` steps (None: STEPS per image)."""
    if name in CLOSED:
        return closed(form(name, train), train)
    network = small_models.network_of(name, train, seed, steps or STEPS * len(train), keep)
    return make_model(small_models.variant(name), small_models.NOISE, train, network, small_models.CPU)


def closed(spec: Variant, train: np.ndarray) -> Model:
    """A closed form over the training images."""
    return closed_form(spec, small_models.NOISE, train)


def drawn(made: Model, seed: int, count: int) -> np.ndarray:
    """Samples of a model, uint8 (count, H, W, C); `seed` draws the noise alone."""
    with torch.inference_mode():
        return draw_samples(made, seed, count, AT_ONCE)


def run(source: str, name: str, train: np.ndarray, seed: int, steps: int | None, keep: Path | None) -> dict[str, Any]:
    """The copies of every image among SAMPLES and among AGAIN other samples per training image."""
    group, made = groups(train), model(name, train, seed, steps, keep)
    counts = [copies_of(drawn(made, own, each * len(train)), train, group) for own, each in
              ((seed, SAMPLES), (1000 + seed, AGAIN))]  # fmt: skip
    row = {"source": source, "score": name, "size": len(train), "seed": seed, "steps": steps}
    row |= {"further": AGAIN}
    return row | {"copies": counts[0].tolist(), "again": counts[1].tolist()}
