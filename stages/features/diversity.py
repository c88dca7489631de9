"""The Vendi score: how many different images a set is worth.

Friedman & Dieng 2023, The Vendi Score (Transactions on Machine Learning Research): VS = exp(−Σ λ_i ln λ_i) for the
eigenvalues λ of S/N, S_ij the cosine similarity of the features of images i and j. It is 1 for N equal images and N for
N orthogonal ones, whatever the truth; so a set's score is read beside that of as many held-out images.
"""

import numpy as np

from stages.errors import InputError


def vendi_score(features: np.ndarray) -> float:
    """Return the Vendi score of features (N, D), from 1 to min(N, D).

    Exact: the eigenvalues of S/N are, zeros aside, those of XᵀX/N for rows X of unit length, so the smaller of the
    N × N and the D × D problem is solved, in float64. That is seconds up to some thousands.

    Raises InputError for no features, a feature of length 0, which has no direction, or one that is not finite.
    """
    rows = np.asarray(features, np.float64)
    lengths = np.sqrt(np.square(rows).sum(axis=1, keepdims=True))
    if len(rows) == 0 or not np.isfinite(lengths).all() or not lengths.all():
        raise InputError(f"the Vendi score of {len(rows)} features needs at least one, all finite and none of length 0")
    return effective_rank(rows / lengths)


def effective_rank(rows: np.ndarray) -> float:
    """Return exp of the entropy of the eigenvalues of XᵀX/N for rows X (N, D) of unit length."""
    count, dimension = rows.shape
    gram = rows.T @ rows if dimension < count else rows @ rows.T
    share = np.linalg.eigvalsh(gram / count)
    share = share[share > np.finfo(float).eps]  # rounding leaves ± 1e-16 in place of 0
    return float(np.exp(-(share * np.log(share)).sum()))
