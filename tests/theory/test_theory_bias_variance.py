"""The mixture, the covariance formula, the error's parts and the LED-KDE: by hand, by brute force, by other means."""

import math

import numpy as np
import pytest

from stages.theory import bias_variance as bv
from stages.theory import product
from stages.theory.bias_variance import MIXTURE, curve_claims, equivalent_count

ONE = bv.Mixture(np.array([1.0]), np.array([[0.0, 0.0]]), np.array([1.0]))
PLACES = np.array([[0.3, -0.2], [-0.7, 0.4]])


def test_one_gaussian_by_hand():
    # p_t = N(0, 2 I) at t = 1: score −x/2, posterior mean x/2, posterior covariance I/2
    assert ONE.score(PLACES, 1.0) == pytest.approx(-PLACES / 2)
    mean, covariance = ONE.posterior(PLACES, 1.0)
    assert mean == pytest.approx(PLACES / 2)
    assert covariance == pytest.approx(np.broadcast_to(np.eye(2) / 2, (2, 2, 2)))
    assert ONE.density(np.zeros((1, 2)), 1.0) == pytest.approx([1 / (4 * math.pi)])


def test_score_is_the_gradient_of_the_log_density():
    step = 1e-5
    for axis in range(2):
        shift = step * np.eye(2)[axis]
        rise = np.log(MIXTURE.density(PLACES + shift, 0.1)) - np.log(MIXTURE.density(PLACES - shift, 0.1))
        assert MIXTURE.score(PLACES, 0.1)[:, axis] == pytest.approx(rise / (2 * step), abs=1e-6)


def test_posterior_covariance_by_tweedie():
    # Cov(X|x) = t (I + t ∇ score)
    t, step = 0.2, 1e-5
    slope = np.stack(
        [(MIXTURE.score(PLACES + step * e, t) - MIXTURE.score(PLACES - step * e, t)) / (2 * step) for e in np.eye(2)], 2
    )
    assert MIXTURE.posterior(PLACES, t)[1] == pytest.approx(t * (np.eye(2) + t * slope), abs=1e-8)


def test_covariance_of_the_score_by_monte_carlo_over_single_draws():
    # first order in 1/M: E[K² (X−m)(X−m)ᵀ]/(M t² p²), the expectation over one draw of X
    t, count, generator = 0.1, 500, np.random.default_rng(0)
    x = MIXTURE.draw(400_000, generator)
    for place, predicted in zip(PLACES, bv.predicted_covariance(MIXTURE, PLACES, t, count)):
        kernel = np.exp(-((x - place) ** 2).sum(axis=1) / (2 * t)) / (2 * math.pi * t)
        offset = x - MIXTURE.posterior(place[None], t)[0]
        second = np.einsum("n,ni,nj->ij", kernel**2, offset, offset) / len(x)
        expected = second / (count * t**2 * MIXTURE.density(place[None], t)[0] ** 2)
        assert predicted == pytest.approx(expected, abs=0.02 * np.linalg.norm(expected))


def test_a_wrong_covariance_would_be_seen():
    generator = np.random.default_rng(1)
    scores = np.stack([bv.empirical_score(MIXTURE.draw(1000, generator), 0.1)(PLACES) for _ in range(600)])
    found, errors = bv.covariance_with_error(scores)
    right = bv.predicted_covariance(MIXTURE, PLACES, 0.1, 1000)
    assert found == pytest.approx(np.stack([np.cov(scores[:, n].T) for n in range(2)]))
    for own, formula, error in zip(found, right, errors):
        assert np.linalg.norm(own - formula) < 4 * error + 0.1 * np.linalg.norm(formula)
        assert np.linalg.norm(own - 1.5 * formula) > 4 * error + 0.1 * np.linalg.norm(formula)


def test_the_empirical_score_by_hand():
    # two points as far from x: the mean of both minus x, over t
    points = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert bv.empirical_score(points, 0.25)(np.zeros((1, 2))) == pytest.approx(np.array([[2.0, 2.0]]))


def test_error_parts_by_hand():
    # two sets score 1 and 3 where 0 is true: error 5, variance 2, bias² 4 − 2/2 = 3
    errors = bv.decompose(np.array([[[1.0]], [[3.0]]]), np.array([[0.0]]))
    assert (errors["error"], errors["variance"], errors["bias"]) == (5.0, 2.0, 3.0)
    assert errors["standard_error"] == pytest.approx(math.sqrt(((1 - 5) ** 2 + (9 - 5) ** 2) / 1 / 2))


def test_error_is_bias_and_variance():
    generator = np.random.default_rng(3)
    errors = bv.decompose(generator.random((6, 20, 2)), generator.random((20, 2)))
    assert errors["error"] == pytest.approx(errors["bias"] + errors["variance"])


def test_shifts_have_the_moments_of_the_kernel():
    shifts = bv.normal_shifts(32, 2, np.random.default_rng(5))
    assert shifts.mean(axis=0) == pytest.approx(np.zeros(2), abs=1e-15)
    assert shifts.T @ shifts / 32 == pytest.approx(np.eye(2))


def test_the_smoothed_score_is_near_the_mean_over_the_kernel():
    """1,024 shifts against a fine product rule."""
    points, x = MIXTURE.draw(6, np.random.default_rng(4)), np.array([[0.1, 0.2], [-0.5, 0.3]])
    score = bv.empirical_score(points, 0.16)
    place, weight = np.polynomial.hermite_e.hermegauss(24)
    nodes, weights = np.stack(np.meshgrid(place, place), axis=-1).reshape(-1, 2), np.outer(weight, weight).ravel()
    exact = sum(w * score(x + 0.2 * node) for w, node in zip(weights / weights.sum(), nodes))
    found = product.smoothed(score, 0.2, bv.normal_shifts(1024, 2, np.random.default_rng(5)))(x)
    assert found == pytest.approx(exact, abs=0.02 * np.abs(exact).max())


def test_smoothing_one_point_changes_nothing_but_a_constant():
    # log G_σ is a parabola, whose average over shifts is itself minus h²/2σ² per dimension; the score is (x_1 − x)/σ²
    point, shifts = np.array([[0.3]]), bv.normal_shifts(8, 1, np.random.default_rng(0))
    x = np.array([[-1.0], [0.2], [2.0]])
    led = bv.led_log_density(point, 0.25, 0.4, shifts)(x)
    assert led == pytest.approx(bv.log_density(x, point, 0.25) - 0.16 / 0.5)
    assert product.smoothed(bv.empirical_score(point, 0.25), 0.4, shifts)(x) == pytest.approx((point - x) / 0.25)


def test_log_density_by_hand():
    # one point: a Gaussian; two at ±1 seen from 0: the same Gaussian at distance 1
    assert bv.log_density(np.zeros((1, 2)), np.array([[1.0, 0.0], [-1.0, 0.0]]), 0.5) == pytest.approx(
        [-1 - math.log(math.pi)]
    )


def curve(count, errors):
    return [
        {"training_points": count, "h": h, "error": e, "bias": h, "variance": 2 - h} for h, e in zip((0, 1, 2), errors)
    ]


def test_worth_of_smoothing_by_hand():
    # unsmoothed errors 8, 4 at M = 10, 20: the power law says 16/M·5; an error of 2 is that of M = 40
    curves = {10: curve(10, (8, 2, 9)), 20: curve(20, (4, 3, 9))}
    assert equivalent_count(2, curves) == pytest.approx(40)
    claims = {claim.claim: claim.measured for claim in curve_claims([*curves[10], *curves[20]])}
    assert set(claims.values()) == {0}


def test_curves_without_a_minimum_fail():
    rows = [*curve(10, (8, 9, 10)), *curve(20, (4, 3, 2))]
    measured = [claim.measured for claim in curve_claims(rows)]
    assert measured == [2, 1, 1, 1]  # both at an end; h = 0 wins nothing; M = 10 gains nothing; the optimum grows
