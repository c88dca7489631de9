"""What every public function of `stages.engine` computes, in a few lines that take no care of speed or memory."""

import numpy as np

GREY = 128


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b.T; `products`, `inner_bytes` and `inner_shorts` of single rows, `weighted_sums` with b transposed."""
    return a.astype(np.int64) @ b.T.astype(np.int64)


def squared_norms(images: np.ndarray) -> np.ndarray:
    """‖x − 128‖² of every row; `squared_norms`, `compiled_norms`."""
    return np.square(images.astype(np.int64) - GREY).sum(1)


def sums(x, y) -> tuple[np.ndarray, np.ndarray]:
    """Coarse and fine sums of queries x and references y (`Coordinates`), int64 (X, Y): scale² ‖x − y‖² is at least
    scale² squared − 2 (sum + slack)."""
    coarse = products(x.coarse, y.coarse) + y.added
    return coarse, coarse + products(x.fine, y.fine)


def score_tiles(x: np.ndarray, y: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of int16 rows, (X, Y), and the best of every 4 references, (X, Y / 4)."""
    scores = (products(x, y) + added).astype(np.int32) >> 16  # what leaves an int32 wraps around: bounds never do
    return scores, scores.reshape(len(x), -1, 4).max(2)


def nearest_of(squared: np.ndarray, k: int) -> np.ndarray:
    """Keys squared · M + row of the k smallest squared distances, (Q, k) of (Q, M); `dense_block`, `keep_lowest`."""
    return np.sort(squared * squared.shape[1] + np.arange(squared.shape[1]), axis=1)[:, :k]


def cell_means(images: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Means between the edges, rounded half up: uint8 (N, cells · C)."""
    cells = (images[:, a:b, c:d].mean((1, 2)) for a, b in zip(rows, rows[1:]) for c, d in zip(columns, columns[1:]))
    return np.floor(np.concatenate(list(cells), axis=1) + 0.5).astype(np.uint8)


def softmax_sum(images: np.ndarray, x: np.ndarray, log_weight, precision) -> np.ndarray:
    """Σ_i w_i p_i (x_i − x), w = softmax(log_weight(r²)), by differences in float64: (B, d); `truncated_score.score`.

    images: uint8 (M, d); x: float64 (B, d) in [0, 1] units plus noise; log_weight, precision: of r² (M,) and the row b.
    """
    out = np.empty_like(x)
    for b, point in enumerate(x):
        difference = images.astype(np.float64) / 255 - point
        r2 = np.square(difference).sum(1)
        w = np.exp(log_weight(r2, b) - log_weight(r2, b).max())
        out[b] = (w * precision(r2, b)) @ difference / w.sum()
    return out


def candidates(images: np.ndarray, point: np.ndarray, log_weight, drop: float) -> np.ndarray:
    """Rows of the centres that weigh more than exp(−drop) of the nearest one; `candidate_sets` hold at least these."""
    weight = log_weight(np.square(images.astype(np.float64) / 255 - point).sum(1))
    return np.flatnonzero(weight >= weight.max() - drop * (1 - 1e-12))


def fixed_point(digits: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Values float64 (B, d) that int8 digits (n, B, d) of `units` (B, n) stand for."""
    return np.einsum("nbd,bn->bd", digits.astype(float), units)
