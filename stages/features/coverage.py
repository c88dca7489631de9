"""Precision, recall, density and coverage of generated images in feature space.

Kynkäänniemi et al. 2019 (precision, recall) and Naeem et al. 2020 (density, coverage): every image carries the ball
that reaches to its k-th nearest neighbour in its own set.
"""

import numpy as np

from stages.errors import InputError
from stages.features.feature_search import nearest_features

BLOCK = 512
SLACK = 1e-9  # of the radius


def precision_recall_density_coverage(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """The four numbers, by their definitions over all pairs.

        precision = share of generated images inside some real image's ball
        recall    = share of real images inside some generated image's ball
        density   = mean over generated images of (number of real balls that hold it) / k
        coverage  = share of real images whose ball holds a generated image

    A ball is open (distance < radius), as in Naeem et al.'s code; what lies within SLACK of its rim counts as outside,
    so that rounding decides nothing.

    Args:
        real, generated: features (N, D) and (M, D).
        k: which neighbour a ball reaches to, the image itself not counted.

    Raises InputError when a set has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(f"precision and recall with k = {k} need more than {k} images on each side")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    around_real, around_generated = ((1 - SLACK) * _radii(features, k) for features in (real, generated))
    inside, recalled, nearest = (
        np.zeros(len(generated), np.int64),
        np.zeros(len(real), bool),
        np.full(len(real), np.inf),
    )
    for start in range(0, len(generated), BLOCK):
        block = slice(start, start + BLOCK)
        distance = _distances(generated[block], real)
        inside[block] = (distance < around_real).sum(1)
        recalled |= (distance < around_generated[block, None]).any(0)
        nearest = np.minimum(nearest, distance.min(0))
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / k),
        "coverage": float((nearest < around_real).mean()),
    }


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Every row's distance to its k-th nearest other row."""
    return nearest_features(features, features, k, exclude=np.arange(len(features)))[1][:, -1]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖ by products, float64: off by about 1e-15 of ‖a‖² + ‖b‖² before the root."""
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))
