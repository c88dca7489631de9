"""A seeded part of any source as one array: for computations that need images but no splits."""

import numpy as np

from stages.errors import InputError
from stages.images.decode import UnreadableImage, to_pixels
from stages.images.sources import Source


def subset_rows(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` of `size` rows in a seeded order, ascending, int64; all of them where there are fewer.

    A smaller subset lies within a larger one of the same seed.
    """
    return np.sort(np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")[:count])


def read_subset(source: Source, rows: np.ndarray, resolution: int | None) -> np.ndarray:
    """The images of `rows` (ascending) as uint8 (M, H, H, C); C is 1 where the first image is grey, else 3.

    resolution: side after resizing and centre crop; None: the images' own, which must be square and all alike.
    Raises InputError naming the first image that cannot be read or does not fit.
    """
    pixels: np.ndarray | None = None
    side, channels = 0, 0
    for place, item in enumerate(source.read(rows)):
        if item.image is None:
            raise InputError(f"{item.where} of {source.spec} is unreadable ({item.error}): repair or remove it")
        if pixels is None:
            side = resolution or item.image.width
            channels = 1 if item.image.mode in ("1", "L", "LA", "I", "I;16", "F") else 3
            pixels = np.empty((len(rows), side, side, channels), np.uint8)
        if resolution is None and item.image.size != (side, side):
            width, height = item.image.size
            raise InputError(
                f"{item.where} of {source.spec} is {width} × {height}, not {side} × {side}: set a resolution"
            )
        try:
            pixels[place] = to_pixels(item.image, side, channels)
        except UnreadableImage as error:
            raise InputError(f"{item.where} of {source.spec} is unreadable ({error}): repair or remove it") from error
    if pixels is None:
        raise InputError(f"{source.spec}: no images to read")
    return pixels
