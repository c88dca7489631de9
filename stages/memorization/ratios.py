"""Ratios of distances that tell a copy from a near image (METHODS §6), from exact integer distances.

`squared` is int64 (N, k): ‖a−b‖² on the 0..255 scale to the k nearest training images, nearest first.
A sample that equals a training image has ratio 0 and rho 0, also where further training images equal it.
"""

import math

import numpy as np

PUBLISHED = (
    "byte_identical",
    "nn_ratio_copy",
    "nn_ratio_near_copy",
    "carlini_sample",
    "carlini_train",
    "two_stage",
    "authenticity",
)
"""The metrics of the literature, which METHODS §6 defines (stages.memorization.metrics adds others)."""


def over(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return distance/scale, float64 (N,): 0 at distance 0 for every scale, NaN where the scale is unknown (NaN)."""
    quotient = np.divide(distance, scale, out=np.full(len(distance), np.inf), where=scale != 0)
    return np.where(distance == 0, 0.0, quotient)


def nn_ratio(squared: np.ndarray) -> np.ndarray:
    """Return r₁/r₂, the nearest over the second nearest distance; float64 (N,) in [0, 1]."""
    return over(np.sqrt(squared[:, 0]), np.sqrt(squared[:, 1]))


def rho(squared: np.ndarray) -> np.ndarray:
    """Return ρ = ℓ₁ / mean(ℓ₁..ℓ_k), the first stage of [P] B.4.5; float64 (N,) in [0, 1]."""
    return over(np.sqrt(squared[:, 0]), np.sqrt(squared).mean(axis=1))


def candidate_count(count: int, percentile: float) -> int:
    """Return how many of `count` samples lie below the q-th percentile: q % of them, rounded up, at least one.

    With fewer than 100/q samples the first stage therefore names the closest sample, however far it is.
    """
    return min(count, max(1, math.ceil(count * percentile / 100 - 1e-9))) if count else 0


def lowest(values: np.ndarray, count: int) -> np.ndarray:
    """Return the places of the `count` lowest values, ties to the lower place; int64, ascending places."""
    return np.sort(np.argsort(values, kind="stable")[:count])


def candidates(squared: np.ndarray, percentile: float) -> np.ndarray:
    """Return which images are among the lowest `percentile` of ρ within their own set: bool (N,), the first stage."""
    chosen = np.zeros(len(squared), bool)
    chosen[lowest(rho(squared), candidate_count(len(squared), percentile))] = True
    return chosen


def two_stage(candidate: np.ndarray, distance: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """Return which candidates lie within `threshold` of their nearest training image in feature space ([P] B.4.5).

    distance, threshold: float (N,), NaN outside the candidates.
    """
    return candidate & (np.where(candidate, distance, np.inf) <= np.where(candidate, threshold, -np.inf))


def carlini(nearest: np.ndarray, scale: np.ndarray, alpha: float) -> np.ndarray:
    """Return ℓ₁ < α · scale or ℓ₁ = 0 (Carlini et al. 2023), bool (N,).

    scale is the mean distance over the n nearest training images of the sample ("carlini_sample"), or of its nearest
    training image ("carlini_train"): the paper's text can be read either way.
    """
    return (nearest < alpha * scale) | (nearest == 0)


def inauthentic(squared: np.ndarray, own_squared: np.ndarray) -> np.ndarray:
    """Return which samples are as near to their nearest training image as its own nearest is (Alaa et al. 2022).

    squared: int64 (N, k) of the samples; own_squared: int64 (N,) from each one's nearest training image to the next.
    """
    return squared[:, 0] <= own_squared
