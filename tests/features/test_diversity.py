"""The Vendi score of sets whose score is known, and against its definition."""

import numpy as np
import pytest

from stages.errors import InputError
from stages.features.diversity import vendi_score


@pytest.mark.parametrize(("clusters", "each", "dimension"), [(1, 50, 8), (5, 20, 8), (5, 20, 300), (8, 1, 8)])
def test_equal_clusters_score_their_number(clusters, each, dimension):
    """k orthogonal directions, equally often, at any length: whichever of N and D is smaller."""
    lengths = np.random.default_rng(0).uniform(0.1, 10, (clusters * each, 1))
    features = np.repeat(np.eye(clusters, dimension), each, axis=0) * lengths
    assert vendi_score(features) == pytest.approx(clusters, rel=1e-12)


def test_unequal_clusters_score_the_exponential_of_their_entropy():
    features = np.repeat(np.eye(3), [10, 20, 70], axis=0)
    share = np.array([0.1, 0.2, 0.7])
    assert vendi_score(features) == pytest.approx(np.exp(-(share * np.log(share)).sum()))


def test_two_images_of_a_known_similarity():
    """The eigenvalues of [[1, c], [c, 1]]/2 are (1 ± c)/2; signs count, as cosines do."""
    for c in (0.0, 0.3, 0.9, -0.5):
        high, low = (1 + c) / 2, (1 - c) / 2
        features = np.array([[1, 0], [c, np.sqrt(1 - c * c)]])
        assert vendi_score(features) == pytest.approx(np.exp(-high * np.log(high) - low * np.log(low)))


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_the_score_is_its_definition(shape):
    features = np.random.default_rng(1).normal(size=shape)
    rows = features / np.linalg.norm(features, axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvals(rows @ rows.T / len(rows)).real
    eigenvalues = eigenvalues[eigenvalues > 1e-12]
    assert vendi_score(features) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()), rel=1e-9)


def test_white_noise_scores_nearly_the_dimension_and_copies_score_what_they_copy():
    rng = np.random.default_rng(2)
    noise = rng.normal(size=(5000, 20))
    assert 19.8 < vendi_score(noise) <= 20
    few = noise[:10]
    repeated = few[rng.integers(0, 10, 1000)]
    assert vendi_score(repeated) <= min(10, 1.01 * vendi_score(few))
    assert vendi_score(np.repeat(few, 50, axis=0)) == pytest.approx(vendi_score(few))


def test_float32_and_one_image():
    assert vendi_score(np.ones((1, 5), np.float32)) == pytest.approx(1)


@pytest.mark.parametrize("features", [np.zeros((0, 3)), np.array([[1.0, 0], [0, 0]]), np.array([[np.nan, 1.0]])])
def test_features_without_a_direction_are_errors(features):
    with pytest.raises(InputError, match="none of length 0"):
        vendi_score(features)
