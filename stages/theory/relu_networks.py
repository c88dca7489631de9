"""Two-layer ReLU score networks with and without weight decay on few points (Chen 2025; METHODS §7).

One network per noise level, all trained at once: g(x) = A relu(Wx + b) + Sx + c stands for σ² times the score, with the
linear part Sx + c free of weight decay. The loss at a level is E‖g − g*‖²/σ² (t·E‖f − s_empirical‖² of METHODS §7) plus
λ/2 (‖A‖² + ‖W‖²). On a line the least weight decay of a given g is λ ∫|g''|, so the networks solve a convex problem in
g, which `least_objective` solves by other means. Everything in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor
from torch.optim.adam import adam

from stages.diffusion.noise import generator_seed
from stages.diffusion.scores import conditioning, make_centres

NODES = 32  # Gauss–Hermite nodes per data point
RIDGE_POINTS = 1024  # points per level for the linear problem that training starts from
ON_LINE = 1.5  # times as many steps where d = 1: a step costs little there


@dataclasses.dataclass(frozen=True)
class Batch:
    """Points x (L, B, d) at every level, their weights (L, B), whose sum per level is 1, and g* at x (L, B, d)."""

    x: Tensor
    weight: Tensor
    goal: Tensor


Draw = Callable[[int], Batch]


def goal(x: Tensor, sigmas: Tensor, points: Tensor) -> Tensor:
    """g* = σ² s(x), s the pipeline's empirical score: x (L, B, d), sigmas (L,), points (n, d); returns (L, B, d)."""
    level = sigmas.repeat_interleave(x.shape[1])
    return (conditioning(make_centres(points), x.flatten(0, 1), level) * level[:, None] ** 2).reshape(x.shape)


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

    def level(self, number: int) -> Callable[[np.ndarray], np.ndarray]:
        """g of one level alone, on arrays: (B, d) -> (B, d)."""
        one = Networks(*(tensor[number : number + 1] for tensor in self.tensors()))
        return lambda x: one(torch.from_numpy(x)[None])[0].numpy()

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


def fit_last_layer(networks: Networks, batch: Batch, sigmas: Tensor, ridge: float) -> None:
    """Set A, S and c to the least loss + ridge/2 ‖A‖² at the given W and b, a linear problem. Adam starts there."""
    x = batch.x
    hidden = torch.relu(x @ networks.W.mT + networks.b[:, None])
    features = torch.cat([hidden, x, torch.ones_like(x[..., :1])], dim=2)
    scaled = features * (batch.weight / sigmas[:, None] ** 2)[..., None]
    penalty = torch.full(features.shape[2:], 1e-9, dtype=torch.float64)
    penalty[: hidden.shape[2]] = ridge / 2
    found = torch.linalg.solve(scaled.mT @ features + torch.diag(penalty), scaled.mT @ batch.goal).mT
    width = hidden.shape[2]
    parts = found[..., :width], found[..., width:-1], found[..., -1]
    networks.A, networks.S, networks.c = (part.contiguous() for part in parts)


def train(networks: Networks, draw: Draw, sigmas: Tensor, decay: Tensor, steps: int, rate: float = 0.02) -> Networks:
    """Adam with a cosine learning rate from `rate` to 0; decay: λ (L,). The networks are changed in place.

    Adam is called as a function: making an optimizer object imports torch's compiler, which takes as long as training.
    """
    tensors = networks.tensors()
    means, squares = ([torch.zeros_like(tensor) for tensor in tensors] for _ in range(2))
    counts = [torch.zeros(()) for _ in tensors]
    for step in range(steps):
        for tensor in tensors:
            tensor.requires_grad_()
        loss = level_loss(networks, draw(step), sigmas) + decay * networks.weight_norm
        gradients = list(torch.autograd.grad(loss.sum(), tensors))  # every level is a problem of its own
        for tensor in tensors:
            tensor.requires_grad_(False)
        adam(
            tensors, gradients, means, squares, [], counts, lr=0.5 * rate * (1 + math.cos(math.pi * step / steps)),
            beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False, foreach=True,
        )  # fmt: skip
    return networks


def level_loss(networks: Networks, batch: Batch, sigmas: Tensor) -> Tensor:
    """E‖g − g*‖²/σ² per level, (L,)."""
    return (batch.weight * (networks(batch.x) - batch.goal).square().sum(2)).sum(1) / sigmas**2


def quadrature(points: Tensor, sigmas: Tensor, nodes: int) -> Batch:
    """Gauss–Hermite nodes of p_σ on the line, n · nodes per level."""
    place, weight = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(nodes))
    x = (points[:, 0][None, :, None] + sigmas[:, None, None] * place).reshape(len(sigmas), -1, 1)
    weights = (weight / weight.sum()).expand(len(sigmas), len(points), -1) / len(points)
    return Batch(x, weights.reshape(len(sigmas), -1), goal(x, sigmas, points))


def sampled(points: Tensor, sigmas: Tensor, batch: int, seed: int, together: int = 1) -> Draw:
    """Batches of p_σ, anew at every step: a function of (seed, step). `together` steps are drawn at once."""

    @functools.lru_cache(maxsize=1)
    def some(part: int) -> list[Batch]:
        generator = torch.Generator().manual_seed(generator_seed(seed, part))
        shape = len(sigmas), together * batch
        noise = torch.randn(*shape, points.shape[1], generator=generator, dtype=torch.float64)
        x = points[torch.randint(len(points), shape, generator=generator)] + sigmas[:, None, None] * noise
        weight = torch.full((shape[0], batch), 1 / batch, dtype=torch.float64)
        parts = zip(x.split(batch, dim=1), goal(x, sigmas, points).split(batch, dim=1))
        return [Batch(own.contiguous(), weight, wanted.contiguous()) for own, wanted in parts]

    return lambda step: some(step // together)[step % together]


def fit(
    points: np.ndarray, sigmas: np.ndarray, decays: np.ndarray, width: int, steps: int, batch: int, seed: int
) -> tuple[Networks, np.ndarray]:
    """One network per level σ (L,) and weight decay λ (L,), and their losses (L,) on fresh points.

    points: (n, d). batch: points per step and level; on the line the loss is an integral instead. Training starts from
    the least last layer, a linear problem.
    """
    data, levels, ridge = torch.from_numpy(points), torch.from_numpy(sigmas), float(decays.max())
    networks = initial(len(levels), width, data, levels, torch.Generator().manual_seed(seed))
    if points.shape[1] == 1:
        nodes = quadrature(data, levels, NODES)
        draw = first = fresh = lambda _: nodes
    else:
        draw, first = sampled(data, levels, batch, seed, together=16), sampled(data, levels, RIDGE_POINTS, seed)
        fresh = sampled(data, levels, 4096, seed + 1)
    fit_last_layer(networks, first(1 << 20), levels, ridge)
    train(networks, draw, levels, torch.from_numpy(decays), int(steps * (ON_LINE if points.shape[1] == 1 else 1)))
    return networks, level_loss(networks, fresh(0), levels).numpy()


def starts(points: np.ndarray, sigma: float, count: int, seed: int) -> np.ndarray:
    """Draws of p_σ, (count, d)."""
    level = torch.tensor([sigma], dtype=torch.float64)
    return sampled(torch.from_numpy(points), level, count, seed)(0).x[0].numpy()


@dataclasses.dataclass(frozen=True)
class Spline:
    """g(x) = α + βx + Σ_k c_k relu(x − x_k), arrays float64 (K,). objective: its loss + λ ∫|g''| at one level."""

    alpha: float
    beta: float
    knots: np.ndarray
    jumps: np.ndarray
    objective: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """g(x), x (N, 1)."""
        return self.alpha + self.beta * x + np.maximum(x - self.knots, 0) @ self.jumps[:, None]

    @property
    def variation(self) -> float:
        """∫|g''| = Σ|c_k|."""
        return float(np.abs(self.jumps).sum())


def least_objective(points: np.ndarray, sigma: float, decay: float, nodes: int = NODES) -> Spline:
    """The g of least loss + λ ∫|g''| on the line, by convex optimization.

    A least-squares problem with a linear term in c⁺, c⁻ ≥ 0. The loss is a sum over the quadrature's nodes, so a
    minimizer has its kinks on nodes, and its objective bounds that of every network at this level from below.
    """
    batch = quadrature(torch.from_numpy(points), torch.tensor([sigma], dtype=torch.float64), nodes)
    x, wanted, root = batch.x[0, :, 0].numpy(), batch.goal[0, :, 0].numpy(), np.sqrt(batch.weight[0].numpy()) / sigma
    places = np.unique(x)
    hinge, linear = np.maximum(x[:, None] - places, 0), np.stack([np.ones_like(x), x], axis=1)
    # α and β are free: what they explain is projected out, which leaves the kinks alone
    basis, _ = np.linalg.qr(root[:, None] * linear)
    design, rest = root[:, None] * hinge, root * wanted
    design, rest = design - basis @ (basis.T @ design), rest - basis @ (basis.T @ rest)
    jumps = _lasso(design, rest, decay)
    line = np.linalg.lstsq(root[:, None] * linear, root * (wanted - hinge @ jumps), rcond=None)[0]
    objective = ((design @ jumps - rest) ** 2).sum() + decay * np.abs(jumps).sum()
    return Spline(float(line[0]), float(line[1]), places, jumps, float(objective))


def _lasso(design: np.ndarray, goal: np.ndarray, decay: float, small: float = 1e-4) -> np.ndarray:
    """argmin ‖design c − goal‖² + decay ‖c‖₁ by non-negative least squares over c = u − v, u, v ≥ 0.

    The linear term is the cross term of one more row, small · Σ(u + v) = −decay/(2 small), up to (small · ‖c‖₁)².
    """
    rows = np.concatenate([design, -design], axis=1)
    extra = np.full((1, rows.shape[1]), small)
    split, _ = nnls(np.concatenate([rows, extra]), np.append(goal, -decay / (2 * small)), maxiter=100 * rows.shape[1])
    return split[: design.shape[1]] - split[design.shape[1] :]


def variation(networks: Networks) -> Tensor:
    """Σ_h |a_h w_h| per level, (L,), of networks on the line: ∫|g''|, or more where kinks of opposite sign coincide."""
    return (networks.A[:, 0] * networks.W[:, :, 0]).abs().sum(1)
