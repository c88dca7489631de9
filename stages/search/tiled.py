"""References made ready for the compiled scan of the bound: grouped, packed, with their rows in the original order."""

import dataclasses

import numpy as np

from stages.search.projection import Coordinates, Layout, Projection, coordinates, layout

LANES, GROUP, TOGETHER = 16, 8, 3  # sums in a vector, references that share a maximum, queries of a tile
TILE = LANES * GROUP  # references of a tile
CENTRAL = 64  # references that are tried first for queries that are far from all
LOWEST = np.int32(-(2**31) + 1)  # the score of the places that fill the last tile up


@dataclasses.dataclass(frozen=True)
class Tiles:
    """References of one span, in the order in which they are grouped.

    Attributes:
        rows: their coordinates.
        half: int32 (M,), what a score adds for the reference alone.
        order: int64 (M,), their rows in the whole reference.
        packed, added: the coarse coordinates and `half` as `pack` arranges them.
        layout: of the coordinates.
        central: int64 (at most CENTRAL,), the places of the references that are nearest to the mean.
    """

    rows: Coordinates
    half: np.ndarray
    order: np.ndarray
    packed: np.ndarray
    added: np.ndarray
    layout: Layout
    central: np.ndarray

    @staticmethod
    def of(projection: Projection, images: np.ndarray, offset: int) -> "Tiles":
        """uint8 images (M, d), the rows of the reference from `offset` on."""
        shape = layout(projection.size)
        rows = coordinates(projection, images, shape)
        order = np.arange(len(images))
        half = rows.half
        packed, added = pack(rows.rows[:, : shape.levels[0]], half)
        central = np.argsort(rows.squared, kind="stable")[:CENTRAL]
        return Tiles(rows, half, order + offset, packed, added, shape, central)

    @property
    def groups(self) -> int:
        """Groups of GROUP references that follow each other, those that fill the last tile up included."""
        return len(self.packed) * LANES

    def rows_of(self, groups: np.ndarray) -> np.ndarray:
        """The rows in the whole reference of the groups marked in a bool array."""
        return self.order[np.repeat(groups, GROUP)[: len(self.order)]]

    def scratch(self, queries: int) -> "Scratch":
        """Room for the scores of so many queries: one for each thread, used again and again."""
        size, tiles = -(-queries // TOGETHER) * TOGETHER, len(self.packed)
        coarse = np.zeros((size, self.layout.levels[0]), np.int16)
        return Scratch(
            coarse, np.empty((size, tiles, GROUP, LANES), np.int32), np.empty((size, tiles * LANES), np.int32)
        )

    def score(self, queries: np.ndarray, scratch: "Scratch", first: int = 0) -> None:
        """The coarse scores of int16 queries (Q, W) for the tiles from `first` on, and the best of every group, into
        `scratch`, at the tiles' places."""
        from stages.search.tile_scores import score_tiles

        used = -(-len(queries) // TOGETHER) * TOGETHER
        scratch.coarse[: len(queries)] = queries[:, : self.layout.levels[0]]
        score_tiles(scratch.coarse[:used], self.packed, self.added, scratch.scores, scratch.maxima, first)


@dataclasses.dataclass(frozen=True)
class Scratch:
    """coarse: int16 (Q, K); scores: int32 (Q, T, 8, 16), maxima: int32 (Q, 16 T): see `score_tiles`."""

    coarse: np.ndarray
    scores: np.ndarray
    maxima: np.ndarray


def pack(coordinates: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """References as tiles: int16 (M, K), K even, and int32 (M,) → int16 (T, K/2, 8, 16, 2) and int32 (T, 8, 16).

    Eight rows that follow each other are one group. The last tile is filled up with rows that score `LOWEST`.
    """
    count, size = coordinates.shape
    tiles = -(-count // TILE)
    packed, added = np.zeros((tiles * TILE, size), np.int16), np.full(tiles * TILE, LOWEST)
    packed[:count], added[:count] = coordinates, half
    by_pair = packed.reshape(tiles, LANES, GROUP, size // 2, 2).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(by_pair), np.ascontiguousarray(added.reshape(tiles, LANES, GROUP).swapaxes(1, 2))
