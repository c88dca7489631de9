"""Truncated closed-form scores against float64 sums over all centres: the error stays below the proven 1e-6."""

import contextlib
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.diffusion import empirical_score as closed
from stages.diffusion import truncated_score as truncated
from stages.search import products

# 1e-6 is proven for the truncation; weights of the sum over all centres are rounded to 2^-23 of a block's largest
BOUND = 1e-6


def brute(images, x, log_weight, precision):
    """sum_i w_i p_i (x_i - x), one sample at a time, by differences in float64, at the point that x is rounded to."""
    out = np.empty_like(x)
    for b, point in enumerate((truncated.quantise(x).values + 128) / 255):
        difference = images.astype(np.float64) / 255 - point
        r2 = np.square(difference).sum(1)
        w = np.exp(log_weight(r2, b) - log_weight(r2, b).max())
        out[b] = (w * precision(r2, b)) @ difference / w.sum()
    return out


def errors(got, wanted, near):
    """|got - wanted| over |wanted|, or over the pull that float32's rounding of x makes up where that is larger."""
    rounding = truncated.ROUNDING * np.sqrt(got.shape[1]) * near
    return np.linalg.norm(got - wanted, axis=1) / np.maximum(np.linalg.norm(wanted, axis=1), rounding)


@contextlib.contextmanager
def summed_over_all(x):
    """Yields bool (B,): which samples were summed over all centres with rounded weights, filled at the end."""
    found, squared, real = np.zeros(len(x), bool), [], truncated._sum_all
    with mock.patch.object(truncated, "_sum_all", lambda c, p, law: squared.extend(p.squared) or real(c, p, law)):
        yield found
    found[:] = np.isin(truncated.quantise(x).squared, squared)


def rounding_of_weights(images, x, near):
    """The bound for these: each of M weights is off by at most 2^-24/256 of their sum, in the score's sum and in Z."""
    farthest = np.sqrt(np.square(images.astype(np.float64)[None] / 255 - x[:, None]).sum(2).max(1))
    return 2 * near * len(images) * 2.0**-32 * farthest


def draw(seed, count, d, sigma, groups):
    """Images in groups of near ones, as natural images are, and noised samples of some of them."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (groups, d))
    images = (base[rng.integers(0, groups, count)] + rng.normal(0, 30, (count, d))).clip(0, 255).astype(np.uint8)
    x = images[rng.integers(0, count, len(sigma))] / 255 + sigma[:, None] * rng.standard_normal((len(sigma), d))
    return images, x.astype(np.float32).astype(np.float64)


def nearest(images, x):
    """Smallest r^2, pixels in [0,1]."""
    return np.square(images.astype(np.float64)[None] / 255 - x[:, None]).sum(2).min(1)


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 900), st.sampled_from([3, 16, 100]), st.integers(1, 4))
levels = st.lists(st.floats(-4, 4), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(cases, levels)
def test_conditioning_is_the_sum_over_all_centres(case, exponents):
    seed, count, d, groups = case
    sigma = np.exp(np.array(exponents))
    images, x = draw(seed, count, d, sigma, groups)
    with summed_over_all(x) as over_all:
        got = truncated.conditioning(truncated.make_many_centres(images), x, sigma)
    wanted = brute(images, x, lambda r2, b: -r2 / (2 * sigma[b] ** 2), lambda r2, b: 1 / sigma[b] ** 2)
    rounded = over_all & (np.linalg.norm(got - wanted, axis=1) < rounding_of_weights(images, x, 1 / sigma**2))
    assert (rounded | (errors(got, wanted, 1 / sigma**2) < BOUND)).all()


@settings(max_examples=80, deadline=None)
@given(cases, levels, st.sampled_from([1.0, 2.0, 7.0, 100.0]), st.booleans())
@example((75, 312, 3, 2), [0.0, -4.0], 1.0, False)  # pulls that cancel: the score is small beside one centre's
def test_shells_are_the_sum_over_all_centres(case, exponents, temperature, scheduled):
    seed, count, d, groups = case
    sigma = np.exp(np.array(exponents))
    images, x = draw(seed, count, d, sigma, groups)
    power = closed.shell_power(d)
    t, level = np.full(len(x), temperature), sigma if scheduled else None
    with summed_over_all(x) as over_all:
        got = truncated.unconditioning(truncated.make_many_centres(images), x, t, power, level)
    precision = (lambda r2, b: 1 / sigma[b] ** 2) if scheduled else (lambda r2, b: power / r2)
    wanted = brute(images, x, lambda r2, b: -power / (2 * temperature) * np.log(r2), precision)
    near = 1 / sigma**2 if scheduled else power / nearest(images, x)
    rounded = over_all & (np.linalg.norm(got - wanted, axis=1) < rounding_of_weights(images, x, near))
    assert (rounded | (errors(got, wanted, near) < BOUND)).all()


@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 4.0, 50.0])
def test_one_by_one_and_all_at_once_agree(monkeypatch, sigma):
    """Both ways of summing, forced, against the float64 blocks of `empirical_score`, at d = 192."""
    level = np.full(6, sigma)
    images, x = draw(1, 3000, 192, level, 3)
    centres = truncated.make_many_centres(images)
    x = (truncated.quantise(x).values + 128) / 255
    whole = closed.conditioning(closed.make_centres(torch.from_numpy(images)), torch.from_numpy(x), torch.tensor(level))
    for most in (0, 10**9):
        monkeypatch.setattr(truncated.ManyCentres, "most", most)
        monkeypatch.setattr(truncated, "HOPELESS", 2.0)
        kept = truncated.candidates(centres, truncated.quantise(x), truncated._gaussian(level), 30.0)
        assert ((kept.count < 0) == (most == 0)).all()
        assert (errors(truncated.conditioning(centres, x, level), whole.numpy(), 1 / level**2) < BOUND).all()


@pytest.mark.parametrize("sigma", [0.02, 0.1, 20.0])
def test_candidates_hold_every_centre_that_weighs(sigma):
    level = np.full(5, sigma)
    images, x = draw(2, 9000, 27, level, 4)
    depth = 9.0
    points = truncated.quantise(x)
    kept = truncated.candidates(truncated.make_many_centres(images), points, truncated._gaussian(level), depth)
    r2 = np.square(images.astype(np.float64)[None] - 128 - points.values[:, None]).sum(2) / 255**2
    for b in range(5):
        weighs = np.flatnonzero(r2[b] <= r2[b].min() + 2 * sigma**2 * depth * (1 - 1e-12))
        assert kept.count[b] == -1 or set(weighs) <= set(kept.rows[b, : kept.count[b]])
    assert (kept.count >= 0).all() == (sigma < 1)


def test_a_samples_score_is_the_same_bits_in_every_batch():
    level = np.exp(np.linspace(-4, 4, 7))
    images, x = draw(3, 5000, 300, level, 2)
    centres = truncated.make_many_centres(images)
    together = truncated.conditioning(centres, x, level)
    for b in range(7):
        assert np.array_equal(truncated.conditioning(centres, x[b : b + 1], level[b : b + 1])[0], together[b])


def test_on_a_centre_and_between_two_the_score_is_small_and_finite():
    images = np.zeros((2, 48), np.uint8)
    images[1] = 200
    centres = truncated.make_many_centres(images)
    at = np.stack([images[0] / 255, images.mean(0) / 255])
    got = truncated.conditioning(centres, at, np.array([0.01, 0.05]))
    assert np.isfinite(got).all()
    assert np.abs(got[0]).max() < 1e-3  # rounding of x: 2^-24 over sigma^2
    assert np.abs(got[1]).max() < 0.39 / 0.05**2 * 1e-2  # of what one of the two would pull


def test_fixed_point_numbers_are_what_they_say():
    x = np.random.default_rng(0).normal(0, 30, (4, 50))
    points = truncated.quantise(x)
    grey = 255 * x - 128
    assert (np.abs(points.values - grey) <= 0.5001 * points.scale[:, None]).all()
    assert (points.scale <= np.abs(grey).max(1) * 2.0**-22).all()
    np.testing.assert_allclose(points.squared, np.square(points.values).sum(1), rtol=1e-14)
    first = points.digits[0].astype(float) * 65536 * points.scale[:, None]
    np.testing.assert_allclose(points.rest, np.linalg.norm(points.values - first, axis=1), rtol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5, 7), (40, 4096, 2048)])
def test_weighted_sums_are_exact(shape):
    n, m, d = shape
    rng = np.random.default_rng(0)
    weights, images = (rng.integers(-128, 128, size, dtype=np.int8) for size in ((n, m), (m, d)))
    weights[0], images[:, 0] = -128, -128
    assert np.array_equal(products.weighted_sums(weights, images)[:2], weights[:2].astype(int) @ images.astype(int))
