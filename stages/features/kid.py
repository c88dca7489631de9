"""The kernel distance between two sets of features (KID: Bińkowski et al. 2018)."""

import numpy as np

from stages.errors import InputError

BLOCK = 1024


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased estimate of MMD² under the kernel k(x, y) = (x·y/D + 1)³, over all features of both sets.

    mean_{i≠j} k(a_i, a_j) + mean_{i≠j} k(b_i, b_j) − 2 mean_{i,j} k(a_i, b_j), in float64; it can be negative.
    No subsets are drawn: the mean over subsets, as KID is often reported, estimates the same number with more variance.

    Args:
        a, b: features (N, D) and (M, D).

    Raises InputError when a set has fewer than two features or the dimensions differ.
    """
    if a.shape[1] != b.shape[1]:
        raise InputError(f"features of {a.shape[1]} and {b.shape[1]} dimensions have no kernel distance")
    if min(len(a), len(b)) < 2:
        raise InputError(f"a kernel distance needs at least 2 images on each side, got {min(len(a), len(b))}")
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(_own_mean(a) + _own_mean(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b)))


def _own_mean(a: np.ndarray) -> float:
    """mean_{i≠j} k(a_i, a_j)"""
    diagonal = _kernel(np.square(a).sum(1), a.shape[1]).sum()
    return (_kernel_sum(a, a) - diagonal) / (len(a) * (len(a) - 1))


def _kernel(products: np.ndarray, dimension: int) -> np.ndarray:
    return (products / dimension + 1) ** 3


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(_kernel(a[i : i + BLOCK] @ b.T, a.shape[1]).sum() for i in range(0, len(a), BLOCK)))
