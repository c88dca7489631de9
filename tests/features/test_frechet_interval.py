"""The interval of the Fréchet distance: its derivative against finite differences, its coverage in simulations."""

import numpy as np
import pytest

from stages.features.frechet import Z95, frechet_from_features, frechet_interval

REPETITIONS = 1000
SPREAD = 0.3  # how far the samples' law is from the reference's


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
    distance, low, high = frechet_interval(features, reference)
    assert distance == pytest.approx(frechet_from_features(features, reference))
    error = np.std(influence, ddof=1) / np.sqrt(40)
    assert np.log(high / distance) == pytest.approx(Z95 * error / distance, rel=0.05)
    assert np.log(distance / low) == pytest.approx(np.log(high / distance))


@pytest.mark.parametrize("count", [20, 40, 200])
def test_it_is_the_jackknifes_below_and_above_the_dimension(count):
    """The exact jackknife leaves out one sample at a time."""
    rng = np.random.default_rng(count)
    features, reference = rng.normal(size=(count, 30)) * 1.3, rng.normal(size=(100, 30))
    left_out = [frechet_from_features(np.delete(features, row, axis=0), reference) for row in range(count)]
    error = np.sqrt((count - 1) * np.var(left_out))
    distance, _, high = frechet_interval(features, reference)
    assert distance * np.log(high / distance) / Z95 == pytest.approx(error, rel=0.12)


def law(kind: str, dimension: int, rng: np.random.Generator):
    """A function that draws `count` samples, and the reference's scale (D,)."""
    scale = np.arange(1, dimension + 1) ** -0.5
    same = kind == "reference"
    shift = 0 if same else SPREAD * rng.normal(size=dimension) * scale
    own = scale * (1 if same else np.exp(SPREAD * rng.normal(size=dimension)))
    centres = rng.normal(size=(30, dimension))

    def draw(count: int) -> np.ndarray:
        z = rng.normal(size=(count, dimension))
        if kind == "heavy":
            z *= np.exp(0.4 * rng.normal(size=(count, 1)))
        if kind == "copies":
            rows = rng.random(count) < 0.5
            z[rows] = centres[rng.integers(30, size=rows.sum())]
        if kind == "modes":
            z = 0.15 * z + centres[rng.integers(6, size=count)]
        return z * own + shift

    return draw, scale


@pytest.mark.parametrize(
    ("kind", "count", "dimension", "least", "most"),
    [
        ("plain", 60, 8, 0.93, 0.975),
        ("plain", 30, 48, 0.93, 0.975),
        ("heavy", 30, 48, 0.93, 0.985),
        ("copies", 60, 24, 0.93, 0.97),
        ("reference", 60, 8, 0.95, 1.0),  # cautious: the distance is then all bias
        ("reference", 30, 48, 0.95, 1.0),
        ("modes", 60, 24, 0.86, 0.95),  # too short, by up to 9 points: few modes, few samples
    ],
)
def test_coverage(kind, count, dimension, least, most):
    """Of the mean distance of such sets to this reference, which 2,000 other sets give."""
    rng = np.random.default_rng(dimension)
    draw, scale = law(kind, dimension, rng)
    reference = rng.normal(size=(100, dimension)) * scale
    truth = np.mean([frechet_from_features(draw(count), reference) for _ in range(2 * REPETITIONS)])
    intervals = [frechet_interval(draw(count), reference)[1:] for _ in range(REPETITIONS)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert least <= covered <= most, covered


def test_equal_sets_have_no_distance_and_no_error():
    features = np.random.default_rng(0).normal(size=(50, 5))
    distance, low, high = frechet_interval(features, features)
    assert 0 == low <= distance < 1e-12
    assert high < 1e-6
