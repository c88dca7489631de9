"""How near every image is to its best match, and the calibrated rule that names copies.

Distances say nothing without a scale: ρ is the distance to a match over the mean distance of the OUTSIDE nearest
training images that do not repeat the nearest one, so neither a repeated training image nor a plain background makes
or hides a copy. ρ* is the least ρ over the plain image, the mirrored one, the shifts and the crops. What ρ* real
unseen images reach is measured on the control, and the thresholds come from there.
"""

import dataclasses

import numpy as np

from stages.auditing.matching import Matches
from stages.memorization.ratios import nn_ratio, pixel_distance

COPY_CAP, CANDIDATE_CAP = 1 / 3, 2 / 3  # thresholds of ρ* never exceed these, whatever the control says
COPY_SHARE = 0.25  # of the percentile: how many of the control may fall below the threshold of a copy
CROP_WEIGHT = 1.2  # of a crop's ρ: among so many windows, smoothed by being made smaller, unseen images come nearer,
# by about this much where thresholds are set (CIFAR-10); without it crops would lower the thresholds of all the rest
TRANSFORMS = ("plain", "mirrored", "shifted", "cropped")


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of N images; float64 (N,), lower is nearer; NaN where the training images are all one duplicate group.

    Attributes:
        ratio: r₁/r₂.
        ratio_grouped: r₁ over the distance to the nearest image outside the nearest one's duplicate group.
        rho: (N, 4), ρ of the plain image, of the mirrored one, of the best shift, and CROP_WEIGHT times ρ of the best
            crop (NaN where images are too small for one).
    """

    ratio: np.ndarray
    ratio_grouped: np.ndarray
    rho: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """ρ*: the least over the transforms."""
        return np.fmin.reduce(self.rho, axis=1)

    @property
    def transform(self) -> np.ndarray:
        """Which transform reaches ρ*, int64 (N,), ties to the earlier one; 0 where nothing does."""
        return np.argmin(np.where(np.isnan(self.rho), np.inf, self.rho), axis=1)


def scores(matches: Matches) -> Scores:
    """The scores of matched images."""
    d = matches.dimension
    plain, mirrored = pixel_distance(matches.squared[:, 0], d), pixel_distance(matches.mirrored_squared[:, 0], d)
    scale, mirrored_scale = _scale(matches.outside, d), _scale(matches.mirrored_outside, d)
    shift_scale = np.where(matches.shift_mirrored, mirrored_scale, scale)
    crop_scale = np.where(matches.crop_mirrored, mirrored_scale, scale)
    rho = [over(plain, scale), over(mirrored, mirrored_scale)]
    rho += [over(matches.shift_distance, shift_scale), CROP_WEIGHT * over(matches.crop_distance, crop_scale)]
    next_group = np.where(matches.outside[:, 0] < 0, np.nan, pixel_distance(np.maximum(matches.outside[:, 0], 0), d))
    return Scores(nn_ratio(matches.squared), over(plain, next_group), np.stack(rho, axis=1))


def _scale(outside: np.ndarray, dimension: int) -> np.ndarray:
    """Mean distance over the known ones of each row; NaN where there are none."""
    known = outside >= 0
    total = np.where(known, pixel_distance(np.maximum(outside, 0), dimension), 0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(outside), np.nan), where=known.any(axis=1))


def over(distance: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """distance/scale; 0 for distance 0 (a copy is a copy whatever lies beside it), NaN where the scale is unknown."""
    quotient = np.divide(distance, scale, out=np.full(len(distance), np.inf), where=scale != 0)
    return np.where(distance == 0, 0.0, quotient)


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """copy: ρ* below it is a copy. candidate: ρ* below it is a copy if the features agree. Both from the control."""

    copy: float
    candidate: float


def calibrate(control: np.ndarray, percentile: float) -> Thresholds:
    """Thresholds so that at most `percentile` percent of the control's ρ* are candidates and COPY_SHARE of that copies.

    control: ρ* of the control images, float64 (N,). An order statistic, and "below" is strict, so the shares hold on
    the control exactly; where it is small no image of it is a candidate. The caps keep thresholds sane where unseen
    images are all far away.
    """
    known = np.sort(control[~np.isnan(control)])
    if len(known) == 0:
        return Thresholds(COPY_CAP, COPY_CAP)
    places = [int(len(known) * share * percentile / 100) for share in (COPY_SHARE, 1.0)]
    copy, candidate = (
        min(cap, float(known[min(p, len(known) - 1)])) for cap, p in zip((COPY_CAP, CANDIDATE_CAP), places)
    )
    return Thresholds(copy, max(copy, candidate))


def verdicts(
    matches: Matches, found: Scores, thresholds: Thresholds, candidate: np.ndarray, confirmed: np.ndarray
) -> tuple[list[str], list[str]]:
    """(verdict, reason) of every image.

        copy          ρ* below the copy threshold, or equal to a training image (also mirrored, shifted or cropped)
        near_copy     ρ* below the candidate threshold, and the features agree
        unsure        ρ* below the candidate threshold, and the features do not agree: a person has to look
        same_content  among the lowest percentile of ρ (candidate), and the features agree
        novel         none of these

    Args:
        candidate: bool (N,), among the lowest percentile of ρ = l1/mean(l1..lk) (METHODS §6, first stage).
        confirmed: bool (N,), the features of the image and of its match agree (second stage).
    """
    best, how = found.best, np.array(["", "mirrored, ", "shifted, ", "cropped, "])[found.transform]
    words = np.array([f"{h}rho* {value:.2f}" for h, value in zip(how, best)])
    identical = matches.squared[:, 0] == 0
    c, d = f"{thresholds.copy:.2f}", f"{thresholds.candidate:.2f}"
    suspect = best < thresholds.candidate  # never where rho* is unknown (NaN)
    rules = [
        (identical, "copy", "equals a training image byte for byte"),
        (best == 0, "copy", "equals a training image byte for byte after "),
        (best < thresholds.copy, "copy", f" is below {c}: so near no unseen image should come"),
        (suspect & confirmed, "near_copy", f" is below {d}, and the features agree"),
        (suspect, "unsure", f" is below {d}, but the features do not agree"),
        (candidate & confirmed, "same_content", "nearest by rho among the samples, and the features agree"),
        (candidate, "novel", "nearest by rho among the samples, but the features do not agree"),
        (np.ones(len(best), bool), "novel", "no rule applies"),
    ]
    first = np.argmax(np.stack([applies for applies, _, _ in rules]), axis=0)
    reasons = [rules[rule][2] for rule in first]
    reasons = [f"{w}{r}" if r.startswith(" ") else r for w, r in zip(words, reasons)]
    after = {1: "mirroring", 2: "shifting", 3: "cropping"}
    reasons = [r + after[t] if r.endswith("after ") else r for r, t in zip(reasons, found.transform)]
    return [rules[rule][1] for rule in first], reasons
