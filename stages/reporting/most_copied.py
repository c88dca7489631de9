"""One training image across the models ([P] Fig. 3d): the training images that most variants copy, and the sample of
every variant that lies nearest to each.

A variant copies an image where a sample has it as its nearest training image and r₁/r₂ below filter.ratios' limit of a
near copy. Images are ordered by the number of such variants, then of such samples in all of them, then by their row.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.reporting.inputs import Variant
from stages.reporting.pictures import png_uri

COLUMNS = 12
"""Training images that are shown at most."""


@dataclasses.dataclass(frozen=True)
class Copied:
    """A training image with the number of variants that copy it, and of their samples that do."""

    row: int
    variants: int
    samples: int


@dataclasses.dataclass(frozen=True)
class Across:
    """What the page shows: the training images, and a row per variant with its nearest sample to each."""

    images: list[dict[str, Any]]
    rows: list[dict[str, Any]]


def most_copied(variants: Sequence[Variant], count: int = COLUMNS) -> list[Copied]:
    """Return the `count` training images that most variants copy; fewer where fewer are copied at all."""
    by_variants: Counter[int] = Counter()
    by_samples: Counter[int] = Counter()
    for variant in variants:
        own = Counter(_copied_rows(variant))
        by_variants.update(own.keys())
        by_samples.update(own)
    order = sorted(by_variants, key=lambda row: (-by_variants[row], -by_samples[row], row))
    return [Copied(row, by_variants[row], by_samples[row]) for row in order[:count]]


def _copied_rows(variant: Variant) -> list[int]:
    """Return the nearest training image of every sample that copies it."""
    _, below = variant.limits
    return variant.pairs["train_index"].to_numpy()[variant.pairs["ratio"].to_numpy() < below].tolist()


def columns(found: Sequence[Copied], train: np.ndarray) -> list[dict[str, Any]]:
    """Return the training images as the page shows them. train: uint8 (M, H, W, C)."""
    return [{**dataclasses.asdict(copied), "image": png_uri(train[copied.row])} for copied in found]


def nearest_rows(
    found: Sequence[Copied], variants: Sequence[Variant], nearest: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> list[dict[str, Any]]:
    """Return a row per variant with its nearest sample to every training image.

    nearest: variant -> the samples' numbers int64 (n,) and their pixel distances float64 (n,), in the order of `found`.
    """
    return [{"variant": own.name, "tiles": _tiles(found, own, *nearest[own.name])} for own in variants]


def _tiles(
    found: Sequence[Copied], variant: Variant, samples: np.ndarray, distances: np.ndarray
) -> list[dict[str, Any]]:
    pairs = variant.pairs.select(["sample_index", "train_index", "ratio", "verdict"])
    own = {pair["sample_index"]: pair for pair in pairs.filter(_among(pairs, samples)).to_pylist()}
    return [
        {
            **own[sample],
            "distance": distance,
            "image": png_uri(variant.samples.images[sample]),
            "is_nearest": own[sample]["train_index"] == copied.row,
        }
        for copied, sample, distance in zip(found, samples.tolist(), distances.tolist())
    ]


def _among(pairs: Any, samples: np.ndarray) -> np.ndarray:
    return np.isin(pairs["sample_index"].to_numpy(), samples)
