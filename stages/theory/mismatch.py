"""Noise-level mismatch: what one step does to the actual noise of a score that does not know its level (METHODS §3).

R = ‖x − x_i‖/√d is the actual noise level near one training image, where the pipeline's unconditioning score of power
d is −(x − x_i)/R². A schedule step from σ_n to σ_{n+1} has β = (σ_n² − σ_{n+1}²)/R². The steps are those of
`samplers.reverse_diffusion`; the training image is black, so that x − x_i is x.
"""

import math
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.theory import product
from stages.theory.claims import Block, Claim, Findings, Positive, Schedule, Statement, Table
from stages.theory.shell import Dimension

CHECKED = "METHODS §3 [chk]"


class Mismatch(Block):
    """One step of both samplers at every β, from points at level 1 around a training image (METHODS §3)."""

    TITLE: ClassVar[str] = "Noise-level mismatch: scores that do not know their level"

    dimension: Dimension
    betas: list[Positive] = Field(min_length=1, description="(σ_n² − σ_{n+1}²)/R²")
    draws: int = Field(ge=10, description="points, and noise vectors of the SDE step")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        generator = np.random.default_rng([seed, self.dimension])
        start = at_level(1.0, generator.standard_normal((self.draws, self.dimension)))
        claims, table = [], []
        for number, beta in enumerate(self.betas):
            sigmas, key = np.sqrt([1 + beta, 1.0]), [seed, self.dimension, number]
            ode, sde = (actual_levels(start, sigmas, ode, key)[:, 1] for ode in (True, False))
            claims += _step_claims(beta, ode, sde**2, f"one step on {len(ode)} points, d = {self.dimension}")
            row = {"beta": beta, "ode": float(ode.mean()), "sde_rms": math.sqrt(float((sde**2).mean()))}
            formulas = {"ode_formula": ode_level(1, beta), "sde_formula": math.sqrt(sde_squared_level(1, beta))}
            table.append({**row, **formulas})
        return Findings(claims, {"mismatch": table})


class MismatchTrajectory(Schedule):
    """R/σ along a whole schedule, from a start whose actual noise is not the scheduled one (METHODS §3)."""

    TITLE: ClassVar[str] = "Noise-level mismatch along a schedule: the ODE overshoots, the SDE corrects itself"

    dimension: Dimension
    levels: int = Field(ge=10, description="noise levels, geometric")
    starts: list[Annotated[float, Field(gt=0, lt=10)]] = Field(min_length=1, description="R/σ at the first level")
    draws: int = Field(ge=2, description="SDE trajectories per start")

    @model_validator(mode="after")
    def _fine(self) -> Self:
        if 4 * step_share(self.ratio) >= 1:
            raise ValueError(f"{self.levels} levels are too few: steps shrink σ by {self.ratio:.3g}, the limit is 1.15")
        return self

    @property
    def ratio(self) -> float:
        """γ = σ_n/σ_{n+1}."""
        return float((self.largest / self.smallest) ** (1 / (self.levels - 1)))

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        sigmas = np.geomspace(self.largest, self.smallest, self.levels)
        claims, table = [], []
        for number, start in enumerate(self.starts):
            key = [seed, self.dimension, 5, number]
            offset = np.random.default_rng(key).standard_normal((self.draws, self.dimension))
            offset = at_level(start * sigmas[0], offset)
            ode, sde = actual_levels(offset[:1], sigmas, True, key)[0], actual_levels(offset, sigmas, False, key)
            table += _rows(start, sigmas, ode, sde, sde_fixed_point(self.ratio))
            claims += _start_claims(f"start R/σ = {start:g}", start, self, sigmas, ode, sde)
        return Findings(claims, {"mismatch_trajectory": table})


def step_share(ratio: float) -> float:
    """δ = (σ_n² − σ_{n+1}²)/σ_n² of a geometric schedule with σ_n/σ_{n+1} = ratio."""
    return 1 - ratio**-2


def sde_fixed_point(ratio: float) -> float:
    """R/σ at which an SDE step keeps R/σ, and to which it returns: √u, u = (1 − √(1−4δ))/2.

    With u = R²/σ² a step gives u′ = γ²(u − δ + δ²/u), γ² = 1/(1−δ): fixed where u² − u + δ = 0. There
    du′/du = (1 − δ²/u²)/(1 − δ), which is near 2δ at the smaller root (stable) and above 1 at the larger one.
    """
    return math.sqrt((1 - math.sqrt(1 - 4 * step_share(ratio))) / 2)


def ode_fixed_points(ratio: float) -> tuple[float, float]:
    """The two R/σ that an ODE step keeps, √((1 ± 1/γ)/2). It leaves both: du′/du = γ²(1 − δ²/4u²), which is above 1
    at the larger and −(2γ+1) at the smaller, where every step flips x to the other side of the training image."""
    return math.sqrt((1 + 1 / ratio) / 2), math.sqrt((1 - 1 / ratio) / 2)


def ode_level(level: float, beta: float) -> float:
    """R' = |1 − β/2| R: the actual level after an ODE step. It overshoots (R' > R) when β > 4."""
    return abs(1 - beta / 2) * level


def sde_squared_level(level: float, beta: float) -> float:
    """E[R'²] = R² (1 − β + β²): the actual squared level after an SDE step."""
    return level**2 * (1 - beta + beta**2)


def at_level(level: float, direction: np.ndarray) -> np.ndarray:
    """Points (B, d) at the actual noise `level`, in the directions given."""
    return direction * (level * math.sqrt(direction.shape[1]) / np.linalg.norm(direction, axis=1, keepdims=True))


def actual_levels(start: np.ndarray, sigmas: np.ndarray, ode: bool, seed: list[int]) -> np.ndarray:
    """R (B, L) at every level of the schedule `sigmas` when the pipeline's sampler starts from `start` (B, d)."""
    score = product.unconditioning(np.zeros((1, start.shape[1])), power=start.shape[1])
    draw = product.draws(seed, start.shape, start / sigmas[0])
    states = product.path("reverse_diffusion", score, draw, sigmas, ode=ode)
    return np.sqrt([(x**2).mean(axis=1) for x in (start, *(x for _, x in zip(sigmas[1:], states)))]).T


def _step_claims(beta: float, ode: np.ndarray, squared: np.ndarray, size: str) -> list[Claim]:
    expected = ode_level(1.0, beta)
    grows, formula = "grows" if expected > 1 else "does not grow", "R'/R = |1 − β/2|; overshoot when β > 4"
    first = Statement(f"ODE step with β = {beta:g}: the actual noise {grows}", formula, CHECKED, size)
    other = Statement(f"SDE step with β = {beta:g}: mean squared noise", "E[R'²]/R² = 1 − β + β²", CHECKED, size)
    return [first.equals(ode, expected, 1e-12), other.mean(squared, sde_squared_level(1.0, beta))]


def _rows(start: float, sigmas: np.ndarray, ode: np.ndarray, sde: np.ndarray, fixed: float) -> Table:
    over, names = sde / sigmas, ("sigma", "ode", "sde", "sde_low", "sde_high")
    columns = zip(sigmas, ode / sigmas, np.median(over, axis=0), over.min(axis=0), over.max(axis=0))
    return [
        {"start": start, "level": n, **dict(zip(names, map(float, row))), "sde_expected": fixed}
        for n, row in enumerate(columns, 1)
    ]


def _start_claims(
    named: str, start: float, block: MismatchTrajectory, sigmas: np.ndarray, ode: np.ndarray, sde: np.ndarray
) -> list[Claim]:
    """named: the start in words. ode: R (L,); sde: R (draws, L)."""
    beta = (sigmas[:-1] ** 2 - sigmas[1:] ** 2) / ode[:-1] ** 2
    # one step at a time: where the ODE overshoots, rounding grows by 2γ+1 a step
    recursion = Statement(
        f"Every ODE step of the schedule scales the actual noise by |1 − β/2| ({named})",
        "R_{n+1}/R_n = |1 − β_n/2|, β_n = (σ_n² − σ_{n+1}²)/R_n²", CHECKED,
        f"{len(beta)} steps, d = {block.dimension}; R/σ = {ode[-1] / sigmas[-1]:.4g} at the end",
    ).equals(ode[1:] / ode[:-1], np.abs(1 - beta / 2), 1e-12, "float64 rounding of one step")  # fmt: skip
    overshoot = Statement(
        f"The ODE overshoots when it starts with too little noise ({named.removeprefix('start ')})",
        "some β_n > 4; then R_{n+1} > R_n although σ_{n+1} < σ_n", CHECKED,
        f"{(ode[1:] > ode[:-1]).sum()} of {len(beta)} steps raise R; largest β = {beta.max():.3g}",
    ).holds(not (beta > 4).any(), "counts 1 where no β exceeds 4")  # fmt: skip
    doubt = 4 / math.sqrt(block.dimension)  # R/σ of one noise vector varies by 1/√(2d): near 1 chance decides
    low, high = start < ode_fixed_points(block.ratio)[0] - doubt, start > 1 + doubt
    returns = [overshoot, _return_claim(named, block, sigmas, sde)] if low else []
    return [recursion, *returns, *([_stall_claim(named, start, block, sigmas, sde[:, -1])] if high else [])]


def _return_claim(named: str, block: MismatchTrajectory, sigmas: np.ndarray, sde: np.ndarray) -> Claim:
    tail = (sde[:, -len(sigmas) // 4 :] / sigmas[-len(sigmas) // 4 :]) ** 2
    reason = "four standard errors; E[1/R²] exceeds 1/E[R²] by a part of order 1/d"
    return Statement(
        f"The SDE corrects itself: R/σ settles at its stable fixed point ({named})",
        "R/σ → √((1 − √(1−4δ))/2), δ = 1 − (σ_{n+1}/σ_n)²", f"{CHECKED}; fixed point [ours]",
        f"{len(sde)} trajectories, the last quarter of {block.levels} levels, d = {block.dimension}",
    ).mean(np.sqrt(tail.mean(axis=1)), sde_fixed_point(block.ratio), 1 / block.dimension, reason)  # fmt: skip


def _stall_claim(named: str, start: float, block: MismatchTrajectory, sigmas: np.ndarray, last: np.ndarray) -> Claim:
    squared = (start * sigmas[0]) ** 2
    for drop in sigmas[:-1] ** 2 - sigmas[1:] ** 2:
        squared = sde_squared_level(math.sqrt(squared), drop / squared)
    return Statement(
        f"Too much noise stays: neither sampler removes it ({named})",
        "R_{n+1}² = R_n² − Δ_n + Δ_n²/R_n², so that R² − σ² never falls; Δ_n = σ_n² − σ_{n+1}²",
        f"{CHECKED}; METHODS §4 (R stalls above σ)",
        f"R² at σ = {sigmas[-1]:g} over {len(last)} SDE trajectories, d = {block.dimension}",
    ).mean(last**2, squared)  # fmt: skip
