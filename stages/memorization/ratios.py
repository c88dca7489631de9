"""How close a sample is to its nearest training image, by every measure of METHODS §6. From exact integer distances.

`squared` is int64 (N, k): ‖a−b‖² on the 0..255 scale to the k nearest training images, nearest first.
A sample that equals a training image has ratio 0 and rho 0, also where further training images equal it.
"""

import math

import numpy as np


def pixel_distance(squared: np.ndarray, dimension: int) -> np.ndarray:
    """ℓ = ‖a−b‖/√d on pixels in [0, 1], float64, in squared's shape."""
    return np.sqrt(squared / dimension) / 255


def nn_ratio(squared: np.ndarray) -> np.ndarray:
    """r₁/r₂, the nearest over the second nearest distance; float64 (N,) in [0, 1]."""
    return _over(np.sqrt(squared[:, 0]), np.sqrt(squared[:, 1]))


def rho(squared: np.ndarray) -> np.ndarray:
    """ρ = ℓ₁ / mean(ℓ₁..ℓ_k), the first stage of [P] B.4.5; float64 (N,) in [0, 1]."""
    return _over(np.sqrt(squared[:, 0]), np.sqrt(squared).mean(axis=1))


def _over(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """distance/scale, and 0 for distance 0: a copy is a copy whatever lies beside it (scale ≥ distance/k > 0 else)."""
    return np.divide(distance, scale, out=np.zeros(len(distance)), where=distance > 0)


def candidate_count(count: int, percentile: float) -> int:
    """How many of `count` samples lie below the q-th percentile: q % of them, rounded up, so at least one.

    With fewer than 100/q samples this is one sample: the first stage then names the closest one, whatever it is.
    """
    return min(count, max(1, math.ceil(count * percentile / 100 - 1e-9))) if count else 0


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """The places of the `count` lowest values, ties to the lower place; int64, ascending places."""
    return np.sort(np.argsort(values, kind="stable")[:count])


def two_stage(candidate: np.ndarray, distance: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """[P] B.4.5: a candidate whose feature distance to its nearest training image is at most `threshold`.

    distance, threshold: float (N,), NaN outside the candidates.
    """
    return candidate & (np.where(candidate, distance, np.inf) <= np.where(candidate, threshold, -np.inf))


def carlini(nearest: np.ndarray, scale: np.ndarray, alpha: float) -> np.ndarray:
    """Carlini et al. 2023: ℓ₁ < α · scale, or ℓ₁ = 0; bool (N,).

    scale is the mean distance over the n nearest training images of the sample ("carlini_sample"), or of its nearest
    training image ("carlini_train"): the paper's text can be read either way.
    """
    return (nearest < alpha * scale) | (nearest == 0)


def inauthentic(squared: np.ndarray, own_squared: np.ndarray) -> np.ndarray:
    """Not authentic (Alaa et al. 2022): no farther from the nearest training image than that one's own nearest is.

    squared: int64 (N, k) of the samples; own_squared: int64 (N,) from each one's nearest training image to the next.
    """
    return squared[:, 0] <= own_squared
