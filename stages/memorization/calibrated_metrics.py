"""Metrics whose threshold held-out images set: nearness to one training image, and to a blend of several.

They stand in filter.json beside those of stages.memorization.metrics. r₁/r₂ cannot see a blend: between two training
images it is near 1. Both metrics here can (METHODS §6, calibrated distance and blend measure).
"""

import dataclasses
from typing import Any

import numpy as np

from stages.files.arrays import Arrays
from stages.memorization.blends import NEIGHBORS, hull_distance, is_blend
from stages.memorization.calibrated_rates import QUANTILE, CalibratedRates, cross_fitted, limit

HELD_OUT = f"the {QUANTILE:.0%} quantile of held-out images (each half judged by the other's)"
DEFINITIONS = {
    "calibrated_distance": f"pixel distance to the nearest training image below {HELD_OUT}",
    "blend": f"distance to the convex hull of the {NEIGHBORS} nearest training images below {HELD_OUT}, and no copy by "
    "r1/r2, also beyond the duplicate group",
}


@dataclasses.dataclass(frozen=True)
class Nearness:
    """How near N images lie to the training set.

    Attributes:
        distance: float64 (N,), ℓ to the nearest training image.
        hull: float64 (N,), d_hull.
        copied: bool (N,), copies by r₁/r₂, which are not blends.
    """

    distance: np.ndarray
    hull: np.ndarray
    copied: np.ndarray


def hull_arrays(images: np.ndarray, train: np.ndarray, index: np.ndarray, budget: int) -> Arrays:
    """Return d_hull and the effective number of its weights, float64 (N,) both.

    images, train: uint8 (N, d) and (M, d); index: int64 (N, k), the nearest training images, of which 8 are used.
    """
    found = hull_distance(images, train, index[:, :NEIGHBORS], budget)
    return {"hull": found.distance, "effective": found.effective_number}


def blends(samples: Nearness, held_out: Nearness) -> np.ndarray:
    """Return which samples are blends under the threshold of all held-out images, bool (N,)."""
    return is_blend(samples.hull, limit(held_out.hull), samples.copied)


def calibrated_table(samples: Nearness, held_out: Nearness) -> dict[str, dict[str, Any]]:
    """Return the entries of filter.json's metrics, with the keys that `metrics.compare` gives the others.

    `flagged` is the mean number of samples under the two halves' thresholds, so it may end in a half.
    """
    rates = {
        "calibrated_distance": cross_fitted(samples.distance, held_out.distance),
        "blend": cross_fitted(np.where(samples.copied, np.inf, samples.hull), held_out.hull, excluded=held_out.copied),
    }
    return {name: _entry(DEFINITIONS[name], found) for name, found in rates.items()}


def _entry(definition: str, found: CalibratedRates) -> dict[str, Any]:
    sides = {
        "": (found.share, found.count, found.low, found.high),
        "holdout_": (found.control_share, found.control_count, found.control_low, found.control_high),
    }
    entry: dict[str, Any] = {"definition": definition, "threshold": found.limit}
    for prefix, (rate, count, low, high) in sides.items():
        flagged = round(2 * rate * count) / 2
        values = (int(flagged) if flagged.is_integer() else flagged, count, rate, low, high)
        entry |= {
            prefix + name: value for name, value in zip(("flagged", "count", "rate", "ci_low", "ci_high"), values)
        }
    return entry | {"excess": found.excess, "excess_low": found.excess_low, "excess_high": found.excess_high}
