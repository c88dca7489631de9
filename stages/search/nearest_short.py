"""Exact nearest neighbours of short vectors, such as reduced images: every product, and a scan that keeps the best.

A certified bound (`nearest`) pays where it saves most of a vector's length. Of a few hundred values it would take half
as directions, in int16, and the exact int8 products of all of them cost less than that bound.
"""

import numpy as np

from stages.errors import InputError
from stages.search.products import affordable, centred, check_images, products, spread
from stages.search.projection import compiled_norms

LONGEST = 4_096  # values of a vector: ‖y‖² − 2 x·y then fits an int32
EMPTY = 2**63 - 1
COLUMNS, ROWS = 4_096, 512  # of a block of products: large enough for the int8 kernel, within the third cache


def nearest_short(queries: np.ndarray, reference: np.ndarray, k: int, memory_budget: int = 1 << 30) -> np.ndarray:
    """The k nearest rows of `reference` for each row of `queries`: `nearest`'s indices, to the bit.

    Args:
        queries: uint8 (Q, d), d ≤ LONGEST.
        reference: uint8 (M, d).
        k: neighbours per query.
        memory_budget: bytes of working memory.

    Returns:
        int64 (Q, k), rows of `reference`, nearest first, ties by index.
    """
    queries, reference = check_images(queries, "queries"), check_images(reference, "reference")
    count, d = reference.shape
    if queries.shape[1] != d or d > LONGEST or not 1 <= k <= count:
        raise InputError(f"the {k} nearest of {reference.shape} to {queries.shape}: at most {LONGEST} values each")
    from stages.search.alignment_kernels import keep_lowest

    budget = affordable(memory_budget)
    columns = max(1, min(COLUMNS, budget // (16 * d)))
    rows = max(1, min(ROWS, budget // (8 * (columns + d))))
    left, keys = centred(queries), np.full((len(queries), k), EMPTY, np.int64)
    for first in range(0, count, columns):
        block = reference[first : first + columns]
        right, norms = centred(block), compiled_norms(block).astype(np.int32)
        for start in range(0, len(queries), rows):
            part, kept = left[start : start + rows], keys[start : start + rows]
            inner = products(part, right)

            def scan(a: int, b: int) -> None:
                keep_lowest(inner[a:b], norms, first, count, kept[a:b])  # noqa: B023  (finished before the next block)

            spread(scan, len(part))
    return keys % count
