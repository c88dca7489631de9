"""Thresholds of ρ* that real unseen images (the control) set, and the rule that names copies by them."""

import dataclasses

import numpy as np

COPY_CAP, CANDIDATE_CAP = 1 / 3, 2 / 3  # thresholds never exceed these, however far all unseen images are
COPY_SHARE = 0.25  # share of the percentile: how much of the control may fall below the threshold of a copy


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Thresholds of ρ*.

    Attributes:
        copy: an image below it is a copy.
        candidate: an image below it is a near copy if its features agree.
        blend: of d_hull; an image below it that is made of several training images is a blend.
    """

    copy: float
    candidate: float
    blend: float = 0.0

    @property
    def calibrated(self) -> frozenset[str]:
        """The metrics whose threshold the control set; the others' is a cap, which no image of the control moved."""
        limits = {"calibrated": self.copy < COPY_CAP, "copy_or_near_copy": self.candidate < CANDIDATE_CAP}
        return frozenset(name for name, is_set in limits.items() if is_set)


def calibrate(control: np.ndarray, percentile: float) -> Thresholds:
    """Return thresholds below which `percentile` % of the control are candidates and COPY_SHARE of these copies.

    control: ρ* of the control images, float64 (N,), NaN where unknown. Thresholds are order statistics and "below" is
    strict, so the shares hold exactly on the control; no image of a small control is a candidate.
    """
    known = np.sort(control[~np.isnan(control)])
    if len(known) == 0:
        return Thresholds(COPY_CAP, COPY_CAP)
    places = [min(len(known) - 1, int(len(known) * share * percentile / 100)) for share in (COPY_SHARE, 1.0)]
    copy, candidate = (min(cap, float(known[p])) for cap, p in zip((COPY_CAP, CANDIDATE_CAP), places))
    return Thresholds(copy, max(copy, candidate))


def copies(rho_star: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Return which images the calibrated rule calls copies, bool (N,): ρ* = 0 or below the copy threshold."""
    return (rho_star < thresholds.copy) | (rho_star == 0)


def cross_fitted(control: np.ndarray, percentile: float) -> np.ndarray:
    """Return which control images pass for copies, bool (N,): each half under the threshold of the other half.

    Under a threshold that was taken from the same images their share would be what it was set to, always.
    """
    half = np.arange(len(control)) % 2
    flags = np.zeros(len(half), bool)
    for side in (0, 1):
        other = half != side if len(half) > 1 else half == side  # one image has no other half
        flags[half == side] = copies(control, calibrate(control[other], percentile))[half == side]
    return flags
