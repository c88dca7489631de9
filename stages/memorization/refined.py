"""Copies that were cropped or shrunk, measured again at full resolution.

The search of crops tries whole pixels, that of shrunk copies compares CELLS × CELLS cells: what their interpolation
leaves is a part of the distance of a true copy, and most of it where an image has fine detail. So where either brings
an image near, the change itself is made to the training image that it names, at the sizes and places around, and the
lesser distance counts. Unseen images are measured again by the same rule.
"""

import itertools
import math

import numpy as np

from stages.engine import nuisance_kernels
from stages.engine.products import spread
from stages.engine.resize_kernels import best_boxes
from stages.files.arrays import Arrays
from stages.memorization.crops import Cropped, shrunk
from stages.memorization.mixtures import SUSPECT
from stages.memorization.nuisances import KINDS, ROUNDING, VIEWS, best_first
from stages.search.pixel_distance import pixel_distance

STEPS_PER_SIDE = 64  # the first step of the search of a box, of the side: half of that between two sizes of crops
FINEST = 0.125  # pixels, its last step
LARGEST = 128  # pixels per side at which shrunk copies are compared: larger ones are made smaller
SHRUNK = KINDS.index("shrunk")
SHRUNK_TRIED = 4
SHRUNK_NEAR = 0.85  # of the last listed match: the cells alone can leave a copy of fine detail this far
# of the centre's y and x and the side: a step of the search of a box
DIRECTIONS = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 2), (0, 0, -2)], float)


def measured_crops(images: np.ndarray, reference: np.ndarray, found: Cropped, usual: np.ndarray) -> np.ndarray:
    """Return the distances of `found`, float64 (N,), measured again below SUSPECT of what is usual.

    Args:
        images: uint8 (N, H, W, C); reference: uint8 (M, H, W, C).
        usual: float64 (N,), the distance of the last listed neighbour, which ρ's scale does not exceed unless most of
            the listed are one duplicate group: root mean squared difference, pixels in [0, 1].
    """
    distance = found.distance.copy()
    near = np.flatnonzero(distance < SUSPECT * usual)
    y, x, side = found.window[near].T
    boxes = np.stack([y + side / 2, x + side / 2, side], axis=1).astype(float)
    distance[near] = np.minimum(distance[near], _best_boxes(images[near], reference[found.row[near]], boxes))
    return distance


def _best_boxes(images: np.ndarray, wholes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the least distance of each image, float64 (N,), from the boxes of its whole around boxes, float64 (N, 3).

    A box (y and x of the centre, side; pixels), moved inside its whole, is enlarged to the size of the image.
    """
    found, step = np.empty(len(images), np.int64), max(FINEST, images.shape[1] / STEPS_PER_SIDE)

    def work(a: int, b: int) -> None:
        best_boxes(images[a:b], wholes[a:b], boxes[a:b], DIRECTIONS, step, FINEST, found[a:b])

    spread(work, len(images))
    return pixel_distance(found, images[0].size if len(images) else 1)


def measured_shrunk(images: np.ndarray, reference: np.ndarray, found: Arrays) -> Arrays:
    """Return what `nuisances.explain` found, its best SHRUNK_TRIED shrunk matches measured again where they are near.

    images: uint8 (N, H, W, C); reference: uint8 (M, H, W, C). A match, made smaller to each side around the view's, is
    compared with the middle of the image up to colours; its residual and relative distance are the lesser ones.
    """
    found = {name: values.copy() for name, values in found.items()}
    row, view, relative, residual = (found[name][:, SHRUNK] for name in ("row", "view", "relative", "residual"))
    last = np.where(np.isinf(relative), 0, relative).max(1, keepdims=True)
    near = relative < SHRUNK_NEAR * last
    near[:, SHRUNK_TRIED:] = False
    for which in np.unique(view[near]):
        places = np.nonzero(near & (view == which))
        tried = _sizes(images[places[0]], reference[row[places]], VIEWS["shrunk"][which].scale)
        nearer = tried[:, 1] < relative[places]
        at = places[0][nearer], places[1][nearer]
        residual[at], relative[at] = tried[nearer].T
    return best_first(found)


def _sizes(images: np.ndarray, wholes: np.ndarray, part: float) -> np.ndarray:
    """Return residual and relative distance, float64 (N, 2), at the best of the sizes around `part` of the side."""
    side = images.shape[1]
    reach = math.ceil(side / STEPS_PER_SIDE)
    sizes = range(max(2, round(part * side) - reach), min(side - 1, round(part * side) + reach) + 1)
    tried = [
        _colours(_at_most(images[:, top : top + size, left : left + size]), _at_most(shrunk(wholes, size)))
        for size in sizes
        for top, left in itertools.product({(side - size) // 2, (side - size + 1) // 2}, repeat=2)
    ]
    at = np.argmin([found[:, 1] for found in tried], axis=0)
    return np.stack(tried)[at, np.arange(len(images))]


def _at_most(images: np.ndarray) -> np.ndarray:
    """Return square images with sides of at most LARGEST pixels."""
    return images if images.shape[1] <= LARGEST else shrunk(images, LARGEST)


def _colours(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return residual and relative distance, float64 (N, 2), of images uint8 (N, h, h, C) from others up to colours."""
    count, channels = len(images), images.shape[3]
    own, other = (
        np.ascontiguousarray(some.reshape(count, -1, channels).transpose(0, 2, 1)) for some in (images, others)
    )
    mask, alone, found = np.ones((1, own.shape[2]), np.int16), np.zeros((count, 1), np.int64), np.empty((count, 1, 2))
    rows, which = np.arange(count)[:, None], np.zeros(1, np.int64)

    def work(a: int, b: int) -> None:
        mine = own[None, a:b], which, mask, alone[a:b]
        nuisance_kernels.residuals(*mine, other, rows[a:b], ROUNDING, found[a:b])

    spread(work, count)
    residual, total = found[:, 0].T
    return np.stack([residual, np.sqrt((residual + ROUNDING) / (total + ROUNDING))], axis=1)
