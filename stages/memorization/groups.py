"""Duplicate groups of a set of images, and the half of a training set that stands in for a missing held-out set.

Two images are near duplicates when they lie within an absolute pixel distance of each other, or when their distance
is below RELATIVE of what is usual around either of them: on natural images, re-encoded, cropped or retouched copies
lie far apart in pixels but much nearer than anything else.
"""

import dataclasses

import numpy as np

from stages.files.arrays import Arrays
from stages.files.images import image_id
from stages.images.duplicates import connected_groups, first_rows
from stages.memorization.neighbors import BUDGET, own_neighbors
from stages.search.pixel_distance import pixel_distance

RELATIVE = 0.4  # the usual distance around an image is the mean over its listed neighbours
NEAR_SHARE = 0.25  # share of the median distance to the nearest other image: the default absolute distance


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """The duplicate groups of N images.

    Attributes:
        group: int64 (N,), equal for the images of one group.
        groups, images: how many groups of two and more there are, and how many images are in them.
        near: the absolute distance (pixels in [0, 1]) that was used.
    """

    group: np.ndarray
    groups: int
    images: int
    near: float


def find_duplicates(ids: list[str], own: Arrays, dimension: int, near: float | None = None) -> Duplicates:
    """Return the groups of near duplicates: connected pairs among the listed neighbours; equal images always.

    Args:
        ids: N strings; equal ids are equal images.
        own: `neighbors.own_neighbors` of all N images.
        dimension: d.
        near: the absolute distance, or None for NEAR_SHARE of the median distance to the nearest other image.
    """
    index, distance = own["index"], pixel_distance(own["squared"], dimension)
    if near is None:
        near = float(f"{NEAR_SHARE * np.median(distance[:, 0]):.3g}") if distance.size else 0.0
    usual = distance.mean(axis=1) if distance.size else np.zeros(len(ids))
    limit = np.maximum(near, RELATIVE * np.maximum(usual[:, None], usual[index]))
    i, place = np.nonzero(distance <= limit)
    equal = first_rows(ids)
    again = np.flatnonzero(equal != np.arange(len(ids)))
    edges = np.concatenate([i, again]), np.concatenate([index[i, place], equal[again]])
    groups = connected_groups(len(ids), {"near": edges})
    group = np.arange(len(ids))
    group[groups.row] = groups.representative
    sizes = np.bincount(group)
    return Duplicates(group, int((sizes > 1).sum()), int(sizes[sizes > 1].sum()), near)


def duplicates_among(images: np.ndarray, own: Arrays | None = None) -> Duplicates:
    """Return the groups of near duplicates of images uint8 (N, H, W, C). own: as `find_duplicates`, if it is known."""
    flat = images.reshape(len(images), -1)
    own = own_neighbors(flat, 0, len(flat), BUDGET) if own is None else own
    return find_duplicates([image_id(image) for image in images], own, flat.shape[1])


def halves(group: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of two halves of the training images, ascending; a duplicate group stays in one half.

    Groups are dealt in seeded order until the first half would hold more than half of the images.
    """
    names, place = np.unique(group, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    left = np.zeros(len(names), bool)
    left[order[np.cumsum(np.bincount(place)[order]) <= len(group) // 2]] = True
    chosen = left[place]
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)
