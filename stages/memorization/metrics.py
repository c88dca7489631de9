"""The copy metrics of METHODS §6 on one set of images: who is flagged, and how the rates compare with a control."""

import dataclasses
from typing import Any

import numpy as np

from stages.memorization.ratios import (
    candidate_count,
    carlini,
    inauthentic,
    lowest,
    nn_ratio,
    pixel_distance,
    rho,
    two_stage,
)
from stages.memorization.statistics import newcombe, wilson

METRICS = (
    "byte_identical",
    "nn_ratio_1_3",
    "nn_ratio_0_7",
    "carlini_sample",
    "carlini_train",
    "two_stage",
    "authenticity",
)


@dataclasses.dataclass(frozen=True)
class Rules:
    """The metrics' parameters: percentile and margin of the two-stage filter, alpha and n of Carlini's rule."""

    percentile: float
    margin: float
    alpha: float
    n: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of N images against the training set.

    Attributes:
        index: int64 (N, k), the nearest training rows.
        squared: int64 (N, k), ‖a−b‖² on the 0..255 scale.
        own_squared: int64 (N, n): the same from each one's nearest training image to the training images nearest to it.
        feature_distance: float64 (N,), ‖φ(x̂)−φ(x_nn)‖; NaN where no feature was taken.
        feature_spacing: float64 (N,), min_j ‖φ(x_nn)−φ(x_j)‖ over the other training images.
        dimension: d.
    """

    index: np.ndarray
    squared: np.ndarray
    own_squared: np.ndarray
    feature_distance: np.ndarray
    feature_spacing: np.ndarray
    dimension: int

    def __len__(self) -> int:
        return len(self.index)

    @property
    def distance(self) -> np.ndarray:
        """ℓ to the nearest training image, float64 (N,)."""
        return pixel_distance(self.squared[:, 0], self.dimension)

    def candidates(self, rules: Rules) -> np.ndarray:
        """bool (N,): the first stage, the lowest `percentile` of ρ within this set."""
        chosen = np.zeros(len(self), bool)
        chosen[lowest(rho(self.squared), candidate_count(len(self), rules.percentile))] = True
        return chosen

    def flags(self, rules: Rules) -> dict[str, np.ndarray]:
        """bool (N,) of every metric: True where it calls the image a copy."""
        nearest, candidate = np.sqrt(self.squared[:, 0]), self.candidates(rules)
        around_sample = np.sqrt(self.squared[:, : rules.n]).mean(axis=1)
        around_train = np.sqrt(self.own_squared[:, : rules.n]).mean(axis=1)
        flags = (
            self.squared[:, 0] == 0,
            nn_ratio(self.squared) < 1 / 3,
            nn_ratio(self.squared) < 0.7,
            carlini(nearest, around_sample, rules.alpha),
            carlini(nearest, around_train, rules.alpha),
            two_stage(candidate, self.feature_distance, rules.margin * self.feature_spacing),
            inauthentic(self.squared, self.own_squared[:, 0]),
        )
        return dict(zip(METRICS, flags))


def definitions(rules: Rules, encoder: str) -> dict[str, tuple[str, float]]:
    """(definition in words, threshold) of every metric."""
    q, a, n, m = rules.percentile, rules.alpha, rules.n, rules.margin
    return {
        "byte_identical": ("equals a training image byte for byte: squared pixel distance 0", 0.0),
        "nn_ratio_1_3": ("r1/r2 < 1/3, nearest over second nearest training image, native resolution", 1 / 3),
        "nn_ratio_0_7": ("r1/r2 < 0.7, nearest over second nearest training image, native resolution", 0.7),
        "carlini_sample": (f"l1 < {a:g} x mean distance of the sample to its {n} nearest training images", a),
        "carlini_train": (
            f"l1 < {a:g} x mean distance of the nearest training image to the {n} training images nearest to it",
            a,
        ),
        "two_stage": (
            f"among the {q:g} % of its own set with the lowest rho = l1/mean(l1..lk), and its {encoder} feature is "
            f"within {m:g} x the nearest training image's own feature distance to the next; "
            f"at most {q:g} % (rounded up to an image) by construction",
            m,
        ),
        "authenticity": ("not authentic: l1 <= the nearest training image's distance to its own nearest", 1.0),
    }


def compare(flags: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Rates of a metric on samples and held-out images with 95 % Wilson intervals; the excess with Newcombe's."""
    flagged, count, held, held_count = (int(v) for v in (flags.sum(), len(flags), control.sum(), len(control)))
    low, high = wilson(flagged, count)
    held_low, held_high = wilson(held, held_count)
    excess_low, excess_high = newcombe(flagged, count, held, held_count)
    return {
        "flagged": flagged,
        "count": count,
        "rate": flagged / count,
        "ci_low": low,
        "ci_high": high,
        "holdout_flagged": held,
        "holdout_count": held_count,
        "holdout_rate": held / held_count,
        "holdout_ci_low": held_low,
        "holdout_ci_high": held_high,
        "excess": flagged / count - held / held_count,
        "excess_low": excess_low,
        "excess_high": excess_high,
    }


def metrics_table(samples: Measured, holdout: Measured, rules: Rules, encoder: str) -> dict[str, dict[str, Any]]:
    """`compare` of every metric, with its definition and threshold."""
    flags, control, words = samples.flags(rules), holdout.flags(rules), definitions(rules, encoder)
    return {
        name: {"definition": words[name][0], "threshold": words[name][1], **compare(flags[name], control[name])}
        for name in METRICS
    }


def distance_summary(samples: Measured, holdout: Measured) -> dict[str, float | None]:
    """Median ℓ to the nearest training image, of the samples and of held-out images, and their quotient (null at 0)."""
    median, control = float(np.median(samples.distance)), float(np.median(holdout.distance))
    return {"median": median, "holdout_median": control, "median_multiple": median / control if control else None}


def ratio_summary(samples: Measured, holdout: Measured) -> dict[str, float]:
    """Mean, median and least r₁/r₂ of the samples, and of held-out images."""
    summary = {}
    for prefix, measured in (("", samples), ("holdout_", holdout)):
        ratio = nn_ratio(measured.squared)
        values = {"mean": ratio.mean(), "median": np.median(ratio), "min": ratio.min()}
        summary |= {prefix + name: float(value) for name, value in values.items()}
    return summary
