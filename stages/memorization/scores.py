"""ρ and ρ*: how near an image is to its best match, relative to what is usual around it.

ρ = distance to the match ÷ mean distance to the 10 nearest training images outside the nearest one's duplicate group,
so neither a repeated training image nor a plain background makes or hides a copy. ρ* is the least ρ over the image, its
mirror image, shifts, crops and the changes of stages.memorization.nuisances, whose distances, to the match and to the
next ones, are both taken under the change. A change counts only where the mixing of several training images does not
explain the image better: the mean of two is often one of them under other colours, nearly. Thresholds of ρ* come from
unseen images (stages.memorization.thresholds).
"""

import dataclasses

import numpy as np

from stages.memorization.matching import Matches
from stages.memorization.mixtures import SEVERAL, changed_rho
from stages.memorization.nuisances import KINDS
from stages.memorization.ratios import nn_ratio, over
from stages.search.pixel_distance import pixel_distance

# A crop's ρ is multiplied by this: among the many windows, smoothed by being made smaller, unseen images come nearer by
# about this factor where thresholds are set (CIFAR-10). Without it crops would lower the thresholds of all the rest.
CROP_WEIGHT = 1.2
UNCHANGED = 4  # transforms before the changes
TRANSFORMS = ("plain", "mirrored", "shifted", "cropped", *KINDS)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of N images; float64, lower is nearer; NaN where the training images are all one duplicate group.

    Attributes:
        ratio: (N,), r₁/r₂.
        ratio_grouped: (N,), r₁ over the distance to the nearest image outside the nearest one's duplicate group.
        rho: (N, len(TRANSFORMS)), ρ of the image, of its mirror image, of the best shift, CROP_WEIGHT times ρ of the
            best crop (NaN where images are too small for one), and ρ under each kind of
            change, times COVERED_WEIGHT where parts are covered.
    """

    ratio: np.ndarray
    ratio_grouped: np.ndarray
    rho: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """ρ*, float64 (N,): the least over the transforms."""
        return np.fmin.reduce(self.rho, axis=1)

    @property
    def transform(self) -> np.ndarray:
        """The place in TRANSFORMS of the one that reaches ρ*, int64 (N,), ties to the earlier; 0 where ρ* is NaN."""
        return np.argmin(np.where(np.isnan(self.rho), np.inf, self.rho), axis=1)


def scores(m: Matches) -> Scores:
    """Return the scores of matched images."""
    plain, mirrored = (pixel_distance(squared[:, 0], m.dimension) for squared in (m.squared, m.mirrored_squared))
    beyond, mirrored_beyond = (_distances(squared, m.dimension) for squared in (m.outside, m.mirrored_outside))
    scale, mirrored_scale = _known_mean(beyond), _known_mean(mirrored_beyond)
    rho = [
        over(plain, scale),
        over(mirrored, mirrored_scale),
        over(m.shift_distance, np.where(m.shift_mirrored, mirrored_scale, scale)),
        CROP_WEIGHT * over(m.crop_distance, np.where(m.crop_mirrored, mirrored_scale, scale)),
    ]
    changed = changed_rho(m.changed_row, m.changed_group, m.changed_relative)
    columns = np.concatenate([np.stack(rho, axis=1), np.where(mixed(m), np.nan, changed)], axis=1)
    return Scores(nn_ratio(m.squared), over(plain, beyond[:, 0]), columns)


def mixed(m: Matches) -> np.ndarray:
    """Return where several training images, mixed, leave less of the image unexplained than one does under each kind of
    change, bool (N, kinds): by the root mean squared difference to the hull, and to the match.
    """
    return (m.mixture_effective > SEVERAL)[:, None] & (255 * m.mixture[:, None] < np.sqrt(m.changed_residual[..., 0]))


def _distances(squared: np.ndarray, dimension: int) -> np.ndarray:
    """Return ℓ, NaN where `squared` is −1 (unknown)."""
    return np.where(squared < 0, np.nan, pixel_distance(np.maximum(squared, 0), dimension))


def _known_mean(distance: np.ndarray) -> np.ndarray:
    """Return the mean over the known distances of each row; NaN where there are none."""
    known = ~np.isnan(distance)
    total = np.where(known, distance, 0).sum(axis=1)
    return np.divide(total, known.sum(axis=1), out=np.full(len(distance), np.nan), where=known.any(axis=1))
