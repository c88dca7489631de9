"""The definitions of every search, by brute force. Tests compare the searches with these; no stage imports them."""

import numpy as np


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖² of uint8 rows (N, d) and (M, d): int64 (N, M)."""
    return np.square(a[:, None].astype(np.int64) - b[None].astype(np.int64)).sum(-1)


def nearest(
    queries: np.ndarray, reference: np.ndarray, k: int, exclude: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Index and squared distance of the k nearest rows, ties by index: int64 (Q, k) each."""
    squared = squared_distances(queries, reference)
    if exclude is not None:
        some = np.flatnonzero(exclude >= 0)
        squared[some, exclude[some]] = np.iinfo(np.int64).max
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(squared, order, 1)


def pairs_within(images: np.ndarray, squared_radius: int) -> np.ndarray:
    """Rows i < j with ‖x_i − x_j‖² ≤ squared_radius, in order: int64 (3, n), i, j and the squared distance."""
    squared = squared_distances(images, images)
    i, j = np.nonzero(np.triu(squared <= squared_radius, 1))
    return np.stack([i, j, squared[i, j]])


def min_distance(x: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest image of float points x (B, d) in [0, 1] units, and its distance ‖x − image/255‖: (B,) each."""
    distances = np.linalg.norm(x[:, None].astype(np.float64) - images[None] / 255.0, axis=-1)
    return distances.argmin(1), distances.min(1)


def overlap(query: np.ndarray, image: np.ndarray, dy: int, dx: int) -> tuple[int, int]:
    """Sum of squared differences and number of values where query pixel (y, x) lies on image pixel (y + dy, x + dx)."""
    (height, width), (rows, columns) = query.shape[:2], image.shape[:2]
    top, bottom, left, right = max(0, -dy), min(height, rows - dy), max(0, -dx), min(width, columns - dx)
    there = image[top + dy : bottom + dy, left + dx : right + dx].astype(np.int64)
    difference = query[top:bottom, left:right] - there
    return int(np.square(difference).sum()), difference.size


def tile_distance(query: np.ndarray, image: np.ndarray, tiles: int) -> float:
    """The largest root mean squared difference of a tile, `tiles` a side, of two uint8 images (H, W, C) in [0, 1]."""
    difference = (query.astype(np.float64) - image) / 255
    rows, columns = (np.arange(tiles + 1) * n // tiles for n in query.shape[:2])
    cells = (difference[a:b, c:d] for a, b in zip(rows, rows[1:]) for c, d in zip(columns, columns[1:]))
    return max(float(np.sqrt(np.square(cell).mean())) for cell in cells)
