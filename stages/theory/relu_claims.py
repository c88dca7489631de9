"""What weight decay does to two-layer ReLU score networks on few points: smoother scores, samples between the data.

The mathematics is in relu_networks.py (METHODS §7). All points lie a half-gap of 1 apart; all in float64.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.optimize import brentq, minimize_scalar
from scipy.spatial.distance import cdist

from stages.theory import line, product
from stages.theory.claims import Block, Claim, Findings, Statement, Table

if TYPE_CHECKING:
    from stages.theory.relu_networks import Networks, Spline

Data = Literal["2 points, d = 1", "4 points, d = 2", "8 points on a circle, d = 2", "4 points, d = 20"]
FAR = 0.2  # a sample lies between the data when it is farther than this from every data point (half-gap 1)
SOURCE = "METHODS §7 [B]"


class ReluNetworks(Block):
    """Two-layer ReLU score networks with and without weight decay (METHODS §7)."""

    TITLE: ClassVar[str] = "Two-layer ReLU score networks: weight decay smooths, and samples interpolate"
    CUT: ClassVar[str | None] = "data"

    data: list[Data] = Field(min_length=1, description="data sets of equally spaced points, half-gap 1")
    decay: float = Field(
        gt=0, lt=1, description="λ of λ/2 (‖A‖² + ‖W‖²), per gap between data points; beside it always 0"
    )
    highest: float = Field(gt=0, le=1, description="noise level at which sampling starts, in half-gaps")
    lowest: float = Field(gt=0, description="lowest noise level")
    levels: int = Field(ge=2, description="noise levels, log-uniform, one network each")
    width: int = Field(ge=1, description="hidden units")
    steps: int = Field(ge=1, description="Adam steps; half as many again where d = 1")
    batch: int = Field(ge=1, description="points per step and level where d > 1; on the line the loss is an integral")
    samples: int = Field(ge=100)

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest} must be below highest {self.highest}")
        return self

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


def sample(steps: Sequence[Callable[[np.ndarray], np.ndarray]], x: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """The pipeline's Euler sampler with the score g(x)/σ², from x (B, d) at the highest level to the end: (B, d).

    steps: g at every level, (B, d) -> (B, d).
    """
    at = dict(zip(sigmas.tolist(), steps))
    states = product.path("euler", lambda x, sigma: at[sigma[0]](x) / sigma[0] ** 2, lambda _: x / sigmas[0], sigmas)
    return product.end(states)


def three_piece_variation(loss: float, sigma: float) -> float:
    """∫|g''| = 2/(1−κσ) of Chen's smoothed score on {−1, 1} at the κ where its loss is `loss`; ∞ where it has none.

    Its loss falls with κ to a smallest value, at which the ramp is about to become a jump.
    """

    def excess(kappa: float) -> float:
        return line.loss(sigma**2, kappa) - loss

    best = minimize_scalar(excess, bounds=(0, 0.99 / sigma), method="bounded")
    return math.inf if best.fun > 0 else 2 / (1 - brentq(excess, 0, best.x) * sigma)


@dataclasses.dataclass(frozen=True)
class _Study:
    """One data set: both trainings, their samples and the reference."""

    params: ReluNetworks
    data: Data
    seed: int

    @functools.cached_property
    def points(self) -> np.ndarray:
        """The data, (n, d)."""
        return place(self.data)

    @functools.cached_property
    def sigmas(self) -> np.ndarray:
        """The noise levels, falling (L,)."""
        return product.noise_levels(self.params.lowest, self.params.highest, self.params.levels)

    @property
    def decay(self) -> float:
        """λ: what the two bends of one gap may cost."""
        return self.params.decay / (len(self.points) - ("circle" not in self.data))

    def findings(self) -> Findings:
        """Everything about this data set."""
        from stages.theory import relu_networks as relu

        params, count = self.params, len(self.sigmas)
        decays, both = np.repeat([0.0, self.decay], count), np.tile(self.sigmas, 2)
        networks, losses = relu.fit(self.points, both, decays, params.width, params.steps, params.batch, self.seed)
        norms = networks.weight_norm.numpy()
        start = relu.starts(self.points, float(self.sigmas[0]), params.samples, self.seed + 2)
        plain, decayed = (
            sample([networks.level(n) for n in range(first, first + count)], start, self.sigmas) for first in (0, count)
        )
        claims = [self._between_claim(plain, decayed), self._on_the_line_claim(decayed)]
        levels = zip(decays.tolist(), both.tolist(), losses.tolist(), norms.tolist())
        names = ("decay", "sigma", "loss", "half_squared_weights")
        tables = {
            "relu_levels": [{"data": self.data, **dict(zip(names, row))} for row in levels],
            "relu_samples": [self._sample_row(0.0, plain), self._sample_row(self.decay, decayed)],
            "relu_points": self._point_rows({0.0: plain, self.decay: decayed}),
        }
        if self.points.shape[1] == 1:
            splines = [relu.least_objective(self.points, float(sigma), self.decay) for sigma in self.sigmas]
            objective = (losses + decays * norms)[count:] / [spline.objective for spline in splines]
            claims += [
                self._objective_claim(objective),
                self._three_piece_claim(losses[count:], relu.variation(networks)[count:].numpy()),
                self._share_claim(decayed, sample(splines, start, self.sigmas)),
            ]
            tables["relu_fit"] = self._fit_rows(networks, splines)
        return Findings(claims, tables)

    def _share(self, x: np.ndarray) -> tuple[float, float]:
        """Share of samples between the data points, and its standard error (of at least one sample)."""
        share, count = float((cdist(x, self.points).min(axis=1) > FAR).mean()), len(x)
        return share, math.sqrt(max(share * (1 - share), 1 / count) / count)

    def _off(self, x: np.ndarray) -> float:
        return float(np.sqrt((distance_off(x, self.points, self.data) ** 2).mean()))

    def _sample_row(self, decay: float, x: np.ndarray) -> dict[str, Any]:
        share, error = self._share(x)
        row = {"data": self.data, "decay": decay, "share_between": share, "standard_error": error}
        return {**row, "rms_off_the_line": self._off(x)}

    def _point_rows(self, ends: dict[float, np.ndarray], count: int = 400) -> Table:
        if self.points.shape[1] == 1:
            return []
        return [
            {"data": self.data, "decay": decay, "u": float(u), "v": float(v)}
            for decay, x in ends.items()
            for u, v in x[:count, :2]
        ]

    def _fit_rows(self, networks: "Networks", splines: "list[Spline]") -> Table:
        """x + g(x) of the middle level on the line: where each score aims at."""
        middle, count = len(splines) // 2, len(self.sigmas)
        x, sigma = np.linspace(-1.6, 1.6, 161)[:, None], float(self.sigmas[len(splines) // 2])
        curves = {
            "empirical score": product.empirical(self.points, "conditioning")(x, sigma) * sigma**2,
            "no weight decay": networks.level(middle)(x),
            "weight decay": networks.level(count + middle)(x),
            "convex problem": splines[middle](x),
        }
        return [
            {"sigma": sigma, "score": name, "x": float(at), "aim": float(at + g)}
            for name, values in curves.items()
            for at, g in zip(x[:, 0], values[:, 0])
        ]

    def _between_claim(self, plain: np.ndarray, decayed: np.ndarray) -> Claim:
        (low, e0), (high, e1) = self._share(plain), self._share(decayed)
        return Statement(
            f"Weight decay makes samples interpolate ({self.data})",
            "share of samples between the data: larger with weight decay than without", SOURCE,
            f"{100 * high:.2f} % with λ = {self.decay:g}, {100 * low:.2f} % without, of {self.params.samples:,} "
            f"samples; width {self.params.width}, {self.params.steps} steps",
        ).holds(
            high <= low + 4 * math.hypot(e0, e1),
            "counts 1 where the shares do not lie four standard errors apart in this order",
        )  # fmt: skip

    def _on_the_line_claim(self, x: np.ndarray) -> Claim:
        circle, radius = "circle" in self.data, float(np.linalg.norm(self.points[0]))
        tolerance = radius - math.sqrt(radius**2 - 1) if circle else 0.1
        return Statement(
            f"Smoothed by weight decay, samples still lie on the {'circle' if circle else 'line'} ({self.data})",
            "root mean square distance across, in half-gaps, is small", f"{SOURCE}; threshold [ours]",
            f"{len(x):,} samples with λ = {self.decay:g}",
        ).equals(
            self._off(x), 0.0, tolerance,
            "how far a chord leaves the circle" if circle else "a tenth of what they move along it",
        )  # fmt: skip

    def _objective_claim(self, ratios: np.ndarray) -> Claim:
        return Statement(
            "Weight decay on a two-layer ReLU network is a penalty on the non-smoothness ∫|g''|",
            "min loss + λ/2 (‖A‖²+‖W‖²) = min loss + λ ∫|g''|", SOURCE,
            f"Adam against a convex problem, {len(ratios)} levels; ratio of the minima",
        ).equals(ratios, 1.0, 0.02, "how far Adam gets; no network lies below 1")  # fmt: skip

    def _three_piece_claim(self, losses: np.ndarray, variations: np.ndarray) -> Claim:
        """At its loss, the network is at most as non-smooth as Chen's three straight pieces."""
        pieces = [three_piece_variation(loss, sigma) for loss, sigma in zip(losses.tolist(), self.sigmas.tolist())]
        ratios = variations / pieces
        listing = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        return Statement(
            "At equal loss, weight decay finds a score no less smooth than Chen's three straight pieces",
            "∫|g''| ≤ 2/(1−κσ) at the κ of equal loss", SOURCE,
            f"quotients {listing} by falling level; 0: out of its reach",
        ).holds((ratios > 1.02).sum(), "counts levels where the quotient exceeds 1.02, Adam's accuracy")  # fmt: skip

    def _share_claim(self, x: np.ndarray, ideal: np.ndarray) -> Claim:
        expected, error = self._share(ideal)
        return Statement(
            "Networks with weight decay sample as the convex problem's solution does",
            "share of samples between the data", SOURCE, f"{len(x):,} samples from the same starting points",
        ).near(self._share(x)[0], expected, error, "four binomial standard errors")  # fmt: skip
