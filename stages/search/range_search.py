"""Exact range search: all pairs of uint8 images within a squared distance."""

import numpy as np


def pairs_within(
    images: np.ndarray, squared_radius: int, memory_budget: int = 1 << 30
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs i < j of rows with ‖a−b‖² ≤ squared_radius, exactly.

    Args:
        images: uint8 (N, d).
        squared_radius: on the 0..255 scale; 0 finds equal rows.
        memory_budget: bytes of working memory beyond the inputs and the result.

    Returns:
        i, j, squared: int64 arrays of one length, sorted by (i, j).
    """
    count, d = images.shape
    rows = max(1, memory_budget // (32 * max(count, 1) + 16 * d))
    norms = np.array([np.square(row.astype(np.int64)).sum() for row in images], np.int64)
    found = [np.zeros((3, 0), np.int64)]
    for start in range(0, count, rows):
        block = images[start : start + rows].astype(np.float64)
        products = (block @ images[start:].T.astype(np.float64)).astype(np.int64)
        distances = norms[start : start + rows, None] + norms[start:] - 2 * products
        i, j = np.nonzero(distances <= squared_radius)
        i, j, squared = i[i < j], j[i < j], distances[i, j][i < j]
        found.append(np.stack([i + start, j + start, squared]))
    i, j, squared = np.concatenate(found, axis=1)
    return i, j, squared
