"""Random pictures for tests, and the definition of a shifted difference."""

import numpy as np


def pictures(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def smooth(count: int, side: int, channels: int, seed: int = 0) -> np.ndarray:
    """Pictures that look alike when shifted a little, as natural ones do."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, channels)).astype(float)
    at = np.linspace(0, 4, side)
    low = np.minimum(at.astype(int), 3)
    part = at - low
    for axis in (1, 2):
        weight = part.reshape([-1 if i == axis else 1 for i in range(4)])
        coarse = np.take(coarse, low, axis) * (1 - weight) + np.take(coarse, low + 1, axis) * weight
    return np.rint(coarse).astype(np.uint8)


def shifted_mean(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> tuple[int, int]:
    """Sum of squared differences and count where a(y, x) meets b(y + dy, x + dx), by the definition."""
    total = count = 0
    for y, x in np.ndindex(a.shape[:2]):
        if 0 <= y + dy < b.shape[0] and 0 <= x + dx < b.shape[1]:
            total += int(np.square(a[y, x].astype(int) - b[y + dy, x + dx]).sum())
            count += a.shape[2]
    return total, count
