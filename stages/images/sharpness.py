"""Sharpness and roughness of images by their total variation: blurred ones have little of it, noisy ones much."""

import numpy as np

from stages.errors import InputError

BLOCK_BYTES = 1 << 25


def total_variation(images: np.ndarray) -> np.ndarray:
    """Return the mean absolute difference of adjacent pixels of every image, float64 (N,), pixels in [0, 1].

    It is the anisotropic total variation (after Rudin, Osher & Fatemi 1992) divided by the number of pairs of pixels
    that are horizontal or vertical neighbours, so that images of any size compare: 0 for one grey, 1/3 for
    independent uniform pixels, 1 for a chessboard.

    images: uint8 (N, H, W, C). Raises InputError for images of one pixel, which has no neighbour.
    """
    count, height, width, channels = images.shape
    pairs = channels * ((height - 1) * width + height * (width - 1))
    if pairs == 0:
        raise InputError(f"images of {height} × {width} pixels have no adjacent pixels to compare")
    variation = np.empty(count)
    step = max(1, BLOCK_BYTES // (2 * height * width * channels))
    for start in range(0, count, step):
        part = images[start : start + step].astype(np.int16)
        down, across = (np.abs(np.diff(part, axis=axis)).sum(axis=(1, 2, 3), dtype=np.int64) for axis in (1, 2))
        variation[start : start + step] = (down + across) / (255 * pairs)
    return variation


def roughness(images: np.ndarray) -> np.ndarray:
    """Return the total variation over the pixels' standard deviation of every image, float64 (N,); 0 for one colour.

    It does not depend on an image's contrast: about 1.13 for Gaussian noise of any strength, a third of that and less
    for pictures. The deviation is that of each channel from its own mean.

    images: uint8 (N, H, W, C).
    """
    variation = total_variation(images)
    deviation = np.array([np.sqrt(image.var(axis=(0, 1)).mean()) / 255 for image in images])
    return np.divide(variation, deviation, out=np.zeros(len(images)), where=deviation > 0)


def relative_sharpness(images: np.ndarray, held_out: np.ndarray) -> float:
    """Return the mean total variation of `images` as a multiple of that of held-out images; uint8 (N, H, W, C) both.

    Raises InputError for an empty set, and where the held-out images are all blank.
    """
    if not len(images) or not len(held_out):
        raise InputError(
            f"sharpness compares {len(images)} images with {len(held_out)} held-out ones: neither may be 0"
        )
    reference = float(total_variation(held_out).mean())
    if reference == 0:
        raise InputError("every held-out image has one colour: sharpness relative to them is not defined")
    return float(total_variation(images).mean()) / reference
