"""Two-layer ReLU networks: forward pass, linear start, convex reference, sampling: by hand and each against others."""

import math

import numpy as np
import pytest
import torch

from stages.theory import line, relu_claims, relu_networks

PAIR = np.array([[-1.0], [1.0]])
DATA = torch.from_numpy(PAIR)


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


def test_the_goal_is_the_posterior_mean_minus_x():
    generator = torch.Generator().manual_seed(0)
    points, x = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in ((5, 3), (2, 7, 3)))
    sigmas = tensor([0.2, 0.7])
    squared = ((x[:, :, None] - points) ** 2).sum(-1)
    mean = torch.softmax(-squared / (2 * sigmas[:, None, None] ** 2), dim=2) @ points
    assert torch.allclose(relu_networks.goal(x, sigmas, points), mean - x, atol=1e-12)


def test_quadrature_has_the_moments_of_the_mixture():
    batch = relu_networks.quadrature(DATA, tensor([0.3, 1.0]), 8)
    assert batch.weight.sum(1).tolist() == pytest.approx([1, 1])
    assert (batch.weight * batch.x[..., 0] ** 2).sum(1).tolist() == pytest.approx([1.09, 2.0])


def test_the_last_layer_is_fitted_exactly_where_it_can_be():
    networks, x = hat(), torch.linspace(-2, 2, 41, dtype=torch.float64)[None, :, None]
    batch = relu_networks.Batch(x, torch.full((1, 41), 1 / 41, dtype=torch.float64), networks(x))
    blank = hat()
    blank.A, blank.S, blank.c = torch.zeros_like(blank.A), blank.S + 1, blank.c - 1
    relu_networks.fit_last_layer(blank, batch, tensor([1.0]), ridge=1e-9)
    assert torch.allclose(blank(x), batch.goal, atol=1e-5)


def test_strong_decay_leaves_a_straight_line():
    # σ small: g* = ±1 − x, and the best line is 0 with E‖g*‖²/σ² = 1, up to the tiny slope −σ²/(1+σ²)
    sigma = 0.1
    spline = relu_networks.least_objective(PAIR, sigma, 10.0, 32)
    assert spline.variation == pytest.approx(0, abs=1e-9)
    assert spline.objective == pytest.approx(1 - sigma**2 / (1 + sigma**2), rel=1e-6)
    expected = np.array([[1], [-2]]) * sigma**2 / (1 + sigma**2)
    assert spline(np.array([[-1.0], [2.0]])) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sigma", [0.5, 0.5 * 10 ** (-10 / 15), 0.05])
def test_the_convex_solution_is_optimal(sigma):
    """‖design c − goal‖² + λ‖c‖₁ is least where |2 designᵀ(goal − design c)| ≤ λ, with equality on the kinks: here the
    slope of the loss in a kink at any node. At σ = 0.108 gradient methods end 5 % above the minimum."""
    decay, level = 0.1, tensor([sigma])
    spline, batch = relu_networks.least_objective(PAIR, sigma, decay, 32), relu_networks.quadrature(DATA, level, 32)
    x, weight = batch.x[0, :, 0].numpy(), batch.weight[0].numpy() / sigma**2
    rest = weight * (batch.goal[0] - torch.from_numpy(spline(x[:, None])))[:, 0].numpy()
    slopes = 2 * rest @ np.maximum(x[:, None] - spline.knots, 0)
    assert np.abs(slopes).max() <= decay * (1 + 1e-4)
    kinks = np.abs(spline.jumps) > 1e-9
    assert slopes[kinks] == pytest.approx(decay * np.sign(spline.jumps[kinks]), rel=1e-4)


def test_no_other_spline_has_a_smaller_objective():
    sigma, decay, level = 0.3, 0.1, tensor([0.3])
    best = relu_networks.least_objective(PAIR, sigma, decay, 16)
    batch, generator = relu_networks.quadrature(DATA, level, 16), np.random.default_rng(0)
    x, weight, target = batch.x[0].numpy(), batch.weight[0].numpy(), batch.goal[0].numpy()

    def objective(spline):
        return (weight * (spline(x) - target)[:, 0] ** 2).sum() / sigma**2 + decay * spline.variation

    assert objective(best) == pytest.approx(best.objective, rel=1e-9)
    for size in (1e-3, 1e-2, 0.3):
        for _ in range(20):
            moved = relu_networks.Spline(
                best.alpha + size * generator.standard_normal(), best.beta + size * generator.standard_normal(),
                best.knots, best.jumps + size * generator.standard_normal(len(best.jumps)), 0.0,
            )  # fmt: skip
            assert objective(moved) > best.objective


def test_training_reaches_the_convex_minimum():
    sigmas, decays = np.array([0.4, 0.25]), np.array([0.1, 0.2])
    networks, losses = relu_networks.fit(PAIR, sigmas, decays, 24, 1000, 1, 0)  # 1,500 steps on the line
    found = losses + decays * networks.weight_norm.numpy()
    for level in range(2):
        least = relu_networks.least_objective(PAIR, sigmas[level], decays[level]).objective
        assert least * (1 - 1e-6) < found[level] < 1.01 * least


def test_sampling_ends_on_the_only_data_point():
    steps, sigmas = [lambda x: 3.0 - x] * 3, np.array([1.0, 0.5, 0.1])
    assert relu_claims.sample(steps, np.array([[-1.0], [9.0]]), sigmas) == pytest.approx(np.array([[3.0], [3.0]]))


def test_sampling_takes_the_network_of_its_level():
    # x + (1 − σ'/σ) g: from 0 half of 2, then all of 4 times as much
    steps = [lambda x: x + 2.0, lambda x: 4.0 * x]
    assert relu_claims.sample(steps, np.zeros((1, 1)), np.array([1.0, 0.5])) == pytest.approx(np.array([[5.0]]))


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
    assert not torch.equal(draws[0](5).x, draws[1](5).x)
    assert torch.equal(draws[0](5).x, relu_networks.sampled(points, sigmas, 4, 0)(5).x)
