"""The interval of the Fréchet distance: its derivative against finite differences, its coverage in simulations."""

import numpy as np
import pytest
from scipy.special import stdtrit

from benchmarks.intervals import distance_coverage, law
from stages.features.frechet import _mean_and_factor, _with_error, frechet_from_features, frechet_interval
from stages.features.growing_error import quantile, reach, tilted

REPETITIONS = 1000


def weighted(features: np.ndarray, weights: np.ndarray, reference: np.ndarray) -> float:
    """The distance of the moments under weights of sum 1, each point's covariance share as if unbiased."""
    from scipy.linalg import sqrtm

    mean, other = weights @ features, reference.mean(axis=0)
    count = len(features)
    covariance = (weights[:, None] * (features - mean)).T @ (features - mean) * count / (count - 1)
    product = sqrtm(covariance @ np.cov(reference, rowvar=False)).real
    traces = np.trace(covariance) + np.trace(np.cov(reference, rowvar=False))
    return float(np.square(mean - other).sum() + traces - 2 * np.trace(product))


def test_the_standard_error_is_the_derivative_by_the_weights():
    rng = np.random.default_rng(0)
    features, reference = 1 + rng.normal(size=(40, 4)) ** 3, rng.normal(size=(30, 4))
    even, step = np.full(40, 1 / 40), 1e-5
    influence = []
    for row in range(40):
        toward = np.eye(40)[row] - even
        ends = [weighted(features, even + sign * step * toward, reference) for sign in (1, -1)]
        influence.append((ends[0] - ends[1]) / (2 * step))
    distance, low, _ = frechet_interval(features, reference)
    assert distance == pytest.approx(frechet_from_features(features, reference))
    error = np.std(influence, ddof=1) / np.sqrt(40)
    assert np.log(distance / low) == pytest.approx(quantile(np.array(influence)) * error / distance, rel=0.05)


@pytest.mark.parametrize("count", [20, 40, 200])
def test_it_is_the_jackknifes_below_and_above_the_dimension(count):
    """The exact jackknife leaves out one sample at a time."""
    rng = np.random.default_rng(count)
    features, reference = rng.normal(size=(count, 30)) * 1.3, rng.normal(size=(100, 30))
    left_out = [frechet_from_features(np.delete(features, row, axis=0), reference) for row in range(count)]
    error = np.sqrt((count - 1) * np.var(left_out))
    _, _, found = _with_error(features, None, _mean_and_factor(reference))
    assert found == pytest.approx(error, rel=0.12)


def test_the_growth_of_the_error_is_that_of_simulated_sets():
    """Six narrow modes, 60 samples: over 1,000 sets the error rises with the distance as each set alone says."""
    rng = np.random.default_rng(24)
    draw, scale = law("6 modes", 24, rng)
    other = _mean_and_factor(rng.normal(size=(100, 24)) * scale)
    errors, distances, growths = [], [], []
    for _ in range(REPETITIONS):
        samples = draw(60)
        distance, influence, error = _with_error(samples, None, other)
        further, _, larger = _with_error(samples, tilted(influence), other)
        errors, distances = [*errors, error], [*distances, distance]
        growths.append((larger - error) / (further - distance))
        assert further - distance == pytest.approx(error, rel=0.5)
    slope = np.polyfit(distances, errors, 1)[0]
    assert slope > 0.1
    assert np.mean(growths) == pytest.approx(slope, rel=0.25)


@pytest.mark.parametrize(
    ("kind", "count", "dimension", "most"),
    [
        ("plain", 60, 8, 0.98),
        ("heavy", 30, 48, 0.99),
        ("copies", 60, 24, 0.98),
        ("blends", 60, 24, 0.98),
        ("reference", 30, 48, 1.0),  # cautious: the distance is then all bias
        ("3 modes", 60, 24, 0.99),
        ("6 modes", 60, 40, 0.99),
    ],
)
def test_coverage(kind, count, dimension, most):
    """Of the mean distance of such sets to this reference, which 2,000 other sets give."""
    covered, below, above = distance_coverage(kind, count, dimension, REPETITIONS)
    assert 0.93 <= covered <= most, (below, above)


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-3])
@pytest.mark.parametrize("distinct", [12, 30])
def test_sets_of_repeated_images_have_the_jackknifes_error(distinct, apart):
    """Samples that are copies, some up to a little noise: their covariance nearly lacks rank, and features of images
    fall off over many magnitudes."""
    rng = np.random.default_rng(distinct)
    scale = np.logspace(0, -5, 200)
    features = (1.3 * rng.normal(size=(distinct, 200)) * scale)[np.arange(100) % distinct].astype(np.float32)
    features[:30] += apart * rng.normal(size=(30, 200)).astype(np.float32)
    reference = (rng.normal(size=(300, 200)) * scale).astype(np.float32)
    left_out = [frechet_from_features(np.delete(features, row, axis=0), reference) for row in range(100)]
    _, _, found = _with_error(features, None, _mean_and_factor(reference))
    assert found == pytest.approx(np.sqrt(99 * np.var(left_out)), rel=0.12)
    distance, low, high = frechet_interval(features, reference)
    assert 0 < low < distance < high < 10 * distance


def test_equal_sets_have_no_distance_and_no_error():
    features = np.random.default_rng(0).normal(size=(50, 5))
    distance, low, high = frechet_interval(features, features)
    assert 0 <= low <= distance < 1e-12
    assert high < 1e-6


def test_equal_samples_have_no_error():
    samples, reference = np.ones((20, 5)), np.random.default_rng(0).normal(size=(50, 5))
    distance, low, high = frechet_interval(samples, reference)
    assert low == distance == high > 0


def test_the_quantile_is_that_of_the_variances_own_freedom():
    """Of normal values the variance has N − 1 degrees; of two values it is certain; one far value leaves about two."""
    rng = np.random.default_rng(0)
    assert quantile(rng.normal(size=100_000)) == pytest.approx(1.96, abs=1e-3)
    assert np.mean([quantile(rng.normal(size=200)) for _ in range(500)]) == pytest.approx(stdtrit(199, 0.975), abs=1e-3)
    assert quantile(np.array([0.0, 1.0] * 20)) == pytest.approx(1.96, abs=2e-3)
    assert quantile(np.eye(60)[0]) == pytest.approx(stdtrit(120 / ((60**2 - 3 * 60 + 3) / 59 - 1), 0.975))


def test_an_interval_reaches_further_on_the_side_where_the_error_is_larger():
    for growth in (0.2, -0.2):
        found = reach(1.0, growth, 2.0)
        long, short = (found.up, found.down) if growth > 0 else (found.down, found.up)
        assert long == pytest.approx(np.expm1(0.4) / 0.2)
        assert short == found.plain == 2.0
    assert reach(1.0, 100.0, 2.0).up == pytest.approx(2 * (np.e - 1))
