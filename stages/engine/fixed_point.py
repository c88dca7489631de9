"""Samples and projected coordinates as numbers of a few int8 digits, with the length of what the digits leave out."""

from typing import NamedTuple

import numpy as np

from stages.engine.products import products
from stages.engine.projection import Projection

DIGITS = 4  # of a sample's values
GREY = 255.0  # grey levels in the unit interval


class Samples(NamedTuple):
    """Samples x in grey levels about 128, and as fixed-point numbers: x = sum_k units_k digits_k + remainder.

    Attributes:
        values: float64 (B, d), x.
        squared: float64 (B,), |x|^2.
        digits: int8 (DIGITS, B, d), the most significant first.
        units: float64 (B, DIGITS), what a one in each digit is worth in grey levels.
        rest: float64 (DIGITS, B), the length of what the first 1, 2, ... digits leave out of x.
    """

    values: np.ndarray
    squared: np.ndarray
    digits: np.ndarray
    units: np.ndarray
    rest: np.ndarray

    def take(self, rows: np.ndarray) -> "Samples":
        """The samples `rows`."""
        first = (self.values[rows], self.squared[rows], self.digits[:, rows], self.units[rows])
        return Samples(*first, self.rest[:, rows])


def fixed_point(x: np.ndarray) -> Samples:
    """Samples x, float64 (B, d) in [0,1] units plus noise, with 31 bits for the largest value of each."""
    values = GREY * x - 128
    unit = np.maximum(np.abs(values).max(1), 1.0) / (127 << 8 * (DIGITS - 1))  # the largest value's first digit is 127
    units = unit[:, None] * 256.0 ** (DIGITS - 1 - np.arange(DIGITS))
    whole = np.rint(values / unit[:, None]).astype(np.int64)
    digits, rest = np.empty((DIGITS, *x.shape), np.int8), np.empty((DIGITS, len(x)))
    for k in reversed(range(DIGITS)):
        digits[k] = ((whole + 128) & 255) - 128
        whole = (whole - digits[k]) >> 8
    left = values.copy()
    for k in range(DIGITS):
        left -= digits[k] * units[:, k : k + 1]
        rest[k] = np.sqrt(np.square(left).sum(1))
    return Samples(values, np.square(values).sum(1), digits, units, rest)


class Projected(NamedTuple):
    """Images or samples in a few directions P about a mean m, with P'P <= 1 (`stages.engine.projection`):

        |x - y|^2 >= |x - m|^2 + |y - m|^2 - 2 (Px . Py + |Cx| |Cy|),  |Cx|^2 = |x - m|^2 - |Px|^2

    Attributes:
        digits: int8 (2, N, p), P(x - m) = unit (256 a + b) + what rounding to this leaves out.
        unit: float64 (N,).
        squared: float64 (N,), |x - m|^2 in grey levels.
        outside: float64 (N,), |Cx|.
        length: float64 (N,), at least |Px| and |unit (256 a + b)|.
        error: float64 (N,), the length of what rounding leaves out.
    """

    digits: np.ndarray
    unit: np.ndarray
    squared: np.ndarray
    outside: np.ndarray
    length: np.ndarray
    error: np.ndarray


def project_samples(projection: Projection, samples: Samples) -> Projected:
    """Coordinates of samples from integer products of their digits: the same bits in every batch."""
    count, d = samples.values.shape
    raw = products(samples.digits.reshape(-1, d), projection.rows[:-1]).reshape(DIGITS, count, -1)
    along = np.einsum("nbp,bn->bp", raw, samples.units) - projection.origin[:-1]
    squared = np.square(samples.values - projection.rows[-1]).sum(1)
    coordinates = projection.factor * along
    return two_digits(coordinates, squared, samples.rest[-1], np.abs(coordinates).max(1))


def two_digits(coordinates: np.ndarray, squared: np.ndarray, off: np.ndarray | float, largest: np.ndarray) -> Projected:
    """Coordinates (N, p), with an error of at most length `off`, in two digits; `largest` (N,) bounds their values."""
    unit = np.maximum(largest, 1.0) / (127 << 8)
    whole = np.rint(coordinates / unit[:, None]).astype(np.int32)
    low = ((whole + 128) & 255) - 128
    digits = np.stack([(whole - low) >> 8, low]).astype(np.int8)
    error = np.linalg.norm(coordinates - whole * unit[:, None], axis=1) + off
    inside = np.linalg.norm(coordinates, axis=1)
    outside = np.sqrt(np.maximum(squared - np.maximum(inside - off, 0) ** 2, 0) + 1e-12 * squared)
    return Projected(digits, unit, squared, outside, inside + error, error)
