"""When samples are broken, so that their copy rate means nothing: limits from held-out images, reasons in words.

Each measure of an image has a lower or an upper limit, the held-out images' quantile q or 1 − q, so that a share q of
real images lies beyond it. Samples are broken for a reason where far more of them do. No limit is an absolute number:
what is blurred among photographs is sharp among digits.
"""

import dataclasses

import numpy as np

from stages.memorization.blends import is_blend
from stages.memorization.calibrated_rates import limit
from stages.memorization.quality_rule import QualityRule

COLLAPSED = (
    "{share} of the samples are collapsed: they lie nearest to one and the same training image; of held-out images at "
    "most {usual} do"
)
FAULTS = {
    "blank": "blank or blurred: adjacent pixels differ less than in {real} of held-out images",
    "smooth": "too smooth for their contrast: adjacent pixels differ less, per standard deviation, than in {real} of "
    "held-out images",
    "sharp": "too sharp: adjacent pixels differ more than in {real} of held-out images",
    "noisy": "noisy: adjacent pixels differ more, per standard deviation, than in {real} of held-out images",
    "far": "farther from every training image than {real} of held-out images",
    "blend": "blends: nearer to the hull of the nearest training images than {real} of held-out images, yet no copies",
}


@dataclasses.dataclass(frozen=True)
class Looks:
    """What was measured of N images.

    Attributes:
        nearest: int64 (N,), the nearest training image.
        distance: float64 (N,), ℓ to it.
        hull: float64 (N,), d_hull.
        sharpness: float64 (N,), total variation.
        roughness: float64 (N,), total variation over the standard deviation.
    """

    nearest: np.ndarray
    distance: np.ndarray
    hull: np.ndarray
    sharpness: np.ndarray
    roughness: np.ndarray


def faults(samples: Looks, copied: np.ndarray, held_out: Looks, quantile: float) -> dict[str, np.ndarray]:
    """Return which samples lie beyond each limit, fault -> bool (N,), in the order of FAULTS.

    copied: bool (N,), what the copy rule says: a copy lies in the hull and is not a blend.
    """
    return {
        "blank": samples.sharpness < limit(held_out.sharpness, quantile),
        "smooth": samples.roughness < limit(held_out.roughness, quantile),
        "sharp": _above(samples.sharpness, held_out.sharpness, quantile),
        "noisy": _above(samples.roughness, held_out.roughness, quantile),
        "far": _above(samples.distance, held_out.distance, quantile),
        "blend": is_blend(samples.hull, limit(held_out.hull, quantile), copied),
    }


def broken(samples: Looks, copied: np.ndarray, held_out: Looks, rule: QualityRule) -> dict[str, str]:
    """Return the reasons why samples are broken, fault -> words with the share; empty where they are sound.

    Beside FAULTS a set is "collapsed" where the share that lies nearest to one training image exceeds that of held-out
    images by rule.share.
    """
    real = _percent(1 - rule.quantile)
    shares = {name: float(beyond.mean()) for name, beyond in faults(samples, copied, held_out, rule.quantile).items()}
    found = {
        name: f"{_percent(share)} of the samples are {FAULTS[name].format(real=real)}"
        for name, share in shares.items()
        if share > rule.share
    }
    most, usual = (float(np.bincount(looks.nearest).max() / len(looks.nearest)) for looks in (samples, held_out))
    if most - usual > rule.share:
        found["collapsed"] = COLLAPSED.format(share=_percent(most), usual=_percent(usual))
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _above(values: np.ndarray, held_out: np.ndarray, quantile: float) -> np.ndarray:
    """Return which values lie above the held-out quantile 1 − q, bool (N,)."""
    return -values < limit(-held_out, quantile)
