"""Duplicate groups of a set of images, and the half of a training set that stands in for a missing holdout set.

Two images are near duplicates when they lie within an absolute pixel distance of each other, or when their distance
is below RELATIVE of what is usual around either of them: on natural images, re-encoded, cropped or retouched copies
lie far apart in pixels but much nearer than anything else.
"""

import dataclasses

import numpy as np

from stages.auditing.store import Arrays, Store
from stages.files.images import ImageTable
from stages.images.duplicates import connected_groups
from stages.search.nearest import nearest
from stages.search.pixel_distance import pixel_distance

NEIGHBORS = 50  # of every image; what is usual is the mean distance to them
RELATIVE = 0.4
BLOCK = 12_288  # images per stored piece


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The groups of N images.

    Attributes:
        group: int64 (N,), equal for the images of one group.
        groups, images: how many groups of two and more there are, and how many images are in them.
        near: the absolute distance (pixels in [0, 1]) that was used.
        index, squared: int64 (N, k), every image's nearest other images and the squared distances to them.
    """

    group: np.ndarray
    groups: int
    images: int
    near: float
    index: np.ndarray
    squared: np.ndarray


def expected_seconds(count: int, dimension: int) -> float:
    """Estimated seconds of `find_duplicates`, for the progress bar."""
    return 6e-12 * count * count * dimension**0.9


def find_duplicates(
    table: ImageTable, near: float | None, share: float, digest: str, store: Store, budget: int
) -> Duplicates:
    """Groups of near duplicates: connected pairs among every image's exact NEIGHBORS nearest; equal images always.

    Args:
        near: the absolute distance, or None for `share` of the median distance to the nearest other image.
        digest: of the table, for the store.
    """
    flat, count = table.flat, len(table)
    k = min(NEIGHBORS, count - 1)
    index, squared = np.zeros((count, k), np.int64), np.zeros((count, k), np.int64)
    for start in range(0, count if k else 0, BLOCK):
        span = slice(start, min(start + BLOCK, count))

        def compute(span: slice = span) -> Arrays:
            rows = np.arange(span.start, span.stop)
            found = nearest(flat[span], flat, k, exclude=rows, memory_budget=budget)
            return dict(zip(("index", "squared"), found))

        cost = expected_seconds(count, table.dimension) * (span.stop - span.start) / count
        found = store.arrays("own", [digest, k, span.start, span.stop], cost, compute)
        index[span], squared[span] = found["index"], found["squared"]
    distance = pixel_distance(squared, table.dimension)
    if near is None:
        near = float(f"{share * np.median(distance[:, 0]):.3g}") if k else 0.0
    group = _groups(table.ids, index, distance, near)
    sizes = np.bincount(group)
    return Duplicates(group, int((sizes > 1).sum()), int(sizes[sizes > 1].sum()), near, index, squared)


def _groups(ids: list[str], index: np.ndarray, distance: np.ndarray, near: float) -> np.ndarray:
    usual = distance.mean(axis=1) if distance.size else np.zeros(len(ids))
    limit = np.maximum(near, RELATIVE * np.maximum(usual[:, None], usual[index]))
    i, place = np.nonzero(distance <= limit)
    first: dict[str, int] = {}
    equal = np.array([first.setdefault(name, row) for row, name in enumerate(ids)], np.int64)
    again = np.flatnonzero(equal != np.arange(len(ids)))
    edges = np.concatenate([i, again]), np.concatenate([index[i, place], equal[again]])
    groups = connected_groups(len(ids), {"near": edges})
    group = np.arange(len(ids))
    group[groups.row] = groups.representative
    return group


def halves(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves of the training images, ascending; a duplicate group stays in one half.

    Groups are dealt in seeded order until the first half would hold more than half of the images.
    """
    names, place = np.unique(group, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    left = np.zeros(len(names), bool)
    left[order[np.cumsum(np.bincount(place)[order]) <= len(group) // 2]] = True
    chosen = left[place]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
