"""Two-layer ReLU networks: forward pass, linear start, convex reference, sampling: by hand and each against others."""

import math

import numpy as np
import pytest
import torch

from stages.diffusion import scores as empirical_score
from stages.theory import line, relu_claims, relu_networks

PAIR = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def hat() -> relu_networks.Networks:
    """g(x) = 2 relu(x) − 3 relu(x − 1) + x/2 + 1 as one network with two units."""
    return relu_networks.Networks(
        W=tensor([[[1.0], [-2.0]]]), b=tensor([[0.0, 2.0]]), A=tensor([[[2.0, 1.5]]]), S=tensor([[[3.5]]]),
        c=tensor([[-2.0]]),
    )  # fmt: skip


def test_forward_pass_by_hand():
    # −2x + 2 ≥ 0 below 1: relu(2 − 2x) · 1.5 = 3 − 3x + 3 relu(x − 1)
    x = tensor([[[-1.0], [0.5], [3.0]]])
    assert hat()(x)[0, :, 0].tolist() == pytest.approx([2 * 0 + 6 - 3.5 - 2, 1 + 1.5 + 1.75 - 2, 6 + 0 + 10.5 - 2])


def test_variation_by_hand():
    # jumps of the slope: 2 · 1 at 0 and 1.5 · 2 at 1; the squares give more, as A and W are not balanced
    assert relu_networks.variation(hat()).item() == pytest.approx(5)
    assert hat().weight_norm.item() == pytest.approx(0.5 * (4 + 2.25 + 1 + 4))


def test_posterior_mean_is_the_pipelines_score():
    points, x = torch.rand(5, 3, dtype=torch.float64), torch.rand(2, 7, 3, dtype=torch.float64)
    sigmas = tensor([0.2, 0.7])
    mean = relu_networks.posterior_mean(x, sigmas, points)
    centres = empirical_score.make_centres(points)
    for level in range(2):
        score = empirical_score.conditioning(centres, x[level], sigmas[level].expand(7))
        assert torch.allclose(mean[level], x[level] + sigmas[level] ** 2 * score, atol=1e-12)


def test_quadrature_has_the_moments_of_the_mixture():
    sigmas = tensor([0.3, 1.0])
    x, weight = relu_networks.quadrature(PAIR, sigmas, 8)
    assert weight.sum(1).tolist() == pytest.approx([1, 1])
    assert (weight * x[..., 0] ** 2).sum(1).tolist() == pytest.approx([1.09, 2.0])


def test_the_last_layer_is_fitted_exactly_where_it_can_be():
    networks, x = hat(), torch.linspace(-2, 2, 41, dtype=torch.float64)[None, :, None]
    target = networks(x)
    blank = hat()
    blank.A, blank.S, blank.c = torch.zeros_like(blank.A), blank.S + 1, blank.c - 1
    weight = torch.full((1, 41), 1 / 41, dtype=torch.float64)
    relu_networks.fit_last_layer(blank, x, weight, target, tensor([1.0]), ridge=1e-9)
    assert torch.allclose(blank(x), target, atol=1e-5)


def test_strong_decay_leaves_a_straight_line():
    # σ small: g* = ±1 − x, and the best line is 0 with E‖g*‖²/σ² = 1, up to the tiny slope −σ²/(1+σ²)
    sigma = 0.1
    spline = relu_networks.least_objective(PAIR, sigma, 10.0, 32)
    assert spline.variation == pytest.approx(0, abs=1e-9)
    assert spline.objective == pytest.approx(1 - sigma**2 / (1 + sigma**2), rel=1e-6)
    assert spline(np.array([-1.0, 2.0])) == pytest.approx(np.array([1, -2]) * sigma**2 / (1 + sigma**2), abs=1e-6)


def test_the_convex_solution_is_certified_where_the_solver_stops_early():
    # at this level L-BFGS-B alone ends 5 % above the minimum
    sigma = 0.5 * 10 ** (-10 / 15)
    spline = relu_networks.least_objective(PAIR, sigma, 0.1, 32)
    assert spline.objective == pytest.approx(0.2514, abs=1e-4)


def test_no_other_spline_has_a_smaller_objective():
    sigma, decay, level = 0.3, 0.1, tensor([0.3])
    best = relu_networks.least_objective(PAIR, sigma, decay, 16)
    x, weight = relu_networks.quadrature(PAIR, level, 16)
    target = (relu_networks.posterior_mean(x, level, PAIR) - x)[0, :, 0].numpy()
    x, weight, generator = x[0, :, 0].numpy(), weight[0].numpy(), np.random.default_rng(0)

    def objective(spline):
        return (weight * (spline(x) - target) ** 2).sum() / sigma**2 + decay * spline.variation

    assert objective(best) == pytest.approx(best.objective, rel=1e-9)
    for size in (1e-3, 1e-2, 0.3):
        for _ in range(20):
            moved = relu_networks.Spline(
                best.alpha + size * generator.standard_normal(), best.beta + size * generator.standard_normal(),
                best.knots, best.jumps + size * generator.standard_normal(len(best.jumps)), 0.0,
            )  # fmt: skip
            assert objective(moved) > best.objective


def test_training_reaches_the_convex_minimum():
    sigmas, decay = tensor([0.4, 0.25]), tensor([0.1, 0.2])
    nodes = relu_networks.quadrature(PAIR, sigmas, 24)
    networks = relu_networks.initial(2, 24, PAIR, sigmas, torch.Generator().manual_seed(0))
    target = relu_networks.posterior_mean(nodes[0], sigmas, PAIR) - nodes[0]
    relu_networks.fit_last_layer(networks, *nodes, target, sigmas, 0.1)
    relu_networks.train(networks, lambda _: nodes, PAIR, sigmas, decay, 1500)
    found = relu_networks.level_loss(networks, *nodes, target, sigmas) + decay * networks.weight_norm
    for level in range(2):
        least = relu_networks.least_objective(PAIR, float(sigmas[level]), float(decay[level]), 24).objective
        assert least * (1 - 1e-6) < found[level].item() < 1.01 * least


def test_sampling_ends_on_the_only_data_point():
    steps = [lambda x: 3.0 - x] * 3
    assert relu_networks.sample(steps, tensor([[-1.0], [9.0]]), tensor([1.0, 0.5, 0.1])).tolist() == [[3.0], [3.0]]


def test_data_points_lie_two_apart():
    for name in relu_claims.ReluNetworks.model_fields["data"].annotation.__args__[0].__args__:
        points = relu_claims.place(name)
        assert len(points) == int(name.split()[0])
        neighbors = np.sort(np.linalg.norm(points[:, None] - points, axis=2), axis=1)[:, 1]
        assert neighbors == pytest.approx(2)
        assert relu_claims.distance_off(points, points, name) == pytest.approx(0)
    assert relu_claims.distance_off(np.array([[5.0, 3.0, 4.0]]), points, "4 points, d = 20") == pytest.approx(5)


def test_three_pieces_of_a_known_loss():
    sigma, kappa = 0.2, 1.3
    loss = line.loss(sigma**2, kappa)
    assert relu_claims.three_piece_variation(loss, sigma) == pytest.approx(2 / (1 - kappa * sigma), rel=1e-6)
    assert relu_claims.three_piece_variation(1e-9, 0.5) == math.inf


def test_the_draws_depend_on_the_seed():
    """On a CPU torch keeps the low 32 bits of a seed: (seed << 32) + step was the step alone."""
    points, sigmas = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    draws = {seed: relu_networks.sampled(points, sigmas, 4, seed) for seed in (0, 1)}
    assert not torch.equal(draws[0](5)[0], draws[1](5)[0])
    assert torch.equal(draws[0](5)[0], relu_networks.sampled(points, sigmas, 4, 0)(5)[0])
