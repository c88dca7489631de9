"""The exact nearest other images of every training image, from which groups of duplicates and the risk are read."""

import numpy as np

from stages.files.arrays import Arrays
from stages.search.nearest import nearest

NEIGHBORS = 50  # of every image, exact
BUDGET = 1 << 30  # bytes of working memory


def own_neighbors(flat: np.ndarray, start: int, stop: int, memory_budget: int) -> Arrays:
    """Return the NEIGHBORS nearest other images, or all, of images start..stop of uint8 (N, d): index and squared."""
    count = min(NEIGHBORS, len(flat) - 1)
    if count == 0:
        return dict.fromkeys(("index", "squared"), np.zeros((stop - start, 0), np.int64))
    rows = np.arange(start, stop)
    index, squared = nearest(flat[start:stop], flat, count, exclude=rows, memory_budget=memory_budget)
    return {"index": index, "squared": squared}
