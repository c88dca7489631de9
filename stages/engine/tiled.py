"""References prepared for the compiled scan of the bound: their coarse coordinates packed in tiles."""

from typing import NamedTuple

import numpy as np

from stages.engine import compiled
from stages.engine.projection import Coordinates, Projection, coordinates
from stages.engine.sizes import FILLER_SUM, GROUP, LANES, TILE, TILE_QUERIES

CENTRAL_PLACES = 64  # measured first for queries that are far from all: noise takes 1.2 times as long without
SCORE_BATCH = 24  # queries whose scores are in the cache at once


class Tiles(NamedTuple):
    """The references of one span, in their order.

    Attributes:
        rows: their coordinates.
        order: int64 (M,), their rows in the whole reference.
        packed, added: the coarse coordinates and `Coordinates.added` as `pack` arranges them.
        central: int64 (at most CENTRAL_PLACES,), the places of the references nearest to the mean.
    """

    rows: Coordinates
    order: np.ndarray
    packed: np.ndarray
    added: np.ndarray
    central: np.ndarray

    @property
    def groups(self) -> int:
        """The number of groups of GROUP references, those that fill the last tile up included."""
        return len(self.packed) * LANES

    def rows_of(self, places: np.ndarray) -> np.ndarray:
        """The rows in the whole reference of the places marked in an array (T, 4, 32), as scores are arranged."""
        return self.order[np.flatnonzero(places.swapaxes(1, 2).reshape(-1)[: len(self.order)])]

    def scores(self, queries: int) -> "Scores":
        """Room for the scores of a number of queries, which one thread uses again and again."""
        size, (tiles, words) = -(-queries // TILE_QUERIES) * TILE_QUERIES, self.packed.shape[:2]
        sums = np.empty((size, tiles, GROUP, LANES), np.int16)
        return Scores(np.zeros((size, words), np.int32), sums, np.empty((size, tiles * LANES), np.int16))

    def score(self, queries: np.ndarray, scores: "Scores", first: int = 0) -> None:
        """The coarse scores of queries, int16 (Q, K), for the tiles from `first` on, into `scores`."""
        used = -(-len(queries) // TILE_QUERIES) * TILE_QUERIES
        scores.queries[: len(queries)] = queries.view(np.int32)
        compiled.score_tiles(scores.queries[:used], self.packed, self.added, scores.sums, scores.maxima, first)


class Scores(NamedTuple):
    """queries: int32 (Q, K), their coarse coordinates; sums: int16 (Q, T, 4, 32); maxima: int16 (Q, 32 T): see
    `score_tiles`."""

    queries: np.ndarray
    sums: np.ndarray
    maxima: np.ndarray


def tile(projection: Projection, images: np.ndarray, offset: int) -> Tiles:
    """Tiles of uint8 images (M, d), the rows of the whole reference from `offset` on."""
    rows = coordinates(projection, images)
    packed, added = pack(rows.coarse.view(np.int32), rows.added)
    central = np.argsort(rows.squared, kind="stable")[:CENTRAL_PLACES]
    return Tiles(rows._replace(coarse=rows.coarse[:, :0]), np.arange(len(images)) + offset, packed, added, central)


def pack(words: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """References, int32 (M, K) of two int16 each, and int32 (M,), as tiles: int32 (T, K, 4, 2, 16) and (T, 4, 2, 16).

    Row 128 t + 8 l + 4 h + j is at [t, :, j, h, l]. Rows whose sum is FILLER_SUM fill the last tile up.
    """
    count, size = words.shape
    tiles = -(-count // TILE)
    packed, filled = np.zeros((tiles * TILE, size), np.int32), np.full(tiles * TILE, FILLER_SUM)
    packed[:count], filled[:count] = words, added
    shape = tiles, LANES // 2, 2, GROUP
    by_word = packed.reshape(*shape, size).transpose(0, 4, 3, 2, 1)
    return np.ascontiguousarray(by_word), np.ascontiguousarray(filled.reshape(shape).transpose(0, 3, 2, 1))
