"""Which training image an empirical score looks at: weights and precisions of a score at given points (METHODS §1).

float64 numpy. Unlike stages.diffusion.scores, which streams and returns the score, this keeps the weights.
"""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

Score = Literal["conditioning", "infinity"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Conditioning, or unconditioning at a temperature T; infinity is uniform weights."""


def label(score: Score) -> str:
    """The score's name in tables and figures: conditioning, T = 10, T = ∞."""
    if score == "conditioning":
        return score
    return "T = ∞" if score == "infinity" else f"T = {score:g}"


def inverse_temperature(score: Score) -> float:
    """1/T; 1 for conditioning."""
    return {"conditioning": 1.0, "infinity": 0.0}[score] if isinstance(score, str) else 1 / score


def squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """‖x − x_i‖² (B, M) of float64 points (B, d) and centres (M, d); never 0, so that its logarithm exists."""
    squared = (points**2).sum(axis=1)[:, None] + np.einsum("md,md->m", centres, centres) - 2 * points @ centres.T
    return np.maximum(squared, np.finfo(float).tiny)


def weigh(
    squared: np.ndarray, dimension: int, score: Score, sigma: float | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Weights w_i (B, M), rows summing to 1, and precisions p_i (B, M): the score is −Σ w_i p_i (x − x_i).

    squared: ‖x − x_i‖² (B, M). sigma: level of conditioning, a number or (B, 1); None: the actual one, min_i r_i/√d.
    Unconditioning: p_i = (d−2)/r_i², w = softmax(−(d−2) ln r_i / T).
    """
    if score == "conditioning":
        variance = squared.min(axis=1, keepdims=True) / dimension if sigma is None else np.square(sigma)
        logits, precision = -squared / (2 * variance), np.broadcast_to(1 / variance, squared.shape)
    else:
        logits = -(dimension - 2) / 2 * inverse_temperature(score) * np.log(squared)
        precision = (dimension - 2) / squared
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True), precision
