"""What `truncated_score` sums over: images of one byte per pixel, samples as integers, and how a centre weighs."""

import dataclasses
import functools
import math

import numpy as np

from stages.search.products import products, squared_norms
from stages.search.projection import Projection, fit_projection

BLOCK = 4096  # centres visited at once
DIGITS = 4  # of a sample's fixed-point numbers, 8 bits each
TOP = 127 << 8 * (DIGITS - 1)  # the largest of them: its first digit is 127
GREY = 255.0
DIRECTIONS = 128  # of the coarse coordinates
COARSE_BLOCK = 4 * BLOCK  # centres whose coarse bounds are taken at once
WORTH = 1 << 13  # centres from which on these coordinates are worth their making


@dataclasses.dataclass(frozen=True)
class ManyCentres:
    """Training images as centres, one byte per pixel (memory-mapped if they come so) and 16 per image; with `coarse`,
    made when a small noise level first asks for it, 296 more per image.

    Attributes:
        images: uint8 (M, d).
        norms: int64 (M,), |y|^2 of y = image - 128.
        lengths: float64 (M,), |y|.
        longest: the largest of them.
    """

    images: np.ndarray
    norms: np.ndarray
    lengths: np.ndarray
    longest: float

    def __len__(self) -> int:
        return len(self.images)

    @property
    def dimension(self) -> int:
        """d."""
        return self.images.shape[1]

    @functools.cached_property
    def coarse(self) -> "Coarse | None":
        """Their coarse coordinates; None for few or small images."""
        if len(self) < WORTH or self.dimension < 4 * DIRECTIONS:
            return None
        return make_coarse(fit_projection(self.images, DIRECTIONS), self.images, self.longest)

    def blocks(self, pilot: bool = False) -> list[slice]:
        """Rows visited at once; with `pilot` the first eighth of the first block comes by itself."""
        edges = [*range(0, len(self), BLOCK), len(self)]
        if pilot and edges[1] > BLOCK // 8:
            edges.insert(1, BLOCK // 8)
        return [slice(a, b) for a, b in zip(edges, edges[1:])]


def make_many_centres(images: np.ndarray) -> ManyCentres:
    """Centres of uint8 images (M, d)."""
    norms = squared_norms(images)
    lengths = np.sqrt(norms.astype(np.float64))
    return ManyCentres(images, norms, lengths, float(lengths.max()))


@dataclasses.dataclass(frozen=True)
class Law:
    """How a centre at squared distance r2 (grey levels squared) weighs and pulls, for every sample.

    Attributes:
        shells: log-weight -rate ln r2 (True) or -rate r2.
        rate: float64 (B,).
        inverse: precision p = pull/r2 (True) or p = pull.
        pull: float64 (B,).
    """

    shells: bool
    rate: np.ndarray
    inverse: bool
    pull: np.ndarray

    def take(self, rows: np.ndarray) -> "Law":
        """The law of these samples."""
        return Law(self.shells, self.rate[rows], self.inverse, self.pull[rows])

    def reach(self, depth: np.ndarray) -> np.ndarray:
        """By which r2 grows (a factor for shells, else a summand) where the log-weight falls by `depth` (B,)."""
        with np.errstate(over="ignore"):
            return np.exp(depth / self.rate) if self.shells else depth / self.rate

    def precision(self, r2: np.ndarray) -> np.ndarray:
        """p, (B,)."""
        return self.pull / r2 if self.inverse else self.pull

    def falls(self) -> np.ndarray:
        """Whether weight times pull, w p r, falls with the distance as far out as `reach` gets, bool (B,)."""
        return (2 * self.rate >= 1) if self.shells and not self.inverse else np.ones(len(self.rate), bool)


@dataclasses.dataclass(frozen=True)
class Points:
    """Samples in units of a grey level about 128, x, and as fixed-point numbers: x = scale q + what is left over.

    Attributes:
        values: float64 (B, d), x.
        squared: float64 (B,), |x|^2.
        digits: int8 (DIGITS, B, d), the first worth 256^(DIGITS - 1).
        scale: float64 (B,).
        rest: float64 (DIGITS, B), the length of what the first 1, 2, ... digits leave of x.
    """

    values: np.ndarray
    squared: np.ndarray
    digits: np.ndarray
    scale: np.ndarray
    rest: np.ndarray

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> "Points":
        """These samples."""
        return Points(self.values[rows], self.squared[rows], self.digits[:, rows], self.scale[rows], self.rest[:, rows])

    def units(self, digits: int) -> np.ndarray:
        """What a one in each of the first `digits` digits is worth in grey levels, float64 (B, digits)."""
        return self.scale[:, None] * 256.0 ** (DIGITS - 1 - np.arange(digits))


def quantise(x: np.ndarray) -> Points:
    """x float64 (B, d), in [0,1] units plus noise, as fixed-point numbers with 31 bits for its largest value."""
    values = GREY * x - 128
    scale = np.maximum(np.abs(values).max(1), 1.0) / TOP
    q = np.rint(values / scale[:, None]).astype(np.int64)
    digits, rest = np.empty((DIGITS, *x.shape), np.int8), np.empty((DIGITS, len(x)))
    for k in reversed(range(DIGITS)):
        digits[k] = ((q + 128) & 255) - 128
        q = (q - digits[k]) >> 8
    left = values.copy()
    for k in range(DIGITS):
        left -= digits[k] * (scale * 256.0 ** (DIGITS - 1 - k))[:, None]
        rest[k] = np.sqrt(np.square(left).sum(1))
    return Points(values, np.square(values).sum(1), digits, scale, rest)


@dataclasses.dataclass(frozen=True)
class Coarse:
    """Images, or samples, in a few directions P about a mean m, as `stages.search.projection` has them, P'P <= 1:

        |x - y|^2 >= |x - m|^2 + |y - m|^2 - 2 (Px . Py + |Cx| |Cy|),  |Cx|^2 = |x - m|^2 - |Px|^2

    Attributes:
        projection: P and m.
        digits: int8 (2, N, p), P(x - m) = scale (256 a + b) + what rounding to this leaves.
        scale: float64 (N,).
        squared: float64 (N,), |x - m|^2, grey levels.
        left: float64 (N,), |Cx|.
        length: float64 (N,), at least |Px| and |scale (256 a + b)|.
        error: float64 (N,), the length of what rounding leaves.
    """

    projection: Projection
    digits: np.ndarray
    scale: np.ndarray
    squared: np.ndarray
    left: np.ndarray
    length: np.ndarray
    error: np.ndarray

    def helps(self, samples: "Coarse") -> np.ndarray:
        """Samples, bool (B,), for which what the bound loses, up to 2 |Cx| |Cy|, is little beside the distance of two
        images: its expectation in the directions is 2 |Py|^2."""
        return samples.left * self.left.mean() <= 0.3 * np.square(self.length).mean()


def make_coarse(projection: Projection, images: np.ndarray, longest: float) -> Coarse:
    """Coarse coordinates of uint8 images (M, d), none of them longer than `longest` (about 128), of one scale."""
    count, largest = len(images), longest + math.sqrt(projection.origin[-1])
    whole = Coarse(projection, np.empty((2, count, projection.size), np.int8), *np.empty((5, count)))
    for start in range(0, count, BLOCK):
        rows = slice(start, min(start + BLOCK, count))
        raw, squared, _ = projection.integers(images[rows])
        along = projection.factor * (raw - projection.origin[:-1])
        part = _rounded(projection, along, squared.astype(np.float64), 0.0, np.full(len(raw), largest))
        whole.digits[:, rows] = part.digits
        for name in ("scale", "squared", "left", "length", "error"):
            getattr(whole, name)[rows] = getattr(part, name)
    return whole


def coarse_points(projection: Projection, points: Points) -> Coarse:
    """Coarse coordinates of samples. Integer products of their digits: the same bits in every batch."""
    count, d = points.values.shape
    raw = products(points.digits.reshape(-1, d), projection.rows[:-1]).reshape(DIGITS, count, -1)
    along = np.einsum("nbp,bn->bp", raw, points.units(DIGITS)) - projection.origin[:-1]
    squared = np.square(points.values - projection.rows[-1]).sum(1)
    coordinates = projection.factor * along
    return _rounded(projection, coordinates, squared, points.rest[-1], np.abs(coordinates).max(1))


def _rounded(
    projection: Projection, coordinates: np.ndarray, squared: np.ndarray, off: np.ndarray | float, largest: np.ndarray
) -> Coarse:
    """Coordinates (N, p), known up to a length of `off`, in two digits of which `largest` (N,) is the greatest."""
    scale = np.maximum(largest, 1.0) / (127 << 8)
    whole = np.rint(coordinates / scale[:, None]).astype(np.int32)
    low = ((whole + 128) & 255) - 128
    digits = np.stack([(whole - low) >> 8, low]).astype(np.int8)
    error = np.linalg.norm(coordinates - whole * scale[:, None], axis=1) + off
    inside = np.linalg.norm(coordinates, axis=1)
    left = np.sqrt(np.maximum(squared - np.maximum(inside - off, 0) ** 2, 0) + 1e-12 * squared)
    return Coarse(projection, digits, scale, squared, left, inside + error, error)
