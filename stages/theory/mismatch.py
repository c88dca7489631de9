"""Noise-level mismatch: what one step does to the actual noise of a score that does not know its level (METHODS §3).

R = ‖x − x_i‖/√d is the actual noise level near one training image, where the score is −(x − x_i)/R². A schedule
step from σ_n to σ_{n+1} has β = (σ_n² − σ_{n+1}²)/R². float64 numpy.
"""

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

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
