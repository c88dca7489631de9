"""Means over training seeds: SciPy's paired t, degenerate counts, and intervals whose coverage is simulated."""

import numpy as np
import pytest
from scipy.special import stdtrit
from scipy.stats import ttest_rel

from benchmarks.intervals import seed_coverage
from stages.memorization.seeds import SHARE, over_seeds, paired_difference, paired_rates

REPETITIONS = 1000


def test_the_interval_is_scipys_paired_t():
    of, against = [0.3, 0.25, 0.41, 0.33], [0.1, 0.2, 0.15, 0.12]
    found, expected = paired_difference(of, against), ttest_rel(of, against).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.mean == pytest.approx(np.mean(of) - np.mean(against))
    assert found.points == pytest.approx((0.2, 0.05, 0.26, 0.21))


def test_pairing_removes_what_the_seeds_share():
    """A seed that copies more copies more in both variants: only the differences count."""
    against = np.array([0.1, 0.5, 0.9])
    found = paired_difference(against - [0.04, 0.05, 0.06], against)
    assert found.high < 0
    unpaired = over_seeds(against - 0.05).low, over_seeds(against - 0.05).high
    assert unpaired[0] < 0 < unpaired[1]


def test_one_seed_has_no_interval():
    found = paired_rates([3], [30], 100)
    assert (found.mean, found.low, found.high) == (pytest.approx(-0.27), None, None)


def test_rates_that_agree_in_all_seeds_are_not_without_error():
    found = paired_rates([0, 0, 0], [0, 0, 0], 300)
    assert found.mean == 0
    assert found.low < -0.003
    assert found.high > 0.003
    assert (paired_difference([0, 0, 0], [0, 0, 0]).low, found.points) == (0, (0, 0, 0))


def test_seeds_that_differ_more_than_sampling_have_the_t_interval():
    of, against = [90, 150, 210], [150, 150, 150]
    rates = paired_difference(np.array(of) / 300, np.array(against) / 300)
    found = paired_rates(of, against, 300)
    assert (found.low, found.high) == pytest.approx((rates.low, rates.high))


@pytest.mark.parametrize("values", [[], [0.1, np.nan], [0.1, np.inf]])
def test_no_values_and_nan_are_errors(values):
    with pytest.raises(ValueError, match="one finite number per seed"):
        over_seeds(values)


def test_unequal_seeds_and_impossible_counts_are_errors():
    with pytest.raises(ValueError, match="the same seeds on both sides"):
        paired_difference([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match=r"not within 0\.\.10"):
        paired_rates([11], [0], 10)


def normal_coverage(seeds: int) -> float:
    """Differences of 0.05 ± 0.1, behind a seed's own level that both variants share."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(REPETITIONS):
        shared = rng.normal(0.5, 1, seeds)
        found = paired_difference(shared + rng.normal(0.05, 0.1, seeds), shared)
        inside += found.low <= 0.05 <= found.high
    return inside / REPETITIONS


def rate_coverage(seeds: int, rate: float, spread: float, difference: float = 0.0, count: int = 300) -> float:
    """Binomial counts around rates that differ from seed to seed, and within a pair by `difference` ± spread."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(REPETITIONS):
        level = rate + rng.uniform(-0.5, 0.5, seeds) * rate
        other = np.clip(level + difference + spread * rng.uniform(-1, 1, seeds) * np.sqrt(3), 0, 1)
        found = paired_rates(rng.binomial(count, other), rng.binomial(count, level), count)
        inside += found.low <= difference <= found.high
    return inside / REPETITIONS


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_t_interval_covers_normal_differences(seeds):
    assert 0.93 <= normal_coverage(seeds) <= 0.97


@pytest.mark.parametrize("spread", [0.0, 0.05])
@pytest.mark.parametrize("rate", [0.02, 0.3, 0.6])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_differences_of_rates(seeds, rate, spread):
    """At a rate of 0.02 a spread of 0.05 would leave [0, 1], so it is a quarter of the rate there."""
    found = rate_coverage(seeds, rate, min(spread, rate / 4))
    assert 0.93 <= found <= 0.995


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("rate", "spread"), [(0.005, 0.0), (0.02, 0.005), (0.3, 0.05), (0.98, 0.005), (0.995, 0.0)])
def test_intervals_near_0_and_1_cover_and_stay_within(rate, spread, paired):
    """Three seeds of 100 samples. `seed_coverage` also asserts that no interval passes what a share can be."""
    assert 0.93 <= seed_coverage(rate, spread, paired, REPETITIONS)[0] <= 1.0


def test_no_interval_of_a_share_passes_what_it_can_be():
    assert over_seeds([0.9, 1.0, 0.8], within=SHARE).high == 1
    assert over_seeds([0.1, 0.0, 0.2], within=SHARE).low == 0
    found = paired_rates([100, 60, 100], [0, 20, 0], 100)
    assert (found.low, found.high) == (pytest.approx(0.8 - stdtrit(2, 0.975) * np.std([1, 0.4, 1], ddof=1) / 3**0.5), 1)


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_a_true_difference(seeds):
    assert 0.93 <= rate_coverage(seeds, 0.3, 0.03, difference=-0.1) <= 0.99
