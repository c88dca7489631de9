"""Scores that others compare with: against Gaussians, brute force and the limits in which they are known scores."""

import pytest
import torch

from stages.diffusion import samplers, scores
from stages.diffusion.parameters import SamplerParams, ScoreSpec, Variant
from stages.diffusion.peer_scores import loader_batches, local, pca_locality, tikhonov, wiener
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


def test_tikhonov_is_the_least_of_its_loss(problem):
    """By many draws of (x_i, z) at one x: weights p(x | x_i), and the loss is quadratic in s."""
    centres, images, x, sigma = problem
    rows, level = images.flatten(1), 0.3
    for i in range(len(x)):
        weight = torch.softmax(-(x[i] - rows).square().sum(1) / (2 * sigma[i] ** 2), 0)[:, None]
        s = tikhonov(centres, level)(x[i : i + 1], sigma[i : i + 1])[0].clone().requires_grad_()
        target = -(x[i] - rows) / sigma[i] ** 2
        loss = (weight * sigma[i] ** 2 * (s - target).square()).sum() + level**2 * s.square().sum()
        (slope,) = torch.autograd.grad(loss, s)
        assert slope.abs().max() < 1e-9 * (1 + target.abs().max())


def test_tikhonov_leaves_noise_of_its_level_on_an_image(problem):
    """The flow from one image alone: |x - x_0| falls as sqrt(sigma^2 + level^2)."""
    _, images, _, _ = problem
    centres, level, largest = scores.make_centres(images[:1]), 0.2, 5.0
    levels = torch.logspace(1, -3, 200, 10, dtype=torch.float64) * largest / 10
    field = tikhonov(centres, level)

    def on_images(x, sigma):
        return field(x.flatten(1).double(), sigma).reshape(x.shape).float()

    start = torch.randn(4, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    params = SamplerParams(name="heun", levels=200)
    *_, end = samplers.sample(params, levels, None, on_images, lambda n: start)
    centre = images[0].flatten()
    shrink = (end.flatten(1).double() - centre).norm(dim=1) / (largest * start.flatten(1).double() - centre).norm(dim=1)
    torch.testing.assert_close(
        shrink, torch.full_like(shrink, level / (largest**2 + level**2) ** 0.5), rtol=0.01, atol=0
    )


@pytest.mark.parametrize("loader_batch", [None, 1, 5, 12, 23, 100])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 1.0])
def test_pca_locality_by_hand(problem, threshold, loader_batch):
    """Two batches, 12 and 11 images, count the same; batches of one image give the mean of all."""
    centres, images, x, sigma = problem
    rows = images.flatten(1)
    covariance = torch.cov(rows.T, correction=0)
    got = pca_locality(centres, threshold, loader_batch)(x, sigma)
    for i in range(len(x)):
        matrix = covariance @ torch.linalg.inv(covariance + sigma[i] ** 2 * torch.eye(40, dtype=torch.float64))
        relative = (matrix / matrix.diagonal()[:, None]).abs()
        for m in (0, 17, 39):
            sees, means = relative[:, m] >= threshold * relative.max(), []
            for batch in rows.split(loader_batch or 23):
                weight = torch.softmax(-(x[i] - batch)[:, sees].square().sum(1) / (2 * sigma[i] ** 2), 0)
                means.append(weight @ batch[:, m])
            wanted = (torch.stack(means).mean() - x[i, m]) / sigma[i] ** 2
            torch.testing.assert_close(got[i, m], wanted)


def test_one_batch_of_pca_locality_has_the_bits_of_none(problem):
    centres, _, x, sigma = problem
    assert torch.equal(pca_locality(centres, 0.02, 23)(x, sigma), pca_locality(centres, 0.02)(x, sigma))


def test_pca_locality_of_pixels_that_all_vary_together_is_the_empirical_score():
    """Images along one direction: the Wiener matrix has rank one, every pixel sees all of them."""
    generator = torch.Generator().manual_seed(3)
    direction = torch.rand(12, generator=generator, dtype=torch.float64) + 0.5
    images = torch.rand(15, 1, generator=generator, dtype=torch.float64) * direction
    x = images[:5] + 0.2 * torch.randn(5, 12, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.1, 0.2, 0.5, 1.0, 5.0], dtype=torch.float64)
    centres = scores.make_centres(images)
    torch.testing.assert_close(pca_locality(centres, 0.02)(x, sigma), scores.conditioning(centres, x, sigma))


def test_pca_locality_gives_a_pixel_that_never_varies_its_value(problem):
    _, images, _, sigma = problem
    images = images.clone()
    images[:, 0, 0, 0] = 0.25
    x = images[:6].flatten(1) + 0.3
    got = pca_locality(scores.make_centres(images), 0.02)(x, sigma)
    torch.testing.assert_close(got[:, 0], (0.25 - x[:, 0]) / sigma**2)
    assert torch.isfinite(got).all()


MORE = [
    ({"form": "wiener"}, wiener),
    ({"form": "local", "patch": 3}, lambda centres: local(centres, SHAPE, 3)),
    ({"form": "pca-locality", "mask_threshold": 0.1}, lambda centres: pca_locality(centres, 0.1)),
    (
        {"form": "pca-locality", "mask_threshold": 0.1, "loader_batch": 7},
        lambda centres: pca_locality(centres, 0.1, 7),
    ),
    ({"form": "tikhonov", "penalty": 0.2}, lambda centres: tikhonov(centres, 0.2)),
]


@pytest.mark.parametrize(("more", "made"), MORE)
def test_they_are_variants_as_all_others(problem, more, made):
    """Through build_score, on images (B, C, H, W), the channels in their place."""
    centres, _, x, sigma = problem
    images = x.reshape(-1, 5, 4, 2).movedim(-1, 1).contiguous()
    spec = Variant(score="closed-form", sampler=SamplerParams(name="euler", levels=10), **more)
    score = build_score(spec, centres, sigma, Batch(0, torch.arange(len(x)), SHAPE))(images, sigma)
    torch.testing.assert_close(score.movedim(1, -1).flatten(1), made(centres)(x, sigma))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"form": "local"}, "patch"),
        ({"form": "local", "patch": 4}, "odd"),
        ({"form": "wiener", "patch": 3}, "patch"),
        ({"form": "loader-batches"}, "loader_batch"),
        ({"form": "wiener", "loader_batch": 3}, "loader_batch"),
        ({"form": "pca-locality", "mask_threshold": 0.1, "loader_batch": 0}, "loader_batch"),
        ({"form": "pca-locality"}, "mask_threshold"),
        ({"form": "wiener", "mask_threshold": 0.1}, "mask_threshold"),
        ({"form": "tikhonov"}, "penalty"),
        ({"form": "conditioning", "penalty": 0.1}, "penalty"),
    ],
)
def test_keys_that_do_not_fit_are_refused(more, words):
    with pytest.raises(ValueError, match=words):
        ScoreSpec(score="closed-form", **more)
