"""Chen's one-dimensional solution on cases small enough to work by hand, and against other computations."""

import math

import numpy as np
import pytest

from stages.theory import line, line_claims, product


def test_smoothed_score_by_hand():
    # t = 1/4, κ = 1: δ = 1/2. At x = 1/4 the ramp is (δ/(1−δ)) x/t = 1; at 3/4 the score is −(x−1)/t = 1; at −2: 4
    assert line.smoothed_score(np.array([0.25, 0.75, -2.0]), 0.25, 1.0) == pytest.approx([1, 1, 4])


def test_smoothed_score_of_unequal_gaps_by_hand():
    # points 0, 2, 10 at δ = 1/2: in the second gap m = 6, D = 4: (δ/(D−δ)) (x−m)/t = (1/7) · 1.75 · 4 = 1
    points = np.array([0.0, 2.0, 10.0])
    x = np.array([7.75, 1.25, 9.75, 12.0])
    assert line.smoothed_score(x, 0.25, 1.0, points) == pytest.approx([1, 1, 1, -8])


def test_without_a_ramp_the_jump_is_left():
    assert line.posterior_mean(np.array([-0.1, 0.0, 0.1]), 1.0) == pytest.approx([-1, 0, 1])


def test_flow_by_hand():
    # δ falls from 1/2 to 0: x = 1/4 → 1/2; outside the ramp everything ends on its point
    assert line.flow(np.array([0.25, -0.5, 0.75, -3.0]), 0.25, 0.0, 1.0) == pytest.approx([0.5, -1, 1, -1])
    # to t = 1/16: δ = 1/4, x/(1−δ) is kept and 1 − x halves
    assert line.flow(np.array([0.25, 0.75]), 0.25, 1 / 16, 1.0) == pytest.approx([0.375, 0.875])
    with pytest.raises(ValueError, match="half-gap"):
        line.flow(np.array([0.25]), 1.0, 0.0, 1.0)


def test_flow_solves_the_equation():
    points, t, step = np.array([-1.0, 0.5, 3.0]), 0.2, 1e-5
    x = np.array([-1.7, -0.9, -0.3, 0.4, 1.6, 2.9, 4.0])
    slope = (line.flow(x, t, t, 1.0, points) - line.flow(x, t, t - step, 1.0, points)) / step
    assert slope == pytest.approx(-0.5 * line.smoothed_score(x, t - step / 2, 1.0, points), abs=1e-4)


def test_limit_law_has_mass_one():
    u = (np.arange(4000) + 0.5) / 2000 - 1
    interior = line.limit_density(u, 0.25, 1.0).mean() * 2
    # κ = 1, t = 1/4: the atoms are P(|x| ≥ 1/2) = Φ(1) + Φ(−3)
    assert 2 * line.atom_mass(0.25, 1.0) == pytest.approx(0.8413447461 + 0.0013498980, abs=1e-9)
    assert interior + 2 * line.atom_mass(0.25, 1.0) == pytest.approx(1, abs=1e-7)


def test_marginal_by_hand():
    # p_t at a point midway between the two: one Gaussian density at distance 1
    assert line.marginal(np.array([0.0]), 1.0) == pytest.approx(math.exp(-0.5) / math.sqrt(2 * math.pi))


def test_empirical_score_by_hand():
    # the weights of ±1 differ by tanh(x/t)
    x, t = np.array([-1.3, -0.2, 0.01, 0.6, 2.0]), 0.3
    assert line.empirical_score(x, t) == pytest.approx((np.tanh(x / t) - x) / t, abs=1e-12)


def test_empirical_score_tends_to_the_jump():
    x = np.array([-0.6, -0.05, 0.05, 0.4])
    assert line.empirical_score(x, 0.002) == pytest.approx((np.sign(x) - x) / 0.002, abs=1e-12)


def test_box_average_by_hand():
    # over [−1/4, 3/4] sgn averages to 1/2 and y to 1/4: (1/2 − 1/4)/t
    assert line.box_average(0.25, 0.5, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("x", [-1.4, -0.6, -0.2, 0.0, 0.3, 0.59, 0.7, 2.0])
def test_smoothed_score_is_the_box_average(x):
    t, kappa = 0.16, 1.0  # half-width 1 − δ = 0.6
    assert line.smoothed_score(np.array([x]), t, kappa)[0] == pytest.approx(line.box_average(x, t, 0.6), abs=1e-12)


def test_variation_of_slope_by_hand():
    x = np.linspace(-2, 2, 401)
    assert line.variation_of_slope(x, np.abs(x - 0.123)) == pytest.approx(2)  # the slope rises from −1 to 1
    assert line.variation_of_slope(x, x**2) == pytest.approx(8, rel=0.01)  # ∫2 over a length of 4


def test_smoothed_variation_by_hand():
    # t = 1/4, κ = 1: slopes −4, 4, −4, two jumps of 8
    assert line.smoothed_variation(0.25, 1.0) == pytest.approx(16)
    x = np.linspace(-3, 3, 6001)
    assert line.variation_of_slope(x, line.smoothed_score(x, 0.25, 1.0)) == pytest.approx(16)


def test_loss_limit_by_hand():
    assert line.loss_limit(0.0) == pytest.approx(0.5)  # half of E[u²]
    assert round(line.loss_limit(1.0), 4) == 0.0753
    assert round(line.loss_limit(2.0), 5) == 0.00577
    u = (np.arange(200_000) + 0.5) / 10_000 - 20
    density = np.exp(-(u**2) / 2) / math.sqrt(2 * math.pi)
    assert line.loss_limit(0.7) == pytest.approx((np.minimum(u + 0.7, 0) ** 2 * density).sum() / 10_000, abs=1e-8)


def test_loss_against_a_plain_sum():
    t, kappa = 0.05, 1.0
    x = np.linspace(-6, 6, 400_001)
    gap = line.smoothed_score(x, t, kappa) - line.empirical_score(x, t)
    assert line.loss(t, kappa) == pytest.approx(t * (gap**2 * line.marginal(x, t)).sum() * (x[1] - x[0]), rel=1e-7)


@pytest.mark.parametrize("name", line.METHODS)
def test_methods_have_their_order_on_the_exponential(name):
    method, order = line.METHODS[name]
    ends = [method(lambda x, u: x, np.array([math.e]), (1.0, 0.0), n)[0] for n in (32, 64)]
    errors = [abs(end - 1) for end in ends]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_the_pipelines_euler_sampler_solves_the_smoothed_flow_exactly(kappa):
    x, sigmas = np.array([-1.6, -0.9, -0.1, 0.15, 0.93, 1.4]), np.array([0.4, 0.33, 0.1, 0.02])
    for t, state in zip([*sigmas[1:] ** 2, 0.0], line.euler_path(kappa, x, sigmas)):
        assert state[:, 0] == pytest.approx(line.flow(x, 0.16, t, kappa), abs=1e-14)


def test_the_pipelines_samplers_solve_the_flow_of_one_image_exactly():
    # x − x_1 ∝ σ: straight in σ, so that Euler's and Heun's steps are exact; the last goes to the image
    image, start, sigmas = np.array([[0.2, 0.7, 0.1]]), np.array([[1.0, -2.0, 0.5]]), np.array([3.0, 1.0, 0.4])
    for step in ("euler", "heun"):
        states = product.path(step, product.empirical(image, "conditioning"), lambda _: start, sigmas)
        for sigma, state in zip((1.0, 0.4, 0.0), states):
            assert state == pytest.approx(image + (3 * start - image) * sigma / 3, abs=1e-12)


def test_score_in_space_by_hand():
    # direction e_1: at (1/4, 2) with t = 1/4, κ = 1 the tangent is the ramp's 1 and the normal −2/t
    direction = np.array([1.0, 0.0])
    assert line.score_in_space(np.array([[0.25, 2.0]]), 0.25, 1.0, direction) == pytest.approx(np.array([[1.0, -8.0]]))


@pytest.mark.parametrize("kappa", [1.0, 2.0])
def test_every_sample_of_the_limit_law_ends_where_the_closed_form_says(kappa):
    x, final = line.sample_limit(kappa, 0.16, 20_000, np.random.default_rng(0))
    exact = line.flow(x, 0.16, 0.0, kappa)
    assert np.abs(final - exact).max() < 1e-9
    off = np.abs(np.abs(x) - (1 - 0.4 * kappa)) > 1e-8  # at the very edge rounding decides
    on_atom = np.abs(np.abs(final) - 1) < line_claims.ON_ATOM
    assert (on_atom == (np.abs(exact) == 1))[off].all()
