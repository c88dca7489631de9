"""The pixel distance ℓ = ‖a−b‖/√d on pixels in [0, 1] (METHODS §6), from and to exact squared distances."""

import math
from fractions import Fraction

import numpy as np


def pixel_distance(squared: np.ndarray, dimension: int) -> np.ndarray:
    """Return ℓ in squared's shape, float64. squared: ‖a−b‖² on the 0..255 scale."""
    return np.sqrt(np.asarray(squared, np.float64) / dimension) / 255


def squared_radius(distance: float, dimension: int) -> int:
    """Return the largest integer ‖a−b‖² on the 0..255 scale with ℓ ≤ distance, taken as the decimal it prints as."""
    return math.floor((Fraction(repr(distance)) * 255) ** 2 * dimension)
