"""Two-point expansion: how one step of the empirical score pulls a point and its mirror point apart (METHODS §2).

Two centres x_0, x_1 at distance L; a point x at r_1 from x_1 and r_0 = C r_1 from x_0; x' its mirror image in the
perpendicular bisector. One step x⁺ = x + η σ*² s(x); γ_ex = ‖x'⁺ − x⁺‖ / ‖x' − x‖. float64 numpy.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from stages.diffusion.expansion import Pair, factor_conditioning, factor_unconditioning, place, point_exists
from stages.errors import InputError
from stages.theory.claims import Claim, Findings, ImageBlock


class Expansion(ImageBlock):
    """The two-point expansion factor (METHODS §2)."""

    TITLE: ClassVar[str] = "Two-point expansion: how a step pulls neighbours apart"

    pairs: int = Field(ge=1, description="mirrored pairs of points per noise level")
    sigmas: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="noise levels: the point is r_1 = σ√d from the nearer image"
    )
    temperatures: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        min_length=1, description="conditioning and T = ∞ are always added"
    )
    eta: float = Field(gt=0, le=1, description="step size")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See verify_expansion."""
        if images is None:
            raise ValueError("expansion needs images")
        return verify_expansion(self, seed, images)


def step_conditioning(point: np.ndarray, centres: np.ndarray, sigma: float, eta: float) -> np.ndarray:
    """x + ησ² s(x; σ) with the empirical score of METHODS §1.1 over `centres` (M, d)."""
    squared = ((point - centres) ** 2).sum(axis=1)
    weights = _softmax(-squared / (2 * sigma**2))
    return point - eta * weights @ (point - centres)


def step_unconditioning(point: np.ndarray, centres: np.ndarray, temperature: float, eta: float) -> np.ndarray:
    """x + ησ*² s(x) with the score of METHODS §1.4–1.5 over `centres` (M, d), σ*² = min_i r_i²/(d−2)."""
    power = len(point) - 2
    squared = ((point - centres) ** 2).sum(axis=1)
    weights = _softmax(-power / 2 * np.log(squared) / temperature)
    precision = power / squared
    return point - eta * (weights * precision / precision.max()) @ (point - centres)


def _softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def draw_pairs(flat: np.ndarray, pairs: int, sigma: float, seed: int) -> Iterator[Pair]:
    """`pairs` pairs of points at noise level sigma and C = 1 + 1/√d, each around two random images of `flat`,
    float64 (M, d).

    Images between which no such point lies (r_1 = σ√d below half their distance, or equal ones) are passed over.
    Raises InputError where nearly all are.
    """
    dimension = flat.shape[1]
    generator = np.random.default_rng([seed, dimension])
    ratio, found = 1 + 1 / math.sqrt(dimension), 0
    for _ in range(100 * pairs):
        centres = flat[generator.choice(len(flat), 2, replace=False)]
        gap = float(np.linalg.norm(centres[1] - centres[0]))
        if gap > 0 and point_exists(sigma * math.sqrt(dimension) / gap, ratio):
            yield place(centres, sigma * math.sqrt(dimension) / gap, ratio, generator.standard_normal(dimension))
            found += 1
            if found == pairs:
                return
    raise InputError(
        f"verify.blocks.expansion.sigmas: hardly any two images have a point at noise {sigma:g} between: raise it"
    )


def verify_expansion(block: Expansion, seed: int, images: np.ndarray) -> Findings:
    """Closed form against the exact step: conditioning, and unconditioning at every temperature and ∞."""
    flat = images.reshape(len(images), -1) / 255.0
    settings: list[float | None] = [None, *sorted(block.temperatures), math.inf]
    closed, exact = np.empty((2, len(settings), len(block.sigmas), block.pairs))
    for j, sigma in enumerate(block.sigmas):
        for k, pair in enumerate(draw_pairs(flat, block.pairs, sigma, seed)):
            for i, temperature in enumerate(settings):
                closed[i, j, k] = _closed_form(pair, flat.shape[1], block.eta, temperature)
                exact[i, j, k] = _exact(pair, block.eta, temperature)
    claims = [_claim(t, flat.shape[1], block.eta, closed[i].ravel(), exact[i].ravel()) for i, t in enumerate(settings)]
    claims.append(_order_claim([float(values.mean()) for values in exact], settings, flat.shape[1]))
    table = [row for i, t in enumerate(settings) for row in _rows(t, block.sigmas, closed[i], exact[i])]
    return Findings(claims, {"expansion": table})


def _stretch(pair: Pair) -> float:
    """L/‖x'−x‖ with ‖x'−x‖ = (C²−1) r_1²/L."""
    return pair.gap**2 / ((pair.ratio**2 - 1) * pair.radius**2)


def _closed_form(pair: Pair, dimension: int, eta: float, temperature: float | None) -> float:
    if temperature is None:
        return factor_conditioning(dimension, pair.ratio, eta, _stretch(pair))
    return factor_unconditioning(dimension, pair.ratio, eta, _stretch(pair), temperature)


def _exact(pair: Pair, eta: float, temperature: float | None) -> float:
    def step(point: np.ndarray) -> np.ndarray:
        if temperature is None:
            return step_conditioning(point, pair.centres, pair.radius / math.sqrt(len(point)), eta)
        return step_unconditioning(point, pair.centres, temperature, eta)

    after = np.linalg.norm(step(pair.mirror) - step(pair.point))
    return float(after / np.linalg.norm(pair.mirror - pair.point))


def _label(temperature: float | None) -> str:
    if temperature is None:
        return "conditioning"
    return f"unconditioning, T = {'∞' if math.isinf(temperature) else f'{temperature:g}'}"


def _claim(temperature: float | None, dimension: int, eta: float, closed: np.ndarray, exact: np.ndarray) -> Claim:
    formula = (
        "|(1−η) + η (a−1)/(a+1) L/‖x'−x‖|, a = exp(d(C²−1)/2)"
        if temperature is None
        else "|1 − η(a+C⁻²)/(a+1) + η (a−C⁻²)/(a+1) L/‖x'−x‖|, a = C^{(d−2)/T}"
    )
    return Claim(
        claim=f"Two-point expansion factor, {_label(temperature)}",
        formula=f"γ_ex = {formula}",
        source="METHODS §2 [P]",
        computed=f"exact step on {len(closed)} mirrored pairs, d = {dimension}, C = 1 + 1/√d, η = {eta:g}",
        expected=float(closed.mean()),
        tolerance=1e-9 * max(1.0, float(closed.max())),
        reason="float64 rounding of distances, magnified by the factor itself",
        measured=float(exact.mean()),
        uncertainty=None,
        deviation=float(np.abs(exact - closed).max()),
    )


def _order_claim(means: list[float], settings: Sequence[float | None], dimension: int) -> Claim:
    rises = sum(later > earlier * (1 + 1e-9) for earlier, later in zip(means, means[1:]))
    order = " ≥ ".join(f"{mean:.3g}" for mean in means)
    return Claim(
        claim="The hotter the weights, the less a step pulls neighbouring points apart",
        formula="γ_ex(conditioning) ≥ γ_ex(T_1) ≥ γ_ex(T_2) ≥ … ≥ γ_ex(∞)",
        source="METHODS §2 [P]",
        computed=f"mean factors {order} ({', '.join(_label(t) for t in settings)}), d = {dimension}",
        expected=0.0,
        tolerance=0.0,
        reason="an order holds or does not; the number counts its violations",
        measured=float(rises),
    )


def _rows(
    temperature: float | None, sigmas: Sequence[float], closed: np.ndarray, exact: np.ndarray
) -> list[dict[str, Any]]:
    """One row per level; closed, exact: (levels, pairs)."""
    return [
        {
            "score": _label(temperature),
            "sigma": sigma,
            "closed_form": float(closed[j].mean()),
            "exact_step": float(exact[j].mean()),
            "median": float(np.median(exact[j])),
            "low": float(np.quantile(exact[j], 0.1)),
            "high": float(np.quantile(exact[j], 0.9)),
            "deviation": float(np.abs(closed[j] - exact[j]).max()),
        }
        for j, sigma in enumerate(sigmas)
    ]
