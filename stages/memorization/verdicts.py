"""One verdict per sample, from the pixel stage and the feature stage, with its reason.

    copy          equals a training image, or r₁/r₂ below the `copy` ratio: nothing else in the training set is as near
    near_copy     r₁/r₂ below the `near_copy` ratio and the features do not deny it; or far nearer than the 50 nearest
                  are on average (Carlini's rule) and the features agree: a training image that repeats blinds r₁/r₂
    same_content  not near in pixels, but a candidate of the first stage whose features are as near to the training
                  image's as those of any other training image
    unsure        pixels and features disagree, or pixels disagree with each other and no feature was taken:
                  a person has to look
    novel         none of these

Features are taken of the candidates only (the lowest percentile of ρ), so `same_content` can be found among these only.
"""

import dataclasses

import numpy as np

VERDICTS = ("copy", "near_copy", "same_content", "unsure", "novel")  # in the order in which they are listed


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of every sample; arrays of length N.

    Attributes:
        identical: equals a training image.
        ratio: r₁/r₂.
        outstanding: Carlini's rule on the sample's own neighbours.
        candidate: among the lowest percentile of ρ.
        confirmed: a candidate that passes the feature stage.
    """

    identical: np.ndarray
    ratio: np.ndarray
    outstanding: np.ndarray
    candidate: np.ndarray
    confirmed: np.ndarray


def verdicts(evidence: Evidence, copy: float, near_copy: float) -> tuple[list[str], list[str]]:
    """(verdict, reason) of every sample. copy ≤ near_copy: thresholds of r₁/r₂."""
    e = evidence
    denied, close = e.candidate & ~e.confirmed, e.ratio < near_copy
    rules = [
        (e.identical, "copy", "equals the training image byte for byte"),
        (e.ratio < copy, "copy", f"r1/r2 < {copy:.3g}"),
        (close & denied, "unsure", f"r1/r2 < {near_copy:.3g}, but its features are farther than another image's"),
        (close & e.confirmed, "near_copy", f"r1/r2 < {near_copy:.3g}, and the features agree"),
        (close, "near_copy", f"r1/r2 < {near_copy:.3g}"),
        (e.outstanding & e.confirmed, "near_copy", "near to several alike training images, and the features agree"),
        (e.outstanding, "unsure", "near to several alike training images"),
        (e.confirmed, "same_content", "features as near as another training image's"),
        (denied, "novel", "a candidate by pixels that its features deny"),
        (np.ones(len(e.ratio), bool), "novel", "no rule applies"),
    ]
    first = np.argmax(np.stack([applies for applies, _, _ in rules]), axis=0)
    return [rules[rule][1] for rule in first], [rules[rule][2] for rule in first]


def order(verdict: list[str], ratio: np.ndarray) -> np.ndarray:
    """The rows sorted by verdict (as in VERDICTS), then ratio, then row."""
    rank = np.array([VERDICTS.index(name) for name in verdict], np.int64)
    return np.lexsort((np.arange(len(rank)), ratio, rank))
