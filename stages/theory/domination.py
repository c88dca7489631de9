"""Which level and which training image dominate the empirical score's weights (METHODS §3).

All in float64 numpy. The joint log-weight of centre i and level j is −(d−2) ln σ_j − r_i²/(2σ_j²) (METHODS §1.2).
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from stages.theory.claims import Block, Claim, Findings
from stages.theory.shell import HALF_WIDTH, Dimension, touch_ratio


class SigmaDomination(Block):
    """The weight ratio of neighbouring levels (METHODS §3)."""

    TITLE: ClassVar[str] = "σ-domination: one level outweighs its neighbours"

    dimensions: list[Dimension] = Field(min_length=1)
    alphas: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, description="where between the two shells")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_sigma_domination."""
        return verify_sigma_domination(self.dimensions, self.alphas)


class ImageDomination(Block):
    """The weight ratio of two training images (METHODS §3)."""

    TITLE: ClassVar[str] = "i-domination: one training image outweighs the others"

    dimension: Dimension
    temperatures: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(min_length=1)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_image_domination."""
        return verify_image_domination(self.dimension, self.temperatures, seed)


def log_weights(squared: np.ndarray, sigmas: np.ndarray, dimension: int) -> np.ndarray:
    """Joint log-weights (M, N) of M centres at squared distances r² (M,) and N levels sigmas (N,), METHODS §1.2."""
    return -(dimension - 2) * np.log(sigmas)[None] - squared[:, None] / (2 * sigmas[None] ** 2)


def sigma_ratio(alpha: float, dimension: int) -> float:
    """ln of the weight of level σ_j = 1 over σ_{j+1} = γ at radius ((1−α)σ_j + ασ_{j+1})√d, measured on a point.

    The point lies at that radius from a centre at the origin; its distance is computed from its d coordinates.
    """
    sigmas = np.array([1.0, touch_ratio(dimension)])
    point = np.full(dimension, (1 - alpha) * sigmas[0] + alpha * sigmas[1])
    weights = log_weights(np.array([point @ point]), sigmas, dimension)
    return float(weights[0, 0] - weights[0, 1])


def sigma_limit(alpha: float) -> float:
    """ln of the limit e^{18(1−2α)} of that ratio as d → ∞."""
    return 18 * (1 - 2 * alpha)


def sigma_series(alpha: float, dimension: int) -> tuple[float, float]:
    """The ln ratio to order 1/d, and the size of the first neglected term (order d^{−3/2}).

    With w = 3/√2, ε = w/√d, b = 1 − 2α the ln ratio is 2(d−2) artanh ε − 2dε(1−bε)²/(1−ε²)²; expanded in ε:
    18b − [2w³(5/3 + b²) + 4w] d^{−1/2} + 8bw⁴ d^{−1} − [2w⁵(14/5 + 2b²) + 4w³/3] d^{−3/2} + …
    """
    w, b, root = HALF_WIDTH, 1 - 2 * alpha, math.sqrt(dimension)
    series = 18 * b - (2 * w**3 * (5 / 3 + b**2) + 4 * w) / root + 8 * b * w**4 / dimension
    return series, (2 * w**5 * (14 / 5 + 2 * b**2) + 4 * w**3 / 3) / root**3


def verify_sigma_domination(dimensions: Sequence[int], alphas: Sequence[float]) -> Findings:
    """The weight ratio of neighbouring levels: at every (α, d), in the limit, and at the reference dimensions."""
    claims, table = [], []
    for alpha in alphas:
        for dimension in dimensions:
            ratio = sigma_ratio(alpha, dimension)
            claims.append(_series_claim(alpha, dimension, ratio))
            table.append({"alpha": alpha, "d": dimension, "ln_ratio": ratio, "ln_limit": sigma_limit(alpha)})
        claims.append(_limit_claim(alpha))
    return Findings([*claims, *_reference_claims()], {"sigma_domination": table})


def _series_claim(alpha: float, dimension: int, ratio: float) -> Claim:
    series, neglected = sigma_series(alpha, dimension)
    return Claim(
        claim=f"Weight ratio of neighbouring levels at α = {alpha:.3g}, d = {dimension}",
        formula="ln(w_j/w_{j+1}) = 18(1−2α) − O(d^{−1/2}), at radius ((1−α)σ_j + ασ_{j+1})√d",
        source="METHODS §3 [P]; series [ours]",
        computed=f"joint log-weights of a point; the ratio itself is {math.exp(ratio):.4g}",
        expected=series,
        tolerance=2 * neglected,
        reason="twice the first neglected term of the series",
        measured=ratio,
    )


def _limit_claim(alpha: float, first: int = 4**8, count: int = 4) -> Claim:
    """Extrapolates to d = ∞ along d = 4^8 … 4^11: each fourfold d halves d^{−1/2}, so Richardson steps are exact."""
    values = [sigma_ratio(alpha, first * 4**i) for i in range(count)]
    for order in range(1, count):
        factor = 2**order
        values = [(factor * fine - coarse) / (factor - 1) for coarse, fine in zip(values, values[1:])]
    return Claim(
        claim=f"The ratio of neighbouring levels tends to e^{{18(1−2α)}} (α = {alpha:.3g})",
        formula=f"lim ln(w_j/w_{{j+1}}) = 18(1−2α); e^… = {math.exp(sigma_limit(alpha)):.6g}",
        source="METHODS §3 [P]",
        computed=f"Richardson extrapolation in d^{{−1/2}} from d = {first} to {first * 4 ** (count - 1)}",
        expected=sigma_limit(alpha),
        tolerance=1e-5,
        reason="neglected order d^{−2} and float64 rounding of ln-weights of size d",
        measured=values[0],
    )


def _reference_claims() -> list[Claim]:
    return [
        Claim(
            claim=f"Reference value of the ratio at α = 1/3, d = {dimension}",
            formula="w_j/w_{j+1} with power d−2; its limit is e⁶ = 403.43",
            source="METHODS §3 [chk]",
            computed="joint log-weights of a point",
            expected=expected,
            tolerance=0.05,
            reason="half a unit of the last digit stated",
            measured=math.exp(sigma_ratio(1 / 3, dimension)),
        )
        for dimension, expected in ((3072, 190.7), (12288, 276.3), (196608, 366.7))
    ]


def mixture_over_levels(squared: np.ndarray, dimension: int) -> np.ndarray:
    """ln of each centre's weight (M,) summed over all levels of a fine log-uniform schedule around σ* = r/√(d−2).

    The summand is a near-Gaussian in ln σ of standard deviation 1/√(2(d−2)); a grid of half that step over 12 of
    them on either side leaves nothing out at float64.
    """
    width = 1 / math.sqrt(2 * (dimension - 2))
    centre = 0.5 * np.log(squared / (dimension - 2))
    grid = np.arange(centre.min() - 12 * width, centre.max() + 12 * width, width / 2)
    weights = log_weights(squared, np.exp(grid), dimension)
    top = weights.max(axis=1)
    return top + np.log(np.exp(weights - top[:, None]).sum(axis=1))


def verify_image_domination(dimension: int, temperatures: Sequence[float], seed: int, pairs: int = 32) -> Findings:
    """i-domination: the weight ratio of two centres, on random centres and points in [0,1]^d, and the optimal level."""
    generator = np.random.default_rng([seed, dimension])
    centres, points = generator.random((2, pairs, dimension)), generator.random((pairs, dimension))
    squared = ((points[None] - centres) ** 2).sum(axis=2)  # (2, pairs): r_j² and r_l²
    return Findings(
        [
            _conditioning_claim(centres, points, squared, dimension),
            _marginal_claim(squared, dimension),
            *(_temperature_claim(squared, dimension, temperature) for temperature in temperatures),
            _optimal_level_claim(dimension),
        ]
    )


def _conditioning_claim(centres: np.ndarray, points: np.ndarray, squared: np.ndarray, dimension: int) -> Claim:
    sigma = math.sqrt(float(squared.mean()) / dimension)
    formula = (squared[1] - squared[0]) / (2 * sigma**2)
    # ‖x−a‖² − ‖x−b‖² = (b−a)·(2x−a−b): the ratio of the two Gaussian densities, with no distance in it
    first, second = centres
    direct = ((first - second) * (2 * points - first - second)).sum(axis=1) / (2 * sigma**2)
    return Claim(
        claim="Conditioning: the nearer centre dominates by the difference of squared distances",
        formula="ln(w_j/w_l) = (r_l² − r_j²)/(2σ²)",
        source="METHODS §3 [P]",
        computed=f"ratio of Gaussian densities, {len(points)} pairs in [0,1]^{dimension}",
        expected=float(np.abs(formula).mean()),
        tolerance=1e-9 * max(1.0, float(squared.max()) / sigma**2),
        reason="float64 rounding of squared distances over σ²",
        measured=float(np.abs(direct).mean()),
        deviation=float(np.abs(direct - formula).max()),
    )


def _marginal_claim(squared: np.ndarray, dimension: int) -> Claim:
    formula = (dimension - 2) / 2 * np.log(squared[1] / squared[0])
    sums = np.stack([mixture_over_levels(squared[:, pair], dimension) for pair in range(squared.shape[1])], axis=1)
    direct = sums[0] - sums[1]
    return Claim(
        claim="Unconditioning: summed over all levels, a centre weighs r^{−(d−2)}",
        formula="ln(Σ_j f_ij / Σ_j f_lj) = (d−2) ln(r_l/r_i)",
        source="METHODS §1.2, §1.4, §3 [P]",
        computed=f"sum over a fine log-uniform schedule, {squared.shape[1]} pairs in [0,1]^{dimension}",
        expected=float(np.abs(formula).mean()),
        tolerance=1e-10 * dimension**1.5,
        reason="float64 rounding of ln-weights of size d·ln d; the grid's own error is below it",
        measured=float(np.abs(direct).mean()),
        deviation=float(np.abs(direct - formula).max()),
    )


def _temperature_claim(squared: np.ndarray, dimension: int, temperature: float) -> Claim:
    formula = (dimension - 2) / temperature * 0.5 * np.log(squared[1] / squared[0])
    # the softmax of f*/T itself, for the two centres: logit of the first's share
    best = np.sqrt(squared / (dimension - 2))
    scaled = (-(dimension - 2) * np.log(best) - squared / (2 * best**2)) / temperature
    direct = scaled[0] - scaled[1]
    return Claim(
        claim=f"Temperature T = {temperature:g} divides the domination of the nearer centre by T",
        formula="ln(w_j/w_l) = (d−2)/T · ln(r_l/r_j)",
        source="METHODS §1.5, §3 [P]",
        computed=f"log-weights at the optimal level σ_i*, {squared.shape[1]} pairs in [0,1]^{dimension}",
        expected=float(np.abs(formula).mean()),
        tolerance=1e-10 * dimension**1.5 / temperature,
        reason="float64 rounding of ln-weights of size d·ln d, over T",
        measured=float(np.abs(direct).mean()),
        deviation=float(np.abs(direct - formula).max()),
    )


def _optimal_level_claim(dimension: int, radius: float = 1.0, half: float = 0.05, points: int = 200_001) -> Claim:
    sigmas = radius / math.sqrt(dimension - 2) * np.exp(np.linspace(-half, half, points) + 1e-3)  # off the optimum
    best = float(sigmas[log_weights(np.array([radius**2]), sigmas, dimension)[0].argmax()])
    return Claim(
        claim=f"The level of largest weight for a centre at distance r is r/√(d−2) (d = {dimension})",
        formula="argmax_σ −(d−2) ln σ − r²/(2σ²)",
        source="METHODS §1.3",
        computed=f"argmax over {points:,} levels; in units of r/√(d−2)",
        expected=1.0,
        tolerance=1.5 * 2 * half / (points - 1) + 1e-6,
        reason="one step of the grid, and the flat top of the parabola at float64",
        measured=best * math.sqrt(dimension - 2) / radius,
    )
