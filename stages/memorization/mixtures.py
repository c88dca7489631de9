"""Images that several training images, mixed, explain better than one under a change does.

The mean of two images is often one of them under other colours, nearly, and would pass for a changed copy. For images
that a change brings near (ρ below SUSPECT) the hull of the nearest images gets further points: the match, and the
images nearest to what remains of the image without it. With d_hull (stages.memorization.blends) as small as what the
change leaves unexplained, and weights on more than one image, the image is a mixture.
"""

from collections.abc import Callable

import numpy as np

from stages.files.arrays import Arrays
from stages.memorization.blends import NEIGHBORS, Hull, hull_distance
from stages.memorization.nuisances import KINDS, OUTSIDE

SEVERAL = 1.5  # effective number above which an image is made of several: for two, weights from 0.79 and 0.21 on
SUSPECT = 2 / 3  # ρ under a change; thresholds of ρ* never exceed it
SHARES = (0.4, 0.5, 0.6, 0.7)  # of the match in a mixture, that are taken off to find what it was mixed with
COVERED_WEIGHT = 1.2  # a part of unseen images lies nearer than the whole
BLOCK = 4_096  # images whose hulls are taken at once: each has lists of lists, and its pixels in float64

READ = ("index", "mirrored_index", "changed_row", "changed_relative", "changed_mirrored")
"""What of `match` the hulls depend on."""

Nearest = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(images uint8 (Q, d), count) → rows of the nearest training images and squares, int64 (Q, count)."""


def changed_rho(row: np.ndarray, group: np.ndarray, relative: np.ndarray) -> np.ndarray:
    """Return ρ under each kind of change, float64 (N, kinds): the least distance over the mean of the next OUTSIDE ones
    that are not of the match's duplicate group; NaN where there are none. Arguments as attributes of Matches."""
    foreign = (group != group[..., :1]) & (row >= 0)
    foreign &= np.cumsum(foreign, axis=-1) <= OUTSIDE
    count = foreign.sum(axis=-1)
    total = np.where(foreign, relative, 0).sum(axis=-1)
    scale = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return np.where(np.array(KINDS) == "covered", COVERED_WEIGHT, 1.0) * relative[..., 0] / scale


def hulls(found: Arrays, sides: np.ndarray, train: np.ndarray, group: np.ndarray, nearest: Nearest) -> Arrays:
    """Return hull, effective, mixture and mixture_effective of N images, as attributes of Matches.

    found: of `match`; sides: uint8 (2, N, d), the images and their mirror images; train: uint8 (M, d); group: int64
    (M,).
    """
    spans = [slice(start, start + BLOCK) for start in range(0, len(found["index"]), BLOCK)] or [slice(0)]
    some = [_block({name: found[name][span] for name in READ}, sides[:, span], train, group, nearest) for span in spans]
    return {name: np.concatenate([part[name] for part in some]) for name in some[0]}


def _block(found: Arrays, sides: np.ndarray, train: np.ndarray, group: np.ndarray, nearest: Nearest) -> Arrays:
    points = _first_of_groups(found["index"], group)
    hull = hull_distance(sides[0], train, points)
    mixture, effective = hull.distance.copy(), hull.effective_number
    row = found["changed_row"]
    rho = changed_rho(row, np.where(row < 0, -1, group[row]), found["changed_relative"])
    rho = np.where(np.isnan(rho), np.inf, rho)
    some = np.flatnonzero(rho.min(axis=1) < SUSPECT)
    if len(some):
        kind = rho[some].argmin(axis=1)
        turned = found["changed_mirrored"][some, kind, 0]
        mirrored_points = _first_of_groups(found["mirrored_index"][some], group)
        points = np.where(turned[:, None], mirrored_points, points[some])
        wider = _wider(sides[turned.astype(int), some], row[some, kind, 0], points, train, nearest)
        mixture[some], effective[some] = wider.distance, wider.effective_number
    return {
        "hull": hull.distance,
        "effective": hull.effective_number,
        "mixture": mixture,
        "mixture_effective": effective,
    }


def _wider(images: np.ndarray, match: np.ndarray, points: np.ndarray, train: np.ndarray, nearest: Nearest) -> Hull:
    """The hull of `points`, of the match, and of the images nearest to what it was mixed with at each of SHARES."""
    rest = [(images - share * train[match]) / (1 - share) for share in SHARES]
    rest = np.clip(np.rint(np.concatenate(rest)), 0, 255).astype(np.uint8)
    others = nearest(rest, 1)[0].reshape(len(SHARES), -1).T
    return hull_distance(images, train, np.concatenate([points, match[:, None], others], axis=1))


def _first_of_groups(index: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return the first of each list's rows of each group, at most NEIGHBORS, int64 (N, k); the nearest fills up."""
    own = group[index]
    again = np.tril(own[:, :, None] == own[:, None, :], -1).any(2)
    order = np.argsort(again, axis=1, kind="stable")[:, :NEIGHBORS]
    return np.where(np.take_along_axis(again, order, 1), index[:, :1], np.take_along_axis(index, order, 1))
