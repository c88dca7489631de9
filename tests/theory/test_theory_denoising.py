"""Denoising and explicit matching: the claims hold, and wrong minimisers fail them."""

import math

import numpy as np
import pytest
from small_verify import BLOCKS

from stages.theory import denoising, product

BLOCK = denoising.Denoising(**BLOCKS["denoising"])


def test_all_claims_hold():
    found = BLOCK.findings(0, None)
    assert len(found.claims) == 4
    assert all(claim.passed for claim in found.claims)


@pytest.mark.parametrize("wrong", ["level", "power"])
def test_another_minimiser_fails(monkeypatch, wrong):
    """The mixture with other weights of the levels, and E[z | x] at a wrong noise."""
    if wrong == "level":
        right = denoising.posterior_noise
        monkeypatch.setattr(denoising, "posterior_noise", lambda *a: 1.2 * right(*a))
    else:
        right = product.mixture
        monkeypatch.setattr(product, "mixture", lambda centres, sigmas: lambda x: 1.2 * right(centres, sigmas)(x))
    block = BLOCK.model_copy(update={"draws": 20_000})
    assert not all(claim.passed for claim in block.findings(0, None).claims[:2])


def test_posterior_noise_against_a_sum_written_out():
    rng = np.random.default_rng(0)
    x, centres, sigmas = rng.normal(size=(3, 4)), rng.uniform(size=(2, 4)), np.array([0.3, 0.7, 2.0])
    for row, found in zip(x, denoising.posterior_noise(x, centres, sigmas)):
        weights = {
            (i, s): s**-4 * math.exp(-np.square(row - c).sum() / (2 * s * s))
            for i, c in enumerate(centres)
            for s in sigmas
        }
        total = sum(weights.values())
        wanted = sum(w / total * (row - centres[i]) / s for (i, s), w in weights.items())
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_the_loss_is_the_pipelines_and_sees_the_level_only_if_it_is_conditioned():
    seen = []

    def network(x, level):
        seen.append(level)
        return 0 * x

    x0, z = np.zeros((3, 2)), np.array([[3.0, 4.0], [0, 0], [1, 0]])
    sigma = np.array([1.0, 2.0, 3.0])
    for conditioned in (True, False):
        np.testing.assert_allclose(product.denoising_losses(network, x0, sigma, z, conditioned), [12.5, 0, 0.5])
    assert np.array_equal(seen[0], sigma)
    assert seen[1] is None
