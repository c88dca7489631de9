"""Exact nearest neighbours of short vectors, such as reduced images: every product, and a scan that keeps the best.

A certified bound (`nearest`) pays where it saves most of a vector's length. Of a few hundred values it would take half
as directions, in int16, and the exact int8 products of all of them cost less than that bound.
"""

import numpy as np

from stages.engine.products import (
    affordable,
    centred,
    check_images,
    products,
    single_threaded_products,
    spread,
    threads,
)
from stages.engine.projection import compiled_norms
from stages.errors import InputError

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
    from stages.engine.alignment_kernels import keep_lowest

    budget = affordable(memory_budget) // threads()
    columns = max(1, min(COLUMNS, budget // (16 * d)))
    rows = max(1, min(ROWS, budget // (8 * (columns + d))))
    keys, norms = np.full((len(queries), k), EMPTY, np.int64), compiled_norms(reference).astype(np.int32)

    def search(a: int, b: int) -> None:
        left, kept = centred(queries[a:b]), keys[a:b]
        for first in range(0, count, columns):
            block = slice(first, first + columns)
            right = centred(reference[block])
            for start in range(0, b - a, rows):
                part = slice(start, start + rows)
                keep_lowest(products(left[part], right), norms[block], first, count, kept[part])

    with single_threaded_products():
        spread(search, len(queries))
    return keys % count
