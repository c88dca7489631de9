"""Training images as the centres of a closed-form score: one byte per pixel, and what is known of each image.

Beside the images at most MEMORY_BYTES are held, however many images there are: norms and projected coordinates beyond
that are in a temporary file and are read a block at a time.
"""

import dataclasses
import errno
import functools
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.engine.fixed_point import Projected, two_digits
from stages.engine.products import affordable, compiled_norms
from stages.engine.projection import Projection, fit_projection
from stages.errors import InputError

CENTRE_BLOCK = 4096  # centres whose distances are taken at once
PROJECTED_BLOCK = 4 * CENTRE_BLOCK  # centres whose distances are bounded in the projection at once
PROJECTED_DIRECTIONS = 128
MIN_PROJECTED_CENTRES = 1 << 13  # fewer centres are not worth projecting
MEMORY_BYTES = 1 << 24  # for norms (an eighth) and projected coordinates: those of 50,000 images fit
HELPFUL_SHARE = 0.3  # of the projected images' mean square: what the bound may lose and still separate images


class BlockStore:
    """Blocks of bytes, all of one size except the last: as many in memory as `budget` bytes hold, the others in a file.

    The file lies in the temporary folder without a name: it is gone when this object or the process ends, in any way.
    """

    def __init__(self, budget: int) -> None:
        self._room, self._memory, self._size, self._file = budget, [], 0, None

    def append(self, block: np.ndarray) -> None:
        """Add a block, uint8 (n,). Raises InputError where there is no room for the file."""
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
                f"the temporary folder has no room for the norms and coordinates of the training images ({error}): "
                "set the environment variable TMPDIR to a folder with room"
            ) from error

    def __getitem__(self, n: int) -> np.ndarray:
        """Block n, uint8, read-only by agreement."""
        if n < len(self._memory):
            return self._memory[n]
        block = np.empty(self._size, np.uint8)
        return block[: os.preadv(self._file.fileno(), [block], (n - len(self._memory)) * self._size)]


class CentreBlock(NamedTuple):
    """Consecutive centres: the first one's row; images uint8 (m, d); |y|^2 int64 (m,) and |y| float64 (m,) of
    y = image - 128."""

    start: int
    images: np.ndarray
    squared: np.ndarray
    lengths: np.ndarray


@dataclasses.dataclass(frozen=True)
class ManyCentres:
    """Training images as centres, one byte per pixel (a memory map stays one).

    Attributes:
        images: uint8 (M, d).
        squares: |y|^2 of y = image - 128, int64, CENTRE_BLOCK images to a block.
        power: the mean of |y|^2.
        longest: the largest |y|.
    """

    images: np.ndarray
    squares: BlockStore
    power: float
    longest: float

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def projected(self) -> "ProjectedCentres | None":
        """Their projected coordinates, made at the first small noise level; None for few or small images."""
        if len(self) < MIN_PROJECTED_CENTRES or self.images.shape[1] < 4 * PROJECTED_DIRECTIONS:
            return None
        return project_centres(fit_projection(self.images, *2 * [PROJECTED_DIRECTIONS]), self.images, self.longest)

    def blocks(self, pilot: bool = False) -> Iterator[CentreBlock]:
        """All centres, block by block; with `pilot` the first eighth of the first block comes by itself."""
        for start in range(0, len(self), CENTRE_BLOCK):
            stop = min(start + CENTRE_BLOCK, len(self))
            squared, edges = self.squares[start // CENTRE_BLOCK].view(np.int64), [start, stop]
            if pilot and start == 0 and stop > CENTRE_BLOCK // 8:
                edges.insert(1, CENTRE_BLOCK // 8)
            for a, b in zip(edges, edges[1:]):
                own = squared[a - start : b - start]
                yield CentreBlock(a, self.images[a:b], own, np.sqrt(own.astype(np.float64)))


def make_many_centres(images: np.ndarray) -> ManyCentres:
    """Centres of uint8 images (M, d)."""
    squares, total, largest = BlockStore(affordable(MEMORY_BYTES // 8)), 0, 0
    for start in range(0, len(images), CENTRE_BLOCK):
        own = compiled_norms(images[start : start + CENTRE_BLOCK])
        squares.append(own.view(np.uint8))
        total, largest = total + int(own.sum()), max(largest, int(own.max()))
    return ManyCentres(images, squares, total / len(images), math.sqrt(largest))


class ProjectedBlock(NamedTuple):
    """Consecutive centres: the first one's row, the images, and the fields of `Projected` (one unit for all)."""

    start: int
    images: np.ndarray
    unit: float
    digits: np.ndarray
    squared: np.ndarray
    outside: np.ndarray


@dataclasses.dataclass(frozen=True)
class ProjectedCentres:
    """Images as `Projected`, PROJECTED_BLOCK at a time.

    Attributes:
        projection: P and m.
        images: uint8 (M, d).
        parts: of each block `squared`, `outside` and `digits`.
        unit: of all of them.
        outside: the mean of |Cy|.
        power: the mean square of `Projected.length`.
        length, error: the largest ones.
    """

    projection: Projection
    images: np.ndarray
    parts: BlockStore
    unit: float
    outside: float
    power: float
    length: float
    error: float

    def helps(self, samples: Projected) -> np.ndarray:
        """Samples, bool (B,), for which the bound loses little beside the distance of two images.

        It loses up to 2 |Cx| |Cy|; the squared distance of two images is 2 |Py|^2 on average in these directions.
        """
        return samples.outside * self.outside <= HELPFUL_SHARE * self.power

    def blocks(self) -> Iterator[ProjectedBlock]:
        """All centres, block by block."""
        for n, start in enumerate(range(0, len(self.images), PROJECTED_BLOCK)):
            images = self.images[start : start + PROJECTED_BLOCK]
            yield ProjectedBlock(start, images, self.unit, *_views(self.parts[n], len(images)))


def _views(block: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of a block of `count` images as digits int8 (2, m, p), squared and outside float64 (m,)."""
    squared, outside = block[: 16 * count].view(np.float64).reshape(2, count)
    return block[16 * count :].view(np.int8).reshape(2, count, -1), squared, outside


def project_centres(projection: Projection, images: np.ndarray, longest: float) -> ProjectedCentres:
    """Projected coordinates of uint8 images (M, d), all in one unit; `longest` bounds their lengths about 128."""
    largest = longest + math.sqrt(projection.origin[-1])
    parts, sums, most = BlockStore(affordable(MEMORY_BYTES // 8 * 7)), np.zeros(2), np.zeros(2)
    for first in range(0, len(images), PROJECTED_BLOCK):
        held = images[first : first + PROJECTED_BLOCK]
        block = np.empty(len(held) * (16 + 2 * projection.size), np.uint8)
        digits, squared, outside = _views(block, len(held))
        for start in range(0, len(held), CENTRE_BLOCK):
            rows = slice(start, start + CENTRE_BLOCK)
            raw, square, _ = projection.integers(held[rows])
            along = projection.factor * (raw - projection.origin[:-1])
            part = two_digits(along, square.astype(np.float64), 0.0, np.full(len(raw), largest))
            digits[:, rows], squared[rows], outside[rows] = part.digits, part.squared, part.outside
            sums += part.outside.sum(), np.square(part.length).sum()
            most = np.maximum(most, (part.length.max(), part.error.max()))
        parts.append(block)
    unit = float(part.unit[0])
    return ProjectedCentres(projection, images, parts, unit, *(sums / len(images)).tolist(), *most.tolist())
