"""Known copies of known training images, to measure what the metrics find."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from stages.files.png import as_picture

NOISE = 0.03  # standard deviation, pixels in [0, 1]
JPEG_QUALITY = 60
SHIFT = 2
CROP = (0.8, 0.95)  # part of the side that is left, anywhere in the image, before resizing back

WORDS = {
    "exact": "the training image itself",
    "noise": f"with Gaussian noise of standard deviation {NOISE:g}",
    "jpeg": f"as JPEG of quality {JPEG_QUALITY}",
    "mirrored": "mirrored left to right",
    "shifted": f"shifted by up to {SHIFT} pixels along each axis",
    "cropped": f"cropped to {CROP[0]:.0%} to {CROP[1]:.0%} of the side, anywhere, and resized back",
    "duplicated": f"of a training image that repeats, with noise of {NOISE:g}",
}


def plant(images: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Return copies of `images`, uint8 (N, H, W, C), changed as `kind` (a key of WORDS) says; reproducible."""
    generator = np.random.default_rng([seed, list(WORDS).index(kind)])
    return np.stack([_CHANGES[kind](image, generator) for image in images])


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Return a uint8 image (H, W, C) after JPEG compression."""
    buffer = io.BytesIO()
    as_picture(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.uint8).reshape(image.shape)


def _noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    noisy = image + 255 * NOISE * generator.standard_normal(image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _shifted(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shift by a random nonzero offset, the border repeated."""
    reach = min(SHIFT, (min(image.shape[:2]) - 1) // 2)
    shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
    dy, dx = shifts[generator.integers(len(shifts))] if shifts else (0, 0)
    rows = np.clip(np.arange(image.shape[0]) + dy, 0, image.shape[0] - 1)
    return image[rows][:, np.clip(np.arange(image.shape[1]) + dx, 0, image.shape[1] - 1)]


def _cropped(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    part = generator.uniform(*CROP)
    left, top = generator.uniform(0, 1 - part, 2) * (width, height)
    box = (left, top, left + part * width, top + part * height)
    resized = as_picture(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, np.uint8).reshape(image.shape)


_CHANGES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "exact": lambda image, _: image,
    "noise": _noise,
    "jpeg": lambda image, _: jpeg(image, JPEG_QUALITY),
    "mirrored": lambda image, _: image[:, ::-1],
    "shifted": _shifted,
    "cropped": _cropped,
    "duplicated": _noise,
}
