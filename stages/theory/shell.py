"""The Gaussian shell: where the norm of noise lies, and how many noise levels make shells touch (METHODS §3).

All in float64 numpy. sigma and r are in pixel units ([0, 1] per pixel), d is the number of pixels times channels.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.stats import chi2

from stages.theory.claims import Block, Claim, Findings

HALF_WIDTH = 3 / math.sqrt(2)  # three standard deviations of ‖z‖, whose variance tends to 1/2
LIMIT_MASS = math.erf(3 / math.sqrt(2))  # 0.9973: a normal variable within three standard deviations

Dimension = Annotated[int, Field(ge=5, description="number of pixels times channels; below 5 the shell has no inside")]


class ShellMass(Block):
    """The mass of the Gaussian shell (METHODS §3)."""

    TITLE: ClassVar[str] = "Gaussian shell: where noise lies"

    dimensions: list[Dimension] = Field(min_length=1)
    draws: int = Field(ge=100, description="Monte Carlo vectors per dimension")
    normals: int = Field(ge=1000, description="most random numbers spent on one dimension; draws are cut to fit")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_shell_mass."""
        return verify_shell_mass(self.dimensions, self.draws, self.normals, seed)


class ShellTouch(Block):
    """The shell-touch schedule (METHODS §3)."""

    TITLE: ClassVar[str] = "Shell-touch schedule: how many levels"

    dimensions: list[Dimension] = Field(min_length=1)
    smallest: float = Field(gt=0, description="lowest noise level, in pixel units of [0,1]")
    largest: float = Field(gt=0, description="highest noise level")

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        return self

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_shell_touch."""
        return verify_shell_touch(self.dimensions, self.smallest, self.largest)


def shell_mass(dimension: int) -> float:
    """P(|‖z‖ − √d| ≤ 3/√2) for z ~ N(0, I_d), exactly: a difference of chi-square distribution functions."""
    root = math.sqrt(dimension)
    inner, outer = max(root - HALF_WIDTH, 0.0) ** 2, (root + HALF_WIDTH) ** 2
    # both tails are small: 1 − tails keeps the digits that cdf(outer) − cdf(inner) would round away
    return float(1 - chi2.sf(outer, dimension) - chi2.cdf(inner, dimension))


def shell_count(dimension: int, draws: int, seed: int, block: int = 1 << 22) -> int:
    """How many of `draws` vectors z ~ N(0, I_d) have their norm in the shell. Streams `block` numbers at a time."""
    generator = np.random.default_rng([seed, dimension])
    root = math.sqrt(dimension)
    rows = max(1, block // dimension)
    inside = 0
    for start in range(0, draws, rows):
        noise = generator.standard_normal((min(rows, draws - start), dimension))
        norms = np.sqrt(np.einsum("nd,nd->n", noise, noise))
        inside += int(np.count_nonzero(np.abs(norms - root) <= HALF_WIDTH))
    return inside


def touch_ratio(dimension: int) -> float:
    """γ = σ_{j+1}/σ_j at which the shells of neighbouring levels touch: (√d + 3/√2)/(√d − 3/√2). Needs d ≥ 5."""
    root = math.sqrt(dimension)
    return (root + HALF_WIDTH) / (root - HALF_WIDTH)


def level_count(smallest: float, largest: float, ratio: float) -> float:
    """Number of levels, both ends included, of a geometric schedule with this ratio (not rounded)."""
    return 1 + math.log(largest / smallest) / math.log(ratio)


def verify_shell_mass(dimensions: Sequence[int], draws: int, normals: int, seed: int) -> Findings:
    """The mass of the shell, exactly and by Monte Carlo.

    dimensions: the d to look at. draws: vectors per d, fewer where draws · d exceeds `normals`, the most random
    numbers to spend on one d (the number drawn stands in the row).
    """
    claims, table = [], []
    for dimension in dimensions:
        count = max(1, min(draws, normals // dimension))
        exact, share = shell_mass(dimension), shell_count(dimension, count, seed) / count
        error = math.sqrt(exact * (1 - exact) / count)
        claims += [_limit_claim(dimension, exact), _monte_carlo_claim(dimension, exact, share, error, count)]
        row = {"d": dimension, "exact": exact, "monte_carlo": share, "standard_error": error, "draws": count}
        table.append({**row, "limit": LIMIT_MASS})
    return Findings(claims, {"shell_mass": table})


def _limit_claim(dimension: int, exact: float) -> Claim:
    return Claim(
        claim=f"The norm of Gaussian noise lies within √d ± 3/√2 with mass 0.9973 (d = {dimension})",
        formula="P(|‖z‖ − √d| ≤ 3/√2), z ~ N(0, I_d)",
        source="METHODS §3 [P]",
        computed="chi-square distribution function",
        expected=LIMIT_MASS,
        tolerance=5e-5 + 0.01 / dimension,
        reason="half a unit of the last digit of 0.9973, and 0.01/d because ‖z‖ is normal only up to O(1/d)",
        measured=exact,
    )


def _monte_carlo_claim(dimension: int, exact: float, share: float, error: float, count: int) -> Claim:
    return Claim(
        claim=f"Drawn noise lies in the shell as often as the chi-square law says (d = {dimension})",
        formula="#{|‖z‖ − √d| ≤ 3/√2} / n against chi-square",
        source="METHODS §3 [chk]",
        computed=f"{count:,} draws of z",
        expected=exact,
        tolerance=4 * error,
        reason="four binomial standard errors: a true claim fails once in 16,000 runs",
        measured=share,
        uncertainty=error,
    )


def verify_shell_touch(dimensions: Sequence[int], smallest: float, largest: float) -> Findings:
    """The shell-touch schedule: neighbouring shells touch, and the levels needed from `smallest` to `largest`."""
    table = []
    for dimension in dimensions:
        ratio = touch_ratio(dimension)
        table.append({"d": dimension, "ratio": ratio, "levels": level_count(smallest, largest, ratio)})
    return Findings([_touch_claim(dimensions), *_paper_claims()], {"shell_touch": table})


def _touch_claim(dimensions: Sequence[int]) -> Claim:
    # the outer radius of level 1 over the inner radius of level γ
    quotients = [(math.sqrt(d) + HALF_WIDTH) / (touch_ratio(d) * (math.sqrt(d) - HALF_WIDTH)) for d in dimensions]
    return Claim(
        claim="Neighbouring shells of the schedule touch without overlap or gap",
        formula="σ_j(√d + 3/√2) = σ_{j+1}(√d − 3/√2)",
        source="METHODS §3 [P]",
        computed=f"quotient of the two radii at d = {', '.join(map(str, dimensions))}",
        expected=1.0,
        tolerance=1e-14,
        reason="rounding of four float64 operations",
        measured=sum(quotients) / len(quotients),
        deviation=max(abs(quotient - 1) for quotient in quotients),
    )


def _paper_claims(
    dimension: int = 3072, smallest: float = 0.01, largest: float = 50.0, paper: int = 116
) -> list[Claim]:
    """The level count at the paper's own numbers: CIFAR-10's d, σ from 0.01 to 50, 116 levels."""
    exact = level_count(smallest, largest, touch_ratio(dimension))
    first_order = level_count(smallest, largest, 1 + 2 * HALF_WIDTH / math.sqrt(dimension))
    shared = {
        "source": "METHODS §3 [P], [chk]",
        "computed": f"d = {dimension}, σ from {smallest} to {largest:g}",
    }
    return [
        Claim(
            claim="The exact shell-touch ratio takes 112.2 levels from 0.01 to 50 at d = 3072",
            formula="1 + ln(σ_N/σ_1)/ln γ",
            expected=112.2,
            tolerance=0.05,
            reason="half a unit of the last digit stated",
            measured=exact,
            **shared,
        ),
        Claim(
            claim="The paper's 116 levels are the exact shell-touch count",
            formula="1 + ln(σ_N/σ_1)/ln γ, γ = (√d + 3/√2)/(√d − 3/√2)",
            expected=paper,
            tolerance=1.0,
            reason="a count may be rounded up or down",
            measured=exact,
            **shared,
        ),
        Claim(
            claim="The paper's 116 levels are the count for the ratio to first order, 1 + 3√2/√d",
            formula="1 + ln(σ_N/σ_1)/ln(1 + 3√2/√d)",
            expected=paper,
            tolerance=1.0,
            reason="a count may be rounded up or down",
            measured=first_order,
            **shared,
        ),
    ]
