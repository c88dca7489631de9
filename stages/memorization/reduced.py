"""Images reduced to a few cells, for shortlists that are searched exactly afterwards."""

import numpy as np

from stages.engine.alignment_kernels import cell_means
from stages.engine.products import spread

COARSE = 8  # cells per side of the smallest images


def reduce(images: np.ndarray, cells: int) -> np.ndarray:
    """Images (N, H, W, C) as the means of at most cells × cells cells, rounded to uint8: (N, cells² · C)."""
    height, width = images.shape[1:3]
    rows, columns = (np.arange(min(cells, n) + 1) * n // min(cells, n) for n in (height, width))
    reduced = np.empty((len(images), (len(rows) - 1) * (len(columns) - 1) * images.shape[3]), np.uint8)
    images = np.ascontiguousarray(images)
    spread(lambda a, b: cell_means(images[a:b], rows, columns, reduced[a:b]), len(images))
    return reduced
