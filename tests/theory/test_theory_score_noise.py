"""The noise of the empirical score at two points: by Monte Carlo over single draws, in its limits, and what fails."""

import math

import numpy as np
import pytest

from stages.theory import bias_variance as bv
from stages.theory import score_noise as sn
from stages.theory.bias_variance import MIXTURE

X, Y = np.array([[0.3, -0.2], [-0.7, 0.4]]), np.array([[0.1, -0.4], [-0.6, 0.1]])


def test_at_one_point_it_is_the_covariance_of_the_score():
    found = sn.cross_covariance(MIXTURE, X, X, 0.1, 300)
    assert found == pytest.approx(bv.predicted_covariance(MIXTURE, X, 0.1, 300), rel=1e-12)


def test_two_points_by_monte_carlo_over_single_draws():
    t, count = 0.1, 500
    draws = MIXTURE.draw(400_000, np.random.default_rng(0))
    for x, y, predicted in zip(X, Y, sn.cross_covariance(MIXTURE, X, Y, t, count)):
        kernels = [np.exp(-((draws - p) ** 2).sum(1) / (2 * t)) / (2 * math.pi * t) for p in (x, y)]
        offsets = [draws - MIXTURE.posterior(p[None], t)[0] for p in (x, y)]
        second = np.einsum("n,ni,nj->ij", kernels[0] * kernels[1], *offsets) / len(draws)
        density = MIXTURE.density(x[None], t)[0] * MIXTURE.density(y[None], t)[0]
        expected = second / (count * t**2 * density)
        assert predicted == pytest.approx(expected, abs=0.02 * np.linalg.norm(expected))


def test_exchanging_the_points_transposes_it():
    one, other = sn.cross_covariance(MIXTURE, X, Y, 0.05, 10), sn.cross_covariance(MIXTURE, Y, X, 0.05, 10)
    assert one == pytest.approx(other.transpose(0, 2, 1), rel=1e-12)


def test_its_trace_has_the_limit_at_small_times():
    place = sn.PLACE
    for t, tolerance in ((1e-3, 0.02), (1e-5, 2e-4)):
        trace = np.trace(sn.cross_covariance(MIXTURE, place[None], place[None], t, 700)[0])
        assert trace == pytest.approx(sn.limit_trace(MIXTURE, place, t, 700), rel=tolerance)


def test_smoothing_over_one_place_changes_nothing_and_far_shifts_average_independent_noise():
    plain = sn.cross_covariance(MIXTURE, X[:1], X[:1], 0.01, 50)[0]
    assert sn.smoothed_covariance(MIXTURE, X[0], 0.01, 50, 0.0, np.ones((3, 2))) == pytest.approx(plain, rel=1e-12)
    apart = np.array([[-1.0, 0.0], [1.0, 0.0]])  # at distance 0.6 and time 0.001 the noise is independent
    ends = [sn.cross_covariance(MIXTURE, x, x, 1e-3, 50)[0] for x in (X[:1] + 0.3 * apart[:1], X[:1] + 0.3 * apart[1:])]
    found = sn.smoothed_covariance(MIXTURE, X[0], 1e-3, 50, 0.3, apart)
    assert found == pytest.approx((ends[0] + ends[1]) / 4, rel=1e-9)


def test_traces_by_hand():
    one = np.array([[1.0, 0.0], [-1.0, 2.0]] * 20)  # means (0, 1): products 1 + 1 in every set
    assert sn.trace_with_error(one, one) == pytest.approx((80 / 39, 0.0))
    assert sn.trace_with_error(one, -one)[0] == pytest.approx(-80 / 39)


def noise_rows(found=1.0, smoothed=1.0, left=(0.5, 0.2)):
    """Two times whose variances are `found` and `smoothed` times what is predicted."""
    rows = []
    for t, limit, share in zip((0.1, 0.01), (0.6, 0.9), left):
        predicted = t**-2
        row = {"t": t, "h": 0.3, "found": found * predicted, "error": 0.01 * predicted, "predicted": predicted}
        row |= {"limit": predicted * limit, "smoothed": smoothed * share * predicted, "draws": 1000.0}
        row |= {"smoothed_error": 0.0, "smoothed_predicted": share * predicted, "smoothed_draws": 1000.0}
        rows.append(row)
    return rows


def passed(claims):
    return [claim.passed for claim in claims]


def test_a_wrong_variance_fails():
    assert passed(sn.variance_claims(noise_rows(), 10)) == [True, True]
    assert passed(sn.variance_claims(noise_rows(found=1.1), 10)) == [False, True]
    slow = [{**row, "error": row["found"]} for row in noise_rows()]
    assert not sn.variance_claims(slow, 10)[1].passed
    farther = [{**row, "limit": row["predicted"] / (2 + number)} for number, row in enumerate(noise_rows())]
    assert passed(sn.variance_claims(farther, 10)) == [True, False]


def test_a_wrong_smoothed_variance_and_one_that_does_not_fall_fail():
    assert passed(sn.smoothing_claims(noise_rows(), 10)) == [True, True]
    assert passed(sn.smoothing_claims(noise_rows(smoothed=1.02), 10)) == [False, True]
    assert passed(sn.smoothing_claims(noise_rows(left=(0.5, 0.6)), 10)) == [True, False]


def correlations(found, predicted):
    row = {"error": 0.001, "draws": 1000.0}
    return [
        {"t": t, "separation": 0.1, "found": a, "predicted": b, **row} for t, a, b in zip((0.1, 0.01), found, predicted)
    ]


@pytest.mark.parametrize(
    ("found", "predicted", "expected"),
    [
        ((0.9, 0.5), (0.9, 0.5), [True, True]),
        ((0.9, 0.52), (0.9, 0.5), [False, True]),
        ((0.5, 0.9), (0.5, 0.9), [True, False]),
    ],
)
def test_correlations_that_differ_or_rise_fail(found, predicted, expected):
    assert passed(sn.correlation_claims(correlations(found, predicted), 10)) == expected
