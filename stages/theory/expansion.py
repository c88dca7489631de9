"""Two-point expansion: how one step of the pipeline's score pulls a point and its mirror point apart (METHODS §2).

Two centres x_0, x_1 at distance L; a point x at r_1 from x_1 and r_0 = C r_1 from x_0; x' its mirror image in the
perpendicular bisector. One step x⁺ = x + η σ*² s(x); γ_ex = ‖x'⁺ − x⁺‖ / ‖x' − x‖.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.diffusion.expansion import Pair, factor_conditioning, factor_unconditioning, place, point_exists
from stages.errors import InputError
from stages.theory import product
from stages.theory.claims import ORDER, Claim, Findings, ImageBlock, Positive, Statement, Table
from stages.theory.product import Form


class Expansion(ImageBlock):
    """The two-point expansion factor (METHODS §2)."""

    TITLE: ClassVar[str] = "Two-point expansion: how a step pulls neighbours apart"

    pairs: int = Field(ge=1, description="mirrored pairs of points per noise level")
    sigmas: list[Positive] = Field(
        min_length=1, description="noise levels: the point is r_1 = σ√d from the nearer image"
    )
    temperatures: list[Positive] = Field(min_length=1, description="conditioning and T = ∞ are always added")
    eta: float = Field(gt=0, le=1, description="step size")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Closed form against a step of the score: conditioning, and unconditioning at every temperature and ∞."""
        flat = images.reshape(len(images), -1) / 255.0
        forms: list[Form] = ["conditioning", *sorted(self.temperatures), "infinity"]
        closed, exact = np.empty((2, len(forms), len(self.sigmas), self.pairs))
        for j, sigma in enumerate(self.sigmas):
            for k, pair in enumerate(draw_pairs(flat, self.pairs, sigma, seed)):
                closed[:, j, k] = [closed_form(pair, self.eta, form) for form in forms]
                exact[:, j, k] = exact_factors(pair, self.eta, forms)
        dimension = flat.shape[1]
        claims = [factor_claim(form, dimension, self.eta, c, e) for form, c, e in zip(forms, closed, exact)]
        claims.append(_order_claim(exact.mean(axis=(1, 2)), forms, dimension))
        rows = [row for form, c, e in zip(forms, closed, exact) for row in _rows(form, self.sigmas, c, e)]
        return Findings(claims, {"expansion": rows})


def draw_pairs(flat: np.ndarray, pairs: int, sigma: float, seed: int) -> Iterator[Pair]:
    """Yield `pairs` pairs of points at noise level sigma and C = 1 + 1/√d, each around two random images of `flat`,
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


def closed_form(pair: Pair, eta: float, form: Form) -> float:
    """γ_ex of METHODS §2."""
    dimension = len(pair.point)
    if form == "conditioning":
        return factor_conditioning(dimension, pair.ratio, eta, pair.stretch)
    return factor_unconditioning(dimension, pair.ratio, eta, pair.stretch, product.temperature(form))


def exact_factors(pair: Pair, eta: float, forms: list[Form]) -> list[float]:
    """γ_ex of one step x + ησ*² s(x) of the pipeline's scores over the pair's two centres; σ*² is r_1²/d with
    conditioning and r_1²/(d−2) without."""
    points = np.stack([pair.point, pair.mirror])
    heats = [product.temperature(form) for form in forms if form != "conditioning"]
    variance, shells = pair.radius**2 / points.shape[1], pair.radius**2 / (points.shape[1] - 2)
    known = points + eta * variance * product.empirical(pair.centres, "conditioning")(points, math.sqrt(variance))
    blind = np.tile(points, (len(heats), 1))
    blind += eta * shells * product.unconditioning(pair.centres, np.repeat(heats, 2))(blind)
    after = iter(blind.reshape(-1, 2, points.shape[1]))
    ends = np.stack([known if form == "conditioning" else next(after) for form in forms])
    return list(np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1) / np.linalg.norm(points[1] - points[0]))


def _label(form: Form) -> str:
    return form if form == "conditioning" else f"unconditioning, {product.label(form)}"


def factor_claim(form: Form, dimension: int, eta: float, closed: np.ndarray, exact: np.ndarray) -> Claim:
    """The closed form against the exact factors, arrays of one shape."""
    formula = (
        "|(1−η) + η (a−1)/(a+1) L/‖x'−x‖|, a = exp(d(C²−1)/2)"
        if form == "conditioning"
        else "|1 − η(a+C⁻²)/(a+1) + η (a−C⁻²)/(a+1) L/‖x'−x‖|, a = C^{(d−2)/T}"
    )
    reason = "float64 rounding of distances, magnified by the factor itself"
    return Statement(
        f"Two-point expansion factor, {_label(form)}", f"γ_ex = {formula}", "METHODS §2 [P]",
        f"step of the score on {closed.size} mirrored pairs, d = {dimension}, C = 1 + 1/√d, η = {eta:g}",
    ).equals(exact, closed, 1e-9 * max(1.0, closed.max()), reason)  # fmt: skip


def _order_claim(means: np.ndarray, forms: list[Form], dimension: int) -> Claim:
    order = " ≥ ".join(f"{mean:.3g}" for mean in means)
    return Statement(
        "The hotter the weights, the less a step pulls neighbouring points apart",
        "γ_ex(conditioning) ≥ γ_ex(T_1) ≥ γ_ex(T_2) ≥ … ≥ γ_ex(∞)", "METHODS §2 [P]",
        f"mean factors {order} ({', '.join(_label(form) for form in forms)}), d = {dimension}",
    ).holds((means[1:] > means[:-1] * (1 + 1e-9)).sum(), ORDER)  # fmt: skip


def _rows(form: Form, sigmas: list[float], closed: np.ndarray, exact: np.ndarray) -> Table:
    """One row per level; closed, exact: (levels, pairs)."""
    return [
        {
            "score": _label(form),
            "sigma": sigma,
            "closed_form": float(c.mean()),
            "exact_step": float(e.mean()),
            "median": float(np.median(e)),
            "low": float(np.quantile(e, 0.1)),
            "high": float(np.quantile(e, 0.9)),
            "deviation": float(np.abs(c - e).max()),
        }
        for sigma, c, e in zip(sigmas, closed, exact)
    ]
