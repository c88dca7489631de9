"""Runs of benchmarks.risk: training sets of which some images are repeated, and which of them a model copies.

A run is a training set of which a tenth of the images is repeated up to three times, and two independent sets of
samples of a model: SAMPLES per training image, from which its label comes (an image is copied if a sample copies it),
and AGAIN per training image, from which the probability of that label comes. A sample copies its nearest image, with
that image's duplicate group, where r1/r2 < RATIO, r2 outside the group.

FashionMNIST is the Debian package dataset-fashion-mnist: its files, in the folder FashionMNIST/raw of a folder ROOT,
are the source torchvision:FashionMNIST?root=ROOT.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import small_models
from benchmarks.league import FORMS
from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.files.images import image_id
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.memorization.groups import find_duplicates
from stages.memorization.matching import BUDGET, own_neighbors
from stages.search.nearest import nearest

SIDE, SAMPLES, AGAIN, RATIO, HELD_OUT = 8, 5, 100, 0.7, 500
WIDTH = 0.385  # the kernel's h, over the median distance to the nearest other image
RADIUS, LEFT = 1.9, 1.05  # sigma sqrt(d) over that distance: where temperature begins, and what tikhonov leaves
STEPS = 14  # of a network's training, per training image: about a quarter of its samples are copies then
CLOSED = ("kernel", "temperature", "loader-25", "tikhonov")
NETWORKS = ("plain", "smoothed")
CLASSES = (1, 7)  # of CIFAR-10: cars and horses
READ = 1_500  # images of each
FASHION = 3_000  # of FashionMNIST: the first, of all classes
AT_ONCE = 500  # samples


@functools.lru_cache(maxsize=1)
def sources(cifar: Path | None, fashion: str | None = None) -> dict[str, np.ndarray]:
    """Images of 8 x 8 by name. cifar: train.parquet of CIFAR-10; fashion: the source of FashionMNIST."""
    from sklearn.datasets import load_digits

    found = {"digits": small_models.digits("mnist5k", SIDE)}
    found["scikit-learn digits"] = np.round(load_digits().images * 255 / 16).astype(np.uint8)[..., None]
    if cifar is not None:
        opened = open_source(f"parquet:{cifar}")
        for wanted in CLASSES:
            rows = np.flatnonzero(opened.labels == wanted)[:READ]
            found[f"CIFAR-10 class {wanted}"] = read_subset(opened, rows, SIDE)
    if fashion is not None:
        found["FashionMNIST"] = read_subset(open_source(fashion), np.arange(FASHION), SIDE)
    return found


def repeated(images: np.ndarray, count: int, seed: int) -> np.ndarray:
    """`count` images of a seed's order, of which a tenth stands in place of others up to three more times."""
    train = small_models.drawn(count, HELD_OUT, seed, images)[0].copy()
    generator, place = np.random.default_rng([seed, 1]), count - 1
    for source in range(count // 10):
        for _ in range(int(generator.integers(1, 4))):
            train[place], place = train[source], place - 1
    return train


def groups(train: np.ndarray) -> np.ndarray:
    """The duplicate group of every image."""
    flat = small_models.flat(train)
    own = own_neighbors(flat, 0, len(flat), BUDGET)
    return find_duplicates([image_id(image) for image in train], own, flat.shape[1]).group


def copied_groups(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The group that each copy copies, int64 (copies,)."""
    flat = small_models.flat(train)
    index, squared = nearest(small_models.flat(images), flat, min(12, len(flat)))
    away = group[index] != group[index[:, :1]]
    beyond = np.where(away, squared, np.iinfo(np.int64).max).min(1)
    return group[index[np.sqrt(squared[:, 0]) < RATIO * np.sqrt(beyond), 0]]


def copies_of(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How many samples copy each training image's group, int64 (M,)."""
    return np.bincount(copied_groups(images, train, group), minlength=len(train))[group]


def spacing(train: np.ndarray, group: np.ndarray) -> float:
    """The median distance to the nearest image of another group, pixels in [0, 1]."""
    flat = small_models.flat(train)
    index, squared = nearest(flat, flat, min(12, len(flat)))
    return float(np.sqrt(np.median(np.where(group[index] != group[:, None], squared, np.inf).min(1)))) / 255


def form(name: str, train: np.ndarray, strength: float = 1.0) -> Variant:
    """A closed form that smooths, by as much as the images are apart; more where the strength is above 1."""
    apart = strength * spacing(train, groups(train))
    level = apart / train[0].size ** 0.5
    own = {
        "kernel": {"kernel": {"h": round(WIDTH * apart, 4), "draws": 16}},
        "temperature": {"smooth_below": round(RADIUS * level, 4)},
        "loader-25": {"loader_batch": max(2, round(25 / strength))},
        "tikhonov": {"penalty": round(LEFT * level, 4)},
    }
    return Variant(score="closed-form", **{**FORMS[name], **own.get(name, {})})


def model(name: str, train: np.ndarray, seed: int, steps: int | None, keep: Path | None) -> Model:
    """A closed form over the training images, or a network after `steps` steps (None: STEPS per image)."""
    if name in CLOSED:
        return closed(form(name, train), train)
    network = small_models.network_of(name, train, seed, steps or STEPS * len(train), keep)
    return make_model(small_models.variant(name), small_models.NOISE, train, network, small_models.CPU)


def closed(spec: Variant, train: np.ndarray) -> Model:
    """A closed form over the training images."""
    return make_model(spec, small_models.NOISE, train, None, small_models.CPU)


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
