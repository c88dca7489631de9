"""Noise-level mismatch: what one step does to the actual noise of a score that does not know its level (METHODS §3).

R = ‖x − x_i‖/√d is the actual noise level near one training image, where the score is −(x − x_i)/R². A schedule
step from σ_n to σ_{n+1} has β = (σ_n² − σ_{n+1}²)/R². float64 numpy.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.theory.claims import Block, Claim, Findings
from stages.theory.shell import Dimension


class Mismatch(Block):
    """The noise-level mismatch of samplers without noise conditioning (METHODS §3)."""

    TITLE: ClassVar[str] = "Noise-level mismatch: scores that do not know their level"

    dimension: Dimension
    betas: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="(σ_n² − σ_{n+1}²)/R²"
    )
    draws: int = Field(ge=10)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_mismatch."""
        return verify_mismatch(self.dimension, self.betas, self.draws, seed)


class MismatchTrajectory(Block):
    """R/σ along a whole schedule, from a start whose actual noise is not the scheduled one (METHODS §3)."""

    TITLE: ClassVar[str] = "Noise-level mismatch along a schedule: the ODE overshoots, the SDE corrects itself"

    dimension: Dimension
    levels: int = Field(ge=10, description="noise levels, geometric")
    largest: float = Field(gt=0, description="first noise level, in pixel units of [0,1]")
    smallest: float = Field(gt=0, description="last noise level")
    starts: list[Annotated[float, Field(gt=0, lt=10)]] = Field(min_length=1, description="R/σ at the first level")
    draws: int = Field(ge=2, description="SDE trajectories per start")

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        if 4 * step_share(self.ratio) >= 1:
            raise ValueError(f"{self.levels} levels are too few: steps shrink σ by {self.ratio:.3g}, the limit is 1.15")
        return self

    @property
    def ratio(self) -> float:
        """γ = σ_n/σ_{n+1}."""
        return float((self.largest / self.smallest) ** (1 / (self.levels - 1)))

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_trajectories."""
        return verify_trajectories(self, seed)


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


def ode_step(offset: np.ndarray, beta: float) -> np.ndarray:
    """x − x_i after x += ½(σ_n² − σ_{n+1}²) s(x). offset: (B, d), x − x_i."""
    squared_level = (offset**2).mean(axis=1, keepdims=True)
    return offset + 0.5 * (beta * squared_level) * (-offset / squared_level)


def sde_step(offset: np.ndarray, beta: float, noise: np.ndarray) -> np.ndarray:
    """x − x_i after x += (σ_n² − σ_{n+1}²) s(x) + √(σ_n² − σ_{n+1}²) z. offset, noise: (B, d)."""
    squared_level = (offset**2).mean(axis=1, keepdims=True)
    drop = beta * squared_level
    return offset + drop * (-offset / squared_level) + np.sqrt(drop) * noise


def verify_mismatch(dimension: int, betas: Sequence[float], draws: int, seed: int) -> Findings:
    """Both steps at every β on `draws` points at level 1 around a training image, against the formulas."""
    generator = np.random.default_rng([seed, dimension])
    start = generator.standard_normal((draws, dimension))
    start *= math.sqrt(dimension) / np.linalg.norm(start, axis=1, keepdims=True)
    claims, table = [], []
    for beta in betas:
        ode = np.sqrt((ode_step(start, beta) ** 2).mean(axis=1))
        sde = (sde_step(start, beta, generator.standard_normal(start.shape)) ** 2).mean(axis=1)
        claims += [_ode_claim(beta, ode, dimension), _sde_claim(beta, sde, dimension)]
        row = {"beta": beta, "ode": float(ode.mean()), "sde_rms": math.sqrt(float(sde.mean()))}
        table.append({**row, "ode_formula": ode_level(1, beta), "sde_formula": math.sqrt(sde_squared_level(1, beta))})
    return Findings(claims, {"mismatch": table})


def _ode_claim(beta: float, levels: np.ndarray, dimension: int) -> Claim:
    expected = ode_level(1.0, beta)
    return Claim(
        claim=f"ODE step with β = {beta:g}: the actual noise {'grows' if expected > 1 else 'does not grow'}",
        formula="R'/R = |1 − β/2|; overshoot when β > 4",
        source="METHODS §3 [chk]",
        computed=f"one step on {len(levels)} points, d = {dimension}",
        expected=expected,
        tolerance=1e-12,
        reason="float64 rounding",
        measured=float(levels.mean()),
        deviation=float(np.abs(levels - expected).max()),
    )


def _sde_claim(beta: float, squared: np.ndarray, dimension: int) -> Claim:
    error = float(squared.std(ddof=1)) / math.sqrt(len(squared))
    return Claim(
        claim=f"SDE step with β = {beta:g}: mean squared noise",
        formula="E[R'²]/R² = 1 − β + β²",
        source="METHODS §3 [chk]",
        computed=f"one step on {len(squared)} points, d = {dimension}",
        expected=sde_squared_level(1.0, beta),
        tolerance=4 * error,
        reason="four standard errors of the mean",
        measured=float(squared.mean()),
        uncertainty=error,
    )


def verify_trajectories(block: MismatchTrajectory, seed: int) -> Findings:
    """Both samplers down the schedule from every start, in d dimensions, beside the recursion for R."""
    generator = np.random.default_rng([seed, block.dimension, 5])
    sigmas = np.geomspace(block.largest, block.smallest, block.levels)
    claims, table = [], []
    for start in block.starts:
        offset = generator.standard_normal((block.draws, block.dimension))
        offset *= start * sigmas[0] * math.sqrt(block.dimension) / np.linalg.norm(offset, axis=1, keepdims=True)
        ode, sde = _levels(offset[:1], sigmas, None), _levels(offset, sigmas, generator)
        table += [
            {
                "start": start,
                "level": n + 1,
                "sigma": float(sigma),
                "ode": float(ode[0, n] / sigma),
                "sde": float(np.median(sde[:, n]) / sigma),
                "sde_low": float(sde[:, n].min() / sigma),
                "sde_high": float(sde[:, n].max() / sigma),
                "sde_expected": sde_fixed_point(block.ratio),
            }
            for n, sigma in enumerate(sigmas)
        ]
        claims += _start_claims(start, block, sigmas, ode[0], sde)
    return Findings(claims, {"mismatch_trajectory": table})


def _levels(offset: np.ndarray, sigmas: np.ndarray, generator: np.random.Generator | None) -> np.ndarray:
    """R (B, N) along the schedule; by the ODE, or with a generator by the SDE. offset: x − x_i (B, d) at sigmas[0]."""
    found = [np.sqrt((offset**2).mean(axis=1))]
    for drop in sigmas[:-1] ** 2 - sigmas[1:] ** 2:
        beta = drop / found[-1][:, None] ** 2
        if generator is None:
            offset = ode_step(offset, beta)
        else:
            offset = sde_step(offset, beta, generator.standard_normal(offset.shape))
        found.append(np.sqrt((offset**2).mean(axis=1)))
    return np.stack(found, axis=1)


def _start_claims(
    start: float, block: MismatchTrajectory, sigmas: np.ndarray, ode: np.ndarray, sde: np.ndarray
) -> list[Claim]:
    claims = [_recursion_claim(start, block, sigmas, ode)]
    doubt = 4 / math.sqrt(block.dimension)  # R/σ of one noise vector varies by 1/√(2d): near 1 chance decides
    if start < ode_fixed_points(block.ratio)[0] - doubt:
        claims += [_overshoot_claim(start, block, sigmas, ode), _return_claim(start, block, sigmas, sde)]
    if start > 1 + doubt:
        claims.append(_stall_claim(start, block, sigmas, sde))
    return claims


def _recursion_claim(start: float, block: MismatchTrajectory, sigmas: np.ndarray, ode: np.ndarray) -> Claim:
    # one step at a time: where the ODE overshoots, rounding grows by 2γ+1 a step
    drops = sigmas[:-1] ** 2 - sigmas[1:] ** 2
    expected = np.array([ode_level(level, drop / level**2) for level, drop in zip(ode, drops)])
    return Claim(
        claim=f"Every ODE step of the schedule scales the actual noise by |1 − β/2| (start R/σ = {start:g})",
        formula="R_{n+1} = |1 − β_n/2| R_n, β_n = (σ_n² − σ_{n+1}²)/R_n²",
        source="METHODS §3 [chk]",
        computed=f"{block.levels - 1} steps, d = {block.dimension}; the last R/σ, deviation relative to R_n",
        expected=float(expected[-1] / sigmas[-1]),
        tolerance=1e-12,
        reason="float64 rounding of one step",
        measured=float(ode[-1] / sigmas[-1]),
        deviation=float((np.abs(ode[1:] - expected) / ode[:-1]).max()),
    )


def _overshoot_claim(start: float, block: MismatchTrajectory, sigmas: np.ndarray, ode: np.ndarray) -> Claim:
    beta = (sigmas[:-1] ** 2 - sigmas[1:] ** 2) / ode[:-1] ** 2
    grown = int((ode[1:] > ode[:-1]).sum())
    return Claim(
        claim=f"The ODE overshoots when it starts with too little noise (R/σ = {start:g})",
        formula="some β_n > 4; then R_{n+1} > R_n although σ_{n+1} < σ_n",
        source="METHODS §3 [chk]",
        computed=f"{grown} of {block.levels - 1} steps raise R; largest β = {beta.max():.3g}",
        expected=0.0,
        tolerance=0.0,
        reason="it overshoots or does not; the number is 0 if some β exceeds 4, else 1",
        measured=float(not (beta > 4).any()),
    )


def _return_claim(start: float, block: MismatchTrajectory, sigmas: np.ndarray, sde: np.ndarray) -> Claim:
    tail = (sde[:, -len(sigmas) // 4 :] / sigmas[-len(sigmas) // 4 :]) ** 2
    means = np.sqrt(tail.mean(axis=1))
    error = float(means.std(ddof=1)) / len(means) ** 0.5
    return Claim(
        claim=f"The SDE corrects itself: R/σ settles at its stable fixed point (start R/σ = {start:g})",
        formula="R/σ → √((1 − √(1−4δ))/2), δ = 1 − (σ_{n+1}/σ_n)²",
        source="METHODS §3 [chk]; fixed point [ours]",
        computed=f"{len(sde)} trajectories, the last quarter of {block.levels} levels, d = {block.dimension}",
        expected=sde_fixed_point(block.ratio),
        tolerance=4 * error + 1 / block.dimension,
        reason="four standard errors; E[1/R²] exceeds 1/E[R²] by a part of order 1/d",
        measured=float(means.mean()),
        uncertainty=error,
    )


def _stall_claim(start: float, block: MismatchTrajectory, sigmas: np.ndarray, sde: np.ndarray) -> Claim:
    drops = sigmas[:-1] ** 2 - sigmas[1:] ** 2
    level = start * sigmas[0]
    for drop in drops:
        level = math.sqrt(sde_squared_level(level, drop / level**2))
    squared = sde[:, -1] ** 2
    error = float(squared.std(ddof=1)) / len(squared) ** 0.5
    return Claim(
        claim=f"Too much noise stays: neither sampler removes it (start R/σ = {start:g})",
        formula="R_{n+1}² = R_n² − Δ_n + Δ_n²/R_n², so that R² − σ² never falls; Δ_n = σ_n² − σ_{n+1}²",
        source="METHODS §3 [chk]; METHODS §4 (R stalls above σ)",
        computed=f"R² at σ = {sigmas[-1]:g} over {len(sde)} SDE trajectories, d = {block.dimension}",
        expected=level**2,
        tolerance=4 * error,
        reason="four standard errors",
        measured=float(squared.mean()),
        uncertainty=error,
    )
