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


def density(levels):
    """The grid (GRID,) and the density of the last level's samples."""
    x = levels[-1].x[:, 0]
    return x, levels[-1].weights / (x[1] - x[0])


def truth():
    return gd.carried(SIGMAS, lambda x, sigma: gd.LINE.score(x, sigma**2))


def test_under_a_linear_score_it_is_the_gaussian_of_the_recursion(gaussian):
    """x' = x + v s(x) + √v z with s(x) = (0.3 − x)/(0.04 + σ²) keeps Gaussians Gaussian."""
    mean, variance = 0.0, SIGMAS[0] ** 2
    for sigma, following in zip(SIGMAS, SIGMAS[1:]):
        step, pull = sigma**2 - following**2, 1 / (0.04 + sigma**2)
        mean, variance = mean + step * pull * (0.3 - mean), (1 - step * pull) ** 2 * variance + step
    x, found = density(truth())
    expected = norm.pdf(x, mean, np.sqrt(variance))
    assert found == pytest.approx(expected, abs=1e-4 * expected.max())


def test_it_is_the_density_of_the_pipelines_samples():
    """20,000 samples of samplers.reverse_diffusion under the smoothed score of eight points have it."""
    points = gd.LINE.draw(8, np.random.default_rng(1))
    score = product.smoothed(product.empirical(points, "conditioning"), 0.15, gd.normal_quantiles(8))
    x, found = density(gd.carried(SIGMAS, score))
    states = product.path("reverse_diffusion", score, product.draws([0], (20_000, 1)), SIGMAS)
    *_, last, _ = states  # the state at the last level; after it the noise is removed
    edges, cumulated = x + (x[1] - x[0]) / 2, np.cumsum(found) * (x[1] - x[0])
    assert kstest(last[:, 0], lambda at: np.interp(at, edges, cumulated)).pvalue > 1e-3
    assert kstest(last[:, 0] + 0.03, lambda at: np.interp(at, edges, cumulated)).pvalue < 1e-3


def test_the_divergence_of_two_gaussians():
    # KL(N(0.3, 0.05) ‖ N(0.4, 0.1))
    x = np.linspace(-3, 3, 801)
    p, q = (norm.pdf(x, mean, np.sqrt(variance)) for mean, variance in ((0.3, 0.05), (0.4, 0.1)))
    expected = (0.05 / 0.1 + 0.1**2 / 0.1 - 1 + np.log(0.1 / 0.05)) / 2
    assert gd.divergence(p / p.sum(), q / q.sum()) == pytest.approx(expected, rel=1e-6)


def test_the_bound_of_a_score_that_is_off_by_a_constant(gaussian):
    found = gd.measured(SIGMAS, lambda x, sigma: ONE.score(x, sigma**2) + 0.2, truth())
    assert found["bound"] == pytest.approx(0.2**2 * (9 - 0.01) / 2, rel=1e-9)
    assert 0 < found["divergence"] < found["bound"]
    assert gd.measured(SIGMAS, lambda x, sigma: ONE.score(x, sigma**2), truth())["divergence"] == pytest.approx(0)


def test_in_one_step_from_a_wide_start_the_bound_is_the_divergence(gaussian):
    """Both densities are Gaussians of one variance where the scores are constants."""
    sigmas = np.array([3.0, 0.5])
    own = gd.carried(sigmas, lambda x, sigma: 0 * x)
    found = gd.measured(sigmas, lambda x, sigma: 0 * x + 0.1, own)
    step = 9 - 0.25
    assert found["bound"] == pytest.approx(step * 0.1**2 / 2)
    assert found["divergence"] < found["bound"]


def test_a_finer_grid_gives_the_same(monkeypatch):
    score = product.empirical(gd.LINE.draw(8, np.random.default_rng(2)), "conditioning")
    coarse = gd.measured(SIGMAS, score, truth())
    monkeypatch.setattr(gd, "GRID", 801)
    assert gd.measured(SIGMAS, score, truth()) == pytest.approx(coarse, rel=2e-3)


def test_the_shifts_are_those_of_a_kernel():
    shifts = gd.normal_quantiles(16)[:, 0]
    assert shifts.mean() == pytest.approx(0, abs=1e-15)
    assert (shifts**2).mean() == pytest.approx(1)
    assert shifts == pytest.approx(-shifts[::-1])


def curve(count, divergences, bound=9.0, spread=0.01):
    """Rows of eight training sets whose ln KL differ by multiples of `spread`, about the same at every width."""
    about = {"training_points": count, "bound": bound, "floor": 0.01}
    return [
        {"h": h, "set": n, "divergence": value * np.exp(spread * (n % 4) + spread * (n // 4) * h), **about}
        for h, value in zip((0.0, 0.1, 0.2), divergences)
        for n in range(8)
    ]


@pytest.mark.parametrize(
    ("rows", "violations"),
    [
        ([*curve(10, (0.4, 0.2, 0.1)), *curve(40, (0.1, 0.09, 0.3))], [0, 1, 0, 0]),
        ([*curve(10, (0.4, 0.3, 0.4)), *curve(40, (0.2, 0.1, 0.2))], [0, 0, 1, 0]),
        ([*curve(10, (0.4, 0.5, 0.6)), *curve(40, (0.2, 0.3, 0.4))], [2, 0, 1, 0]),
        ([*curve(10, (0.4, 0.2, 0.3), bound=0.15), *curve(40, (0.1, 0.09, 0.08), bound=0.3)], [0, 1, 1, 24]),
    ],
)
def test_claims_that_do_not_hold_are_counted(rows, violations):
    assert [claim.measured for claim in gd.claims(rows)] == violations


def test_a_fall_within_two_standard_errors_does_not_count():
    """Four judging sets whose falls are 0.3, 0.3, -0.1, -0.1: 0.1 with a standard error of 0.115."""
    rows = curve(10, (0.4, 0.3, 0.9), spread=0.0)
    for row in rows:
        if row["h"] == 0.1 and row["set"] % 2:
            row["divergence"] = 0.4 * np.exp(-0.3 if row["set"] in (1, 5) else 0.1)
    h, fall = gd.chosen_and_judged(rows, 10)
    assert h == 0.1
    assert fall == pytest.approx([0.3, -0.1, 0.3, -0.1])
    assert gd.claims([*rows, *curve(40, (0.1, 0.05, 0.3))])[0].measured == 1


def test_means_are_geometric():
    rows = [{"training_points": 5, "h": 0.0, "floor": 0.1, "divergence": d, "bound": 4 * d} for d in (1.0, 4.0)]
    (row,) = gd.means(rows)
    assert (row["divergence"], row["bound"], row["h"]) == (pytest.approx(2), pytest.approx(8), 0.0)


@pytest.mark.parametrize("widths", [[0.1, 0.2, 0.3, 0.4], [0, 0.2, 0.1, 0.3]])
def test_widths_rise_from_zero(widths):
    block = {"largest": 2.0, "smallest": 0.1, "levels": 12, "counts": [6, 24], "repeats": 6}
    with pytest.raises(ValueError, match="the widths must rise from 0"):
        gd.GeneratedDensity(**block, widths=widths)
