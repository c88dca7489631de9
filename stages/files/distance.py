"""The pixel distance l = ‖a − b‖/√d between images with pixels in [0, 1] (METHODS §6), from exact integer squares.

A squared distance is ‖a − b‖² of the stored uint8 pixels, so an exact integer on the 0..255 scale.
"""

import math
from fractions import Fraction

import numpy as np


def pixel_distance(squared: np.ndarray, dimension: int) -> np.ndarray:
    """l, float64 in the shape of `squared` (‖a − b‖² on the 0..255 scale). dimension: d = H·W·C."""
    return np.sqrt(np.asarray(squared, np.float64) / dimension) / 255


def squared_radius(distance: float, dimension: int) -> int:
    """The largest integer ‖a − b‖² on the 0..255 scale with l ≤ `distance`, taken as the decimal that it prints as."""
    return math.floor((Fraction(repr(distance)) * 255) ** 2 * dimension)
