"""Exact range search: all pairs of uint8 images within a squared distance."""

import dataclasses

import numpy as np

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
from stages.engine.projection import Projection, coordinates, fit_projection, slack
from stages.engine.tiled import TILE, Tiles

SMALL = 1 << 33  # multiplications up to which plain products are faster than fitting a bound
DIRECTIONS = 124  # of the bound
QUERIES = 24  # whose scores are in the cache at once
HARD = 0.05  # share of a block's pairs above which the exact product is faster than pair by pair


def pairs_within(
    images: np.ndarray, squared_radius: int, memory_budget: int = 1 << 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs i < j of rows with ‖a−b‖² ≤ squared_radius, exactly.

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
    if count * count * d <= SMALL or d < 16:
        found = join.plain()
    else:
        with single_threaded_products():
            found = join.bounded(fit_projection(images, min(DIRECTIONS, d // 2)))
    i, j, squared = np.concatenate([np.zeros((3, 0), np.int64), *found], axis=1)
    order = np.lexsort((j, i))
    return i[order], j[order], squared[order]


@dataclasses.dataclass(frozen=True)
class _Join:
    """A self-join of `images` under `radius`. A found block is int64 (3, n): i, j, squared."""

    images: np.ndarray
    norms: np.ndarray
    radius: int
    budget: int

    def blocks(self, columns: int) -> tuple[int, int]:
        """Rows and columns of one block of pairs, of at most `columns`, whose temporaries keep to the budget."""
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
        """The bound for every pair, integers for the pairs that it leaves."""
        count, found = len(self.images), []
        columns = max(TILE, min(count, self.budget // (8 * projection.size)))
        for start in range(0, count, columns):
            span = range(start, min(start + columns, count))
            reference = Tiles.of(projection, self.images[span.start : span.stop], span.start)
            for r in range(0, span.stop, 4096):
                found += self.joined(projection, range(r, min(r + 4096, span.stop)), span, reference)
        return found

    def joined(self, projection: Projection, rows: range, span: range, y: Tiles) -> list[np.ndarray]:
        """The pairs of some rows with one span."""
        from stages.engine.search_kernels import join_block

        found, step = [], max(1, min(QUERIES, self.budget // (16 * threads() * len(span))))
        x = coordinates(projection, self.images[rows.start : rows.stop], y.layout).as_queries(y.layout)
        margin, levels = slack(x, y.rows), y.layout.numbers

        def scan(a: int, b: int) -> None:
            scratch = y.scratch(min(step, b - a))
            for start in range(a, b, step):
                part = slice(start, min(start + step, b))
                block = range(rows.start + part.start, rows.start + part.stop)
                y.score(x.coarse[part], scratch, max(0, block.start - span.start) // TILE)
                pairs = np.empty((3, max(1, int(HARD * len(block) * len(span)))), np.int64)
                n = join_block(
                    scratch.scores, x.fine[part], x.squared[part], margin[part], x.scale, y.rows.fine,
                    levels, y.order, self.images, block.start, self.radius, pairs,
                )  # fmt: skip
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
