"""The Fréchet distance between two sets of features, in float64 (METHODS §6).

d² = |μ1 − μ2|² + tr C1 + tr C2 − 2 tr (C1^½ C2 C1^½)^½.  With factors C1 = F1 F1ᵀ and C2 = F2 F2ᵀ, the eigenvalues
of C1^½ C2 C1^½ are the squared singular values of F1ᵀ F2, so the last trace is the nuclear norm of F1ᵀ F2. Singular
values keep all digits where a covariance is singular (fewer images than dimensions); the square root of an eigenvalue
that should be zero, 1e-16, would be an error of 1e-8 in each such dimension. With N < D the centred features
themselves are the factor: an N×M problem in place of D×D.
"""

import math

import numpy as np

from stages.errors import InputError
from stages.features.growing_error import quantile, reach, tilted

BLOCK_ROWS = 4096


def moments(features: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), float64, in two passes over blocks of rows.

    weights: of each row, (N,) of sum 1; None: even ones.
    """
    mean, count = _mean(features, weights), len(features)
    covariance = np.zeros((len(mean), len(mean)))
    for start in range(0, count, BLOCK_ROWS):
        centred = features[start : start + BLOCK_ROWS].astype(np.float64) - mean
        shared = centred if weights is None else centred * (weights[start : start + BLOCK_ROWS, None] * count)
        covariance += centred.T @ shared
    return mean, covariance / (count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """The Fréchet distance d² of two Gaussians N(mean (D,), cov (D, D)). It is squared, as FID is.

    Raises ValueError when a covariance is not symmetric positive semi-definite within rounding.
    """
    return _distance(mean1, _factor(cov1), mean2, _factor(cov2))


def frechet_from_features(a: np.ndarray, b: np.ndarray) -> float:
    """`frechet_distance` of the moments of two sets of features (N, D) and (M, D), by the cheaper of two ways.

    Raises InputError when a set has fewer than two features: it has no covariance.
    """
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"features of {a.shape[1]} and {b.shape[1]} dimensions have no Fréchet distance: use one encoder for both"
        )
    return _distance(*_mean_and_factor(a), *_mean_and_factor(b))


def frechet_interval(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Return `frechet_from_features` of samples (N, D) and reference (M, D), and the ends of its 95 % interval.

    The interval is for the mean distance of sets of N such samples to this very reference: what another seed of the
    sampler would give. It says nothing about N → ∞, which is nearer (the distance's bias), nor about another reference.

    The standard error is the infinitesimal jackknife's (Efron 1982), from the distance's derivative by the weight of
    each sample: 2 (μ1−μ2)·x + |x|² − xᵀTx for the centred x, where T is the linear map that transports N(0, C1) to
    N(0, C2). It costs no second distance.

    The standard error mostly grows with the distance, which a second one measures (`growing_error`). Upwards the growth
    is at least error/d, with which the interval is symmetric in ln d; downwards it is symmetric there, or longer.

    benchmarks/README.md has its coverage (python -m benchmarks.intervals).
    """
    other = _mean_and_factor(reference)
    distance, influence, error = _with_error(samples, None, other)
    if not error:  # all samples are equal
        return distance, distance, distance
    further, _, larger = _with_error(samples, tilted(influence), other)
    growth = (larger - error) / (further - distance) if further > distance else 0.0
    found = reach(error, growth, quantile(influence), least=error / max(distance, error))
    if found.plain >= distance:  # nothing but rounding is left of the distance, or nearly so
        return distance, 0.0, distance + found.up
    low = min(distance * math.exp(-found.plain / distance), distance - found.down if growth < 0 else math.inf)
    return distance, max(0.0, low), distance + found.up


def _with_error(
    features: np.ndarray, weights: np.ndarray | None, other: tuple[np.ndarray, np.ndarray]
) -> tuple[float, np.ndarray, float]:
    """Return the distance of weighted features, its derivative by the weights (N,) and its standard error.

    weights: (N,) of sum 1, None: even ones; other: the mean and factor of the reference.
    """
    (mean1, factor1), (mean2, factor2) = _mean_and_factor(features, weights), other
    _, singular, right = np.linalg.svd(factor1.T @ factor2, full_matrices=False)
    kept = singular > len(singular) * np.finfo(np.float64).eps * singular.max(initial=0)
    axes, difference = factor2 @ right[kept].T, mean1 - mean2
    influence = np.empty(len(features))
    for start in range(0, len(features), BLOCK_ROWS):
        rows = features[start : start + BLOCK_ROWS].astype(np.float64) - mean1
        transported = (np.square(rows @ axes) / singular[kept]).sum(axis=1)
        influence[start : start + BLOCK_ROWS] = 2 * rows @ difference + np.square(rows).sum(axis=1) - transported
    influence -= np.average(influence, weights=weights)
    error = math.sqrt(np.average(np.square(influence), weights=weights) / (len(features) - 1))
    return _squared(difference, factor1, factor2, singular.sum()), influence, error


def _mean(features: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    if len(features) < 2:
        raise InputError(f"a Fréchet distance needs at least 2 images on each side, got {len(features)}")
    if weights is not None:
        return weights @ features.astype(np.float64)
    return np.mean(features, axis=0, dtype=np.float64)


def _mean_and_factor(features: np.ndarray, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and F (D, r) with F Fᵀ the unbiased covariance, r = min(N, D), of rows with `weights`."""
    count, dimension = features.shape
    if count > dimension:
        mean, covariance = moments(features, weights)
        return mean, _factor(covariance)
    mean = _mean(features, weights)
    scale = 1.0 if weights is None else np.sqrt(weights * count)
    return mean, (features.astype(np.float64) - mean).T * scale / np.sqrt(count - 1)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (D, r) with F Fᵀ = covariance, without directions whose variance is only rounding error."""
    covariance = np.asarray(covariance, dtype=np.float64)
    scale = float(np.abs(covariance).max())
    if not np.isfinite(scale) or not np.allclose(covariance, covariance.T, rtol=0, atol=1e-8 * scale):
        raise ValueError("a covariance must be finite and symmetric")
    triangular = _cholesky((covariance + covariance.T) / 2, scale)
    if triangular is not None:
        return triangular
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    rounding = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    if values[0] < -1e3 * rounding - np.finfo(np.float64).tiny:
        raise ValueError(f"a covariance must be positive semi-definite; its lowest eigenvalue is {values[0]}")
    kept = values > rounding
    return vectors[:, kept] * np.sqrt(values[kept])


def _cholesky(covariance: np.ndarray, scale: float) -> np.ndarray | None:
    """Return Cholesky's factor, in a sixth of the time of an eigendecomposition; None where it may be rounding error.

    scale: the largest entry.
    """
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    rounding = len(factor) * np.finfo(np.float64).eps * scale
    return factor if np.square(np.diag(factor)).min() > 1e3 * rounding else None


def _distance(mean1: np.ndarray, factor1: np.ndarray, mean2: np.ndarray, factor2: np.ndarray) -> float:
    difference = np.asarray(mean1, np.float64) - np.asarray(mean2, np.float64)
    product = factor1.T @ factor2
    nuclear = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    return _squared(difference, factor1, factor2, nuclear)


def _squared(difference: np.ndarray, factor1: np.ndarray, factor2: np.ndarray, nuclear: float) -> float:
    """Return d² from the difference of the means, the factors and the nuclear norm of F1ᵀ F2."""
    traces = np.square(factor1).sum() + np.square(factor2).sum()
    squared = float(difference @ difference + traces - 2 * nuclear)
    return max(squared, 0.0)  # the three terms cancel to ±1e-16 of the traces for equal sets
