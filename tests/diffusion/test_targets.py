"""Targets against the closed-form scores, computed on the noisy images themselves."""

import pytest
import torch

from stages.diffusion import scores as closed
from stages.diffusion.targets import denoising_loss, denoising_target, temperature_target
from stages.diffusion.temperature import temperature_rule

SHAPE = (1, 4, 4)
D = 16


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(30, *SHAPE, generator=generator)
    rows = torch.tensor([0, 7, 7, 29, 12])
    distances = torch.cdist(pixels.flatten(1), pixels.flatten(1))
    lists = distances.argsort(1)  # the image itself first
    sigma = torch.tensor([0.01, 0.1, 0.3, 1.0, 8.0])
    z = torch.randn(5, *SHAPE, generator=generator)
    return pixels, lists, rows, sigma, z


def score_at(pixels, x, temperature, **options):
    centres = closed.make_centres(pixels)
    return closed.unconditioning(centres, x.flatten(1).double(), temperature.double(), **options).reshape(x.shape)


@pytest.mark.parametrize("rule", [1.0, 5.0, "0.5/sigma", "sqrt_d", "d"])
def test_temperature_target_over_all_centres_is_the_closed_form_score(batch, rule):
    """K = M: sigma s_T(x) of METHODS §1.5, and T = 1 is unconditioning."""
    pixels, lists, rows, sigma, z = batch
    temperature = temperature_rule(rule, D)
    target = temperature_target(temperature, 100.0, D - 2)
    got = target(pixels[rows], sigma, z, pixels[lists[rows]])
    x = pixels[rows] + sigma[:, None, None, None] * z
    wanted = sigma[:, None, None, None] * score_at(pixels, x, temperature(sigma))
    torch.testing.assert_close(got.double(), wanted.double(), rtol=2e-4, atol=2e-4)


def test_top_k_sums_over_the_sources_neighbours(batch):
    pixels, lists, rows, sigma, z = batch
    target = temperature_target(temperature_rule(9.0, D), 100.0, D - 2)
    got = target(pixels[rows], sigma, z, pixels[lists[rows, :6]])
    x = pixels[rows] + sigma[:, None, None, None] * z
    for i, row in enumerate(rows):
        wanted = sigma[i] * score_at(pixels[lists[row, :6]], x[i : i + 1], torch.tensor(9.0))
        torch.testing.assert_close(got[i : i + 1].double(), wanted.double(), rtol=2e-4, atol=2e-4)


def test_scheduled_precision_divides_by_the_scheduled_level(batch):
    pixels, lists, rows, sigma, z = batch
    got = temperature_target(temperature_rule(9.0, D), 100.0, D - 2, "scheduled")(
        pixels[rows], sigma, z, pixels[lists[rows]]
    )
    x = pixels[rows] + sigma[:, None, None, None] * z
    wanted = sigma[:, None, None, None] * score_at(
        pixels, x, torch.tensor(9.0), precision="scheduled", sigma=sigma.double()
    )
    torch.testing.assert_close(got.double(), wanted.double(), rtol=2e-4, atol=2e-4)


def test_levels_at_or_above_the_threshold_keep_the_denoising_target(batch):
    pixels, lists, rows, sigma, z = batch
    got = temperature_target(temperature_rule(9.0, D), 0.3, D - 2)(pixels[rows], sigma, z, pixels[lists[rows]])
    torch.testing.assert_close(got[2:], -z[2:])
    assert not torch.allclose(got[1], -z[1])


def test_c_over_sigma_smooths_exactly_below_c(batch):
    pixels, lists, rows, sigma, z = batch
    got = temperature_target(temperature_rule("0.3/sigma", D), None, D - 2)(pixels[rows], sigma, z, pixels[lists[rows]])
    torch.testing.assert_close(got[2:], -z[2:])
    assert not torch.allclose(got[1], -z[1])


def test_radius_keeps_only_near_centres(batch):
    """With radius 1 only the two nearest remain: the same as a list of those two."""
    pixels, _, rows, sigma, z = batch
    x = pixels[rows] + sigma[:, None, None, None] * z
    nearest = torch.cdist(x.flatten(1), pixels.flatten(1)).argsort(1)[:, :2]
    rule = temperature_rule(9.0, D)
    got = temperature_target(rule, 100.0, D - 2, radius=1.0)(pixels[rows], sigma, z, pixels.expand(5, *pixels.shape))
    two = temperature_target(rule, 100.0, D - 2)(pixels[rows], sigma, z, pixels[nearest])
    torch.testing.assert_close(got, two, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("radius", [1.1, 1.3])
def test_radius_is_a_multiple_of_the_distance_to_the_second_nearest(batch, radius):
    pixels, lists, rows, sigma, z = batch
    target = temperature_target(temperature_rule(9.0, D), 100.0, D - 2, radius=radius)
    got = target(pixels[rows], sigma, z, pixels[lists[rows]])
    x, kept = pixels[rows] + sigma[:, None, None, None] * z, []
    for i in range(5):
        r = (x[i] - pixels).flatten(1).norm(dim=1)
        near = pixels[r <= radius * r.sort().values[1]]
        kept.append(len(near))
        wanted = sigma[i] * score_at(near, x[i : i + 1], torch.tensor(9.0))
        torch.testing.assert_close(got[i : i + 1].double(), wanted.double(), rtol=2e-4, atol=2e-4)
    assert min(kept) < 30
    assert max(kept) > 2


def test_loss_is_half_the_squared_distance_and_the_blind_network_gets_no_sigma(batch):
    pixels, _, rows, sigma, z = batch
    seen = []

    def network(x, level):
        seen.append(level)
        return torch.zeros_like(x)

    loss = denoising_loss(network, denoising_target, pixels[rows], sigma, z, None, conditioned=False)
    torch.testing.assert_close(loss, 0.5 * z.square().flatten(1).sum(1))
    assert seen == [None]


def test_minimiser_of_the_denoising_loss_is_the_conditioning_score():
    """On two points, the mean of -z given x is sigma s(x; sigma): by Monte Carlo on a window around one x, d = 1."""
    generator = torch.Generator().manual_seed(3)
    pixels, sigma, at = torch.tensor([0.0, 1.0]), 0.6, 0.35
    source = torch.randint(0, 2, (2_000_000,), generator=generator)
    z = torch.randn(2_000_000, generator=generator)
    x = pixels[source] + sigma * z
    here = (x - at).abs() < 0.005
    measured, error = float(-z[here].mean()), float(z[here].std() / here.sum() ** 0.5)
    centres = closed.make_centres(pixels[:, None])
    exact = sigma * float(closed.conditioning(centres, torch.tensor([[at]]).double(), torch.tensor([sigma]).double()))
    assert abs(measured - exact) < 5 * error + 0.005


@pytest.mark.parametrize("rule", [None, 1.0, 7.0, "2/sigma", "sqrt_d", "d"])
def test_minimiser_of_the_loss_on_two_points_is_the_closed_form_score(rule):
    """A free table F(x) in place of a network, x reached from both points with their posterior weights.

    The expected loss is quadratic in the table, so one Newton step from anywhere lands on the minimiser: sigma times
    the conditioning score without a rule, sigma s_T of the two points with one, whichever point x came from.
    """
    generator = torch.Generator().manual_seed(4)
    points, count = torch.rand(2, 3, generator=generator), 40
    sigma = torch.rand(count, generator=generator) + 0.05
    x = points[torch.arange(count) % 2] + sigma[:, None] * torch.randn(count, 3, generator=generator)
    centres, level = closed.make_centres(points), sigma.double()
    if rule is None:
        target, wanted = denoising_target, closed.conditioning(centres, x.double(), level)
    else:
        temperature = temperature_rule(rule, 3)
        target = temperature_target(temperature, 100.0, closed.shell_power(3))
        wanted = closed.unconditioning(centres, x.double(), temperature(level))
    weight = torch.softmax(-((x[:, None] - points) ** 2).sum(2) / (2 * sigma[:, None] ** 2), dim=1)
    table = torch.randn(count, 1, 1, 3, generator=generator, requires_grad=True)
    expected = torch.zeros(())
    for source, point in enumerate(points):
        x0, z = point.expand(count, 3), (x - point) / sigma[:, None]
        near = torch.stack([point, points[1 - source]]).expand(count, 2, 3)
        x0, z = x0.reshape(table.shape), z.reshape(table.shape)
        loss = denoising_loss(lambda *_: table, target, x0, sigma, z, near.reshape(count, 2, 1, 1, 3), True)
        expected = expected + (weight[:, source] * loss).sum()
    expected.backward()
    minimiser = (table - table.grad).detach().reshape(count, 3)  # the weights of each x sum to 1: unit curvature
    torch.testing.assert_close(minimiser.double(), sigma[:, None].double() * wanted, rtol=1e-3, atol=1e-4)
