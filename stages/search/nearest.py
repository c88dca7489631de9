"""Exact nearest neighbours of uint8 images: squared distances in integers, ties by index."""

import numpy as np

from stages.errors import InputError


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
        InputError: k exceeds the rows available.
    """
    count, d = reference.shape
    available = count - (0 if exclude is None else 1)
    if not 1 <= k <= available:
        raise InputError(f"{k} nearest neighbours were asked for, {available} reference images are available")
    index = np.empty((len(queries), k), np.int64)
    squared = np.empty((len(queries), k), np.int64)
    rows = max(1, memory_budget // (32 * count + 16 * d))
    norms = np.array([np.square(row.astype(np.int64)).sum() for row in reference])
    columns = max(1, memory_budget // (16 * d))
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows].astype(np.float64)
        products = np.concatenate(
            [block @ reference[j : j + columns].T.astype(np.float64) for j in range(0, count, columns)], axis=1
        )
        distances = norms - 2 * products.astype(np.int64) + np.square(block).sum(1).astype(np.int64)[:, None]
        keys = distances * count + np.arange(count)
        if exclude is not None:
            left_out = exclude[start : start + rows]
            some = np.flatnonzero(left_out >= 0)
            keys[some, left_out[some]] = np.iinfo(np.int64).max
        best = np.sort(np.partition(keys, k - 1, axis=1)[:, :k], axis=1)
        index[start : start + rows], squared[start : start + rows] = best % count, best // count
    return index, squared
