"""Exact nearest neighbours of uint8 images: squared distances in integers, ties by index.

Small searches are one exact matrix product. Large ones first take the certified lower bound of `projection`, which
rules out all but a few candidates of natural images, and measure those in integers; queries that the bound does not
help (noise) go through exact int8 products. The result is the same, bit for bit, on every path.
"""

import dataclasses

import numpy as np

from stages.errors import InputError
from stages.search.products import centred, check_images, products, spread, squared_norms
from stages.search.projection import BoundVectors, Projection, bound_vectors, fit_projection, slack

EMPTY = 2**63 - 1
SMALL = 1 << 33  # multiplications up to which one plain product is faster than starting the compiled scans
COARSE, FINE = 64, 256  # dimensions of the bound that every pair gets, and of the one that survivors get
HARD = 0.15  # share of the candidates above which the dense search is faster


def nearest(
    queries: np.ndarray,
    reference: np.ndarray,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    memory_budget: int = 1 << 30,
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `reference` for each row of `queries`, exactly.

    Args:
        queries: uint8 (Q, d).
        reference: uint8 (M, d).
        k: neighbours per query.
        exclude: int64 (Q,), one row of `reference` to leave out per query (-1: none).
        memory_budget: bytes of working memory beyond the inputs and the result.

    Returns:
        index int64 (Q, k) and squared int64 (Q, k): ‖a−b‖² on the 0..255 scale, nearest first, ties by index.

    Raises:
        InputError: k exceeds the rows available, or the arrays do not fit together.
    """
    queries, reference = check_images(queries, "queries"), check_images(reference, "reference")
    count, d = reference.shape
    if queries.shape[1] != d:
        raise InputError(
            f"queries have {queries.shape[1]} values per image, reference images {d}: bring them to one size"
        )
    available = count - (0 if exclude is None else 1)
    if not 1 <= k <= available:
        raise InputError(f"{k} nearest neighbours were asked for, {available} reference images are available")
    exclude = np.full(len(queries), -1, np.int64) if exclude is None else np.asarray(exclude, np.int64)
    search = _Search(queries, reference, exclude, np.full((len(queries), k), EMPTY, np.int64), memory_budget)
    if len(queries) * count * d <= SMALL:
        search.plain()
    else:
        search.pruned()
    return search.keys % count, search.keys // count


@dataclasses.dataclass(frozen=True)
class _Search:
    """One search and its state. keys: int64 (Q, k), squared distance · M + index: one number orders both, ascending."""

    queries: np.ndarray
    reference: np.ndarray
    exclude: np.ndarray
    keys: np.ndarray
    budget: int

    @property
    def count(self) -> int:
        return len(self.reference)

    def plain(self) -> None:
        """Exact products, block by block, in NumPy alone."""
        d, k = self.reference.shape[1], self.keys.shape[1]
        columns = max(1, min(self.count, self.budget // (16 * d), self.budget // 64))
        rows = max(1, min(self.budget // (48 * (columns + k)), self.budget // (16 * d)))
        for c in range(0, self.count, columns):
            block = self.reference[c : c + columns]
            right, norms = centred(block), squared_norms(block)
            for r in range(0, len(self.queries), rows):
                part = self.queries[r : r + rows]
                squared = squared_norms(part)[:, None] + norms - 2 * products(centred(part), right).astype(np.int64)
                candidates = squared * self.count + np.arange(c, c + len(block))
                out = self.exclude[r : r + rows] - c
                some = np.flatnonzero((out >= 0) & (out < len(block)))
                candidates[some, out[some]] = EMPTY
                kept = np.concatenate([self.keys[r : r + rows], candidates], axis=1)
                self.keys[r : r + rows] = np.sort(np.partition(kept, k - 1, axis=1)[:, :k], axis=1)

    def pruned(self) -> None:
        """The bound for every pair, integers for the survivors; queries that it does not help go to `dense`."""
        d = self.reference.shape[1]
        projection = fit_projection(self.reference, min(FINE, d // 2)) if d >= 16 else None
        hard = np.full(len(self.queries), projection is None)
        per_row = 12 * (min(FINE, d) + 3) + d  # float64 and float32 coordinates, centred pixels
        columns = max(1, min(self.count, self.budget // (4 * per_row)))
        for c in range(0, self.count, columns):
            span = range(c, min(c + columns, self.count))
            easy = np.flatnonzero(~hard)
            if projection is not None and len(easy):
                hard[easy] = self.bounded(projection, easy, span)
            self.dense(np.flatnonzero(hard), span)

    def bounded(self, projection: Projection, rows: np.ndarray, span: range) -> np.ndarray:
        """Search the references of `span` for the queries `rows`; returns which of these it gave up on."""
        reference = bound_vectors(projection, self.reference[span.start : span.stop], COARSE, reference=True)
        hard = np.zeros(len(rows), bool)
        step = max(1, min(256, self.budget // (16 * len(span))))
        for start in range(0, len(rows), 4096):
            at = rows[start : start + 4096]
            queries = bound_vectors(projection, self.queries[at], COARSE, reference=False)
            for r in range(0, len(at), step):
                part = slice(r, r + step)
                hard[start + r : start + r + step] = self._survivors(at[part], queries.take(part), reference, span)
        return hard

    def _survivors(self, at: np.ndarray, x: BoundVectors, y: BoundVectors, span: range) -> np.ndarray:
        from stages.search.kernels import search_block

        scores = x.coarse @ y.coarse.T
        margin, queries, exclude, kept = slack(x, y), self.queries[at], self.exclude[at], self.keys[at]
        reference, hard = self.reference[span.start : span.stop], np.zeros(len(at), bool)

        def scan(a: int, b: int) -> None:
            search_block(
                scores[a:b], x.fine[a:b], y.fine, x.squared[a:b].astype(np.float64), margin[a:b], queries[a:b],
                reference, span.start, self.count, exclude[a:b], kept[a:b], hard[a:b], HARD * len(span),
            )  # fmt: skip

        spread(scan, len(at))
        self.keys[at] = kept
        return hard

    def dense(self, rows: np.ndarray, span: range) -> None:
        """Exact int8 products of the queries `rows` with the references of `span`."""
        d = self.reference.shape[1]
        columns = max(1, min(8192, self.budget // (8 * d)))
        step = max(1, min(1024, self.budget // (8 * d), self.budget // (16 * columns)))
        for c in range(span.start, span.stop, columns):
            block = self.reference[c : min(c + columns, span.stop)]
            right, norms = centred(block), squared_norms(block)
            for r in range(0, len(rows), step):
                self._dense_block(rows[r : r + step], right, norms, c)

    def _dense_block(self, at: np.ndarray, right: np.ndarray, norms_y: np.ndarray, offset: int) -> None:
        from stages.search.kernels import dense_block

        queries, exclude, kept = self.queries[at], self.exclude[at], self.keys[at]
        inner, norms_x = products(centred(queries), right), squared_norms(queries)

        def scan(a: int, b: int) -> None:
            dense_block(inner[a:b], norms_x[a:b], norms_y, offset, self.count, exclude[a:b], kept[a:b])

        spread(scan, len(at))
        self.keys[at] = kept
