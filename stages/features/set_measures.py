"""What a set of images is like beside a reference, by features: distance, recall, coverage, diversity."""

import numpy as np

from stages.features.coverage import precision_recall_density_coverage
from stages.features.diversity import vendi_score
from stages.features.frechet import frechet_interval

KEYS = ("fd", "fd_low", "fd_high", "recall", "coverage", "vendi")


def set_measures(features: np.ndarray, reference: np.ndarray, k: int) -> dict[str, float | None]:
    """Return the measures KEYS of features (N, D) beside a reference (M, D).

    k: recall's and coverage's balls reach to the k-th nearest of their own set. The Vendi score is None where an
    image's features are all 0, so that it has no direction. Raises InputError unless both sets have more than k images.
    """
    found = precision_recall_density_coverage(reference, features, k)
    vendi = rounded(vendi_score(features)) if features.any(axis=1).all() else None
    values = (*distance_with_interval(features, reference), found["recall"], found["coverage"], vendi)
    return dict(zip(KEYS, values))


def distance_with_interval(features: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    """Return the Fréchet distance and the ends of its interval (`frechet_interval`), `rounded`."""
    return tuple(rounded(value) for value in frechet_interval(features, reference))


def rounded(value: float) -> float:
    """Return 9 digits of a value: further ones depend on LAPACK's number of threads."""
    return float(f"{value:.9g}")
