"""Duplicate groups of the training images, and the half of them that stands in for a missing holdout set."""

import dataclasses

import numpy as np

from stages.auditing.store import Arrays, Store
from stages.images.duplicates import Images, Pairs, connected_groups, near_pairs, squared_radius
from stages.images.store import ImageTable


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Attributes: group int64 (N,), equal for the images of one group; how many groups of two and more there are, and
    how many images are in them."""

    group: np.ndarray
    groups: int
    images: int

    @property
    def repeated(self) -> np.ndarray:
        """The rows of all images that are in a group of two and more."""
        return np.flatnonzero(np.bincount(self.group, minlength=len(self.group))[self.group] > 1)


def find_duplicates(
    table: ImageTable, near: float, digest: str, store: Store, budget: int, cost: float
) -> Duplicates:
    """Groups of images within pixel distance `near` of each other (connected; equal images always), exactly."""

    def compute() -> Arrays:
        images = Images([table])
        first = images.first_rows()
        rows, again = np.unique(first), np.flatnonzero(first != np.arange(len(first)))
        pairs = near_pairs(images, rows, squared_radius(near, table.dimension), 0, len(rows), budget)
        found = Pairs.union([pairs, Pairs(first[again], again, np.zeros(len(again)))])
        groups = connected_groups(len(images), {"near": (found.i, found.j)})
        group = np.arange(len(images))
        group[groups.row] = groups.representative
        return {"group": group}

    group = store.arrays("duplicates", [digest, repr(near)], cost, compute)["group"]
    sizes = np.bincount(group, minlength=len(group))
    return Duplicates(group, int((sizes > 1).sum()), int(sizes[sizes > 1].sum()))


def halves(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves of the training images, ascending; a duplicate group stays in one half.

    Groups are dealt in seeded order until the first half holds half of the images.
    """
    names, first = np.unique(group, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    sizes = np.bincount(first)[order]
    left = np.zeros(len(names), bool)
    left[order[np.cumsum(sizes) <= len(group) // 2]] = True
    chosen = left[first]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
