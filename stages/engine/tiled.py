"""References made ready for the compiled scan of the bound: grouped, packed, with their rows in the original order."""

import dataclasses

import numpy as np

from stages.engine.projection import Coordinates, Layout, Projection, coordinates, layout

LANES, GROUP, TOGETHER = 32, 4, 3  # scores in a vector, references that share a maximum, queries of a tile
TILE = LANES * GROUP  # references of a tile
HALF = 16  # bits that a kept score has less than its sum: scores are kept as int16, rounded down
CENTRAL = 64  # references that are tried first for queries that are far from all
LOWEST = np.int32(-(2**31) + 1)  # the sum of the places that fill the last tile up


@dataclasses.dataclass(frozen=True)
class Tiles:
    """References of one span, in the order in which they are grouped.

    Attributes:
        rows: their coordinates; the coarse ones are in `packed` only.
        order: int64 (M,), their rows in the whole reference.
        packed, added: the coarse coordinates and what a score adds for the reference alone, as `pack` arranges them.
        layout: of the coordinates.
        central: int64 (at most CENTRAL,), the places of the references that are nearest to the mean.
    """

    rows: Coordinates
    order: np.ndarray
    packed: np.ndarray
    added: np.ndarray
    layout: Layout
    central: np.ndarray

    @staticmethod
    def of(projection: Projection, images: np.ndarray, offset: int) -> "Tiles":
        """uint8 images (M, d), the rows of the reference from `offset` on."""
        shape = layout(projection)
        rows = coordinates(projection, images, shape)
        order = np.arange(len(images)) + offset
        packed, added = pack(rows.coarse.view(np.int32), rows.added)
        central = np.argsort(rows.squared, kind="stable")[:CENTRAL]
        rows = dataclasses.replace(rows, coarse=rows.coarse[:, :0])
        return Tiles(rows, order, packed, added, shape, central)

    @property
    def steps(self) -> tuple[int, int, int]:
        """Of the first level: words of int8 coordinates, words of int16, and by how much sums of the former shift."""
        first = self.layout.levels[0]
        return first.shorts // 4, (first.end - first.shorts) // 4, 2 * first.shift

    @property
    def groups(self) -> int:
        """Groups of GROUP references that follow each other, those that fill the last tile up included."""
        return len(self.packed) * LANES

    def rows_of(self, places: np.ndarray) -> np.ndarray:
        """The rows in the whole reference of the places marked in an array (T, 4, 32), as scores are arranged."""
        return self.order[np.flatnonzero(places.swapaxes(1, 2).reshape(-1)[: len(self.order)])]

    def scratch(self, queries: int) -> "Scratch":
        """Room for the scores of so many queries: one for each thread, used again and again."""
        size, tiles = -(-queries // TOGETHER) * TOGETHER, len(self.packed)
        coarse = np.zeros((size, sum(self.steps[:2])), np.int32)
        return Scratch(
            coarse, np.empty((size, tiles, GROUP, LANES), np.int16), np.empty((size, tiles * LANES), np.int16)
        )

    def score(self, queries: np.ndarray, scratch: "Scratch", first: int = 0) -> None:
        """The coarse scores of queries, uint8 (Q, C), for the tiles from `first` on, and the best of every group, into
        `scratch`, at the tiles' places."""
        from stages.engine.tile_scores import score_tiles

        used = -(-len(queries) // TOGETHER) * TOGETHER
        scratch.coarse[: len(queries)] = queries.view(np.int32)
        score_tiles(scratch.coarse[:used], self.packed, self.added, *self.steps, scratch.scores, scratch.maxima, first)


@dataclasses.dataclass(frozen=True)
class Scratch:
    """coarse: int32 (Q, K); scores: int16 (Q, T, 4, 32), maxima: int16 (Q, 32 T): see `score_tiles`."""

    coarse: np.ndarray
    scores: np.ndarray
    maxima: np.ndarray


def pack(words: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """References as tiles: int32 (M, K), each of four int8 or two int16, and int32 (M,) → int32 (T, K, 4, 2, 16) and
    (T, 4, 2, 16), so that row 128 t + 8 l + 4 h + j is at [t, :, j, h, l]. The last tile is filled up with rows that
    score `LOWEST`.
    """
    count, size = words.shape
    tiles = -(-count // TILE)
    packed, filled = np.zeros((tiles * TILE, size), np.int32), np.full(tiles * TILE, LOWEST)
    packed[:count], filled[:count] = words, added
    shape = tiles, LANES // 2, 2, GROUP
    by_word = packed.reshape(*shape, size).transpose(0, 4, 3, 2, 1)
    return np.ascontiguousarray(by_word), np.ascontiguousarray(filled.reshape(shape).transpose(0, 3, 2, 1))
