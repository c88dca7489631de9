"""Scores that others compare with: against Gaussians, brute force and the limits in which they are known scores."""

import pytest
import torch

from stages.diffusion import scores
from stages.diffusion.parameters import SamplerParams, ScoreSpec, Variant
from stages.diffusion.peer_scores import loader_batches, local, wiener
from stages.diffusion.variants import Batch, build_score

SHAPE = (2, 5, 4)  # (C, H, W)


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(4)
    images = torch.rand(23, 5, 4, 2, generator=generator, dtype=torch.float64)
    x = images[:6].flatten(1) + 0.3 * torch.randn(6, 40, generator=generator, dtype=torch.float64)
    return scores.make_centres(images), images, x, torch.tensor([0.05, 0.2, 0.5, 1.0, 3.0, 20.0], dtype=torch.float64)


def test_wiener_is_the_gradient_of_the_gaussians_log_density(problem):
    centres, images, x, sigma = problem
    rows = images.flatten(1)
    covariance = torch.cov(rows.T, correction=0)
    for i in range(len(x)):
        point = x[i].clone().requires_grad_()
        spread = covariance + sigma[i] ** 2 * torch.eye(40, dtype=torch.float64)
        torch.distributions.MultivariateNormal(rows.mean(0), spread).log_prob(point).backward()
        torch.testing.assert_close(wiener(centres)(x[i : i + 1], sigma[i : i + 1])[0], point.grad, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [1, 5, 23, 100])
def test_loader_batches_by_hand(problem, size):
    """One batch is the empirical score; batches of one image each give the training set's mean, whatever x is."""
    centres, images, x, sigma = problem
    got = loader_batches(centres, size)(x, sigma)
    if size >= 23:
        torch.testing.assert_close(got, scores.conditioning(centres, x, sigma))
        return
    for i in range(len(x)):
        means = []
        for batch in images.flatten(1).split(size):
            weight = torch.softmax(-(x[i] - batch).square().sum(1) / (2 * sigma[i] ** 2), 0)
            means.append((weight[:, None] * batch).sum(0))
        torch.testing.assert_close(got[i], (torch.stack(means).mean(0) - x[i]) / sigma[i] ** 2)


@pytest.mark.parametrize("side", [1, 3, 11])
def test_local_by_hand(problem, side):
    """Patches that cover the whole image make it the empirical score."""
    centres, images, x, sigma = problem
    got = local(centres, SHAPE, side)(x, sigma)
    if side == 11:
        torch.testing.assert_close(got, scores.conditioning(centres, x, sigma))
    half = side // 2
    for i in (0, 3):
        point = x[i].reshape(5, 4, 2)
        for h, w in ((0, 0), (2, 3), (4, 1)):
            window = (slice(max(0, h - half), h + half + 1), slice(max(0, w - half), w + half + 1))
            r2 = (point[window] - images[(slice(None), *window)]).square().sum((1, 2, 3))
            weight = torch.softmax(-r2 / (2 * sigma[i] ** 2), 0)
            wanted = ((weight[:, None] * images[:, h, w]).sum(0) - point[h, w]) / sigma[i] ** 2
            torch.testing.assert_close(got[i].reshape(5, 4, 2)[h, w], wanted)


@pytest.mark.parametrize("more", [{"form": "wiener"}, {"form": "local", "patch": 3}])
def test_they_are_variants_as_all_others(problem, more):
    """Through build_score, on images (B, C, H, W), the channels in their place."""
    centres, _, x, sigma = problem
    images = x.reshape(-1, 5, 4, 2).movedim(-1, 1).contiguous()
    spec = Variant(score="closed-form", sampler=SamplerParams(name="euler", levels=10), **more)
    score = build_score(spec, centres, sigma, Batch(0, torch.arange(len(x)), SHAPE))(images, sigma)
    direct = wiener(centres) if more["form"] == "wiener" else local(centres, SHAPE, 3)
    torch.testing.assert_close(score.movedim(1, -1).flatten(1), direct(x, sigma))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"form": "local"}, "patch"),
        ({"form": "local", "patch": 4}, "odd"),
        ({"form": "wiener", "patch": 3}, "patch"),
        ({"form": "loader-batches"}, "loader_batch"),
        ({"form": "wiener", "loader_batch": 3}, "loader_batch"),
    ],
)
def test_keys_that_do_not_fit_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        ScoreSpec(score="closed-form", **more)
