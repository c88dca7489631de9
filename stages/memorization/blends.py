"""The blend measure: the distance from an image to the convex hull of its nearest training images.

d_hull(x) = min over w on the simplex of ‖x − Σ_j w_j x_j‖/√d, x_j the k training images nearest to x, pixels in [0, 1]
(METHODS §6, blend measure). The weights' effective number n_eff = 1/Σ w² says what x is made of: 1 where it copies one
image, k where it is the average of k.

The problem is the quadratic program min wᵀGw over the simplex with G_ij = (x_i − x)·(x_j − x). Differences of uint8
pixels make G exact. It is solved by Wolfe's active-set method (P. Wolfe 1976, Finding the nearest point in a polytope,
Mathematical Programming 11:128–149), for all images at once.
"""

import dataclasses

import numpy as np

from stages.engine.products import spread, threads

NEIGHBORS = 8
MOST_NEIGHBORS = 16
CERTIFIED = 1e-9  # of the distance to the nearest training image: the largest error of a distance that is returned
STOP = 1e-11  # the same in the solver, which sees the Gram matrix alone
ROUNDING = 2e-15  # of ‖p_j‖ Σ w ‖p‖, the error of a slope p_j · Σ w p that is taken from the Gram matrix
INSIDE = 1e-6  # of the distance to the nearest training image: below, an image lies in the hull, and no digit counts
ROUNDS = 500  # Wolfe's method takes about 2k


@dataclasses.dataclass(frozen=True)
class Hull:
    """The nearest point of each image's hull.

    Attributes:
        distance: float64 (N,), d_hull, on pixels in [0, 1] and per √d.
        weights: float64 (N, k), on the simplex; where training images among the k are equal, one of them has the
            weight of all.
        gap: float64 (N,), the most by which `distance` may exceed the true minimum.
    """

    distance: np.ndarray
    weights: np.ndarray
    gap: np.ndarray

    @property
    def effective_number(self) -> np.ndarray:
        """Return n_eff = 1/Σ w², float64 (N,) from 1 to k."""
        return 1 / np.square(self.weights).sum(axis=1)


def hull_distance(images: np.ndarray, reference: np.ndarray, index: np.ndarray, memory_budget: int = 1 << 26) -> Hull:
    """Return the distance of every image to the convex hull of its nearest training images.

    Args:
        images: uint8 (N, d).
        reference: uint8 (M, d), the training images.
        index: int64 (N, k), each image's neighbours as rows of `reference`, 1 ≤ k ≤ 16. Repeated training images add
            nothing to a hull, so where there are many, name one row of each.
        memory_budget: bytes of the float64 differences that are held at once.

    The result is certified: `gap` is at most 1e-9 of the distance to the nearest training image. Where the hull comes
    within 1e-6 of that distance, the image lies in the hull, and `gap` may be as large as `distance`.

    Raises ValueError for other shapes, and ArithmeticError should a certificate fail.
    """
    count, d = images.shape
    k = index.shape[1]
    if len(index) != count or reference.shape[1] != d or not 1 <= k <= MOST_NEIGHBORS:
        raise ValueError(f"images {images.shape}, reference {reference.shape} and index {index.shape} do not fit")
    hull = Hull(np.empty(count), np.empty((count, k)), np.empty(count))
    step = max(1, memory_budget // (8 * k * d * threads()))

    def work(a: int, b: int) -> None:
        for start in range(a, b, step):
            part = slice(start, min(start + step, b))
            points = np.subtract(reference[index[part]], images[part, None], dtype=np.float64)
            gram = points @ points.swapaxes(1, 2)
            hull.weights[part] = simplex_weights(gram)
            nearest = np.sqrt(np.diagonal(gram, axis1=1, axis2=2).min(axis=1))
            hull.distance[part], hull.gap[part] = _certified(points, hull.weights[part], nearest)

    spread(work, count)
    scale = 255 * np.sqrt(d)
    return Hull(hull.distance / scale, hull.weights, hull.gap / scale)


def is_blend(distance: np.ndarray, limit: float, copied: np.ndarray) -> np.ndarray:
    """Return which images are blends, bool (N,): d_hull below the held-out quantile `limit`, and no copy (METHODS §6).

    distance: float64 (N,), d_hull; copied: bool (N,), what the copy rule says.
    """
    return (distance < limit) & ~copied


def _certified(points: np.ndarray, weights: np.ndarray, nearest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ‖Σ w p‖ and the most by which it exceeds the least norm in the hull; float64 (N,) both.

    Every point q of the hull has r·q ≥ min_j r·p_j for r = Σ w p, so its norm is at least min_j r·p_j / ‖r‖. Both come
    from the pixels: the Gram matrix would lose half the digits of a small distance. `nearest` is min_j ‖p_j‖.
    """
    residual = (weights[:, None, :] @ points)[:, 0]
    norm = np.sqrt(np.square(residual).sum(axis=1))
    least = (points @ residual[:, :, None])[:, :, 0].min(axis=1)
    below = np.divide(least, norm, out=np.zeros(len(norm)), where=norm > 0)
    gap = norm - np.clip(below, 0, norm)
    failed = (gap > CERTIFIED * nearest) & (norm > INSIDE * nearest)
    if failed.any():
        worst = int(np.argmax(failed))
        raise ArithmeticError(f"the hull distance {norm[worst]} of one image is certified to {gap[worst]} only")
    return norm, gap


def simplex_weights(gram: np.ndarray) -> np.ndarray:
    """Return w on the simplex with the least wᵀGw, float64 (N, k), by Wolfe's method.

    gram: float64 (N, k, k), positive semidefinite, possibly singular.

    The corral, the points of positive weight, stays affinely independent: only a point strictly below the plane through
    the current minimum joins it. A round solves for the affine hull of each corral. Where all weights are positive the
    corral is right and grows by the point that lies farthest below; else the step stops where a weight becomes 0, and
    that point leaves.
    """
    count, k = gram.shape[:2]
    weights, corral = np.zeros((count, k)), np.zeros((count, k), bool)
    nearest = np.argmin(np.diagonal(gram, axis1=1, axis2=2), axis=1)
    weights[np.arange(count), nearest] = corral[np.arange(count), nearest] = 1
    value = np.full(count, np.inf)
    open_rows = np.arange(count)
    for _ in range(ROUNDS):
        open_rows = open_rows[_grow(gram, weights, corral, value, open_rows)]
        if not len(open_rows):
            break
        _minimise(gram, weights, corral, open_rows)
    return weights


def _grow(gram: np.ndarray, weights: np.ndarray, corral: np.ndarray, value: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Add to each corral the point farthest below the current minimum; return which rows go on, bool.

    A row ends where no point lies below by more than rounding, or where the last point brought no decrease.
    """
    own, radius = weights[rows], np.sqrt(np.diagonal(gram[rows], axis1=1, axis2=2))
    slope = (gram[rows] @ own[:, :, None])[:, :, 0]
    now = np.maximum((slope * own).sum(axis=1), 0)
    lowest = slope.argmin(axis=1)
    place = np.arange(len(rows)), lowest
    gap, rounding = now - slope[place], ROUNDING * radius[place] * (own * radius).sum(axis=1)
    inside = now <= ROUNDING * np.square(radius * corral[rows]).max(axis=1)
    going = (gap > STOP * np.sqrt(now) * radius.min(axis=1) + rounding) & ~inside & (now < value[rows])
    value[rows] = now
    corral[rows[going], lowest[going]] = True
    return going


def _minimise(gram: np.ndarray, weights: np.ndarray, corral: np.ndarray, rows: np.ndarray) -> None:
    """Move the weights of `rows` to the minimum over their corrals, taking out the points that lie beyond."""
    while len(rows):
        own, goal = weights[rows], _affine_minimum(gram[rows], corral[rows])
        beyond = corral[rows] & (goal <= 0)
        share = np.divide(own, own - goal, out=np.ones_like(own), where=beyond & (own > goal))
        step = np.where(beyond, share, 1).min(axis=1, keepdims=True)
        left = beyond & (share <= step)
        weights[rows] = np.where(left, 0, own + step * (goal - own))
        corral[rows] &= ~left
        rows = rows[beyond.any(axis=1)]


def _affine_minimum(gram: np.ndarray, corral: np.ndarray) -> np.ndarray:
    """Return the weights, of sum 1 and any sign, with the least wᵀGw over each corral; float64 (N, k).

    With e = (1, …, 1) they are proportional to the solution of (G + s e eᵀ) u = e, positive definite for affinely
    independent points and any s > 0 (Wolfe 1976); s is the corral's least squared norm. Rows and columns are scaled to
    a diagonal of 1, because beside a near copy other points are thousands of times as far. Rows outside are those of
    the identity.
    """
    inside = corral[:, :, None] & corral[:, None, :]
    squared = np.diagonal(gram, axis1=1, axis2=2)
    least = np.where(corral, squared, np.inf).min(axis=1, keepdims=True)
    scale = corral / np.sqrt(squared + least)
    matrix = (gram + least[:, :, None]) * scale[:, :, None] * scale[:, None, :]
    matrix = np.where(inside, matrix, np.eye(gram.shape[1]))
    solution = scale * np.linalg.solve(matrix, scale[:, :, None])[:, :, 0]
    return solution / solution.sum(axis=1, keepdims=True)
