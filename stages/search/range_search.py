"""Exact range search: all pairs of uint8 images within a squared distance."""

import dataclasses

import numpy as np

from stages.search.products import centred, check_images, products, squared_norms
from stages.search.projection import BoundVectors, Projection, bound_vectors, fit_projection, slack

SMALL = 1 << 33  # multiplications up to which plain products are faster than fitting a bound
DIMENSIONS = 64
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
    join = _Join(images, squared_norms(images), int(squared_radius), memory_budget)
    count, d = images.shape
    projection = fit_projection(images, min(DIMENSIONS, d // 2)) if count * count * d > SMALL and d >= 16 else None
    found = join.plain() if projection is None else join.bounded(projection)
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
        wide = max(1, self.budget // (32 * (len(projection.rows) + 2) + self.images.shape[1]))
        for start in range(0, count, wide):
            span = range(start, min(start + wide, count))
            reference = bound_vectors(projection, self.images[span.start : span.stop], DIMENSIONS, reference=True)
            rows, columns = self.blocks(len(span))
            for r in range(0, span.stop, rows):
                part = range(r, min(r + rows, span.stop))
                queries = bound_vectors(projection, self.images[part.start : part.stop], DIMENSIONS, reference=False)
                cut = (queries.squared - self.radius) / 2 - slack(queries, reference)
                for c in range(max(start, r), span.stop, columns):
                    block = range(c, min(c + columns, span.stop))
                    found.append(
                        self.survivors(queries, reference.take(slice(c - start, block.stop - start)), cut, part, block)
                    )
        return found

    def survivors(self, x: BoundVectors, y: BoundVectors, cut: np.ndarray, rows: range, columns: range) -> np.ndarray:
        """The pairs of one block whose bound is within the radius, measured by direct differences."""
        scores = x.coarse @ y.coarse.T
        i, j = np.nonzero(scores >= np.nextafter(cut.astype(np.float32), np.float32(-np.inf))[:, None])
        if len(i) > HARD * scores.size:
            return self.exact(rows, columns)
        i, j = i + rows.start, j + columns.start
        i, j = i[i < j], j[i < j]
        return self.ordered(i, j, self.differences(i, j))

    def differences(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """‖a_i − a_j‖² of each pair, int64."""
        squared = np.zeros(len(i), np.int64)
        step = max(1, min(1 << 24, self.budget // 16) // self.images.shape[1])
        for s in range(0, len(i), step):
            difference = self.images[i[s : s + step]].astype(np.int64) - self.images[j[s : s + step]]
            squared[s : s + step] = np.einsum("ij,ij->i", difference, difference)
        return squared
