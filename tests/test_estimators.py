"""Estimators of the posterior mean on few images: exact where they see all of them, biased where they do not."""

import numpy as np
import pytest

from benchmarks import estimators


@pytest.fixture(scope="module")
def found():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (10_300, 2, 2, 1), dtype=np.uint8)
    return estimators.errors(images, 6)


def test_the_exact_neighbours_are_exact_where_the_noise_is_small(found):
    """Four pixels at sigma = 0.5 of [-1, 1]: far more than 1,000 of 10,300 images count; 10 are not enough."""
    assert max(found["exact top 10"][0.5]) > max(found["exact top 1000"][0.5])


def test_all_batches_are_biased_and_smaller_ones_more():
    """Images far apart: the exact mean is the image itself, a batch without it gives another one."""
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (10_300, 16, 16, 1), dtype=np.uint8)
    own = estimators.errors(images, 4)
    assert max(own["exact top 10"][0.5]) < 1e-9
    assert np.mean(own["batches of 128"][0.5]) > np.mean(own["batches of 2048"][0.5]) > 0.3
    assert max(own["exact top 1000"][20.0]) > 0.01
