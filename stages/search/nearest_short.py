"""Exact nearest neighbours of short vectors, such as reduced images: all products, and a scan that keeps the best.

The bound that `nearest` takes pays where it saves most of a vector's length. For a few hundred values its directions
would be half as many, and the exact int8 products of all values cost less.
"""

import numpy as np

from stages.engine import alignment_kernels
from stages.engine.products import (
    affordable,
    centred,
    check_images,
    compiled_norms,
    products,
    single_threaded_products,
    spread,
    threads,
)
from stages.engine.sizes import NO_KEY
from stages.errors import InputError

LONGEST = 4_096  # values of a vector: ‖y‖² − 2 x·y then fits an int32
PRODUCT_COLUMNS, PRODUCT_ROWS = 4_096, 512  # large enough for the int8 product, small enough for the third cache


def nearest_short(queries: np.ndarray, reference: np.ndarray, k: int, memory_budget: int = 1 << 30) -> np.ndarray:
    """Return the k nearest rows of `reference` for each row of `queries`: the indices that `nearest` returns.

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
        raise InputError(
            f"{k} nearest rows of {reference.shape} were asked for {queries.shape}: the widths must be equal and at "
            f"most {LONGEST}, and the rows must suffice"
        )
    budget = affordable(memory_budget) // threads()
    columns = max(1, min(PRODUCT_COLUMNS, budget // (16 * d)))
    rows = max(1, min(PRODUCT_ROWS, budget // (8 * (columns + d))))
    keys, norms = np.full((len(queries), k), NO_KEY, np.int64), compiled_norms(reference).astype(np.int32)

    def search(a: int, b: int) -> None:
        left, kept = centred(queries[a:b]), keys[a:b]
        for first in range(0, count, columns):
            block = slice(first, first + columns)
            right = centred(reference[block])
            for start in range(0, b - a, rows):
                part = slice(start, start + rows)
                alignment_kernels.keep_lowest(products(left[part], right), norms[block], first, count, kept[part])

    with single_threaded_products():
        spread(search, len(queries))
    return keys % count
