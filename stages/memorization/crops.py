"""Copies that were cropped and enlarged again: every image, made smaller, against windows of the reference images.

A part of a training image that was enlarged to the full size is far from that image, pixel for pixel. Reduced to the
part's own size it equals a window of that image, up to interpolation. SIDES are the sizes that are tried, REACH is the
largest offset of a window's centre from the image's centre. Every window of the candidates is searched.
"""

import dataclasses

import numpy as np

from stages.engine import resize_kernels
from stages.engine.products import spread
from stages.memorization.reduced import COARSE
from stages.search.alignment import best_window

SIDES = (31 / 32, 30 / 32, 29 / 32, 28 / 32, 27 / 32, 26 / 32)  # of the image's side
REACH = 3  # pixels, along each axis


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


def best_crop(images: np.ndarray, reference: np.ndarray, candidates: np.ndarray) -> Cropped:
    """Return the window that each image fits best when it is made smaller; ties to the larger side.

    Args:
        images: uint8 (N, H, W, C); reference: uint8 (M, H, W, C).
        candidates: int64 (N, S), the reference rows that are tried.
    """
    best = Cropped(candidates[:, 0].copy(), np.zeros((len(images), 3), np.int64), np.full(len(images), np.inf))
    whole = images.shape[1]
    for side in window_sides(whole, SIDES):
        found = best_window(shrunk(images, side), reference, candidates, np.array(_places(whole - side)))
        nearer = found.distance < best.distance
        best.row[nearer], best.distance[nearer] = found.row[nearer], found.distance[nearer]
        best.window[nearer, :2], best.window[nearer, 2] = found.shift[nearer], side
    return dataclasses.replace(best, distance=np.where(np.isinf(best.distance), np.nan, best.distance))


def window_sides(side: int, parts: tuple[float, ...]) -> list[int]:
    """Return `parts` of a side in pixels: descending, smaller than it, at least COARSE."""
    return sorted({round(part * side) for part in parts} - set(range(COARSE)) - {side}, reverse=True)


def shrunk(images: np.ndarray, side: int) -> np.ndarray:
    """Return square images uint8 (N, H, H, C) at side × side pixels, bicubic, as Pillow makes them."""
    images, made = np.ascontiguousarray(images), np.empty((len(images), side, side, images.shape[3]), np.uint8)
    spread(lambda a, b: resize_kernels.resize_all(images[a:b], made[a:b]), len(images))
    return made


def _places(room: int) -> list[tuple[int, int]]:
    """Return the places (y, x) of windows that leave `room` beside them, at most REACH from the middle."""
    middle = room // 2
    steps = range(max(0, middle - REACH), min(room, middle + REACH) + 1)
    return [(y, x) for y in steps for x in steps]
