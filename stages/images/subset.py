"""A seeded part of any source as one array: for computations that need images but no splits."""

import numpy as np

from stages.errors import InputError
from stages.images.decode import UnreadableImage, is_grey, to_pixels
from stages.images.sources.base import Source


def subset_rows(size: int, count: int, seed: int) -> np.ndarray:
    """The first `count` of `size` rows in a seeded order, ascending, int64; all of them where there are fewer.

    A smaller subset lies within a larger one of the same seed.
    """
    return np.sort(np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")[:count])


def read_subset(source: Source, rows: np.ndarray, resolution: int | None) -> np.ndarray:
    """The images of `rows` (ascending) as uint8 (M, H, H, C); C is 1 where the first image is grey, else 3.

    resolution: H, after resizing and centre crop; None where the images are square and of one size: H is their own.
    Raises InputError naming the first image that cannot be read or does not fit.
    """
    pixels: np.ndarray | None = None
    for place, item in enumerate(source.read(rows)):
        try:
            picture = item.picture()
            if pixels is None:
                side = resolution or picture.width
                pixels = np.empty((len(rows), side, side, 1 if is_grey(picture) else 3), np.uint8)
            if resolution is None and picture.size != (side, side):
                size = f"{picture.width} × {picture.height}, not {side} × {side}"
                raise InputError(f"{item.where} of {source.spec} is {size}: set a resolution")
            pixels[place] = to_pixels(picture, *pixels.shape[2:])
        except UnreadableImage as error:
            raise InputError(f"{item.where} of {source.spec} is unreadable ({error}): repair or remove it") from error
    if pixels is None:
        raise InputError(f"{source.spec}: no images to read")
    return pixels
