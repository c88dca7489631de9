"""Top eigenvalues of scores' Jacobians: full Jacobians by automatic differentiation, and known temperatures."""

import numpy as np
import pytest
import torch

from stages.diffusion import scores, thermometer
from stages.diffusion.alignment import eigenvalue_row, learns_given_level
from stages.diffusion.eigenvalues import closed_tops, learned_top
from stages.diffusion.model import Model
from stages.diffusion.parameters import ScoreSpec, Variant

SIDE = 8
DIMENSION, COUNT = SIDE * SIDE, 20
POWER = DIMENSION - 2


def pictures(count=COUNT):
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(2, axis=1).repeat(2, axis=2))


def points(sigma, count=5):
    """Between two centres, with noise; and the way from one to the other."""
    centres = pictures().flatten(1).double() / 255
    generator = np.random.default_rng(1)
    one, other = (centres[generator.permutation(COUNT)[:count]] for _ in range(2))
    noise = sigma * torch.from_numpy(generator.standard_normal((count, DIMENSION)))
    return (one + other) / 2 + noise, other - one + 1e-3


def jacobian(score, x):
    """The full matrix at one point (d,)."""
    return torch.autograd.functional.jacobian(lambda point: score(point[None])[0], x)


@pytest.mark.parametrize("sigma", [0.2, 0.7])
def test_the_closed_forms_eigenvalues_are_those_of_its_derivative(sigma):
    centres, (x, _) = scores.make_centres(pictures()), points(sigma)
    found, hot = closed_tops(centres, x, POWER, frozen=False), thermometer.temperatures(DIMENSION)
    for place in (0, 20, len(hot) - 1):
        for i, point in enumerate(x):
            matrix = jacobian(lambda p, t=hot[place]: scores.unconditioning(centres, p, t), point)
            exact = torch.linalg.eigvals(matrix).real.max()
            torch.testing.assert_close(found[place, i], exact, rtol=2e-3, atol=2e-3 / sigma**2)


@pytest.mark.parametrize("temperature_place", [0, 25])
def test_with_frozen_levels_they_are_those_of_the_covariance(temperature_place):
    """J = Cov_w(g)/T - lambda_bar I, written out."""
    centres, (x, _) = scores.make_centres(pictures()), points(0.4)
    t = thermometer.temperatures(DIMENSION)[temperature_place]
    found = closed_tops(centres, x, POWER, frozen=True)[temperature_place]
    for i, point in enumerate(x):
        offsets = point - pictures().flatten(1).double() / 255
        r2 = offsets.square().sum(1)
        w, g = torch.softmax(-POWER / (2 * t) * torch.log(r2), 0), -offsets * POWER / r2[:, None]
        covariance = (w[:, None] * g).T @ g - torch.outer(w @ g, w @ g)
        exact = torch.linalg.eigvalsh(covariance)[-1] / t - (w * POWER / r2).sum()
        torch.testing.assert_close(found[i], exact, rtol=2e-3, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.2, 0.7])
def test_differences_find_the_top_eigenvalue_of_a_score(sigma):
    centres, (x, axes) = scores.make_centres(pictures()), points(sigma)
    level = torch.full((len(x),), sigma, dtype=torch.float64)
    found = learned_top(lambda p: scores.conditioning(centres, p, level), x, sigma, axes)
    for i, point in enumerate(x):
        matrix = jacobian(lambda p: scores.conditioning(centres, p, level[:1]), point)
        exact = torch.linalg.eigvalsh(matrix)[-1]
        torch.testing.assert_close(found[i], exact, rtol=0.02, atol=0.02 / sigma**2)


GIVEN = {
    "form": "temperature", "noise_conditioning": True, "temperature": 5.0, "neighbors": {"space": "pixel", "k": COUNT},
}  # fmt: skip


def row(temperature, sigma, times=1.0, target=None):
    """The reading of a network F = times sigma s_T that is blind to the level, or has another target."""

    class Shells(torch.nn.Module):
        def forward(self, x, level):
            found = scores.unconditioning(scores.make_centres(pictures()), x.flatten(1).double(), temperature)
            return (times * sigma * found).to(x.dtype).reshape(x.shape)

    sampler = {"name": "actual-noise", "levels": 4, "step": 0.1, "exact_below": 1.0}
    variant = Variant(score="network", sampler=sampler, **(target or {"form": "unconditioning"}))
    levels = torch.tensor([2.0, 0.5], dtype=torch.float64)
    model = Model(variant, levels, pictures()[..., None].numpy(), torch.device("cpu"), Shells())
    return eigenvalue_row(model, sigma, 0, 12, seed=0)


@pytest.mark.parametrize(("temperature", "sigma"), [(1.0, 0.5), (5.0, 0.4), (15.0, 0.4)])
def test_known_temperatures_are_read(temperature, sigma):
    found = row(temperature, sigma)
    assert found["jacobian_identified"]
    assert found["jacobian_t_eff"] == pytest.approx(temperature, rel=0.05)
    assert found["jacobian_low"] <= temperature <= found["jacobian_high"]


@pytest.mark.parametrize(("temperature", "sigma"), [(5.0, 0.4), (15.0, 0.4)])
def test_a_network_that_is_given_its_level_reads_the_temperature_of_its_target(temperature, sigma):
    """What such a network learns at one temperature does not depend on the level, and its Jacobian has their term."""
    found = row(temperature, sigma, target=GIVEN | {"temperature": temperature})
    assert found["jacobian_identified"]
    assert found["jacobian_t_eff"] == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize(
    ("target", "sigma", "given"),
    [
        ({"form": "conditioning"}, 0.4, True),
        ({"form": "unconditioning"}, 0.4, False),
        (GIVEN, 0.4, False),
        (GIVEN | {"smooth_below": 0.3}, 0.4, True),
        (GIVEN | {"smooth_below": 0.5}, 0.4, False),
        (GIVEN | {"temperature": "1/sigma"}, 0.4, False),
        (GIVEN | {"temperature": "1/sigma"}, 1.5, True),
        (GIVEN | {"temperature": "nonexpansive", "smooth_below": 0.5}, 0.4, False),
        (GIVEN | {"temperature": "nonexpansive", "smooth_below": 0.3}, 0.4, True),
        (GIVEN | {"noise_conditioning": False}, 0.4, False),
    ],
)
def test_a_target_is_of_the_given_level_where_it_is_not_smoothed(target, sigma, given):
    assert learns_given_level(ScoreSpec(score="network", **target), sigma, DIMENSION) == given


def test_where_no_temperature_has_the_eigenvalue_none_is_read():
    assert row(1.0, 0.5, times=5.0)["jacobian_identified"] is False


def test_levels_without_pairs_have_no_reading():
    assert set(row(1.0, 0.01).values()) == {None}
