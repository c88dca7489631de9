"""Which level and which training image dominate the empirical score's weights (METHODS §3).

The weights of levels are the pipeline's own: the joint log-weight of centre i and level j is −(d−2) ln σ_j −
r_i²/(2σ_j²), METHODS §1.2. The weights of images are read back from the values of its scores: a score of few centres,
Σ w_i p_i (x_i − x), determines its coefficients.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.optimize import minimize_scalar

from stages.theory import product
from stages.theory.claims import Block, Claim, Findings, Positive, Statement
from stages.theory.shell import HALF_WIDTH, Dimension, touch_ratio

POINT = "the mixture's log-weights at a point"
ROUNDED = "float64 rounding of ln-weights of size d·ln d"


class SigmaDomination(Block):
    """The weight ratio of neighbouring levels (METHODS §3): at every (α, d), in the limit, and its reference values."""

    TITLE: ClassVar[str] = "σ-domination: one level outweighs its neighbours"

    dimensions: list[Dimension] = Field(min_length=1)
    alphas: list[Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1, description="where between the two shells")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        claims, table = [], []
        for alpha in self.alphas:
            for d in self.dimensions:
                ratio = sigma_ratio(alpha, d)
                claims.append(_series_claim(alpha, d, ratio))
                table.append({"alpha": alpha, "d": d, "ln_ratio": ratio, "ln_limit": sigma_limit(alpha)})
            claims.append(limit_claim(alpha))
        reference = [_reference_claim(*case) for case in ((3072, 190.7), (12288, 276.3), (196608, 366.7))]
        return Findings(claims + reference, {"sigma_domination": table})


class ImageDomination(Block):
    """The weight ratio of two training images at points between them (METHODS §3), and the optimal level."""

    TITLE: ClassVar[str] = "i-domination: one training image outweighs the others"

    dimension: Dimension
    temperatures: list[Positive] = Field(min_length=1)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        pairs = random_pairs(self.dimension, seed)
        hot = [_temperature_claim(pairs, temperature) for temperature in self.temperatures]
        return Findings(
            [_conditioning_claim(pairs), _marginal_claim(pairs), *hot, _optimal_level_claim(self.dimension)]
        )


def sigma_ratio(alpha: float, dimension: int) -> float:
    """ln of the weight of level σ_j = 1 over σ_{j+1} = γ at a point at radius ((1−α)σ_j + ασ_{j+1})√d."""
    ratio = touch_ratio(dimension)
    point = np.full((1, dimension), (1 - alpha) + alpha * ratio)
    squared = product.squared_distances(point, np.zeros_like(point)).item()
    first, second = (product.level_log_weight(squared, sigma, dimension) for sigma in (1.0, ratio))
    return first - second


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


def _series_claim(alpha: float, dimension: int, ratio: float) -> Claim:
    series, neglected = sigma_series(alpha, dimension)
    return Statement(
        f"Weight ratio of neighbouring levels at α = {alpha:.3g}, d = {dimension}",
        "ln(w_j/w_{j+1}) = 18(1−2α) − O(d^{−1/2}), at radius ((1−α)σ_j + ασ_{j+1})√d",
        "METHODS §3 [P]; series [ours]", f"{POINT}; the ratio itself is {math.exp(ratio):.4g}",
    ).equals(ratio, series, 2 * neglected, "twice the first neglected term of the series")  # fmt: skip


def limit_claim(alpha: float, first: int = 4**8, count: int = 4) -> Claim:
    """Extrapolates to d = ∞ along d = 4^8 … 4^11: each fourfold d halves d^{−1/2}, so Richardson steps are exact."""
    values = [sigma_ratio(alpha, first * 4**i) for i in range(count)]
    for order in range(1, count):
        factor = 2**order
        values = [(factor * fine - coarse) / (factor - 1) for coarse, fine in zip(values, values[1:])]
    reason = "neglected order d^{−2} and float64 rounding of ln-weights of size d"
    return Statement(
        f"The ratio of neighbouring levels tends to e^{{18(1−2α)}} (α = {alpha:.3g})",
        f"lim ln(w_j/w_{{j+1}}) = 18(1−2α); e^… = {math.exp(sigma_limit(alpha)):.6g}", "METHODS §3 [P]",
        f"Richardson extrapolation in d^{{−1/2}} from d = {first} to {first * 4 ** (count - 1)}",
    ).equals(values[0], sigma_limit(alpha), 1e-5, reason)  # fmt: skip


def _reference_claim(dimension: int, expected: float) -> Claim:
    return Statement(
        f"Reference value of the ratio at α = 1/3, d = {dimension}",
        "w_j/w_{j+1} with power d−2; its limit is e⁶ = 403.43", "METHODS §3 [chk]", POINT,
    ).equals(
        math.exp(sigma_ratio(1 / 3, dimension)), expected, 0.05, "half a unit of the last digit stated"
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Points (pairs, d), each between two centres (pairs, 2, d)."""

    centres: np.ndarray
    points: np.ndarray

    @property
    def dimension(self) -> int:
        """d."""
        return self.points.shape[1]

    @property
    def squared(self) -> np.ndarray:
        """r_i² by direct differences, (pairs, 2)."""
        return ((self.points[:, None] - self.centres) ** 2).sum(axis=2)

    @property
    def size(self) -> str:
        """What the claims are computed on."""
        return f"weights read from the score at {len(self.points)} points between two images, d = {self.dimension}"

    def shell_ratio(self) -> np.ndarray:
        """(d−2) ln(r_2/r_1), (pairs,)."""
        return (self.dimension - 2) / 2 * np.log(self.squared[:, 1] / self.squared[:, 0])

    def log_ratios(self, score_of: Callable[[np.ndarray], product.Score], precision: Any, sigma: float = 0.0):
        """ln(w_1/w_2) at every point, (pairs,), read from the score that `score_of` makes of two centres.

        precision: p_i up to a common factor, (pairs, 2). sigma: the level, where the score takes one.
        """
        values = [score_of(pair)(point[None], sigma)[0] for pair, point in zip(self.centres, self.points)]
        pulls = np.array([product.pulls(*case) for case in zip(values, self.points, self.centres)]) / precision
        return np.log(pulls[:, 0] / pulls[:, 1])


def random_pairs(dimension: int, seed: int, count: int = 32) -> Pairs:
    """Pairs of random images in [0,1]^d with a point beside the line of the two, so near to their bisector that the
    log-weights differ by about ten."""
    generator = np.random.default_rng([seed, dimension])
    centres, aside = generator.random((count, 2, dimension)), generator.standard_normal((count, dimension)) / 4
    line = centres[:, 0] - centres[:, 1]
    along = generator.uniform(-6, 6, count) / dimension - (aside * line).sum(axis=1) / (line**2).sum(axis=1)
    return Pairs(centres, centres.mean(axis=1) + along[:, None] * line + aside)


def _conditioning_claim(pairs: Pairs) -> Claim:
    sigma = math.sqrt(float(pairs.squared.mean()) / pairs.dimension)
    # r_l² − r_j² = (x_j − x_l)·(2x − x_j − x_l): no distance in it
    line, offset = pairs.centres[:, 0] - pairs.centres[:, 1], 2 * pairs.points - pairs.centres.sum(axis=1)
    expected, size = (line * offset).sum(axis=1) / (2 * sigma**2), float(pairs.squared.max()) / sigma**2
    found = pairs.log_ratios(lambda pair: product.empirical(pair, "conditioning"), 1.0, sigma)
    return Statement(
        "Conditioning: the nearer centre dominates by the difference of squared distances",
        "ln(w_j/w_l) = (r_l² − r_j²)/(2σ²)", "METHODS §3 [P]", pairs.size,
    ).equals(found, expected, 1e-9 * size, "float64 rounding of squared distances over σ²")  # fmt: skip


def fine_levels(squared: np.ndarray, dimension: int) -> np.ndarray:
    """A log-uniform schedule around σ* = r/√(d−2) whose sum over levels leaves nothing out at float64.

    A centre's weight is near-Gaussian in ln σ with standard deviation 1/√(2(d−2)); the step is half of that, and the
    schedule reaches 12 of them to either side. squared: r², any shape.
    """
    width = 1 / math.sqrt(2 * (dimension - 2))
    centre = 0.5 * np.log(squared / (dimension - 2))
    return np.exp(np.arange(centre.min() - 12 * width, centre.max() + 12 * width, width / 2))


def _marginal_claim(pairs: Pairs) -> Claim:
    levels = fine_levels(pairs.squared, pairs.dimension)
    found = pairs.log_ratios(lambda pair: product.mixture(pair, levels), 1 / pairs.squared)
    return Statement(
        "Unconditioning: summed over all levels, a centre weighs r^{−(d−2)}",
        "ln(Σ_j f_ij / Σ_j f_lj) = (d−2) ln(r_l/r_i)",
        "METHODS §1.2, §1.4, §3 [P]", f"mixture over {len(levels)} log-uniform levels; {pairs.size}",
    ).equals(found, pairs.shell_ratio(), 1e-10 * pairs.dimension**1.5, ROUNDED)  # fmt: skip


def _temperature_claim(pairs: Pairs, temperature: float) -> Claim:
    found = pairs.log_ratios(lambda pair: product.empirical(pair, temperature), 1 / pairs.squared)
    tolerance = 1e-10 * pairs.dimension**1.5 / temperature
    return Statement(
        f"Temperature T = {temperature:g} divides the domination of the nearer centre by T",
        "ln(w_j/w_l) = (d−2)/T · ln(r_l/r_j)", "METHODS §1.5, §3 [P]", pairs.size,
    ).equals(found, pairs.shell_ratio() / temperature, tolerance, f"{ROUNDED}, over T")  # fmt: skip


def _optimal_level_claim(dimension: int) -> Claim:
    def weight(scaled: float) -> float:
        return product.level_log_weight(1.0, scaled / math.sqrt(dimension - 2), dimension)

    found = minimize_scalar(lambda x: -weight(x), bounds=(0.95, 1.06), method="bounded", options={"xatol": 1e-9})
    return Statement(
        f"The level of largest weight for a centre at distance r is r/√(d−2) (d = {dimension})",
        "argmax_σ −(d−2) ln σ − r²/(2σ²)", "METHODS §1.3", "search over the mixture's log-weights; over r/√(d−2)",
    ).equals(found.x, 1.0, 1.75e-6, "the flat top of the parabola at float64")  # fmt: skip
