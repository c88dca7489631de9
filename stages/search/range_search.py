"""Exact range search: all pairs of uint8 images within a squared distance."""

import dataclasses

import numpy as np

from stages.engine import compiled
from stages.engine.products import (
    affordable,
    centred,
    check_images,
    products,
    single_threaded_products,
    spread,
    squared_norms,
    threads,
)
from stages.engine.projection import Projection, coordinates, fit_projection
from stages.engine.sizes import TILE
from stages.engine.tiled import SCORE_BATCH, Tiles, tile

SMALL_SEARCH = 1 << 33  # multiplications up to which plain products are faster than fitting a bound
DIRECTIONS, LEADING = 91, 28  # of the bound, all and at the coarse level: the later ones and a length fill cache lines
ROW_CHUNK = 4096  # rows whose coordinates are in memory at once
GIVE_UP_SHARE = 0.05  # of a block's pairs: if the bound leaves more, the exact product is faster


def pairs_within(
    images: np.ndarray, squared_radius: int, memory_budget: int = 1 << 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all pairs i < j of rows with ‖a−b‖² ≤ squared_radius, exactly.

    Args:
        images: uint8 (N, d).
        squared_radius: on the 0..255 scale; 0 finds equal rows, a negative one nothing.
        memory_budget: bytes of working memory beyond the input and the result.

    Returns:
        i, j, squared: int64 arrays of one length, sorted by (i, j).
    """
    images = check_images(images, "images")
    join = _Join(images, squared_norms(images), min(int(squared_radius), 2**62), affordable(memory_budget))
    count, d = images.shape
    if count * count * d <= SMALL_SEARCH or d < 16:
        found = join.plain()
    else:
        with single_threaded_products():
            found = join.bounded(fit_projection(images, min(DIRECTIONS, d // 2), LEADING))
    i, j, squared = np.concatenate([np.zeros((3, 0), np.int64), *found], axis=1)
    order = np.lexsort((j, i))
    return i[order], j[order], squared[order]


@dataclasses.dataclass(frozen=True)
class _Join:
    """The pairs of `images` within `radius`. What a method finds is int64 (3, n): i, j, squared."""

    images: np.ndarray
    norms: np.ndarray
    radius: int
    budget: int

    def blocks(self, columns: int) -> tuple[int, int]:
        """Rows and columns, at most `columns`, of one block of pairs whose temporaries keep to the budget."""
        columns = max(1, min(columns, 8192, self.budget // (16 * self.images.shape[1]), self.budget // 48))
        return max(1, min(1024, self.budget // (48 * columns), self.budget // (16 * self.images.shape[1]))), columns

    def plain(self) -> list[np.ndarray]:
        """Exact products of every pair."""
        count = len(self.images)
        rows, columns = self.blocks(count)
        starts = [(i, j) for i in range(0, count, rows) for j in range(i, count, columns)]
        return [self.exact(range(i, min(i + rows, count)), range(j, min(j + columns, count))) for i, j in starts]

    def exact(self, rows: range, columns: range) -> np.ndarray:
        """The pairs of one block, by one exact product."""
        a, b = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
        inner = products(centred(self.images[a]), centred(self.images[b])).astype(np.int64)
        squared = self.norms[a, None] + self.norms[b] - 2 * inner
        i, j = np.nonzero(squared <= self.radius)
        return self.ordered(i + rows.start, j + columns.start, squared[i, j])

    def ordered(self, i: np.ndarray, j: np.ndarray, squared: np.ndarray) -> np.ndarray:
        """Each pair once: i < j, within the radius."""
        return np.stack([i, j, squared])[:, (i < j) & (squared <= self.radius)]

    def bounded(self, projection: Projection) -> list[np.ndarray]:
        """The bound for every pair, exact distances for the pairs that it leaves."""
        count, found = len(self.images), []
        columns = max(TILE, min(count, self.budget // (8 * projection.size)))
        for start in range(0, count, columns):
            span = range(start, min(start + columns, count))
            reference = tile(projection, self.images[span.start : span.stop], span.start)
            for r in range(0, span.stop, ROW_CHUNK):
                found += self.joined(projection, range(r, min(r + ROW_CHUNK, span.stop)), span, reference)
        return found

    def joined(self, projection: Projection, rows: range, span: range, y: Tiles) -> list[np.ndarray]:
        """The pairs of some rows with one span."""
        found, step = [], max(1, min(SCORE_BATCH, self.budget // (16 * threads() * len(span))))
        x = coordinates(projection, self.images[rows.start : rows.stop]).as_queries(y.rows)

        def scan(a: int, b: int) -> None:
            scores = y.scores(min(step, b - a))
            for start in range(a, b, step):
                stop = min(start + step, b)
                block = rows[start:stop]
                y.score(x.coarse[start:stop], scores, max(0, block.start - span.start) // TILE)
                pairs = np.empty((3, max(1, int(GIVE_UP_SHARE * len(block) * len(span)))), np.int64)
                n = compiled.join_block(scores, x, y, self.images, rows.start, start, stop, self.radius, pairs)
                found.append(self.exact_rows(block, span) if n < 0 else pairs[:, :n].copy())

        spread(scan, len(rows))
        return found

    def exact_rows(self, rows: range, span: range) -> np.ndarray:
        """The pairs of some rows with one span, by exact products."""
        step, columns = self.blocks(len(span))
        cuts = [
            (range(r, min(r + step, rows.stop)), range(c, min(c + columns, span.stop)))
            for r in range(rows.start, rows.stop, step)
            for c in range(max(span.start, rows.start), span.stop, columns)
        ]
        return np.concatenate([np.zeros((3, 0), np.int64), *(self.exact(*cut) for cut in cuts)], axis=1)
