"""Two-layer ReLU score networks with and without weight decay on few points (Chen 2025; METHODS §7).

One network per noise level, all trained at once: g(x) = A relu(Wx + b) + Sx + c stands for σ² times the score, with the
linear part Sx + c free of weight decay. The loss at a level is E‖g − g*‖²/σ² (t·E‖f − s_empirical‖² of METHODS §7) plus
λ/2 (‖A‖² + ‖W‖²). On a line the least weight decay of a given g is λ ∫|g''|, so the networks solve a convex problem in
g, which `least_objective` solves by other means. Everything in float64.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

from stages.diffusion.noise import generator_seed

RESTARTS = 100  # of the convex reference's solver, at most
Draw = Callable[[int], tuple[Tensor, Tensor]]


def posterior_mean(x: Tensor, sigmas: Tensor, points: Tensor) -> Tensor:
    """Σ_i w_i x_i, w = softmax(−‖x − x_i‖²/2σ²): x (L, B, d), sigmas (L,), points (n, d); returns (L, B, d)."""
    squared = ((x[:, :, None] - points) ** 2).sum(-1)
    return torch.softmax(-squared / (2 * sigmas[:, None, None] ** 2), dim=2) @ points


@dataclasses.dataclass
class Networks:
    """One 2-layer ReLU network per noise level.

    Attributes: W (L, H, d), b (L, H), A (L, d, H), S (L, d, d), c (L, d).
    """

    W: Tensor
    b: Tensor
    A: Tensor
    S: Tensor
    c: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """g(x) for x (L, B, d): (L, B, d)."""
        hidden = torch.relu(x @ self.W.mT + self.b[:, None])
        return hidden @ self.A.mT + x @ self.S.mT + self.c[:, None]

    def level(self, number: int) -> Callable[[Tensor], Tensor]:
        """g of one level alone: (B, d) -> (B, d)."""
        one = Networks(*(tensor[number : number + 1] for tensor in self.tensors()))
        return lambda x: one(x[None])[0]

    @property
    def weight_norm(self) -> Tensor:
        """½ (‖A‖² + ‖W‖²) per level, (L,)."""
        return 0.5 * (self.A.square().sum((1, 2)) + self.W.square().sum((1, 2)))

    def tensors(self) -> list[Tensor]:
        """All parameters."""
        return [self.W, self.b, self.A, self.S, self.c]


def initial(levels: int, width: int, points: Tensor, sigmas: Tensor, generator: torch.Generator) -> Networks:
    """Networks that start as g(x) = mean − x. Their kinks lie about the data points (n, d), at distances log-uniform
    between each level's σ (L,) and twice the reach of the points: the score bends on all these scales. Half of the
    units look from one data point to another, half in random directions."""
    dimension, middle = points.shape[1], points.mean(0)
    normals = torch.randn(levels, width, dimension, generator=generator, dtype=torch.float64)
    first = torch.randint(len(points), (levels, width // 2), generator=generator)
    second = (first + torch.randint(1, len(points), first.shape, generator=generator)) % len(points)
    normals[:, : width // 2] = points[second] - points[first]
    normals = 0.5 * normals / normals.norm(dim=2, keepdim=True)
    reach = 2 * (points - middle).norm(dim=1).max()
    share = torch.rand(levels, width, generator=generator, dtype=torch.float64)
    sign = 2 * torch.randint(2, (levels, width), generator=generator) - 1
    offset = sign * sigmas[:, None] * (reach / sigmas[:, None]) ** share
    rows = torch.randint(len(points), (levels, width), generator=generator)
    return Networks(
        W=normals,
        b=-((normals * points[rows]).sum(2) + 0.5 * offset),
        A=torch.zeros(levels, dimension, width, dtype=torch.float64),
        S=-torch.eye(dimension, dtype=torch.float64).expand(levels, -1, -1).clone(),
        c=middle.expand(levels, -1).clone(),
    )


def fit_last_layer(networks: Networks, x: Tensor, weight: Tensor, target: Tensor, sigmas: Tensor, ridge: float) -> None:
    """Set A, S and c to the least loss + ridge/2 ‖A‖² at the given W and b: a linear problem, from which Adam starts.

    x, target: (L, B, d); weight: (L, B).
    """
    hidden = torch.relu(x @ networks.W.mT + networks.b[:, None])
    features = torch.cat([hidden, x, torch.ones_like(x[..., :1])], dim=2)
    scaled = features * (weight / sigmas[:, None] ** 2)[..., None]
    penalty = torch.full(features.shape[2:], 1e-9, dtype=torch.float64)
    penalty[: hidden.shape[2]] = ridge / 2
    found = torch.linalg.solve(scaled.mT @ features + torch.diag(penalty), scaled.mT @ target).mT
    width = hidden.shape[2]
    networks.A, networks.S, networks.c = found[..., :width], found[..., width:-1], found[..., -1]
    networks.A, networks.S, networks.c = (t.contiguous() for t in (networks.A, networks.S, networks.c))


def train(
    networks: Networks, draw: Draw, points: Tensor, sigmas: Tensor, decay: Tensor, steps: int, rate: float = 0.02
) -> Networks:
    """Adam with a cosine learning rate from `rate` to 0. draw(step) gives x (L, B, d) and its weights (L, B), whose sum
    per level is 1; decay: λ (L,). The networks are changed in place."""
    tensors = networks.tensors()
    means, squares = ([torch.zeros_like(tensor) for tensor in tensors] for _ in range(2))
    for step in range(steps):
        x, weight = draw(step)
        target = posterior_mean(x, sigmas, points) - x
        for tensor in tensors:
            tensor.requires_grad_()
        loss = level_loss(networks, x, weight, target, sigmas) + decay * networks.weight_norm
        gradients = torch.autograd.grad(loss.sum(), tensors)  # every level is a problem of its own
        for tensor in tensors:
            tensor.requires_grad_(False)
        _adam(tensors, gradients, means, squares, step, 0.5 * rate * (1 + math.cos(math.pi * step / steps)))
    return networks


def _adam(
    tensors: list[Tensor],
    gradients: Sequence[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    step: int,
    rate: float,
    betas: tuple[float, float] = (0.9, 0.99),
) -> None:
    """One step of Adam (Kingma & Ba 2015). Written out: importing torch.optim takes longer than a short training."""
    torch._foreach_lerp_(means, gradients, 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - betas[1])
    for tensor, mean, square in zip(tensors, means, squares):
        scale = (square / (1 - betas[1] ** (step + 1))).sqrt_().add_(1e-8)
        tensor.addcdiv_(mean, scale, value=-rate / (1 - betas[0] ** (step + 1)))


def level_loss(networks: Networks, x: Tensor, weight: Tensor, target: Tensor, sigmas: Tensor) -> Tensor:
    """E‖g − g*‖²/σ² per level, (L,)."""
    return (weight * (networks(x) - target).square().sum(2)).sum(1) / sigmas**2


def quadrature(points: Tensor, sigmas: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss–Hermite nodes of p_σ on the line, x (L, n·nodes, 1), and weights (L, n·nodes) that sum to 1."""
    place, weight = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    x = points[:, 0][None, :, None] + sigmas[:, None, None] * place
    weights = (weight / weight.sum()).expand(len(sigmas), len(points), -1) / len(points)
    return x.reshape(len(sigmas), -1, 1), weights.reshape(len(sigmas), -1)


def sampled(points: Tensor, sigmas: Tensor, batch: int, seed: int) -> Draw:
    """Batches of p_σ, anew at every step: a function of (seed, step)."""

    def draw(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(generator_seed(seed, step))
        rows = torch.randint(len(points), (len(sigmas), batch), generator=generator)
        noise = torch.randn(len(sigmas), batch, points.shape[1], generator=generator, dtype=torch.float64)
        x = points[rows] + sigmas[:, None, None] * noise
        return x, torch.full((len(sigmas), batch), 1 / batch, dtype=torch.float64)

    return draw


@dataclasses.dataclass(frozen=True)
class Spline:
    """g(x) = α + βx + Σ_k c_k relu(x − x_k), arrays float64 (K,). objective: its loss + λ ∫|g''| at one level."""

    alpha: float
    beta: float
    knots: np.ndarray
    jumps: np.ndarray
    objective: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """g(x), x (N,)."""
        return self.alpha + self.beta * x + np.maximum(x[:, None] - self.knots, 0) @ self.jumps

    @property
    def variation(self) -> float:
        """∫|g''| = Σ|c_k|."""
        return float(np.abs(self.jumps).sum())


def least_objective(points: Tensor, sigma: float, decay: float, nodes: int) -> Spline:
    """The g of least loss + λ ∫|g''| on the line, by convex optimization (L-BFGS-B).

    A least-squares problem with a linear term in c⁺, c⁻ ≥ 0. The loss is a sum over the quadrature's nodes, so a
    minimizer has its kinks on nodes, and its objective bounds that of every network at this level from below.
    """
    level = torch.tensor([sigma], dtype=torch.float64)
    x, weight = quadrature(points, level, nodes)
    goal = (posterior_mean(x, level, points) - x)[0, :, 0].numpy()
    x, root = x[0, :, 0].numpy(), np.sqrt(weight[0].numpy()) / sigma
    places = np.unique(x)
    knots = len(places)
    hinge, linear = np.maximum(x[:, None] - places, 0), np.stack([np.ones_like(x), x], axis=1)
    # α and β are free: what they explain is projected out, which leaves the kinks alone
    basis, _ = np.linalg.qr(root[:, None] * linear)
    design, rest = root[:, None] * hinge, root * goal
    design, rest = design - basis @ (basis.T @ design), rest - basis @ (basis.T @ rest)
    found = _lasso(design, rest, decay)
    jumps = found.x[:knots] - found.x[knots:]
    line = np.linalg.lstsq(root[:, None] * linear, root * (goal - hinge @ jumps), rcond=None)[0]
    return Spline(float(line[0]), float(line[1]), places, jumps, float(found.fun))


def _lasso(design: np.ndarray, goal: np.ndarray, decay: float) -> OptimizeResult:
    """argmin ‖design c − goal‖² + decay ‖c‖₁ over c = x[:K] − x[K:], x ≥ 0, certified by its dual.

    L-BFGS-B may stop early on columns so alike: it starts again from there until the objective lies within 1e-6 of
    the dual's. Raises FloatingPointError where it never does.
    """
    count = design.shape[1]

    def objective(split: np.ndarray) -> tuple[float, np.ndarray]:
        rest = design @ (split[:count] - split[count:]) - goal
        slope = 2 * (rest @ design)
        return rest @ rest + decay * split.sum(), np.concatenate([slope + decay, decay - slope])

    options = {"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-13, "gtol": 1e-9, "maxcor": 50}
    point, bounds = np.zeros(2 * count), [(0, None)] * (2 * count)
    for _ in range(RESTARTS):
        found = minimize(objective, point, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        point, bound = found.x, _dual_bound(design, goal, decay, found.x[:count] - found.x[count:])
        if found.fun - bound <= 1e-6 * found.fun:
            return found
    raise FloatingPointError(f"the convex problem is not solved: {found.fun:g} lies above its bound {bound:g}")


def _dual_bound(design: np.ndarray, goal: np.ndarray, decay: float, c: np.ndarray) -> float:
    """A lower bound of the minimum: θ·goal − ‖θ‖²/4 at the residual's θ, scaled into |designᵀθ| ≤ decay."""
    theta = 2 * (goal - design @ c)
    theta *= min(1.0, decay / np.abs(design.T @ theta).max())
    return float(theta @ goal - theta @ theta / 4)


def variation(networks: Networks) -> Tensor:
    """Σ_h |a_h w_h| per level, (L,), of networks on the line: ∫|g''|, or more where kinks of opposite sign coincide."""
    return (networks.A[:, 0] * networks.W[:, :, 0]).abs().sum(1)


def sample(steps: Sequence[Callable[[Tensor], Tensor]], x: Tensor, sigmas: Tensor) -> Tensor:
    """Euler in σ on dx/dσ = −g/σ down the levels, then one step to x + g: x (B, d) of p_{σ_1}; returns (B, d).

    steps: g at every level, (B, d) -> (B, d).
    """
    below = [*sigmas[1:].tolist(), 0.0]
    for g, sigma, following in zip(steps, sigmas.tolist(), below):
        x = x + (1 - following / sigma) * g(x)
    return x
