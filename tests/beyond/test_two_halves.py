"""Two halves: alikeness on Gaussians, whose flow is known exactly, and on samples that are equal or unrelated."""

import numpy as np
import pytest
import torch

from stages.beyond.halves import alikeness, gaussian_samples
from stages.diffusion import samplers, scores
from stages.diffusion.parameters import NoiseParams, SamplerParams
from stages.diffusion.peer_scores import wiener

DIMENSION, LARGEST = 12, 8.0


def gaussians(size, seed):
    """Two halves of a Gaussian with variances from 4 to 1/9 along a random basis."""
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.standard_normal((DIMENSION, DIMENSION)))[0]
    scale = np.geomspace(2, 1 / 3, DIMENSION)
    return [generator.standard_normal((size, DIMENSION)) * scale @ basis + 1 for _ in range(2)]


def flow(train, start):
    """Where the ODE of a Gaussian's score takes a start at LARGEST: mu + (S/(S + LARGEST^2))^(1/2) (x - mu)."""
    values, axes = np.linalg.eigh(np.cov(train.T, bias=True))
    shrink = np.sqrt(values / (values + LARGEST**2))
    return train.mean(0) + (start - train.mean(0)) @ (axes * shrink) @ axes.T


def sampled(train, start, score):
    """The end of Heun's method from the same start."""
    levels = torch.tensor(np.geomspace(LARGEST, 0.01, 60))

    def on_images(x, sigma):
        return score(x.flatten(1).double(), sigma.double()).reshape(x.shape).float()

    def draw(_):
        return torch.from_numpy(start / LARGEST).float().reshape(-1, 1, 1, DIMENSION)

    *_, end = samplers.sample(SamplerParams(name="heun", levels=60), levels, None, on_images, draw)
    return end.flatten(1).numpy()


@pytest.mark.parametrize("size", [30, 1000])
def test_alikeness_of_gaussian_models_is_that_of_their_exact_flows(size):
    train = gaussians(size, 0)
    start = LARGEST * np.random.default_rng(1).standard_normal((300, DIMENSION))
    measured = [sampled(half, start, wiener(scores.make_centres(torch.from_numpy(half)))) for half in train]
    found, low, high = alikeness(*measured)
    exact = alikeness(*(flow(half, start) for half in train))[0]
    assert found == pytest.approx(exact, abs=2e-3)
    assert low < exact < high
    if size == 1000:
        assert found > 0.98


def test_the_empirical_score_copies_its_half_and_is_less_alike():
    """On 30 points of 12 dimensions: every sample ends on a training point, and halves share none."""
    train = gaussians(30, 0)
    start = LARGEST * np.random.default_rng(1).standard_normal((300, DIMENSION))
    centres = [scores.make_centres(torch.from_numpy(half)) for half in train]
    ends = [sampled(half, start, lambda x, s, c=c: scores.conditioning(c, x, s)) for half, c in zip(train, centres)]
    for end, half in zip(ends, train):
        assert np.abs(end[:, None] - half).max(2).min(1).max() < 0.01
    smooth = [flow(half, start) for half in train]
    assert alikeness(*ends)[2] < alikeness(*smooth)[1] - 0.2


def test_equal_samples_are_alike_and_unrelated_ones_are_not():
    generator = np.random.default_rng(3)
    one, other = generator.standard_normal((2, 200, 20))
    assert alikeness(one, one) == (1, 1, 1)
    found, low, high = alikeness(one, other)
    assert low < 0 < high
    assert abs(found) < 0.06


def test_the_interval_covers():
    """b = r a + sqrt(1 - r^2) e: |a_i - b_i|^2 is 2 (1 - r) d on average, unrelated pairs have 2 d, so alikeness r."""
    generator, covered, r = np.random.default_rng(5), 0, 0.6
    for _ in range(400):
        one, noise = generator.standard_normal((2, 60, 10))
        _, low, high = alikeness(one, r * one + np.sqrt(1 - r * r) * noise)
        covered += low <= r <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_gaussian_samples_are_those_of_a_fine_sampler():
    """Pixels that mostly stay within [0, 1]: against Heun's method in 200 steps, to one grey level."""
    generator = np.random.default_rng(2)
    train = (generator.normal(0.5, 0.1, (40, DIMENSION)).clip(0, 1) * 255).round().astype(np.uint8)
    start = LARGEST * generator.standard_normal((50, DIMENSION))
    levels = torch.tensor(np.geomspace(LARGEST, 0.05, 200))
    score = wiener(scores.make_centres(torch.from_numpy(train)))

    def on_images(x, sigma):
        return score(x.flatten(1).double(), sigma.double()).reshape(x.shape).float()

    def draw(_):
        return torch.from_numpy(start / LARGEST).float().reshape(-1, 1, 1, DIMENSION)

    *_, end = samplers.sample(SamplerParams(name="heun", levels=200), levels, None, on_images, draw)
    fine = (end.flatten(1).numpy().clip(0, 1) * 255).round()
    exact = gaussian_samples(train, start, NoiseParams(sigma_min=0.05, sigma_max=LARGEST))
    assert np.abs(exact - fine).max() <= 1
