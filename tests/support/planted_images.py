"""Images whose faults are known: digits, images like CIFAR's, and sets that are blank, noisy, averaged or blended."""

import functools

import numpy as np

from stages.images.sources.mnist5k import open_mnist5k
from stages.search.nearest import nearest


@functools.cache
def digits() -> np.ndarray:
    """5,000 handwritten digits, uint8 (5000, 28, 28, 1), in a seeded order."""
    pixels = open_mnist5k("").images
    return pixels[np.random.default_rng(0).permutation(len(pixels))][..., None]


@functools.cache
def colour_fields(count: int = 2400, side: int = 32) -> np.ndarray:
    """Random colour images with a natural spectrum (amplitude 1/frequency), uint8 (count, side, side, 3).

    Contrast and brightness vary from image to image as among photographs; the channels agree mostly.
    """
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    noise = rng.normal(size=(count, side, side, 3)) + 2 * rng.normal(size=(count, side, side, 1))
    fields = np.fft.irfft2(np.fft.rfft2(noise, axes=(1, 2)) / frequency[:, :, None], axes=(1, 2), s=(side, side))
    fields /= fields.std(axis=(1, 2, 3), keepdims=True)
    contrast, brightness = rng.uniform(25, 70, (count, 1, 1, 1)), rng.normal(120, 35, (count, 1, 1, 1))
    return np.clip(brightness + contrast * fields, 0, 255).round().astype(np.uint8)


def blank(images: np.ndarray, grey: int = 0) -> np.ndarray:
    """As many images of one grey."""
    return np.full_like(images, grey)


def noised(images: np.ndarray, deviation: float = 0.15) -> np.ndarray:
    """The images with Gaussian noise of this standard deviation, pixels in [0, 1]."""
    noise = np.random.default_rng(2).normal(scale=255 * deviation, size=images.shape)
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def mean_image(train: np.ndarray, count: int) -> np.ndarray:
    """`count` times the mean of all training images."""
    return np.repeat(train.mean(axis=0, keepdims=True).round().astype(np.uint8), count, axis=0)


def blended(train: np.ndarray, count: int, parts: int) -> np.ndarray:
    """Means of each of the first `count` training images and its parts − 1 nearest ones."""
    rows = train.reshape(len(train), -1)
    around, _ = nearest(rows[:count], rows, parts)
    return rows[around].mean(axis=1).round().astype(np.uint8).reshape(count, *train.shape[1:])
