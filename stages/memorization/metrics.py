"""The copy metrics of METHODS §6 on one set of images: who is flagged, and how the rates compare with a control."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from stages.memorization.calibrated_rates import below, control_interval, difference, limit
from stages.memorization.matching import Matches
from stages.memorization.mixtures import SEVERAL
from stages.memorization.nuisances import KINDS
from stages.memorization.ratios import PUBLISHED, candidates, carlini, inauthentic, nn_ratio, rho, two_stage
from stages.memorization.scores import UNCHANGED, Scores, scores
from stages.memorization.statistics import newcombe, rate_with_interval
from stages.memorization.thresholds import Thresholds, calibrate, copies
from stages.search.pixel_distance import pixel_distance

GROUPED = ("nn_ratio_copy_grouped", "nn_ratio_near_copy_grouped", "authenticity_grouped", "calibrated")

FIRST_STAGE = {
    "holdout": "rho = l1/mean(l1..lk) is below the {q:g} % quantile of held-out images",
    "samples": "among the {q:g} % of its own set with the lowest rho = l1/mean(l1..lk) (the published reading: at most "
    "{q:g} % of any set, rounded up to an image)",
}

Flags = dict[str, np.ndarray]
"""Metric -> bool (N,), True where it calls the image a copy."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The metrics' parameters: percentile and margin of the two-stage filter, alpha and n of Carlini's rule.

    percentile_of: whose ρ the percentile is taken of, "samples" (each set's own, as published) or "holdout".
    copy_below, near_copy_below: r₁/r₂ of a copy, and of a near copy; 1/3 and 0.7 are the literature's.
    """

    percentile: float
    margin: float
    alpha: float
    n: int
    percentile_of: str = "samples"
    copy_below: float = 1 / 3
    near_copy_below: float = 0.7

    @property
    def ratios(self) -> dict[str, float]:
        """The metrics of r₁/r₂ and their thresholds."""
        return {"nn_ratio_copy": self.copy_below, "nn_ratio_near_copy": self.near_copy_below}


@dataclasses.dataclass(frozen=True)
class Searched:
    """N images, searched.

    Attributes:
        matches, scores: of every image.
        candidate: bool (N,), the first stage: among the lowest percentile of ρ within this set, or below that
            percentile of held-out images.
    """

    matches: Matches
    scores: Scores
    candidate: np.ndarray

    def __len__(self) -> int:
        return len(self.matches)

    @classmethod
    def of(cls, matches: Matches, percentile: float, held_out: float | None = None) -> "Searched":
        """With the scores and candidates that follow from the matches.

        held_out: the ρ below which images are candidates; None: the lowest `percentile` of this set are.
        """
        if held_out is None:
            return cls(matches, scores(matches), candidates(matches.squared, percentile))
        return cls(matches, scores(matches), below(rho(matches.squared), held_out))

    @property
    def distance(self) -> np.ndarray:
        """ℓ to the nearest training image, float64 (N,)."""
        return pixel_distance(self.matches.squared[:, 0], self.matches.dimension)


def calibrated_by(control: Searched, percentile: float) -> Thresholds:
    """Return the thresholds that a control sets: of ρ* (`thresholds.calibrate`) and of d_hull."""
    found = calibrate(control.scores.best, percentile)
    return dataclasses.replace(found, blend=limit(control.matches.mixture))


def blended(searched: Searched, thresholds: Thresholds) -> np.ndarray:
    """Return which images lie nearer to the hull of several training images than unseen images do, bool (N,).

    Those that a change of one training image explains better are none.
    """
    m, found = searched.matches, searched.scores
    changed = (found.best < thresholds.candidate) & (found.transform >= UNCHANGED)
    return (m.mixture < thresholds.blend) & (m.mixture_effective > SEVERAL) & ~changed


@dataclasses.dataclass(frozen=True)
class FeatureDistances:
    """Distances in feature space of N images, float64 (N,); NaN where no features were compared.

    Attributes:
        distance: ‖φ(x̂)−φ(x)‖ to the training image that the image is compared with.
        spacing: min_j ‖φ(x)−φ(x_j)‖ over the other training images.
    """

    distance: np.ndarray
    spacing: np.ndarray

    def confirmed(self, margin: float) -> np.ndarray:
        """bool (N,): compared, and the distance is at most margin × spacing."""
        return two_stage(~np.isnan(self.distance), self.distance, margin * self.spacing)


def published_flags(searched: Searched, features: FeatureDistances, rules: Rules) -> Flags:
    """Return the flags of PUBLISHED. features: of each candidate and its nearest training image."""
    m = searched.matches
    nearest, ratio = np.sqrt(m.squared[:, 0]), nn_ratio(m.squared)
    around_sample = np.sqrt(m.squared[:, : rules.n]).mean(axis=1)
    around_train = np.sqrt(m.own_squared[:, : rules.n]).mean(axis=1)
    flags = (
        m.squared[:, 0] == 0,
        ratio < rules.copy_below,
        ratio < rules.near_copy_below,
        carlini(nearest, around_sample, rules.alpha),
        carlini(nearest, around_train, rules.alpha),
        two_stage(searched.candidate, features.distance, rules.margin * features.spacing),
        inauthentic(m.squared, m.own_squared[:, 0]),
    )
    return dict(zip(PUBLISHED, flags))


def grouped_flags(searched: Searched, thresholds: Thresholds, rules: Rules) -> Flags:
    """Return the flags of GROUPED: what a repeated training image does not blind, and the calibrated rule."""
    m, found = searched.matches, searched.scores
    flags = (
        found.ratio_grouped < rules.copy_below,  # NaN is below nothing
        found.ratio_grouped < rules.near_copy_below,
        (m.squared[:, 0] <= m.own_outside) | (m.squared[:, 0] == 0),
        copies(found.best, thresholds),
    )
    return dict(zip(GROUPED, flags))


def _share(value: float) -> str:
    """A threshold as it is written: 1/3, 0.7."""
    return "1/3" if value == 1 / 3 else f"{value:g}"


def definitions(rules: Rules, encoder: str, thresholds: Thresholds) -> dict[str, tuple[str, float]]:
    """Return (definition in words, threshold) of every metric of PUBLISHED and GROUPED."""
    q, a, n, margin = rules.percentile, rules.alpha, rules.n, rules.margin
    second = f"and its {encoder} feature is within {margin:g} x the nearest training image's own distance to the next"
    ratio, grouped = "nearest over second nearest training image, native resolution", "duplicate group"
    return {
        "byte_identical": ("equals a training image byte for byte: squared pixel distance 0", 0.0),
        **{name: (f"r1/r2 < {_share(value)}, {ratio}", value) for name, value in rules.ratios.items()},
        "carlini_sample": (f"l1 < {a:g} x mean distance of the sample to its {n} nearest training images", a),
        "carlini_train": (
            f"l1 < {a:g} x mean distance of the nearest training image to the {n} training images nearest to it",
            a,
        ),
        "two_stage": (f"{FIRST_STAGE[rules.percentile_of].format(q=q)}, {second}", margin),
        "authenticity": ("not authentic: l1 <= the nearest training image's distance to its own nearest", 1.0),
        **{
            f"{name}_grouped": (
                f"l1 over the distance to the next training image outside the nearest's {grouped} < {_share(value)}",
                value,
            )
            for name, value in rules.ratios.items()
        },
        "authenticity_grouped": (
            f"not authentic: l1 <= the nearest training image's distance to the next one outside its {grouped}",
            1.0,
        ),
        "calibrated": (
            "verdict copy: rho* below the threshold that the control sets, or equal to a training image; rho* is the "
            f"distance over the mean of the 10 nearest outside the {grouped}, least over the image, its mirror image, "
            f"shifts of up to 3 pixels, crops and the changes {', '.join(KINDS)}; of n control images k lie below it "
            "by construction, and the rate of further ones is Beta(k+1, n-k)",
            thresholds.copy,
        ),
    }


def compare(flags: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Return the rates on samples and held-out images with 95 % Wilson intervals, and the excess with Newcombe's."""
    flagged, count, held, held_count = (int(v) for v in (flags.sum(), len(flags), control.sum(), len(control)))
    ours, theirs = rate_with_interval(flagged, count), rate_with_interval(held, held_count)
    excess_low, excess_high = newcombe(flagged, count, held, held_count)
    return {
        **ours,
        **{f"holdout_{name}": value for name, value in theirs.items()},
        "excess": ours["rate"] - theirs["rate"],
        "excess_low": excess_low,
        "excess_high": excess_high,
    }


def compare_calibrated(flags: np.ndarray, control: np.ndarray) -> dict[str, Any]:
    """Return what `compare` does for a rule whose threshold was taken from the control itself.

    The k of n control images below it do not sample a rate: the share of further ones below follows Beta(k+1, n−k),
    which gives the control's rate, (k+1)/(n+1), and its exact interval (METHODS §6, calibrated control).
    """
    found = compare(flags, control)
    k, n = found["holdout_flagged"], found["holdout_count"]
    if k == n:
        return found
    of_control = ((k + 1) / (n + 1), *control_interval(k, n))
    low, high = difference((found["rate"], found["ci_low"], found["ci_high"]), of_control)
    found |= dict(zip(("holdout_rate", "holdout_ci_low", "holdout_ci_high"), of_control))
    return found | {"excess": found["rate"] - of_control[0], "excess_low": low, "excess_high": high}


def metrics_table(
    flags: Flags, control: Flags, words: dict[str, tuple[str, float]], calibrated: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Return `compare` of every metric of `flags`, with its definition and threshold.

    calibrated: the metrics whose threshold the control set (`Thresholds.calibrated`).
    """
    return {
        name: {
            "definition": words[name][0],
            "threshold": words[name][1],
            **(compare_calibrated if name in calibrated else compare)(flags[name], control[name]),
        }
        for name in flags
    }


def distance_summary(samples: Searched, holdout: Searched) -> dict[str, float | None]:
    """Return the median ℓ to the nearest training image of both sets, and their quotient (null at 0)."""
    median, control = float(np.median(samples.distance)), float(np.median(holdout.distance))
    return {"median": median, "holdout_median": control, "median_multiple": median / control if control else None}


def ratio_summary(samples: Searched, holdout: Searched) -> dict[str, float]:
    """Return mean, median and least r₁/r₂ of the samples, and of held-out images."""
    summary = {}
    for prefix, searched in (("", samples), ("holdout_", holdout)):
        ratio = searched.scores.ratio
        values = {"mean": ratio.mean(), "median": np.median(ratio), "min": ratio.min()}
        summary |= {prefix + name: float(value) for name, value in values.items()}
    return summary
