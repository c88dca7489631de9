"""Calibrated rates: exact laws, ties, and intervals whose coverage is simulated, the threshold drawn anew each time."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy.stats import beta, binom, kstest

from stages.memorization.calibrated_rates import (
    QUANTILE,
    below,
    beta_law,
    control_interval,
    cross_fitted,
    limit,
)
from stages.memorization.metrics import compare_calibrated
from stages.memorization.statistics import newcombe
from stages.memorization.thresholds import calibrate, copies

METHODS = {"cross_fitted": cross_fitted, "beta_law": beta_law}
SIZES = [(300, 1000), (300, 5000), (1000, 5000), (5000, 5000)]
REPETITIONS = 1000


def test_the_limit_is_an_order_statistic_with_at_most_q_below():
    control = np.random.default_rng(0).permutation(1000).astype(float)
    assert limit(control, 0.01) == 10.0
    assert limit(control, 0.0) == 0.0
    assert limit(control[:99], 0.01) == control[:99].min()
    for n in (100, 200, 700, 1300):  # 0.07 · 100 is 7.000000000000001 and 0.01 · 700 is 7.0
        assert limit(np.arange(float(n)), 0.07) == n * 7 // 100


def test_an_exact_copy_lies_below_every_limit():
    assert below(np.array([0.0, 0.5, 1.0]), 0.0).tolist() == [True, False, False]
    assert below(np.array([0.0, 0.5, 1.0]), 0.5).tolist() == [True, False, False]


@pytest.mark.parametrize("control", [np.zeros(0), np.array([1.0, np.nan])])
def test_no_control_and_nan_are_errors(control):
    with pytest.raises(ValueError, match="is not defined"):
        limit(control)


def test_samples_that_are_none_or_nan_are_errors():
    control = np.random.default_rng(0).random(100)
    for samples in (np.zeros(0), np.array([np.nan])):
        with pytest.raises(ValueError, match="at least one"):
            cross_fitted(samples, control)


def test_the_share_below_the_limit_follows_the_beta_law():
    """P(next one below) ~ Beta(k+1, n−k): uniform values, whose limit is the share below it."""
    rng = np.random.default_rng(3)
    drawn = [limit(rng.random(300), 0.01) for _ in range(2000)]
    assert kstest(drawn, beta(4, 297).cdf).pvalue > 0.01
    assert kstest(drawn, beta(3, 298).cdf).pvalue < 1e-6


@pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 300), (3, 300), (10, 1000)])
def test_the_controls_interval_is_exact(k, n):
    low, high = control_interval(k, n)
    assert beta(k + 1, n - k).cdf([low, high]) == pytest.approx([0.025, 0.975])
    # the same by counting: the (k+1)-th smallest is below x where more than k of n are
    assert 1 - binom(n, low).cdf(k) == pytest.approx(0.025)


def test_control_intervals_of_impossible_counts_are_errors():
    with pytest.raises(ValueError, match="cannot lie below"):
        control_interval(5, 5)


def test_planted_copies_are_counted_and_the_held_out_set_has_no_excess():
    rng = np.random.default_rng(4)
    control, further, copies = 1 + rng.random(1000), 1 + rng.random(1000), np.full(1000, 0.1)
    for method in METHODS.values():
        none, half, all_ = (method(s, control) for s in (further, np.append(further, copies), copies))
        assert none.excess_low < 0 < none.excess_high
        assert half.share == pytest.approx(0.5, abs=0.02)
        assert half.low < 0.5 < half.high
        assert all_.share == all_.high == 1
        assert all_.excess_low > 0.95
        assert all_.limit == limit(control)


def test_samples_that_keep_away_have_a_negative_excess():
    control = np.random.default_rng(4).random(1000)
    rates = cross_fitted(np.full(1000, 5.0), control)
    assert rates.share == rates.low == 0
    assert rates.excess < 0
    assert rates.excess_high < 0


def test_one_sample_and_two_control_images_give_wide_intervals():
    rates = cross_fitted(np.array([0.5]), np.array([0.2, 0.9]))
    assert rates.low == 0
    assert rates.high > 0.9
    assert rates.excess_low <= -0.5
    assert rates.excess_high >= 0.5


def test_ties_do_not_deceive_the_cross_fitted_rates():
    """A third of the images on both sides equal a training image: distance 0, which no threshold can cut."""
    rng = np.random.default_rng(5)
    draw = lambda n: np.where(rng.random(n) < 1 / 3, 0, 1 + rng.integers(0, 50, n))  # noqa: E731
    inside = 0
    for _ in range(400):
        rates = cross_fitted(draw(1000), draw(300))
        inside += rates.excess_low <= 0 <= rates.excess_high
    assert 0.92 <= inside / 400 <= 0.99


@functools.cache
def coverage(method: str, control_count: int, count: int, planted: float) -> dict[str, float]:
    """How often each interval holds the truth. Uniform values: the share below a threshold is the threshold itself."""
    rng = np.random.default_rng(6)
    hits = {"excess": 0, "share": 0, "control": 0}
    for _ in range(REPETITIONS):
        control, samples = rng.random(control_count), rng.random(count)
        samples[rng.random(count) < planted] = -1
        rates = METHODS[method](samples, control)
        used = (control[::2], control[1::2]) if method == "cross_fitted" else (control,)
        threshold = np.mean([limit(part) for part in used])
        truth = planted + (1 - planted) * QUANTILE
        hits["excess"] += rates.excess_low <= planted * (1 - threshold) <= rates.excess_high
        hits["share"] += rates.low <= truth <= rates.high
        hits["control"] += rates.control_low <= threshold <= rates.control_high
    return {name: hit / REPETITIONS for name, hit in hits.items()}


@pytest.mark.parametrize("planted", [0.0, 0.05])
@pytest.mark.parametrize(("control_count", "count"), SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_cover(method, control_count, count, planted):
    """In 1,000 repetitions; the standard error of a coverage of 95 % is 0.7 %."""
    found = coverage(method, control_count, count, planted)
    assert 0.93 <= found["excess"] <= 0.975
    assert 0.93 <= found["control"] <= 0.97
    cautious = {300: 1.0, 1000: 0.985, 5000: 0.975}[control_count]
    assert 0.93 <= found["share"] <= cautious


@pytest.mark.parametrize("planted", [0.0, 0.05])
@pytest.mark.parametrize(("control_count", "count"), SIZES)
def test_the_excess_of_the_calibrated_rule_covers(control_count, count, planted):
    """ρ* of 1,000 audits; features agree for four images in ten. Copies have ρ* 0."""
    rng, names = np.random.default_rng(8), ("calibrated", "copy_or_near_copy")
    hits = {(name, of): 0 for name in names for of in ("excess", "control", "above")}
    for _ in range(REPETITIONS):
        control, samples = rng.random(control_count) / 4, rng.random(count) / 4
        samples[rng.random(count) < planted] = 0
        found, agree = calibrate(control, 1.0), 0.4
        assert found.calibrated == set(names)
        own, held = (copies(rho, found) for rho in (samples, control))
        near, held_near = ((rho < found.candidate) & (rng.random(len(rho)) < agree) for rho in (samples, control))
        sides = (own, held, found.copy), (own | near, held | held_near, found.copy * 0.6 + found.candidate * agree)
        for name, (flags, control_flags, threshold) in zip(names, sides):
            rates, truth = compare_calibrated(flags, control_flags), planted * (1 - 4 * threshold)
            hits[name, "excess"] += rates["excess_low"] <= truth <= rates["excess_high"]
            hits[name, "above"] += truth <= rates["excess_high"]
            hits[name, "control"] += rates["holdout_ci_low"] <= 4 * threshold <= rates["holdout_ci_high"]
    for key, hit in hits.items():
        assert hit >= 0.925 * REPETITIONS, key
        assert key[1] == "above" or hit <= 0.98 * REPETITIONS, key


def test_a_capped_threshold_is_not_the_controls():
    far = calibrate(np.linspace(0.7, 0.9, 50), 1.0)
    assert far.calibrated == set()
    assert calibrate(np.linspace(0.4, 0.9, 50), 1.0).calibrated == {"copy_or_near_copy"}
    assert compare_calibrated(np.ones(4, bool), np.ones(3, bool))["holdout_rate"] == 1


@pytest.mark.parametrize("count", [1000, 5000])
def test_samples_under_one_threshold_and_a_control_under_others_do_not_compare(count):
    """What the cross-fitting of both mends: samples judged by the whole control, the control by its halves."""
    rng, inside, q = np.random.default_rng(7), 0, 0.0025
    for _ in range(REPETITIONS):
        control, samples = rng.random(300), rng.random(count)
        halves = control[::2], control[1::2]
        passed = sum(int((half < limit(other, q)).sum()) for half, other in zip(halves, reversed(halves)))
        low, high = newcombe(int((samples < limit(control, q)).sum()), count, passed, 300)
        inside += low <= 0 <= high
    assert inside / REPETITIONS < 0.9


def test_the_rates_are_plain_numbers():
    rates = dataclasses.asdict(cross_fitted(np.random.default_rng(0).random(50), np.random.default_rng(1).random(50)))
    assert {type(value) for value in rates.values()} == {float, int}
