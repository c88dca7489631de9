"""Intervals of a rate and of the difference of two rates; agreement of two people."""

import math
from collections.abc import Mapping

from scipy.special import chdtri

Z95 = 1.959963984540054  # two-sided 95 %
FEW = 3
"""Wilson's lower end is too high for 1 to FEW flagged samples (Brown, Cai & DasGupta 2001)."""


def wilson(flagged: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Return Wilson's score interval of a rate flagged/count (Wilson 1927); (0, 1) where nothing was counted.

    Raises ValueError unless 0 ≤ flagged ≤ count.
    """
    if not 0 <= flagged <= count:
        raise ValueError(f"flagged {flagged} is not within 0..{count}")
    if count == 0:
        return 0.0, 1.0
    rate, shrink = flagged / count, 1 + z * z / count
    middle = (rate + z * z / (2 * count)) / shrink
    half = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / shrink
    # the ends are exactly 0 and 1 there, which rounding would miss
    low = 0.0 if flagged == 0 else max(0.0, middle - half)
    return low, 1.0 if flagged == count else min(1.0, middle + half)


def rate_interval(flagged: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate: Wilson's, with its end towards 0 or 1 mended where few samples are on a side.

    Wilson's interval of 1 of n begins at 0.18/n, so that it holds a rate just below with 83.9 % only. With 1 to `FEW`
    flagged samples the lower end is that of a Poisson number at one-sided 95 %, and likewise the upper end with 1 to
    `FEW` samples that are not flagged (Brown, Cai & DasGupta 2001, Statistical Science 16:101–133, section 4.1.1). Then
    it holds every rate with at least 92.8 %, for n from 100 to 1,000.
    """
    low, high = wilson(flagged, count)
    if 0 < flagged <= FEW:
        low = min(low, _poisson_low(flagged) / count)
    if 0 < count - flagged <= FEW:
        high = max(high, 1 - _poisson_low(count - flagged) / count)
    return low, high


def _poisson_low(number: int) -> float:
    """The mean of a Poisson law below which `number` or more come with less than 5 %."""
    return float(chdtri(2 * number, 0.95)) / 2


def rate_with_interval(flagged: int, count: int) -> dict[str, float | int]:
    """Return flagged, count, rate = flagged/count, and ci_low and ci_high, its `rate_interval`."""
    low, high = rate_interval(flagged, count)
    return {"flagged": flagged, "count": count, "rate": flagged / count, "ci_low": low, "ci_high": high}


def newcombe(flagged: int, count: int, control_flagged: int, control_count: int, z: float = Z95) -> tuple[float, float]:
    """Return the interval of flagged/count − control_flagged/control_count, two independent rates.

    Newcombe 1998, Statistics in Medicine 17:873–890, method 10: Wilson's intervals, combined in squares. It stays
    inside [−1, 1] and does not collapse at rates of 0 and 1.
    """
    low, high = wilson(flagged, count, z)
    control_low, control_high = wilson(control_flagged, control_count, z)
    rate = flagged / count if count else 0.5
    control = control_flagged / control_count if control_count else 0.5
    difference = rate - control
    below = math.hypot(rate - low, control_high - control)
    above = math.hypot(high - rate, control - control_low)
    return max(-1.0, difference - below), min(1.0, difference + above)


def cohen_kappa(counts: Mapping[tuple[str, str], int]) -> float | None:
    """Return Cohen's κ = (p_o − p_e)/(1 − p_e) of two people who judged the same things (Cohen 1960).

    counts: how often (category of the one, category of the other) occurred. None where κ is undefined: nothing was
    judged by both, or both used one and the same category throughout (p_e = 1).
    """
    total = sum(counts.values())
    observed = sum(count for (one, other), count in counts.items() if one == other)
    first: dict[str, int] = {}
    second: dict[str, int] = {}
    for (one, other), count in counts.items():
        first[one] = first.get(one, 0) + count
        second[other] = second.get(other, 0) + count
    expected = sum(count * second.get(category, 0) for category, count in first.items())  # p_e · total²
    if expected == total * total:
        return None
    return (observed * total - expected) / (total * total - expected)
