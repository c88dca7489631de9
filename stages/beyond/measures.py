"""Measures of a small model's samples: copies, nearness to training images, blends, distance to held-out images."""

import numpy as np

from stages.features.frechet import frechet_interval
from stages.memorization.blends import NEIGHBORS, hull_distance
from stages.memorization.calibrated_metrics import Nearness, calibrated_table
from stages.memorization.ratios import nn_ratio
from stages.search.nearest import nearest
from stages.search.pixel_distance import pixel_distance

COPY = 0.7  # r1/r2 below this counts as a copy (METHODS §6)
BUDGET = 1 << 28  # bytes of the distances to hulls


def flat(images: np.ndarray) -> np.ndarray:
    """Images as rows, uint8 (N, d)."""
    return images.reshape(len(images), -1)


def copied(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Which images (N, ...) copy one of the training images (M, ...) by r1/r2, bool (N,)."""
    return nn_ratio(nearest(flat(images), flat(train), 2)[1]) < COPY


def nearness(images: np.ndarray, train: np.ndarray, below: float = COPY) -> Nearness:
    """How near images uint8 (N, ...) lie to training images (M, ...) and their hulls; below: r1/r2 of a copy."""
    rows, reference = flat(images), flat(train)
    index, squared = nearest(rows, reference, NEIGHBORS)
    hull = hull_distance(rows, reference, index, BUDGET).distance
    return Nearness(pixel_distance(squared[:, 0], rows.shape[1]), hull, nn_ratio(squared) < below)


def shares(images: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Shares of copies, of samples nearer than all but 1 % of held-out images, and of blends, and the Fréchet distance.

    The first half of the held-out images is the control, whose share of copies stands beside them; FD-pixels is the
    distance of the pixels, in [0, 1], to the second half, with the ends of its interval.
    """
    control, reference = np.array_split(held_out, 2)
    own, real = nearness(images, train), nearness(control, train)
    table = calibrated_table(own, real)
    fd, low, high = frechet_interval(*(flat(part) / 255 for part in (images, reference)))
    return {
        "samples": len(images), "controls": len(control),
        "copies": float(own.copied.mean()), "control": float(real.copied.mean()),
        "nearer": table["calibrated_distance"]["rate"], "blends": table["blend"]["rate"],
        "fd": fd, "fd_low": low, "fd_high": high,
    }  # fmt: skip
