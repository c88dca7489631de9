"""Images reduced to a few cells, for shortlists that are searched exactly afterwards."""

import numpy as np

from stages.engine.products import spread

COARSE = 8  # cells per side of a reduced image
Window = tuple[int, int, int]  # (y, x, side) of a square


def reduce(images: np.ndarray, window: Window | None = None) -> np.ndarray:
    """Images (N, H, W, C) as the means of at most COARSE × COARSE cells, rounded to uint8: (N, cells · C).

    window: the square that is reduced; None: the whole image.
    """
    from stages.engine.alignment_kernels import cell_means

    height, width = images.shape[1:3] if window is None else (window[2], window[2])
    top, left = (0, 0) if window is None else window[:2]
    rows, columns = (np.arange(min(COARSE, n) + 1) * n // min(COARSE, n) for n in (height, width))
    reduced = np.empty((len(images), (len(rows) - 1) * (len(columns) - 1) * images.shape[3]), np.uint8)
    images = np.ascontiguousarray(images)
    spread(lambda a, b: cell_means(images[a:b], rows + top, columns + left, reduced[a:b]), len(images))
    return reduced
