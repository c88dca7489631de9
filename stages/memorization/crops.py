"""Copies that were cropped and enlarged again: every image, made smaller, against windows of the reference images.

A part of a training image that was enlarged to the full size is far from that image, pixel for pixel. Reduced to the
part's own size it equals a window of that image, up to interpolation. SIDES are the sizes that are tried, REACH is the
largest offset of a window's centre from the image's centre. A shortlist by reduced images comes first, then the exact
search of every window of it. The shortlist is made at fewer sizes, which reduced images hardly tell apart.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from PIL import Image

from stages.files.png import as_picture
from stages.memorization.reduced import COARSE, Window, reduce
from stages.search.alignment import best_window
from stages.search.nearest_short import nearest_short

SIDES = (31 / 32, 30 / 32, 29 / 32, 28 / 32, 27 / 32, 26 / 32)  # of the image's side
SHORTLIST_SIDES = (30 / 32, 27 / 32)
REACH = 3  # pixels, along each axis
NEIGHBORS = 4  # of every coarse window
PIXEL_CANDIDATES = 4

Reduced = Callable[[Window], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Cropped:
    """The best match of N images over sides and windows.

    Attributes:
        row: int64 (N,), the reference row.
        window: int64 (N, 3), (y, x, side) of the window of it; 0 where images are too small for any.
        distance: float64 (N,), root mean squared difference inside the window, pixels in [0, 1]; NaN where images are
            too small.
    """

    row: np.ndarray
    window: np.ndarray
    distance: np.ndarray


def best_crop(images: np.ndarray, reference: np.ndarray, index: np.ndarray, reduced: Reduced, budget: int) -> Cropped:
    """Return the window that each image fits best when it is made smaller; ties to the larger side.

    Args:
        images: uint8 (N, H, W, C); reference: uint8 (M, H, W, C).
        index: int64 (N, k), the nearest reference images.
        reduced: a window → what `reduce(reference, window)` returns.
    """
    best = Cropped(index[:, 0].copy(), np.zeros((len(images), 3), np.int64), np.full(len(images), np.inf))
    whole, candidates = images.shape[1], index[:, :PIXEL_CANDIDATES]
    for side in window_sides(whole, SHORTLIST_SIDES):
        near = _shortlist(shrunk(images, side), whole - side, reduced, budget)
        candidates = np.concatenate([candidates, near], axis=1)
    for side in window_sides(whole, SIDES):
        found = best_window(shrunk(images, side), reference, candidates, np.array(_places(whole - side, 0)))
        nearer = found.distance < best.distance
        best.row[nearer], best.distance[nearer] = found.row[nearer], found.distance[nearer]
        best.window[nearer, :2], best.window[nearer, 2] = found.shift[nearer], side
    return dataclasses.replace(best, distance=np.where(np.isinf(best.distance), np.nan, best.distance))


def window_sides(side: int, parts: tuple[float, ...]) -> list[int]:
    """Return `parts` of a side in pixels: descending, smaller than it, at least COARSE."""
    return sorted({round(part * side) for part in parts} - set(range(COARSE)) - {side}, reverse=True)


def shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """Return images (N, H, W, C) at side × side pixels, bicubic."""

    def small(image: np.ndarray) -> np.ndarray:
        resized = as_picture(image).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(resized, np.uint8).reshape(side, side, -1)

    return np.stack([small(image) for image in images])


def _shortlist(small: np.ndarray, room: int, reduced: Reduced, budget: int) -> np.ndarray:
    """Return the reference rows that have a near window among reduced images: int64 (N, S)."""
    side, queries, found = small.shape[1], reduce(small), []
    for y, x in _places(room, max(1, side // COARSE // 4)):
        cells = reduced((y, x, side))
        found.append(nearest_short(queries, cells, min(NEIGHBORS, len(cells)), budget))
    return np.concatenate(found, axis=1)


def _places(room: int, tolerance: int) -> list[tuple[int, int]]:
    """Return places (y, x) of windows that leave `room` beside them, at most REACH from the middle: as many that every
    such place is within `tolerance`, along each axis, of a listed one."""
    middle = room // 2
    first, last = max(0, middle - REACH), min(room, middle + REACH)
    span = last - first + 1
    count = -(-span // (2 * tolerance + 1))
    steps = [first + round((i + 0.5) * span / count - 0.5) for i in range(count)]
    return [(y, x) for y in steps for x in steps]
