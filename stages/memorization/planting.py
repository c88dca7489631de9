"""Known copies of known training images, to measure what the metrics find.

A kind of change has strengths; the first one is the self-test's.
"""

import io
import itertools
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from stages.files.png import as_picture

NOISE = 0.03  # standard deviation, pixels in [0, 1]
SHIFT = 2
LARGEST_CROP = 0.95  # of the side

WORDS = {
    "exact": "the training image itself",
    "noise": "with Gaussian noise of standard deviation {:g}",
    "jpeg": "as JPEG of quality {:g}",
    "mirrored": "mirrored left to right",
    "shifted": "shifted by up to {:g} pixels along each axis, the edges repeated",
    "cropped": "cropped to {:.0%} to 95% of the side, anywhere, and resized back",
    "duplicated": "of a training image that repeats, with noise of {:g}",
    "blurred": "reduced to {:.0%} of the side and resized back",
    "grey": "in grey",
    "permuted": "with its colour channels exchanged",
    "gamma": "with gamma {:g}",
    "contrast": "with {:g} times the contrast",
    "boxed": "with a box of {:.0%} of the side replaced by a part of another training image",
    "third": "with a third replaced by that of another training image",
    "moved": "shifted by {:g} pixels along one axis or both, the edges repeated",
    "rotated": "rotated by {:g} degrees, to either side",
    "shrunk": "shrunk to {:.0%} of the side inside a border",
}
"""Kind → what it does, with a place for the strength."""

STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (NOISE, 0.06),
    "jpeg": (60, 20),
    "shifted": (SHIFT,),
    "cropped": (0.8, 0.7),
    "duplicated": (NOISE,),
    "blurred": (0.5, 0.35),
    "gamma": (1.5, 0.6, 2.2),
    "contrast": (0.6, 1.4),
    "boxed": (0.375, 0.25),
    "moved": (3, 4),
    "rotated": (8, 3, 12),
    "shrunk": (0.75, 0.875, 0.625),
}
"""Kind → its strengths, if it has any."""


def describe(kind: str, strength: float | None = None) -> str:
    """Return what a kind of change does, in words. strength: None for the self-test's."""
    return WORDS[kind].format(strength if strength is not None else STRENGTHS.get(kind, (0,))[0])


def plant(images: np.ndarray, kind: str, seed: int, strength: float | None = None) -> np.ndarray:
    """Return copies of `images`, uint8 (N, H, W, C), changed as `kind` (a key of WORDS) says; reproducible.

    strength: what STRENGTHS lists, or any other value; None for the first one listed.
    """
    generator = np.random.default_rng([seed, list(WORDS).index(kind)])
    if strength is None:
        strength = STRENGTHS.get(kind, (0,))[0]
    others = np.roll(images, 1, axis=0)  # what covers a part of an image
    change = _CHANGES[kind]
    return np.stack([change(image, generator, strength, other) for image, other in zip(images, others)])


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Return a uint8 image (H, W, C) after JPEG compression."""
    buffer = io.BytesIO()
    as_picture(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.uint8).reshape(image.shape)


def _noise(image: np.ndarray, generator: np.random.Generator, deviation: float, _: np.ndarray) -> np.ndarray:
    noisy = image + 255 * deviation * generator.standard_normal(image.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _shifted(image: np.ndarray, generator: np.random.Generator, reach: float, _: np.ndarray) -> np.ndarray:
    """Shift by a random nonzero offset, the border repeated."""
    reach = min(int(reach), (min(image.shape[:2]) - 1) // 2)
    shifts = [(y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1) if (y, x) != (0, 0)]
    return _shift(image, *shifts[generator.integers(len(shifts))] if shifts else (0, 0))


def _moved(image: np.ndarray, generator: np.random.Generator, pixels: float, _: np.ndarray) -> np.ndarray:
    pixels = min(int(pixels), (min(image.shape[:2]) - 1) // 2)
    signs = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
    dy, dx = signs[generator.integers(len(signs))]
    return _shift(image, pixels * dy, pixels * dx)


def _shift(image: np.ndarray, dy: int, dx: int) -> np.ndarray:
    rows = np.clip(np.arange(image.shape[0]) + dy, 0, image.shape[0] - 1)
    return image[rows][:, np.clip(np.arange(image.shape[1]) + dx, 0, image.shape[1] - 1)]


def _cropped(image: np.ndarray, generator: np.random.Generator, smallest: float, _: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    part = generator.uniform(smallest, max(smallest, LARGEST_CROP))
    left, top = generator.uniform(0, 1 - part, 2) * (width, height)
    return _resized(image, (height, width), (left, top, left + part * width, top + part * height))


def _resized(image: np.ndarray, size: tuple[int, int], box: tuple[float, ...] | None = None) -> np.ndarray:
    """Return an image, or a box (left, top, right, bottom) of it, at size (height, width), bicubic."""
    resized = as_picture(image).resize(size[::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized, np.uint8).reshape(*size, -1)


def _inner_size(image: np.ndarray, part: float) -> tuple[int, int]:
    return max(1, round(part * image.shape[0])), max(1, round(part * image.shape[1]))


def _blurred(image: np.ndarray, _: np.random.Generator, part: float, __: np.ndarray) -> np.ndarray:
    return _resized(_resized(image, _inner_size(image, part)), image.shape[:2])


def _grey(image: np.ndarray, _: np.random.Generator, __: float, ___: np.ndarray) -> np.ndarray:
    grey = np.asarray(as_picture(image).convert("L"))[..., None]
    return np.repeat(grey, image.shape[2], axis=2)


def _permuted(image: np.ndarray, generator: np.random.Generator, _: float, __: np.ndarray) -> np.ndarray:
    orders = list(itertools.permutations(range(image.shape[2])))[1:] or [(0,)]
    return image[..., orders[generator.integers(len(orders))]]


def _boxed(image: np.ndarray, generator: np.random.Generator, part: float, other: np.ndarray) -> np.ndarray:
    height, width = _inner_size(image, part)
    top, left = (generator.integers(n - side + 1) for n, side in zip(image.shape, (height, width)))
    box = slice(top, top + height), slice(left, left + width)
    return _covered(image, box, other)


def _third(image: np.ndarray, generator: np.random.Generator, _: float, other: np.ndarray) -> np.ndarray:
    place, axis = generator.integers(3), generator.integers(2)
    cut = [round(i * image.shape[axis] / 3) for i in range(4)]
    band = slice(cut[place], cut[place + 1])
    return _covered(image, (band, slice(None)) if axis == 0 else (slice(None), band), other)


def _covered(image: np.ndarray, box: tuple[slice, slice], other: np.ndarray) -> np.ndarray:
    made = image.copy()
    made[box] = other[box]
    return made


def _rotated(image: np.ndarray, generator: np.random.Generator, angle: float, _: np.ndarray) -> np.ndarray:
    turned = as_picture(image).rotate(angle * generator.choice([-1, 1]), Image.Resampling.BICUBIC)
    return np.asarray(turned, np.uint8).reshape(image.shape)


def _shrunk(image: np.ndarray, generator: np.random.Generator, part: float, _: np.ndarray) -> np.ndarray:
    """Shrink into the middle of a border of one random grey."""
    small = _resized(image, _inner_size(image, part))
    made = np.full_like(image, generator.integers(256))
    top, left = ((n - side) // 2 for n, side in zip(image.shape[:2], small.shape))
    made[top : top + small.shape[0], left : left + small.shape[1]] = small
    return made


def _toned(tone: Callable[[np.ndarray, float], np.ndarray]) -> Callable[..., np.ndarray]:
    """The change that applies tone(values in [0, 1], strength) to all values."""

    def change(image: np.ndarray, _: np.random.Generator, strength: float, __: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(255 * tone(image / 255, strength)), 0, 255).astype(np.uint8)

    return change


_CHANGES: Mapping[str, Callable[[np.ndarray, np.random.Generator, float, np.ndarray], np.ndarray]] = {
    "exact": lambda image, *_: image,
    "noise": _noise,
    "jpeg": lambda image, _, quality, __: jpeg(image, int(quality)),
    "mirrored": lambda image, *_: image[:, ::-1],
    "shifted": _shifted,
    "cropped": _cropped,
    "duplicated": _noise,
    "blurred": _blurred,
    "grey": _grey,
    "permuted": _permuted,
    "gamma": _toned(lambda values, gamma: values**gamma),
    "contrast": _toned(lambda values, gain: 0.5 + gain * (values - 0.5)),
    "boxed": _boxed,
    "third": _third,
    "moved": _moved,
    "rotated": _rotated,
    "shrunk": _shrunk,
}
