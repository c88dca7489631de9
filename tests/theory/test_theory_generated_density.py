"""The density that the reverse SDE generates: against Gaussians and the pipeline's samples, and its claims."""

import numpy as np
import pytest
from scipy.stats import kstest, norm

from stages.theory import generated_density as gd
from stages.theory import product
from stages.theory.bias_variance import Mixture

SIGMAS = product.noise_levels(0.1, 3.0, 30)
ONE = Mixture(np.array([1.0]), np.array([[0.3]]), np.array([0.04]))


@pytest.fixture
def gaussian(monkeypatch):
    """The data are N(0.3, 0.04)."""
    monkeypatch.setattr(gd, "LINE", ONE)


def test_under_a_linear_score_it_is_the_gaussian_of_the_recursion(gaussian):
    """x' = x + v s(x) + √v z with s(x) = (0.3 − x)/(0.04 + σ²) keeps Gaussians Gaussian."""
    mean, variance = 0.0, SIGMAS[0] ** 2
    for sigma, following in zip(SIGMAS, SIGMAS[1:]):
        step, pull = sigma**2 - following**2, 1 / (0.04 + sigma**2)
        mean, variance = mean + step * pull * (0.3 - mean), (1 - step * pull) ** 2 * variance + step
    x, density, errors = gd.generated(SIGMAS, lambda x, sigma: (0.3 - x) / (0.04 + sigma**2))
    expected = norm.pdf(x[:, 0], mean, np.sqrt(variance))
    assert density == pytest.approx(expected, abs=1e-4 * expected.max())
    assert errors == pytest.approx(0.0, abs=1e-25)


def test_it_is_the_density_of_the_pipelines_samples():
    """20,000 samples of samplers.reverse_diffusion under the smoothed score of eight points have it."""
    score = product.smoothed(
        product.empirical(gd.LINE.draw(8, np.random.default_rng(1)), "conditioning"), 0.15, gd.normal_quantiles(8)
    )
    x, density, _ = gd.generated(SIGMAS, score)
    states = product.path("reverse_diffusion", score, product.draws([0], (20_000, 1)), SIGMAS)
    *_, last, _ = states  # the state at the last level; after it the noise is removed
    cumulated = np.cumsum(density) * (x[1, 0] - x[0, 0])
    found = kstest(last[:, 0], lambda at: np.interp(at, x[:, 0] + (x[1, 0] - x[0, 0]) / 2, cumulated))
    assert found.pvalue > 1e-3
    wrong = kstest(last[:, 0] + 0.03, lambda at: np.interp(at, x[:, 0] + (x[1, 0] - x[0, 0]) / 2, cumulated))
    assert wrong.pvalue < 1e-3


def test_the_divergence_of_two_gaussians(gaussian):
    # KL(N(0.3, 0.05) ‖ N(0.4, 0.1)), p at σ = 0.1
    x = gd.grid(0.1)
    found = gd.divergence(x, norm.pdf(x[:, 0], 0.4, np.sqrt(0.1)), 0.1)
    expected = (0.05 / 0.1 + 0.1**2 / 0.1 - 1 + np.log(0.1 / 0.05)) / 2
    assert found == pytest.approx(expected, rel=1e-4)


def test_the_bound_of_a_score_that_is_off_by_a_constant(gaussian):
    found = gd.measured(SIGMAS, lambda x, sigma: ONE.score(x, sigma**2) + 0.2)
    assert found["bound"] == pytest.approx(0.2**2 * (9 - 0.01) / 2, rel=1e-9)
    assert found["divergence"] < found["bound"]


def test_a_finer_grid_gives_the_same(monkeypatch):
    score = product.empirical(gd.LINE.draw(8, np.random.default_rng(2)), "conditioning")
    coarse = gd.measured(SIGMAS, score)
    monkeypatch.setattr(gd, "GRID", 801)
    assert gd.measured(SIGMAS, score) == pytest.approx(coarse, rel=2e-3)


def test_the_shifts_are_those_of_a_kernel():
    shifts = gd.normal_quantiles(16)[:, 0]
    assert shifts.mean() == pytest.approx(0, abs=1e-15)
    assert (shifts**2).mean() == pytest.approx(1)
    assert shifts == pytest.approx(-shifts[::-1])


def curve(count, divergences, bound=9.0):
    about = {"training_points": count, "bound": bound, "floor": 0.01, "fall": 0.1, "fall_error": 0.01}
    return [{"h": h, "divergence": value, **about} for h, value in zip((0.0, 0.1, 0.2), divergences)]


@pytest.mark.parametrize(
    ("rows", "violations"),
    [
        ([*curve(10, (0.4, 0.2, 0.3)), *curve(40, (0.1, 0.09, 0.3))], [0, 0, 0, 0]),
        ([*curve(10, (0.4, 0.5, 0.6)), *curve(40, (0.2, 0.1, 0.05))], [2, 1, 1, 0]),
        ([*curve(10, (0.4, 0.2, 0.3), bound=0.15), *curve(40, (0.1, 0.09, 0.3), bound=0.15)], [0, 0, 0, 4]),
    ],
)
def test_claims_that_do_not_hold_are_counted(rows, violations):
    assert [claim.measured for claim in gd.claims(rows, 3)] == violations


@pytest.mark.parametrize("widths", [[0.1, 0.2, 0.3, 0.4], [0, 0.2, 0.1, 0.3]])
def test_widths_rise_from_zero(widths):
    block = {"largest": 2.0, "smallest": 0.1, "levels": 12, "counts": [6, 24], "repeats": 3}
    with pytest.raises(ValueError, match="the widths must rise from 0"):
        gd.GeneratedDensity(**block, widths=widths)
