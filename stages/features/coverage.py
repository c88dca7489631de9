"""Precision, recall, density and coverage of generated images in feature space.

Kynkäänniemi et al. 2019 (precision, recall) and Naeem et al. 2020 (density, coverage): every image is the centre of a
ball whose radius is the distance to the k-th nearest neighbour in the image's own set.
"""

import numpy as np

from stages.errors import InputError
from stages.features.feature_search import nearest_features

BLOCK = 512
SLACK = 1e-9  # of the radius


def precision_recall_density_coverage(real: np.ndarray, generated: np.ndarray, k: int) -> dict[str, float]:
    """The four metrics, by their definitions over all pairs.

        precision = share of generated images inside some real image's ball
        recall    = share of real images inside some generated image's ball
        density   = mean over generated images of (number of real balls that contain it) / k
        coverage  = share of real images whose ball contains a generated image

    A ball is open (distance < radius), as in Naeem et al.'s code; images within SLACK of its surface count as outside,
    so that rounding decides nothing.

    Args:
        real, generated: features (N, D) and (M, D).
        k: the neighbour whose distance is the radius, the image itself not counted.

    Raises InputError when a set has no k-th neighbour.
    """
    if min(len(real), len(generated)) <= k:
        raise InputError(f"precision and recall with k = {k} need more than {k} images on each side")
    real, generated = np.asarray(real, np.float64), np.asarray(generated, np.float64)
    around_real, around_generated = ((1 - SLACK) * _radii(features, k) for features in (real, generated))
    inside = np.zeros(len(generated), np.int64)
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for start in range(0, len(generated), BLOCK):
        block = slice(start, start + BLOCK)
        distance = _distances(generated[block], real)
        inside[block] = (distance < around_real).sum(1)
        recalled |= (distance < around_generated[block, None]).any(0)
        covered |= (distance < around_real).any(0)
    return {
        "precision": float((inside > 0).mean()),
        "recall": float(recalled.mean()),
        "density": float(inside.mean() / k),
        "coverage": float(covered.mean()),
    }


def _radii(features: np.ndarray, k: int) -> np.ndarray:
    """Every row's distance to its k-th nearest other row."""
    return nearest_features(features, features, k, exclude=np.arange(len(features)))[1][:, -1]


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖ by products in float64: the error is about 1e-15 of ‖a‖² + ‖b‖² before the root."""
    squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squared, 0))
