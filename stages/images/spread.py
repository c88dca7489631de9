"""How far the images of a set spread, exactly, from their integers: what the largest noise level depends on."""

import math
from collections.abc import Iterator

import numpy as np

BLOCK = 1 << 24  # float64 values that are held at once


def spread(images: np.ndarray) -> dict[str, float]:
    """Return least_norm = min ‖x‖², largest_norm = max ‖x‖² and largest_distance = max ‖x_i − x_j‖, pixels in [0, 1].

    images: uint8 (M, ...). An image at distance r from the mean has no other one beyond r + max r, so that one distance
    found leaves few pairs to compare.
    """
    flat = images.reshape(len(images), -1)
    norms = np.concatenate([np.square(part).sum(axis=1) for part in _blocks(flat)])
    mean = np.sum([part.sum(axis=0) for part in _blocks(flat)], axis=0) / len(flat)
    radius = np.concatenate([np.linalg.norm(part - mean, axis=1) for part in _blocks(flat)])
    outermost = flat[radius.argmax()].astype(np.float64)
    found = math.sqrt(max(float(np.square(part - outermost).sum(axis=1).max()) for part in _blocks(flat)))
    far = flat[radius >= (found - radius.max()) * (1 - 1e-12)]
    largest = max(_largest_squared(one, other) for one in _blocks(far) for other in _blocks(far))
    least, most = float(norms.min()) / 255**2, float(norms.max()) / 255**2
    return {"least_norm": least, "largest_norm": most, "largest_distance": math.sqrt(largest) / 255}


def _largest_squared(one: np.ndarray, other: np.ndarray) -> float:
    """Return max ‖a − b‖² over rows a and b, float64 holding integers, so that the product loses no digit."""
    norms = (np.square(part).sum(axis=1) for part in (one, other))
    return float((np.add.outer(*norms) - 2 * one @ other.T).max())


def _blocks(flat: np.ndarray) -> Iterator[np.ndarray]:
    """Yield all rows as float64, a block at a time."""
    step = max(1, BLOCK // flat.shape[1])
    yield from (flat[start : start + step].astype(np.float64) for start in range(0, len(flat), step))
