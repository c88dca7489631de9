"""Differences over training seeds: the seed is the unit of replication (METHODS §6, contrast).

Two variants trained from the same seed are a pair. The mean of the paired differences has Student's t-interval with
n − 1 degrees of freedom. With few seeds that interval can be far too short by chance: three seeds that all copy 0 of
300 differ by 0 each, and t knows no error at all. For rates it is therefore never shorter than the sampling of the
images alone demands.

Coverage of the nominal 95 % intervals in 20,000 simulated repetitions (tests/memorization/test_seeds.py repeats
1,000): normal differences 94.9 % with 3 seeds, 95.4 % with 5. Rates of 300 samples, whose difference varies from seed
to seed by 0 or by the standard deviation given, on top of binomial sampling:

    rate    standard deviation   3 seeds: 0 / given   5 seeds: 0 / given
    0.02    0.005                99.2 / 98.7 %        98.7 / 98.0 %
    0.3     0.05                 98.8 / 95.3 %        98.0 / 94.7 %
    0.6     0.05                 98.6 / 95.7 %        98.1 / 94.9 %

They err towards caution, by up to 4.2 points, where seeds differ by no more than sampling does.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from stages.memorization.statistics import Z95

SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)
"""What a share can be, and a difference of two."""


@dataclasses.dataclass(frozen=True)
class SeedMean:
    """A mean over training seeds.

    Attributes:
        mean: of the points.
        low, high: its 95 % interval; None with one seed, which says nothing about others.
        points: one value per seed, in the order given.
    """

    mean: float
    low: float | None
    high: float | None
    points: tuple[float, ...]


def over_seeds(
    values: Sequence[float],
    sampling_variance: Sequence[float] | None = None,
    within: tuple[float, float] = (-np.inf, np.inf),
) -> SeedMean:
    """Return the mean over seeds with its t-interval.

    Args:
        values: one finite number per seed, at least one.
        sampling_variance: of each value given its seed, for the least length of the interval; None: no such bound.
        within: what a mean can be, (0, 1) for shares; the interval ends there.

    Raises ValueError for no values, or a NaN.
    """
    points = np.asarray(values, np.float64)
    if points.ndim != 1 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"a mean over seeds needs one finite number per seed, got {list(values)}")
    n, mean = len(points), float(points.mean())
    if n == 1:
        return SeedMean(mean, None, None, tuple(points.tolist()))
    half = float(stdtrit(n - 1, 0.975) * points.std(ddof=1) / np.sqrt(n))
    if sampling_variance is not None:
        half = max(half, Z95 * float(np.sqrt(np.sum(sampling_variance))) / n)
    return SeedMean(mean, max(within[0], mean - half), min(within[1], mean + half), tuple(points.tolist()))


def paired_difference(of: Sequence[float], against: Sequence[float]) -> SeedMean:
    """Return the mean of `of` − `against` over seeds; both have one value per seed, in the same order of the seeds.

    Raises ValueError where their lengths differ.
    """
    one, other = _paired(of, against)
    return over_seeds(one - other)


def paired_rates(of: Sequence[float], against: Sequence[float], count: int) -> SeedMean:
    """Return the mean difference of two rates over seeds.

    of, against: flagged samples per seed, in the same order of the seeds, each of `count` samples; where a threshold is
        cross-fitted, a number may end in a half.

    The two rates of a pair are taken as independent given the seed for the least length of the interval. That errs
    towards caution where samples share their initial noise, and so their outcome.
    """
    one, other = _paired(of, against)
    if count < 1 or min(one.min(), other.min()) < 0 or max(one.max(), other.max()) > count:
        raise ValueError(f"flagged {list(of)} and {list(against)} are not within 0..{count}")
    return over_seeds((one - other) / count, rate_variance(one, count) + rate_variance(other, count), DIFFERENCE)


def _paired(of: Sequence[float], against: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    one, other = np.asarray(of, np.float64), np.asarray(against, np.float64)
    if one.shape != other.shape or not len(one):
        raise ValueError(f"a pair needs the same seeds on both sides, got {len(one)} and {len(other)}")
    return one, other


def rate_variance(flagged: np.ndarray, count: np.ndarray | int) -> np.ndarray:
    """Return the variance of the rates, with one success and one failure added, so that it is 0 nowhere.

    Agresti & Caffo 2000, The American Statistician 54:280–288.
    """
    rate = (flagged + 1) / (count + 2)
    return rate * (1 - rate) / (count + 2)
