"""Samplers against exact solutions: Gaussian data, whose reverse ODE and law are known."""

import functools
import math

import pytest
import torch

from stages.diffusion import samplers
from stages.diffusion.noise import levels, normal
from stages.diffusion.parameters import NoiseParams, SamplerParams

SPREAD, MEAN = 0.5, 0.3


def gaussian_score(x, sigma):
    """Score of N(MEAN, SPREAD^2) data at level sigma."""
    return -(x - MEAN) / (SPREAD**2 + sigma**2).to(x.dtype)[:, None, None, None]


def draw_for(count, shape=(1, 2, 2), seed=0):
    return lambda n: normal(seed, torch.arange(count), n, shape).double()


def states(move, score, draw, sigmas, **options):
    """The states of a step with these options down to level 0."""
    return samplers.run(functools.partial(move, **options), score, draw, *samplers.noise_levels(sigmas))


def last(*arguments, **options):
    return list(states(*arguments, **options))[-1]


def exact_flow(start, sigma_max):
    return MEAN + (start - MEAN) * SPREAD / math.sqrt(SPREAD**2 + sigma_max**2)


def ode_error(step, count):
    sigmas = levels(NoiseParams(sigma_min=1e-4, sigma_max=5), count)
    draw = draw_for(4)
    return float((last(step, gaussian_score, draw, sigmas) - exact_flow(draw(0) * 5, 5)).abs().max())


@pytest.mark.parametrize(
    ("step", "order"),
    [(samplers.euler, 1), (samplers.heun, 2), (functools.partial(samplers.reverse_diffusion, ode=True), 1)],
)
def test_ode_samplers_converge_at_their_order(step, order):
    errors = [ode_error(step, count) for count in (100, 200, 400)]
    slopes = [math.log2(a / b) for a, b in zip(errors, errors[1:])]
    assert slopes == pytest.approx([order, order], abs=0.25)


@pytest.mark.parametrize("snr", [None, 0.16])
@pytest.mark.parametrize("ode", [False, True])
def test_reverse_diffusion_is_methods_5_written_out(ode, snr):
    """Corrector before predictor, other noise for each; the last step, down to 0, returns the mean of what is left."""
    sigmas, draw = levels(NoiseParams(sigma_min=0.2, sigma_max=5), 4), draw_for(3)
    x, wanted = 5 * draw(0), []
    for n, (high, low) in enumerate(zip(sigmas.tolist(), [*sigmas.tolist()[1:], 0.0])):
        at = torch.full((3,), high, dtype=torch.float64)
        if snr:
            s, z = gaussian_score(x, at), draw(2 * n + 2)
            size = [2 * (snr * z[i].norm() / s[i].norm()) ** 2 for i in range(3)]
            x = torch.stack([x[i] + size[i] * s[i] + (2 * size[i]) ** 0.5 * z[i] for i in range(3)])
        gap = high**2 - low**2
        if low == 0:
            x = x + high**2 * gaussian_score(x, at)  # E[x_0 | x], whatever brought it here
        elif ode:
            x = x + 0.5 * gap * gaussian_score(x, at)
        else:
            x = x + gap * gaussian_score(x, at) + gap**0.5 * draw(2 * n + 1)
        wanted.append(x)
    got = list(states(samplers.reverse_diffusion, gaussian_score, draw, sigmas, ode=ode, snr=snr))
    torch.testing.assert_close(torch.stack(got), torch.stack(wanted))


@pytest.mark.parametrize("snr", [None, 0.1])
def test_reverse_sde_has_the_mean_and_variance_of_the_data(snr):
    """At d = 256: a Langevin step set by a sample's own norms is unbiased only as d grows."""
    sigmas = levels(NoiseParams(sigma_min=0.005, sigma_max=20), 400)
    x = last(samplers.reverse_diffusion, gaussian_score, draw_for(100, (1, 16, 16)), sigmas, snr=snr).flatten()
    standard_error = SPREAD / math.sqrt(len(x))
    assert abs(float(x.mean()) - MEAN) < 5 * standard_error
    # discretisation leaves a bias of the order of one level's ratio minus one
    assert float(x.std()) == pytest.approx(SPREAD, rel=0.03)


def test_reverse_sde_finds_both_modes_of_a_mixture_in_proportion():
    centres, weights = torch.tensor([-2.0, 2.0], dtype=torch.float64), torch.tensor([0.3, 0.7], dtype=torch.float64)

    def score(x, sigma):
        variance = (0.04 + sigma**2)[:, None, None, None, None]
        distance = x[..., None] - centres
        w = torch.softmax(torch.log(weights) - distance**2 / (2 * variance), -1)
        return -(w * distance / variance).sum(-1)

    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=20), 300)
    x = last(samplers.reverse_diffusion, score, draw_for(4000, (1, 1, 1)), sigmas).flatten()
    share = float((x > 0).double().mean())
    assert abs(share - 0.7) < 5 * math.sqrt(0.21 / 4000)
    assert float(x[x > 0].mean()) == pytest.approx(2, abs=0.05)
    assert float(x[x > 0].std()) == pytest.approx(0.2, rel=0.1)


def mixture_score(weights, means, covariances):
    """Score of a Gaussian mixture in d dimensions under noise sigma: covariances grow by sigma^2."""

    def score(x, sigma):
        flat = x.flatten(1)
        noisy = covariances + float(sigma[0]) ** 2 * torch.eye(flat.shape[1], dtype=torch.float64)
        precision = torch.linalg.inv(noisy)
        difference = flat[:, None] - means
        pull = -torch.einsum("kij,bkj->bki", precision, difference)
        log_density = torch.log(weights) - 0.5 * torch.logdet(noisy) + 0.5 * (difference * pull).sum(2)
        return torch.einsum("bk,bki->bi", torch.softmax(log_density, 1), pull).reshape(x.shape)

    return score


def test_reverse_sde_has_the_mean_and_covariance_of_a_correlated_mixture():
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[-1.0, 0.5], [1.0, 1.0]], dtype=torch.float64)
    covariances = torch.tensor([[[0.3, 0.2], [0.2, 0.4]], [[0.5, -0.3], [-0.3, 0.3]]], dtype=torch.float64)
    mean = weights @ means
    centred = means - mean
    covariance = torch.einsum("k,kij->ij", weights, covariances + centred[:, :, None] * centred[:, None])
    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=20), 500)
    count = 4000
    score = mixture_score(weights, means, covariances)
    x = last(samplers.reverse_diffusion, score, draw_for(count, (1, 1, 2)), sigmas).flatten(1)
    assert ((x.mean(0) - mean).abs() < 5 * (covariance.diag() / count).sqrt()).all()
    # an entry's standard error is sqrt((C_ii C_jj + C_ij^2)/n) for normal data; 1.5 % is one level's share of the noise
    error = torch.sqrt((torch.outer(covariance.diag(), covariance.diag()) + covariance**2) / count)
    assert ((torch.cov(x.T) - covariance).abs() < 5 * error + 0.015 * covariance.diag().max()).all()


def test_langevin_step_is_its_formula_with_each_samples_own_norms():
    x, z = torch.randn(3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    got = samplers.langevin(x, 0.7, gaussian_score, z, 0.16)
    for i in range(3):
        s = gaussian_score(x[i : i + 1], torch.tensor([0.7], dtype=torch.float64))
        eps = 2 * (0.16 * z[i].norm() / s.norm()) ** 2
        torch.testing.assert_close(got[i : i + 1], x[i : i + 1] + eps * s + torch.sqrt(2 * eps) * z[i])


def shell_score(centre):
    """Unconditioning score of one centre: -(x - c)(d-2)/r^2, and its actual level r/sqrt d."""
    d = centre.numel()

    def score(x, sigma):
        difference = x - centre
        return -difference * (d - 2) / difference.square().flatten(1).sum(1)[:, None, None, None]

    return score, lambda x: (x - centre).flatten(1).norm(dim=1) / math.sqrt(d)


def test_actual_noise_sampler_shrinks_the_distance_to_one_centre_geometrically():
    """x += a s^2 s(x) at s = r/sqrt d gives r' = |1 - a (d-2)/d| r, by hand."""
    centre = torch.full((1, 4, 4), 0.4, dtype=torch.float64)
    score, level = shell_score(centre)
    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=5), 50)
    options = {"step": 0.16, "exact_below": 5.0, "level": level}
    found = states(samplers.actual_noise, score, draw_for(5, (1, 4, 4)), sigmas, **options)
    radii = torch.stack([(x - centre).flatten(1).norm(dim=1) for x in found])
    torch.testing.assert_close(radii[1:] / radii[:-1], torch.full_like(radii[1:], 1 - 0.16 * 14 / 16))


def test_gradient_ascent_stops_each_sample_below_the_threshold_and_leaves_it_there():
    centre = torch.full((1, 4, 4), 0.4, dtype=torch.float64)
    score, level = shell_score(centre)
    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=5), 500)
    options = {"step": 0.1, "stop_below": 0.05, "level": level}
    found = list(states(samplers.gradient_ascent, score, draw_for(5, (1, 4, 4)), sigmas, **options))
    assert len(found) < 500
    assert (level(found[-1]) < 0.05).all()
    assert (level(found[-1]) >= 0.05 * (1 - 0.1 * 14 / 16) - 1e-12).all()


def test_gradient_ascent_that_need_not_start_yields_where_it_is():
    score, level = shell_score(torch.full((1, 4, 4), 0.4, dtype=torch.float64))
    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=5), 9)
    draw = draw_for(5, (1, 4, 4))
    options = {"step": 0.1, "stop_below": 100.0, "level": level}
    (state,) = states(samplers.gradient_ascent, score, draw, sigmas, **options)
    assert torch.equal(state, draw(0) * float(sigmas[0]))


def test_cfdm_euler_carries_a_single_centre_to_itself():
    """With one centre k_t = t x_1, so v = (x_1 - z)/(1 - t) and Euler's last step lands on x_1 exactly."""
    centre = torch.rand(1, 2, 2, dtype=torch.float64)
    velocity = lambda z, t: (centre - z) / (1 - t[:, None, None, None])  # noqa: E731
    params = SamplerParams(name="cfdm", levels=20)
    *_, end = samplers.sample(params, torch.ones(20), lambda x: None, velocity, draw_for(3))
    torch.testing.assert_close(end, centre.expand(3, 1, 2, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "actual-noise", "levels": 10, "step": 0.1}, "exact_below"),
        ({"name": "euler", "levels": 10, "snr": 0.1}, "remove it"),
        ({"name": "gradient-ascent", "levels": 10, "step": 0.1}, "stop_below"),
        ({"name": "unknown", "levels": 10}, "Input should be"),
    ],
)
def test_wrong_sampler_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        SamplerParams(**values)


@pytest.mark.parametrize(
    ("values", "evaluations"),
    [
        ({"name": "reverse-sde", "levels": 50, "snr": 0.16}, 100),
        ({"name": "reverse-sde", "levels": 50}, 50),
        ({"name": "reverse-ode", "levels": 50, "snr": 0.16}, 100),
        ({"name": "euler", "levels": 18}, 18),
        ({"name": "heun", "levels": 18}, 35),
        ({"name": "actual-noise", "levels": 18, "step": 0.2, "exact_below": 1.0}, 18),
        ({"name": "gradient-ascent", "levels": 18, "step": 0.2, "stop_below": 1e-9}, 18),
        ({"name": "cfdm", "levels": 18}, 18),
    ],
)
def test_nfe_is_what_the_sampler_really_evaluates(values, evaluations):
    params = SamplerParams(**values)
    calls = []

    def score(x, sigma):
        calls.append(1)
        return gaussian_score(x, sigma)

    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=5), params.levels)
    found = list(samplers.sample(params, sigmas, lambda x: torch.ones(len(x)).double(), score, draw_for(2)))
    assert len(found) == params.levels
    assert len(calls) == params.evaluations == evaluations
