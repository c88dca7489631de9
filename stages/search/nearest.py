"""Exact nearest neighbours of uint8 images: squared distances in integers, ties by index.

Small searches are one exact matrix product. Large ones first take the certified lower bound of `projection`, which
rules out all but a few candidates of natural images, and measure those in integers; queries that the bound does not
help (noise) go through exact int8 products. The result is the same, bit for bit, on every path.
"""

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
from stages.engine.projection import Coordinates, compiled_norms, coordinates, fit_projection, slack
from stages.engine.tiled import GROUP, LANES, TILE, Tiles
from stages.errors import InputError

EMPTY = 2**63 - 1
SMALL = 1 << 33  # multiplications up to which one plain product is faster than starting the compiled scans
DIRECTIONS = 284  # of the bound
QUERIES = 24  # whose scores are in the cache at once
CHUNK = 4096  # queries whose coordinates are in memory at once
HARD = 0.6  # share of the groups that may hold a survivor before the dense search is faster


def nearest(
    queries: np.ndarray,
    reference: np.ndarray,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    memory_budget: int = 1 << 30,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `reference` for each row of `queries`, exactly.

    Args:
        queries: uint8 (Q, d).
        reference: uint8 (M, d).
        k: neighbours per query.
        exclude: int64 (Q,), one row of `reference` to leave out per query (-1: none).
        memory_budget: bytes of working memory beyond the inputs, the result and the fit of the directions, which
            takes the float32 copy of 1,024 images a few times.
        device: "cpu" for the compiled search on this processor, else the torch device that takes the int8 products.

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
    memory_budget = affordable(memory_budget)
    if device != "cpu":
        import torch

        from stages.search.nearest_device import nearest_keys

        keys = nearest_keys(queries, reference, k, exclude, torch.device(device), memory_budget)
        return keys % count, keys // count
    search = _Search(queries, reference, exclude, np.full((len(queries), k), EMPTY, np.int64), memory_budget)
    if len(queries) * count * d <= SMALL:
        search.plain()
    else:
        with single_threaded_products():
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
        """The bound for every pair, integers for what it leaves; queries that it does not help go to `dense`."""
        d = self.reference.shape[1]
        if d < 16:
            return self.dense(np.arange(len(self.queries)), np.arange(self.count))
        projection = fit_projection(self.reference, min(DIRECTIONS, d // 2))
        columns = max(TILE, min(self.count, self.budget // (8 * DIRECTIONS)))
        for c in range(0, self.count, columns):
            reference = Tiles.of(projection, self.reference[c : c + columns], c)
            hard, wanted = [], np.zeros((len(reference.packed), GROUP, LANES), bool)
            for start in range(0, len(self.queries), CHUNK):
                at = np.arange(start, min(start + CHUNK, len(self.queries)))
                queries = coordinates(projection, self.queries[at], reference.layout).as_queries(reference.layout)
                # so that one finds in the cache what the one before has measured
                order = queries.similar(reference.layout)
                hard.append(self.bounded(at[order], queries.take(order), reference, wanted))
            self.dense(np.concatenate(hard), reference.rows_of(wanted))

    def bounded(self, at: np.ndarray, x: Coordinates, y: Tiles, wanted: np.ndarray) -> np.ndarray:
        """Search the references of y for the queries `at`; returns the queries that it gave up on, and marks in
        `wanted`, as scores are arranged, the references that the bound leaves for any of these."""
        from stages.engine.search_kernels import search_block

        margin, queries, exclude, kept = slack(x, y.rows), centred(self.queries[at]), self.exclude[at], self.keys[at]
        base = x.norms + 256 * queries.sum(1, dtype=np.int64)
        hard, limit, levels = np.zeros(len(at), bool), int(HARD * y.groups), y.layout.numbers
        marked = []
        step = max(1, min(QUERIES, self.budget // (16 * threads() * len(y.order))))

        starts = iter(range(0, len(at), step))  # a thread that is done takes the next ones: they take unequal times

        def scan(*_: int) -> None:
            scratch, own = y.scratch(min(step, len(at))), np.zeros_like(wanted)
            marked.append(own)
            for start in starts:
                part = slice(start, min(start + step, len(at)))
                y.score(x.coarse[part], scratch)
                search_block(
                    scratch.scores, scratch.maxima, x.fine[part], x.squared[part], margin[part], x.scale, y.rows.fine,
                    levels, y.order, y.rows.norms, y.central, queries[part], base[part], self.reference,
                    self.count, exclude[part], kept[part], hard[part], limit, own,
                )  # fmt: skip

        spread(scan, min(threads(), -(-len(at) // step)))
        for own in marked:
            wanted |= own
        self.keys[at] = kept
        return at[hard]

    def dense(self, at: np.ndarray, rows: np.ndarray) -> None:
        """Exact int8 products of the queries `at` with the references `rows`."""
        d = self.reference.shape[1]
        columns, share = max(1, min(2048, self.budget // (8 * d))), self.budget // threads()
        step = max(1, min(1024, share // (8 * d), share // (16 * columns)))
        for c in range(0, len(rows) if len(at) else 0, columns):
            some = rows[c : c + columns]
            block = self.reference[some]
            right, norms = centred(block), compiled_norms(block)

            def search(a: int, b: int) -> None:
                for r in range(a, b, step):
                    self._dense_block(at[r : min(r + step, b)], right, norms, some)  # noqa: B023  (before the next)

            spread(search, len(at))

    def _dense_block(self, at: np.ndarray, right: np.ndarray, norms_y: np.ndarray, rows: np.ndarray) -> None:
        from stages.engine.search_kernels import dense_block

        queries, exclude, kept = self.queries[at], self.exclude[at], self.keys[at]
        inner, norms_x = products(centred(queries), right), compiled_norms(queries)
        dense_block(inner, norms_x, norms_y, rows, self.count, exclude, kept)
        self.keys[at] = kept
