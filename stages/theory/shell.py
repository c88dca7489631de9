"""The Gaussian shell: where the norm of noise lies, and how many noise levels make shells touch (METHODS §3).

sigma and r are in pixel units ([0, 1] per pixel), d is the number of pixels times channels.
"""

import math
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from scipy.stats import chi2

from stages.theory import product
from stages.theory.claims import Block, Claim, Findings, Schedule, Statement, binomial_error

HALF_WIDTH = 3 / math.sqrt(2)  # three standard deviations of ‖z‖, whose variance tends to 1/2
LIMIT_MASS = math.erf(3 / math.sqrt(2))  # 0.9973: a normal variable within three standard deviations

Dimension = Annotated[int, Field(ge=5, description="number of pixels times channels; below 5 the shell has no inside")]


class ShellMass(Block):
    """The mass of the Gaussian shell (METHODS §3), exactly and of the pipeline's noise."""

    TITLE: ClassVar[str] = "Gaussian shell: where noise lies"

    dimensions: list[Dimension] = Field(min_length=1)
    draws: int = Field(ge=100, description="Monte Carlo vectors per dimension")
    normals: int = Field(ge=1000, description="most random numbers spent on one dimension; draws are cut to fit")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        claims, table = [], []
        for d in self.dimensions:
            count = max(1, min(self.draws, self.normals // d))
            exact, share = shell_mass(d), shell_count(d, count, seed) / count
            error = binomial_error(exact, count)
            claims += [_limit_claim(d, exact), _drawn_claim(d, exact, share, count)]
            row = {"d": d, "exact": exact, "monte_carlo": share, "standard_error": error, "draws": count}
            table.append({**row, "limit": LIMIT_MASS})
        return Findings(claims, {"shell_mass": table})


class ShellTouch(Schedule):
    """The shell-touch schedule (METHODS §3), and the levels needed from `smallest` to `largest`."""

    TITLE: ClassVar[str] = "Shell-touch schedule: how many levels"

    dimensions: list[Dimension] = Field(min_length=1)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        sigmas, ratios = product.noise_levels(self.smallest, self.largest, 2), map(touch_ratio, self.dimensions)
        rows = [{"d": d, "ratio": r, "levels": level_count(sigmas, r)} for d, r in zip(self.dimensions, ratios)]
        return Findings([_touch_claim(self.dimensions), *_paper_claims()], {"shell_touch": rows})


def shell_mass(dimension: int) -> float:
    """P(|‖z‖ − √d| ≤ 3/√2) for z ~ N(0, I_d), exactly: a difference of chi-square distribution functions."""
    root = math.sqrt(dimension)
    inner, outer = max(root - HALF_WIDTH, 0.0) ** 2, (root + HALF_WIDTH) ** 2
    # both tails are small: 1 − tails keeps the digits that cdf(outer) − cdf(inner) would round away
    return float(1 - chi2.sf(outer, dimension) - chi2.cdf(inner, dimension))


def shell_count(dimension: int, draws: int, seed: int, block: int = 1 << 20) -> int:
    """How many of `draws` noise vectors in R^d have their norm in the shell; `block` numbers are drawn at a time."""
    root, rows, inside = math.sqrt(dimension), max(1, block // dimension), 0
    for start in range(0, draws, rows):
        noise = product.noise(seed, range(start, min(start + rows, draws)), dimension, dimension)
        inside += int(np.count_nonzero(np.abs(np.linalg.norm(noise, axis=1) - root) <= HALF_WIDTH))
    return inside


def touch_ratio(dimension: int) -> float:
    """γ = σ_{j+1}/σ_j at which the shells of neighbouring levels touch: (√d + 3/√2)/(√d − 3/√2). Needs d ≥ 5."""
    root = math.sqrt(dimension)
    return (root + HALF_WIDTH) / (root - HALF_WIDTH)


def level_count(sigmas: np.ndarray, ratio: float) -> float:
    """Number of levels, both ends included and not rounded, of a geometric schedule over `sigmas` with this ratio."""
    return 1 + math.log(sigmas.max() / sigmas.min()) / math.log(ratio)


def _limit_claim(dimension: int, exact: float) -> Claim:
    reason = "half a unit of the last digit of 0.9973, and 0.01/d because ‖z‖ is normal only up to O(1/d)"
    return Statement(
        f"The norm of Gaussian noise lies within √d ± 3/√2 with mass 0.9973 (d = {dimension})",
        "P(|‖z‖ − √d| ≤ 3/√2), z ~ N(0, I_d)", "METHODS §3 [P]", "chi-square distribution function",
    ).equals(exact, LIMIT_MASS, 5e-5 + 0.01 / dimension, reason)  # fmt: skip


def _drawn_claim(dimension: int, exact: float, share: float, count: int) -> Claim:
    return Statement(
        f"The pipeline's noise lies in the shell as often as the chi-square law says (d = {dimension})",
        "#{|‖z‖ − √d| ≤ 3/√2} / n against chi-square",
        "METHODS §3 [chk]", f"{count:,} draws of z", "float32 noise, float64 norm",
    ).near(share, exact, binomial_error(exact, count), "four binomial standard errors")  # fmt: skip


def _touch_claim(dimensions: list[int]) -> Claim:
    quotients = []
    for d in dimensions:  # the outer radius of one level over the inner radius of the next
        upper, lower = product.noise_levels(1.0, touch_ratio(d), 2)
        quotients.append(lower * (math.sqrt(d) + HALF_WIDTH) / (upper * (math.sqrt(d) - HALF_WIDTH)))
    return Statement(
        "Neighbouring shells of the schedule touch without overlap or gap", "σ_j(√d + 3/√2) = σ_{j+1}(√d − 3/√2)",
        "METHODS §3 [P]", f"quotient of the two radii at d = {', '.join(map(str, dimensions))}, the pipeline's levels",
    ).equals(np.array(quotients), 1.0, 1e-14, "rounding of four float64 operations")  # fmt: skip


def _paper_claims() -> list[Claim]:
    """The level count at the paper's own numbers: CIFAR-10's d, σ from 0.01 to 50, 116 levels."""
    sigmas, first_order = product.noise_levels(0.01, 50.0, 116), 1 + 2 * HALF_WIDTH / math.sqrt(3072)
    claims = (
        ("The exact shell-touch ratio takes 112.2 levels from 0.01 to 50 at d = 3072",
         "1 + ln(σ_N/σ_1)/ln γ", touch_ratio(3072), 112.2, 0.05, "half a unit of the last digit stated"),
        ("The paper's 116 levels are the exact shell-touch count",
         "1 + ln(σ_N/σ_1)/ln γ, γ = (√d + 3/√2)/(√d − 3/√2)",
         touch_ratio(3072), 116, 1.0, "a count may be rounded up or down"),
        ("The paper's 116 levels are the count for the ratio to first order, 1 + 3√2/√d",
         "1 + ln(σ_N/σ_1)/ln(1 + 3√2/√d)", first_order, 116, 1.0, "a count may be rounded up or down"),
    )  # fmt: skip
    source, computed = "METHODS §3 [P], [chk]", "d = 3072, σ from 0.01 to 50"
    return [
        Statement(claim, formula, source, computed).equals(level_count(sigmas, ratio), expected, tolerance, reason)
        for claim, formula, ratio, expected, tolerance, reason in claims
    ]
