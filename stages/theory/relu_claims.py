"""What weight decay does to two-layer ReLU score networks on few points: smoother scores, samples between the data.

The mathematics is in relu_networks.py (METHODS §7). All points lie a half-gap of 1 apart; all in float64.
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from stages.theory.claims import Block, Claim, Findings, Table

if TYPE_CHECKING:
    from torch import Tensor

    from stages.theory.relu_networks import Networks

Data = Literal["2 points, d = 1", "4 points, d = 2", "8 points on a circle, d = 2", "4 points, d = 20"]
NODES = 32  # Gauss–Hermite nodes per data point
RIDGE_POINTS = 1024  # points per level for the linear problem that training starts from
FAR = 0.2  # a sample lies between the data when it is farther than this from every data point (half-gap 1)


class ReluNetworks(Block):
    """Two-layer ReLU score networks with and without weight decay (METHODS §7)."""

    TITLE: ClassVar[str] = "Two-layer ReLU score networks: weight decay smooths, and samples interpolate"

    data: list[Data] = Field(min_length=1, description="data sets of equally spaced points, half-gap 1")
    decay: float = Field(
        gt=0, lt=1, description="λ of λ/2 (‖A‖² + ‖W‖²), per gap between data points; beside it always 0"
    )
    highest: float = Field(gt=0, le=1, description="noise level at which sampling starts, in half-gaps")
    lowest: float = Field(gt=0, description="lowest noise level")
    levels: int = Field(ge=2, description="noise levels, log-uniform, one network each")
    width: int = Field(ge=1, description="hidden units")
    steps: int = Field(ge=1, description="of Adam")
    batch: int = Field(ge=1, description="points per step and level where d > 1; on the line the loss is an integral")
    samples: int = Field(ge=100)

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} must be below highest {self.highest}")
        return self

    def pieces(self) -> list[Self]:
        """One per data set."""
        return [self.model_copy(update={"data": [name]}) for name in self.data]

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Train with and without weight decay, sample, and compare."""
        return _Study(self, self.data[0], seed).findings()


def place(data: Data) -> np.ndarray:
    """The data points, float64 (n, d), neighbours 2 apart."""
    count = int(data.split()[0])
    if "circle" in data:
        angles = 2 * math.pi * np.arange(count) / count
        return np.stack([np.cos(angles), np.sin(angles)], axis=1) / math.sin(math.pi / count)
    points = np.zeros((count, int(data.split("= ")[1])))
    points[:, 0] = 2 * np.arange(count) - (count - 1)
    return points


def distance_off(x: np.ndarray, points: np.ndarray, data: Data) -> np.ndarray:
    """Distance of x (N, d) to the line or the circle that the points lie on, (N,)."""
    if "circle" in data:
        return np.abs(np.linalg.norm(x, axis=1) - np.linalg.norm(points[0]))
    return np.linalg.norm(x[:, 1:], axis=1)


def distance_to_data(x: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance of x (N, d) to the nearest data point, (N,)."""
    return np.sqrt(((x[:, None] - points) ** 2).sum(axis=2)).min(axis=1)


class _Study:
    """One data set: both trainings at once, their samples and the reference."""

    def __init__(self, params: ReluNetworks, data: Data, seed: int) -> None:
        import torch

        self.params, self.data, self.seed = params, data, seed
        self.points = torch.from_numpy(place(data))
        low, high = math.log10(params.lowest), math.log10(params.highest)
        self.sigmas = torch.logspace(high, low, params.levels, dtype=torch.float64)
        gaps = len(self.points) - ("circle" not in data)
        self.decay = params.decay / gaps  # what one gap's two bends may cost
        self.generator = torch.Generator().manual_seed(seed)

    def findings(self) -> Findings:
        """Everything about this data set."""
        networks, losses = self._train()
        start = self._start()
        count = len(self.sigmas)
        steps = {0.0: range(count), self.decay: range(count, 2 * count)}
        ends = {decay: self._sampled([networks.level(n) for n in ns], start) for decay, ns in steps.items()}
        tables = {
            "relu_levels": self._level_rows(networks, losses),
            "relu_samples": [self._sample_row(decay, x) for decay, x in ends.items()],
            "relu_points": self._point_rows(ends),
        }
        claims = [self._between_claim(ends), self._on_the_line_claim(ends[self.decay])]
        if self.points.shape[1] == 1:
            splines = [self._spline(float(sigma)) for sigma in self.sigmas]
            ideal = self._sampled([_of_numpy(spline) for spline in splines], start)
            objective = (losses + self._decays() * networks.weight_norm)[count:]
            claims += [
                self._objective_claim(objective, splines),
                self._three_piece_claim(losses[count:], networks),
                self._share_claim(ends[self.decay], ideal),
            ]
            tables["relu_fit"] = self._fit_rows(networks, splines)
        return Findings(claims, tables)

    def _decays(self) -> "Tensor":
        import torch

        zero = torch.zeros_like(self.sigmas)
        return torch.cat([zero, zero + self.decay])

    def _train(self) -> tuple["Networks", "Tensor"]:
        """All networks, the ones without weight decay first, and their losses (2L,) on fresh points."""
        from stages.theory import relu_networks as relu

        both = self.sigmas.repeat(2)
        on_line = self.points.shape[1] == 1
        nodes = relu.quadrature(self.points, both, NODES) if on_line else None
        draw = (lambda _: nodes) if on_line else relu.sampled(self.points, both, self.params.batch, self.seed)
        networks = relu.initial(len(both), self.params.width, self.points, both, self.generator)
        x, weight = nodes if on_line else relu.sampled(self.points, both, RIDGE_POINTS, self.seed)(1 << 20)
        target = relu.posterior_mean(x, both, self.points) - x
        relu.fit_last_layer(networks, x, weight, target, both, self.decay)
        relu.train(networks, draw, self.points, both, self._decays(), self.params.steps)
        x, weight = nodes if on_line else relu.sampled(self.points, both, 4096, self.seed + 1)(0)
        target = relu.posterior_mean(x, both, self.points) - x
        return networks, relu.level_loss(networks, x, weight, target, both)

    def _start(self) -> "Tensor":
        """Draws of p_σ at the highest level, (N, d)."""
        from stages.theory.relu_networks import sampled

        return sampled(self.points, self.sigmas[:1], self.params.samples, self.seed + 2)(0)[0][0]

    def _sampled(self, steps: list, start: "Tensor") -> np.ndarray:
        from stages.theory.relu_networks import sample

        return sample(steps, start, self.sigmas).numpy()

    def _empirical(self, sigma: "Tensor"):
        from stages.theory.relu_networks import posterior_mean

        return lambda x: posterior_mean(x[None], sigma[None], self.points)[0] - x

    def _spline(self, sigma: float):
        from stages.theory.relu_networks import least_objective

        return least_objective(self.points, sigma, self.decay, NODES)

    def _share(self, x: np.ndarray) -> tuple[float, float]:
        """Share of samples between the data points, and its standard error (of at least one sample)."""
        share = float((distance_to_data(x, self.points.numpy()) > FAR).mean())
        count = len(x)
        return share, math.sqrt(max(share * (1 - share), 1 / count) / count)

    def _level_rows(self, networks: "Networks", losses: "Tensor") -> Table:
        return [
            {"data": self.data, "decay": decay, "sigma": sigma, "loss": loss, "half_squared_weights": norm}
            for decay, sigma, loss, norm in zip(
                self._decays().tolist(), self.sigmas.repeat(2).tolist(), losses.tolist(), networks.weight_norm.tolist()
            )
        ]

    def _sample_row(self, decay: float, x: np.ndarray) -> dict[str, Any]:
        share, error = self._share(x)
        off = float(np.sqrt((distance_off(x, self.points.numpy(), self.data) ** 2).mean()))
        row = {"data": self.data, "decay": decay, "share_between": share, "standard_error": error}
        return {**row, "rms_off_the_line": off}

    def _point_rows(self, ends: dict[float, np.ndarray], count: int = 400) -> Table:
        if self.points.shape[1] == 1:
            return []
        return [
            {"data": self.data, "decay": decay, "u": float(u), "v": float(v)}
            for decay, x in ends.items()
            for u, v in x[:count, :2]
        ]

    def _fit_rows(self, networks: "Networks", splines: list) -> Table:
        """x + g(x) of the middle level on the line: what each score aims at."""
        import torch

        middle, count = len(splines) // 2, len(self.sigmas)
        x = torch.linspace(-1.6, 1.6, 161, dtype=torch.float64)[:, None]
        curves = {
            "empirical score": self._empirical(self.sigmas[middle])(x),
            "no weight decay": networks.level(middle)(x),
            "weight decay": networks.level(count + middle)(x),
            "convex problem": _of_numpy(splines[middle])(x),
        }
        sigma = float(self.sigmas[middle])
        return [
            {"sigma": sigma, "score": name, "x": float(at), "aim": float(at + g)}
            for name, values in curves.items()
            for at, g in zip(x[:, 0], values[:, 0])
        ]

    def _between_claim(self, ends: dict[float, np.ndarray]) -> Claim:
        (plain, e0), (decayed, e1) = (self._share(ends[decay]) for decay in (0.0, self.decay))
        low = plain + 4 * math.hypot(e0, e1)
        return Claim(
            claim=f"Weight decay makes samples interpolate ({self.data})",
            formula="share of samples between the data: larger with weight decay than without",
            source="METHODS §7 [B]",
            computed=f"{100 * decayed:.2f} % with λ = {self.decay:g}, {100 * plain:.2f} % without, of "
            f"{self.params.samples:,} samples; width {self.params.width}, {self.params.steps} steps",
            expected=0.0,
            tolerance=0.0,
            reason="counts 1 where the shares do not lie four standard errors apart in this order",
            measured=float(decayed <= low),
        )

    def _on_the_line_claim(self, x: np.ndarray) -> Claim:
        points = self.points.numpy()
        off = float(np.sqrt((distance_off(x, points, self.data) ** 2).mean()))
        circle = "circle" in self.data
        sagitta = float(np.linalg.norm(points[0]) - math.sqrt(np.linalg.norm(points[0]) ** 2 - 1))
        return Claim(
            claim=f"Smoothed by weight decay, samples still lie on the {'circle' if circle else 'line'} ({self.data})",
            formula="root mean square distance across, in half-gaps, is small",
            source="METHODS §7 [B]; threshold [ours]",
            computed=f"{len(x):,} samples with λ = {self.decay:g}",
            expected=0.0,
            tolerance=sagitta if circle else 0.1,
            reason="how far a chord leaves the circle" if circle else "a tenth of what they move along it",
            measured=off,
        )

    def _objective_claim(self, objective: "Tensor", splines: list) -> Claim:
        least = np.array([spline.objective for spline in splines])
        ratios = objective.numpy() / least
        return Claim(
            claim="Weight decay on a two-layer ReLU network is a penalty on the non-smoothness ∫|g''|",
            formula="min loss + λ/2 (‖A‖²+‖W‖²) = min loss + λ ∫|g''|",
            source="METHODS §7 [B]",
            computed=f"Adam against a convex problem, {len(least)} levels; ratio of the minima",
            expected=1.0,
            tolerance=0.02,
            reason="how far Adam gets; no network lies below 1",
            measured=float(ratios.mean()),
            deviation=float(np.abs(ratios - 1).max()),
        )

    def _three_piece_claim(self, losses: "Tensor", networks: "Networks") -> Claim:
        """At its loss, the network is at most as non-smooth as Chen's three straight pieces."""
        from stages.theory.relu_networks import variation

        found = variation(networks)[len(self.sigmas) :].tolist()
        pieces = [three_piece_variation(loss, sigma) for loss, sigma in zip(losses.tolist(), self.sigmas.tolist())]
        ratios = [own / piece for own, piece in zip(found, pieces)]
        return Claim(
            claim="At equal loss, weight decay finds a score no less smooth than Chen's three straight pieces",
            formula="∫|g''| ≤ 2/(1−κσ) at the κ of equal loss",
            source="METHODS §7 [B]",
            computed="quotients "
            + ", ".join(f"{ratio:.3f}" for ratio in ratios)
            + " by falling level; 0: out of its reach",
            expected=0.0,
            tolerance=0.0,
            reason="counts the levels where the quotient exceeds 1.02, Adam's accuracy",
            measured=float(sum(ratio > 1.02 for ratio in ratios)),
        )

    def _share_claim(self, x: np.ndarray, ideal: np.ndarray) -> Claim:
        (share, _), (expected, error) = self._share(x), self._share(ideal)
        return Claim(
            claim="Networks with weight decay sample as the convex problem's solution does",
            formula="share of samples between the data",
            source="METHODS §7 [B]",
            computed=f"{len(x):,} samples from the same starting points",
            expected=expected,
            tolerance=4 * error,
            reason="four binomial standard errors",
            measured=share,
            uncertainty=error,
        )


def three_piece_variation(loss: float, sigma: float) -> float:
    """∫|g''| = 2/(1−κσ) of Chen's smoothed score on {−1, 1} at the κ where its loss is `loss`; ∞ where it has none.

    Its loss falls with κ to a smallest value, at which the ramp is about to become a jump.
    """
    from scipy.optimize import brentq, minimize_scalar

    from stages.theory import line

    def excess(kappa: float) -> float:
        return line.loss(sigma**2, kappa) - loss

    best = minimize_scalar(excess, bounds=(0, 0.99 / sigma), method="bounded")
    if best.fun > 0:
        return math.inf
    return 2 / (1 - brentq(excess, 0, best.x) * sigma)


def _of_numpy(spline):
    """A spline of x (N,) as a function of x (N, 1) tensors."""
    import torch

    return lambda x: torch.from_numpy(spline(x[:, 0].numpy()))[:, None]
