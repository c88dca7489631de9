"""How many samples lie nearer to the training set than all but q of held-out images, with intervals that cover.

A measure (ℓ₁, ρ or d_hull) is calibrated on held-out images, the control: a sample counts where it lies below the
control's q-quantile (METHODS §6, calibrated distance and calibrated control). The quantile is an order statistic of a
few hundred images and itself random: of n control images k lie below the (k+1)-th smallest by construction, which
measures nothing, while the share of further ones below it follows Beta(k+1, n−k). Samples that are judged under the
whole control's threshold and a control that is judged by halves do not compare: such intervals of the excess cover in
fewer than 90 % of cases.

Two ways out are here. `cross_fitted` takes the threshold for one half of the control from the other, which also holds
where values are tied. `beta_law` uses the whole control and the exact law, one threshold for all, for values without
ties.

Coverage of the nominal 95 % intervals, q = 1 %, in 8,000 simulated repetitions (tests/memorization/
test_calibrated_rates.py repeats 1,000 of each), none planted / 5 % copies planted:

    control/samples   excess, cross-fitted   excess, Beta law   share of samples   share of the control
    300/1000          96.2 / 95.8 %          94.4 / 94.6 %     99.1 / 99.1 %      95.0 / 95.0 %
    300/5000          95.5 / 95.2 %          95.1 / 94.8 %     99.0 / 99.2 %      95.5 / 95.5 %
    1000/5000         95.2 / 95.2 %          94.8 / 95.0 %     97.9 / 97.3 %      94.8 / 94.8 %
    5000/5000         95.6 / 95.1 %          95.1 / 95.1 %     96.4 / 95.2 %      94.9 / 94.9 %

The interval of the share of samples errs towards caution with a small control, by up to 4.2 points with 300 images,
whose 1 % quantile is known only coarsely. The last two columns are those of `cross_fitted`; those of `beta_law` agree.
"""

import dataclasses
import math

import numpy as np
from scipy.special import betaincinv
from scipy.stats import binom

from stages.memorization.statistics import wilson

QUANTILE = 0.01
TAIL = 0.025  # of a two-sided 95 % interval

Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class CalibratedRates:
    """Shares below the held-out q-quantile, each with its 95 % interval.

    Attributes:
        share, low, high: share of samples; the interval holds the share below the population's own q-quantile, so the
            threshold's randomness is part of it.
        control_share, control_low, control_high: share of images like the control's below the same thresholds.
        excess, excess_low, excess_high: share − control_share, negative where samples keep away.
        limit: the whole control's threshold, for the label of a single image.
        count, control_count: samples and control images.
    """

    share: float
    low: float
    high: float
    control_share: float
    control_low: float
    control_high: float
    excess: float
    excess_low: float
    excess_high: float
    limit: float
    count: int
    control_count: int


def limit(control: np.ndarray, q: float = QUANTILE) -> float:
    """Return the control's (k+1)-th smallest value, k = ⌊q n⌋: at most the share q of the control lies below it.

    Raises ValueError for an empty control, a NaN in it, or q outside [0, 1).
    """
    if not 0 <= q < 1 or len(control) == 0 or np.isnan(control).any():
        raise ValueError(f"a quantile {q} of {len(control)} held-out values, none of them NaN, is not defined")
    k = below_limit(len(control), q)
    return float(np.partition(control, k)[k])


def below(values: np.ndarray, threshold: float) -> np.ndarray:
    """Return which values lie strictly below the threshold, bool; 0, an exact copy, always does."""
    return (values < threshold) | (values == 0)


def control_interval(k: int, n: int) -> Interval:
    """Return the exact 95 % interval of the share below the (k+1)-th smallest of n values, by Beta(k+1, n−k)."""
    if not 0 <= k < n:
        raise ValueError(f"of {n} control images, {k} cannot lie below the next smallest")
    return float(betaincinv(k + 1, n - k, TAIL)), float(betaincinv(k + 1, n - k, 1 - TAIL))


def cross_fitted(
    samples: np.ndarray, control: np.ndarray, q: float = QUANTILE, excluded: np.ndarray | None = None
) -> CalibratedRates:
    """Return the rates with the threshold for each half of the control taken from the other half.

    Samples are judged under both thresholds, and the shares are averaged. To first order the excess then varies as the
    difference of two independent binomial rates of all samples and all control images: a threshold's error moves both
    of its terms alike. Its interval is Newcombe's combination of Wilson's interval and, for the control, Jeffreys'.

    Args:
        samples, control: float64 (m,) and (n,), n ≥ 2, small where an image lies near the training set. The control's
            order must not matter: its even rows are one half, its odd rows the other.
        excluded: bool (n,), control images that help to set the thresholds and never count as below; for samples that
            must not count, give ∞.
    """
    halves = control[0::2], control[1::2]
    thresholds = [limit(half, q) for half in halves]
    flagged = float(np.mean([below(samples, threshold).sum() for threshold in thresholds]))
    judged = control if excluded is None else np.where(excluded, np.inf, control)
    passed = sum(int(below(judged[half::2], thresholds[1 - half]).sum()) for half in (0, 1))
    share = passed / len(control)
    return _rates(samples, control, q, flagged, (share, *_jeffreys(passed, len(control))))


def beta_law(samples: np.ndarray, control: np.ndarray, q: float = QUANTILE) -> CalibratedRates:
    """Return the rates under the whole control's threshold; the control's share is its Beta law's mean (k+1)/(n+1).

    Needs values without ties: a control image that ties with the threshold makes the true share lower than the law
    says, and the excess is then understated. Arguments as in `cross_fitted`.
    """
    n, k = len(control), below_limit(len(control), q)
    flagged = float(below(samples, limit(control, q)).sum())
    return _rates(samples, control, q, flagged, ((k + 1) / (n + 1), *control_interval(k, n)))


def below_limit(n: int, q: float) -> int:
    """Return k = ⌊q n⌋, where rounding must not lose a whole number."""
    return math.floor(n * q + 1e-9)


def _jeffreys(flagged: int, count: int) -> Interval:
    """Return Jeffreys' interval of a binomial rate (Brown, Cai & DasGupta 2001): Beta(x + ½, n − x + ½)."""
    a, b = flagged + 0.5, count - flagged + 0.5
    low = 0.0 if flagged == 0 else float(betaincinv(a, b, TAIL))
    return low, 1.0 if flagged == count else float(betaincinv(a, b, 1 - TAIL))


def _rates(
    samples: np.ndarray, control: np.ndarray, q: float, flagged: float, of_control: tuple[float, float, float]
) -> CalibratedRates:
    """Return the rates from the number of samples that lie below, and the control's share with its interval."""
    if len(samples) == 0 or np.isnan(samples).any():
        raise ValueError(f"the rates of {len(samples)} samples need at least one, and no NaN")
    share, control_share = flagged / len(samples), of_control[0]
    own = wilson(flagged, len(samples))
    excess = difference((share, *own), of_control)
    low, high = _with_threshold(share, own, _shares_around(samples, control, q))
    return CalibratedRates(
        share, low, high, *of_control, share - control_share, *excess, limit(control, q), len(samples), len(control)
    )


def difference(one: tuple[float, float, float], other: tuple[float, float, float]) -> Interval:
    """Return the interval of a difference from (value, low, high) of both terms (Newcombe 1998, method 10)."""
    (a, a_low, a_high), (b, b_low, b_high) = one, other
    return max(-1.0, a - b - math.hypot(a - a_low, b_high - b)), min(1.0, a - b + math.hypot(a_high - a, b - b_low))


def _shares_around(samples: np.ndarray, control: np.ndarray, q: float) -> Interval:
    """Return the shares of samples below a lower and an upper bound of the population's q-quantile.

    The number of n control images below that quantile is Bin(n, q), so with 95 % it lies between the order statistics
    that this law's quantiles name, for every continuous distribution.
    """
    n = len(control)
    fewest, most = (int(binom.ppf(tail, n, q)) for tail in (TAIL, 1 - TAIL))
    ordered = np.concatenate([[-np.inf], np.sort(control), [np.inf]])
    return tuple(float(below(samples, ordered[place]).mean()) for place in (fewest, most + 1))


def _with_threshold(share: float, own: Interval, around: Interval) -> Interval:
    """Return the interval of the share with the threshold's error added in squares to the sampling error."""
    low = share - math.hypot(share - own[0], max(0.0, share - around[0]))
    high = share + math.hypot(own[1] - share, max(0.0, around[1] - share))
    return max(0.0, low), min(1.0, high)
