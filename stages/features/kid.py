"""The kernel distance between two sets of features (KID: Bińkowski et al. 2018)."""

import numpy as np

from stages.errors import InputError
from stages.features.growing_error import quantile

BLOCK = 1024
UPWARDS = 2.6
"""How much farther the interval reaches upwards than downwards. The cubic kernel gives rare far images most of the
variance, and for heavy tails an infinite one: a set that lacks them has a small distance and a small error, and cannot
show that it lacks them. With 2.6 the interval holds the truth for Student's t with 5 degrees of freedom, too."""


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of MMD² under the kernel k(x, y) = (x·y/D + 1)³, over all features of both sets.

    mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j), in float64; it can be negative.
    No subsets are drawn: the mean over subsets, as KID is often reported, estimates the same number with more variance.

    Args:
        a, b: features (N, D) and (M, D).

    Raises InputError when a set has fewer than two features or the dimensions differ.
    """
    _check(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return _distance(_row_sums(a, a), _diagonal(a), _row_sums(a, b), b)


def kernel_interval(samples: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Return `kernel_distance` of samples (N, D), N ≥ 3, and reference (M, D), and the ends of its 95 % interval.

    The interval is for sets of N such samples against this very reference, as `frechet_interval`'s is, by standard
    errors of the jackknife (Efron 1982), exact from the kernel's row sums. It errs towards caution where tails are
    light; benchmarks/README.md has its coverage.
    """
    _check(samples, reference)
    if len(samples) < 3:
        raise InputError(f"the interval of a kernel distance needs at least 3 samples, got {len(samples)}")
    a, b = np.asarray(samples, np.float64), np.asarray(reference, np.float64)
    sums, diagonal, across = _row_sums(a, a), _diagonal(a), _row_sums(a, b)
    value, count = _distance(sums, diagonal, across, b), len(a)
    own, cross = sums - diagonal, across / len(b)
    without = (own.sum() - 2 * own) / ((count - 1) * (count - 2)) - 2 * (cross.sum() - cross) / (count - 1)
    error = float(np.sqrt((count - 1) * without.var()))
    if not error:  # all samples are equal
        return value, value, value
    below = quantile(without) * error
    return value, value - below, value + UPWARDS * below


def _check(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features of {a.shape[1]} and {b.shape[1]} dimensions have no kernel distance")
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance needs at least 2 images on each side, got {min(len(a), len(b))}")


def _distance(sums: np.ndarray, diagonal: np.ndarray, across: np.ndarray, b: np.ndarray) -> float:
    """Return the kernel distance from Σ_j k(a_i, a_j), k(a_i, a_i) and Σ_j k(a_i, b_j), each (N,), and b (M, D)."""
    own, other = _own_mean(sums, diagonal), _own_mean(_row_sums(b, b), _diagonal(b))
    return float(own + other - 2 * across.sum() / (len(sums) * len(b)))


def _row_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Σ_j k(a_i, b_j), (N,)."""
    blocks = (_kernel(a[i : i + BLOCK] @ b.T, a.shape[1]) for i in range(0, len(a), BLOCK))
    return np.concatenate([block.sum(1) for block in blocks])


def _diagonal(a: np.ndarray) -> np.ndarray:
    """k(a_i, a_i), (N,)."""
    return _kernel(np.square(a).sum(1), a.shape[1])


def _own_mean(sums: np.ndarray, diagonal: np.ndarray) -> float:
    """mean_{i≠j} k(a_i, a_j), from Σ_j k(a_i, a_j) and k(a_i, a_i)."""
    return (sums.sum() - diagonal.sum()) / (len(sums) * (len(sums) - 1))


def _kernel(products: np.ndarray, dimension: int) -> np.ndarray:
    return (products / dimension + 1) ** 3
