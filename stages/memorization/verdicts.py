"""One verdict per image, with its reason: the first rule of a table that applies.

A rule is (condition, verdict, reason). Two tables exist. `ratio_rules` judges by r₁/r₂ with fixed thresholds, as the
papers do; `rho_star_rules` judges by ρ* with thresholds that unseen images set (stages.memorization.thresholds).
Features are compared for a part of the images only, so `same_content` is found among the candidates only.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from stages.memorization.nuisances import KINDS
from stages.memorization.scores import TRANSFORMS, Scores
from stages.memorization.thresholds import Thresholds
from stages.memorization.vocabulary import VERDICTS

Rule = tuple[np.ndarray, str, str | np.ndarray]
"""(condition bool (N,), verdict, reason: one for all images or N strings)."""


def decide(rules: Sequence[Rule]) -> tuple[list[str], list[str]]:
    """Return (verdict, reason) of the first rule that applies to each image; the last rule must apply to all."""
    first = np.argmax(np.stack([condition for condition, _, _ in rules]), axis=0)
    reasons = [np.broadcast_to(np.array(reason, object), len(first)) for _, _, reason in rules]
    return [rules[rule][1] for rule in first], [reasons[rule][image] for image, rule in enumerate(first)]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of N images.

    Attributes:
        identical: bool (N,), equal to a training image byte for byte.
        ratio: float64 (N,), r₁/r₂.
        outstanding: bool (N,), Carlini's rule on the sample's own neighbours.
        candidate: bool (N,), among the lowest percentile of ρ.
        confirmed: bool (N,), the features of the image and of its match agree (second stage).
    """

    identical: np.ndarray
    ratio: np.ndarray
    outstanding: np.ndarray
    candidate: np.ndarray
    confirmed: np.ndarray


def ratio_rules(e: Evidence, copy: float, near_copy: float) -> list[Rule]:
    """Return the rules by r₁/r₂. copy ≤ near_copy: its thresholds.

    A training image that repeats hides a copy from r₁/r₂ (the second nearest image is near, too). Carlini's rule over
    the 50 nearest images still sees such a copy, and its features decide.
    """
    denied, close, alike = e.candidate & ~e.confirmed, e.ratio < near_copy, "near to several alike training images"
    return [
        (e.identical, "copy", "equals the training image byte for byte"),
        (e.ratio < copy, "copy", f"r1/r2 < {copy:.3g}"),
        (close & denied, "unsure", f"r1/r2 < {near_copy:.3g}, but its features are farther than another image's"),
        (close & e.confirmed, "near_copy", f"r1/r2 < {near_copy:.3g}, and the features agree"),
        (close, "near_copy", f"r1/r2 < {near_copy:.3g}"),
        (e.outstanding & e.confirmed, "near_copy", f"{alike}, and the features agree"),
        (e.outstanding, "unsure", alike),
        (e.confirmed, "same_content", "features as near as another training image's"),
        (denied, "novel", "a candidate by pixels that its features deny"),
        (np.ones(len(e.ratio), bool), "novel", "no rule applies"),
    ]


def rho_star_rules(e: Evidence, found: Scores, thresholds: Thresholds, blend: np.ndarray) -> list[Rule]:
    """Return the rules by ρ* and the thresholds that unseen images set. ρ* is NaN where it is unknown.

    blend: bool (N,), nearer to the hull of several training images than unseen images are.
    """
    best, how = found.best, found.transform
    after = np.array(["", "mirroring", "shifting", "cropping", *KINDS])[how]  # under a change ρ is never 0
    prefixes = np.array(["", *(f"{name}, " for name in TRANSFORMS[1:])])
    value = [f"{prefix}rho* {v:.2f}" for prefix, v in zip(prefixes[how], best)]

    def below(threshold: float, words: str) -> np.ndarray:
        return np.array([f"{v} is below {threshold:.2f}{words}" for v in value], object)

    suspect = best < thresholds.candidate
    identical = "equals a training image byte for byte"
    return [
        (e.identical, "copy", identical),
        (best == 0, "copy", np.array([f"{identical} after {way}" for way in after], object)),
        (best < thresholds.copy, "copy", below(thresholds.copy, ": so near no unseen image should come")),
        (blend, "blend", "lies nearer to a mixture of several training images than unseen images do"),
        (suspect & e.confirmed, "near_copy", below(thresholds.candidate, ", and the features agree")),
        (suspect, "unsure", below(thresholds.candidate, ", but the features do not agree")),
        (e.candidate & e.confirmed, "same_content", "nearest by rho among the samples, and the features agree"),
        (e.candidate, "novel", "nearest by rho among the samples, but the features do not agree"),
        (np.ones(len(best), bool), "novel", "no rule applies"),
    ]


def order(verdict: Sequence[str], score: np.ndarray) -> np.ndarray:
    """Return the rows sorted by verdict (as in VERDICTS), then score, then row."""
    rank = np.array([VERDICTS.index(name) for name in verdict], np.int64)
    return np.lexsort((np.arange(len(rank)), score, rank))
