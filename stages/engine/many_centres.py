"""What `truncated_score` sums over: images of one byte per pixel, samples as integers, and how a centre weighs.

Beside the images at most MEMORY bytes are held, however many these are: what is known of each image and does not fit is
in a file, from which it is read a block at a time.
"""

import dataclasses
import errno
import functools
import math
import os
import tempfile
import weakref
from collections.abc import Iterator

import numpy as np

from stages.engine.products import affordable, products, squared_norms
from stages.engine.projection import Projection, fit_projection
from stages.errors import InputError

BLOCK = 4096  # centres visited at once
DIGITS = 4  # of a sample's fixed-point numbers, 8 bits each
TOP = 127 << 8 * (DIGITS - 1)  # the largest of them: its first digit is 127
GREY = 255.0
DIRECTIONS = 128  # of the coarse coordinates
COARSE_BLOCK = 4 * BLOCK  # centres whose coarse bounds are taken at once
WORTH = 1 << 13  # centres from which on these coordinates are worth their making
MEMORY = 1 << 24  # bytes of norms (an eighth) and coarse coordinates in memory: those of 50,000 images fit


class Blocks:
    """Bytes of one block of centres after the other, all of one size but the last: as many as `budget` bytes hold in
    memory, the others in a file of the temporary folder without a name, which is gone when this object or the process
    is, however it ends."""

    def __init__(self, budget: int) -> None:
        self._room, self._memory, self._size, self._file = budget, [], 0, None

    def append(self, block: np.ndarray) -> None:
        """Add the bytes of a block, uint8 (n,). Raises InputError where there is no room for the file."""
        self._size = self._size or len(block)
        if self._file is None and len(block) <= self._room:
            self._room -= len(block)
            self._memory.append(block)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  (open as long as this object is)
                weakref.finalize(self, self._file.close)
            if self._file.write(block) < len(block):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise InputError(
                f"no room in the temporary folder for what is known of each centre ({error}): "
                "set the environment variable TMPDIR to a folder with room"
            ) from error

    def __getitem__(self, n: int) -> np.ndarray:
        """The bytes of block n, uint8, to be read only."""
        if n < len(self._memory):
            return self._memory[n]
        block = np.empty(self._size, np.uint8)
        return block[: os.preadv(self._file.fileno(), [block], (n - len(self._memory)) * self._size)]


@dataclasses.dataclass(frozen=True)
class ManyCentres:
    """Training images as centres, one byte per pixel (memory-mapped if they come so).

    Attributes:
        images: uint8 (M, d).
        squares: int64 (m,), |y|^2 of y = image - 128, of every BLOCK images.
        power: the mean of |y|^2.
        longest: the largest |y|.
    """

    images: np.ndarray
    squares: Blocks
    power: float
    longest: float

    def __len__(self) -> int:
        return len(self.images)

    @property
    def dimension(self) -> int:
        """d."""
        return self.images.shape[1]

    @functools.cached_property
    def coarse(self) -> "CoarseCentres | None":
        """Their coarse coordinates, made when a small noise level first asks for them; None for few or small images."""
        if len(self) < WORTH or self.dimension < 4 * DIRECTIONS:
            return None
        return make_coarse(fit_projection(self.images, DIRECTIONS), self.images, self.longest)

    def blocks(self, pilot: bool = False) -> Iterator[slice]:
        """Rows visited at once; with `pilot` the first eighth of the first block comes by itself."""
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            if pilot and start == 0 and stop > BLOCK // 8:
                yield slice(0, BLOCK // 8)
                start = BLOCK // 8
            yield slice(start, stop)

    def norms(self, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """|y|^2, int64 (m,), and |y|, float64 (m,), of what `blocks` gives."""
        first = rows.start - rows.start % BLOCK
        squares = self.squares[rows.start // BLOCK].view(np.int64)[rows.start - first : rows.stop - first]
        return squares, np.sqrt(squares.astype(np.float64))


def make_many_centres(images: np.ndarray) -> ManyCentres:
    """Centres of uint8 images (M, d)."""
    squares, total, largest = Blocks(affordable(MEMORY // 8)), 0, 0
    for start in range(0, len(images), BLOCK):
        own = squared_norms(images[start : start + BLOCK])
        squares.append(own.view(np.uint8))
        total, largest = total + int(own.sum()), max(largest, int(own.max()))
    return ManyCentres(images, squares, total / len(images), math.sqrt(largest))


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
    """Images, or samples, in a few directions P about a mean m, as `stages.engine.projection` has them, P'P <= 1:

        |x - y|^2 >= |x - m|^2 + |y - m|^2 - 2 (Px . Py + |Cx| |Cy|),  |Cx|^2 = |x - m|^2 - |Px|^2

    Attributes:
        digits: int8 (2, N, p), P(x - m) = scale (256 a + b) + what rounding to this leaves.
        scale: float64 (N,).
        squared: float64 (N,), |x - m|^2, grey levels.
        left: float64 (N,), |Cx|.
        length: float64 (N,), at least |Px| and |scale (256 a + b)|.
        error: float64 (N,), the length of what rounding leaves.
    """

    digits: np.ndarray
    scale: np.ndarray
    squared: np.ndarray
    left: np.ndarray
    length: np.ndarray
    error: np.ndarray


@dataclasses.dataclass(frozen=True)
class CoarseCentres:
    """Images as `Coarse` has them, COARSE_BLOCK at a time.

    Attributes:
        projection: P and m.
        count: M.
        parts: of each block `squared`, `left` and `digits`.
        scale: of all of them.
        outside: the mean of `left`.
        power: the mean of `length` squared.
        length: the largest.
        error: the largest.
    """

    projection: Projection
    count: int
    parts: Blocks
    scale: float
    outside: float
    power: float
    length: float
    error: float

    def helps(self, samples: Coarse) -> np.ndarray:
        """Samples, bool (B,), for which what the bound loses, up to 2 |Cx| |Cy|, is little beside the distance of two
        images: its expectation in the directions is 2 |Py|^2."""
        return samples.left * self.outside <= 0.3 * self.power

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Rows, and their digits int8 (2, m, p), squared and left, float64 (m,)."""
        for n, start in enumerate(range(0, self.count, COARSE_BLOCK)):
            rows = slice(start, min(start + COARSE_BLOCK, self.count))
            yield rows, *_views(self.parts[n], rows.stop - start)


def _views(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the bytes of a block of `count` images hold: digits, squared and left."""
    squared, left = block[: 16 * count].view(np.float64).reshape(2, count)
    return block[16 * count :].view(np.int8).reshape(2, count, -1), squared, left


def make_coarse(projection: Projection, images: np.ndarray, longest: float) -> CoarseCentres:
    """Coarse coordinates of uint8 images (M, d), none of them longer than `longest` (about 128), of one scale."""
    count, largest = len(images), longest + math.sqrt(projection.origin[-1])
    parts, sums, most, part = Blocks(affordable(MEMORY // 8 * 7)), np.zeros(2), np.zeros(2), None
    for first in range(0, count, COARSE_BLOCK):
        held = images[first : first + COARSE_BLOCK]
        block = np.empty(len(held) * (16 + 2 * projection.size), np.uint8)
        digits, squared, left = _views(block, len(held))
        for start in range(0, len(held), BLOCK):
            rows = slice(start, start + BLOCK)
            raw, square, _ = projection.integers(held[rows])
            along = projection.factor * (raw - projection.origin[:-1])
            part = _rounded(along, square.astype(np.float64), 0.0, np.full(len(raw), largest))
            digits[:, rows], squared[rows], left[rows] = part.digits, part.squared, part.left
            sums += part.left.sum(), np.square(part.length).sum()
            most = np.maximum(most, (part.length.max(), part.error.max()))
        parts.append(block)
    outside, power = (sums / count).tolist()
    return CoarseCentres(projection, count, parts, float(part.scale[0]), outside, power, *most.tolist())


def coarse_points(projection: Projection, points: Points) -> Coarse:
    """Coarse coordinates of samples. Integer products of their digits: the same bits in every batch."""
    count, d = points.values.shape
    raw = products(points.digits.reshape(-1, d), projection.rows[:-1]).reshape(DIGITS, count, -1)
    along = np.einsum("nbp,bn->bp", raw, points.units(DIGITS)) - projection.origin[:-1]
    squared = np.square(points.values - projection.rows[-1]).sum(1)
    coordinates = projection.factor * along
    return _rounded(coordinates, squared, points.rest[-1], np.abs(coordinates).max(1))


def _rounded(coordinates: np.ndarray, squared: np.ndarray, off: np.ndarray | float, largest: np.ndarray) -> Coarse:
    """Coordinates (N, p), known up to a length of `off`, in two digits of which `largest` (N,) is the greatest."""
    scale = np.maximum(largest, 1.0) / (127 << 8)
    whole = np.rint(coordinates / scale[:, None]).astype(np.int32)
    low = ((whole + 128) & 255) - 128
    digits = np.stack([(whole - low) >> 8, low]).astype(np.int8)
    error = np.linalg.norm(coordinates - whole * scale[:, None], axis=1) + off
    inside = np.linalg.norm(coordinates, axis=1)
    left = np.sqrt(np.maximum(squared - np.maximum(inside - off, 0) ** 2, 0) + 1e-12 * squared)
    return Coarse(digits, scale, squared, left, inside + error, error)
