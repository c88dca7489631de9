"""Collapse: from which step on a sampler of the empirical score follows a single training image (METHODS §3).

Trajectories start at x = σ_1 z and run down a geometric schedule with the pipeline's samplers: Euler on the ODE
(`euler`) for conditioning, and `actual_noise` with step 1 − σ_{n+1}/σ_n for a score that does not know the level. Both
are x ← x + (1 − σ_{n+1}/σ_n) σ² s(x), with the scheduled level or the actual noise σ̂(x) = min_i r_i/√d, and both are
the exact step of the probability-flow ODE towards one image. A trajectory has collapsed at the first step at which
max_i w_i exceeds a cut.
"""

import dataclasses
import math
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from stages.errors import InputError
from stages.theory import product
from stages.theory.claims import ORDER, Claim, Findings, ImageBlock, Picture, Schedule, Statement, Table, mean_error
from stages.theory.product import Form


class Collapse(ImageBlock, Schedule):
    """When trajectories of the empirical score collapse onto one training image (METHODS §3)."""

    TITLE: ClassVar[str] = "Collapse time: when a trajectory settles on one training image"
    CUT: ClassVar[str | None] = "scores"

    trajectories: int = Field(ge=2, description="trajectories per score, from the same starting noise")
    levels: int = Field(ge=3, description="noise levels, geometric")
    scores: list[Form] = Field(min_length=1, description="conditioning, or temperatures of unconditioning")
    cuts: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1, description="of max_i w_i")
    shown: int = Field(ge=2, description="states of the first trajectory in the picture")
    cifar10: bool = Field(description="10,000 CIFAR-10 images: compare with the published numbers")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """The trajectories of this piece's scores."""
        if np.prod(images.shape[1:]) < 3:
            raise InputError(f"verify.collapse needs images of at least 3 values, these are {images.shape[1:]}")
        tables: dict[str, Table] = {"collapse": [], "collapse_steps": []}
        pictures = {}
        for form in self.scores:
            found = run(images, form, self, seed)
            tables["collapse"] += _curve(found, form)
            tables["collapse_steps"] += _steps(found, form, self.cuts)
            name = form if isinstance(form, str) else f"t{form:g}"
            pictures[f"collapse_{name}"] = Picture(_caption(found, form), found.states[None])
        return Findings([], tables, pictures)

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """Return the claims that compare the scores."""
        means = {cut: _mean_steps(tables["collapse_steps"], cut) for cut in self.cuts}
        claims = [_order_claim(own, cut, self.levels) for cut, own in means.items()]
        claims += [_same_claim(own, cut, self.trajectories) for cut, own in means.items()]
        if self.cifar10:
            claims += [claim for cut, own in means.items() for claim in _cifar10_claims(own, cut, self.trajectories)]
        return [claim for claim in claims if claim]


@dataclasses.dataclass(frozen=True)
class Trajectories:
    """What one score does from common starts.

    Attributes:
        weight: max_i w_i before each step, float64 (B, N). actual: min_i r_i/√d, (B, N). sigmas: the schedule (N,).
        shown: the steps (from 1) of the states; states: the first trajectory there, uint8 (k, H, W, C), brightness
            scaled with the noise.
    """

    weight: np.ndarray
    actual: np.ndarray
    sigmas: np.ndarray
    shown: np.ndarray
    states: np.ndarray


def run(images: np.ndarray, form: Form, block: Collapse, seed: int) -> Trajectories:
    """Sample with the empirical score of `images` uint8 (M, H, W, C) and keep the weights before each step."""
    centres = images.reshape(len(images), -1) / 255.0
    sigmas = np.geomspace(block.largest, block.smallest, block.levels)
    start = np.random.default_rng([seed, 4]).standard_normal((block.trajectories, centres.shape[1]))
    states = [sigmas[0] * start, *(x for _, x in zip(sigmas[1:], _path(centres, form, start, sigmas)))]
    squared = [product.squared_distances(x, centres) for x in states]
    actual = np.sqrt([own.min(axis=1) / centres.shape[1] for own in squared])
    weights = (product.weigh(own, centres.shape[1], form, sigma)[0] for own, sigma in zip(squared, sigmas))
    shown = np.unique(np.linspace(0, len(sigmas) - 1, block.shown).round().astype(int))
    visible = np.stack([_visible(states[n][0], actual[n, 0], images.shape[1:]) for n in shown])
    return Trajectories(np.stack([own.max(axis=1) for own in weights], 1), actual.T, sigmas, shown + 1, visible)


def _path(centres: np.ndarray, form: Form, start: np.ndarray, sigmas: np.ndarray):
    """The states (B, d) after every step."""
    score = product.empirical(centres, form)
    if form == "conditioning":
        return product.path("euler", score, lambda _: start, sigmas)

    def actual(x: np.ndarray) -> np.ndarray:
        return np.sqrt(product.squared_distances(x, centres).min(axis=1) / x.shape[1])

    step = float(1 - sigmas[1] / sigmas[0])
    return product.path("actual_noise", score, lambda _: start, sigmas, step=step, exact_below=math.inf, level=actual)


def _visible(x: np.ndarray, level: float, shape: tuple[int, ...]) -> np.ndarray:
    """A state as uint8: as it is while its noise is small, else with its contrast lowered so that ±3σ̂ fits."""
    return (255 * np.clip(0.5 + (x - 0.5) / max(1.0, 6 * level), 0, 1)).round().astype(np.uint8).reshape(shape)


def first_above(weight: np.ndarray, cut: float) -> np.ndarray:
    """The first step, counted from 1, at which weight (B, N) exceeds `cut`; 0 where it never does. int64 (B,)."""
    above = weight > cut
    return np.where(above.any(axis=1), above.argmax(axis=1) + 1, 0)


def _curve(found: Trajectories, form: Form) -> Table:
    quantiles = np.quantile(found.weight, [0.5, 0.1, 0.9], axis=0)
    columns = zip(found.sigmas, *quantiles, np.median(found.actual, axis=0))
    about, names = {"score": product.label(form)}, ("sigma", "weight", "low", "high", "actual")
    return [{**about, "step": n, **dict(zip(names, map(float, row)))} for n, row in enumerate(columns, 1)]


def _steps(found: Trajectories, form: Form, cuts: list[float]) -> Table:
    # the score's own steepness orders the rows: conditioning first, then by temperature
    order = -1.0 if form == "conditioning" else 1 - product.inverse_temperature(form)
    about = {"score": product.label(form), "order": order, "levels": len(found.sigmas)}
    return [
        {**about, "cut": cut, "trajectory": i, "step": int(step)}
        for cut in cuts
        for i, step in enumerate(first_above(found.weight, cut))
    ]


def _caption(found: Trajectories, form: Form) -> str:
    marks = ", ".join(f"{step} ({found.weight[0, step - 1]:.2g})" for step in found.shown)
    name = product.label(form)
    return f"{name}: one trajectory at the steps (and max_i w_i): {marks}. Contrast is lowered while σ̂ > 1/6."


@dataclasses.dataclass(frozen=True)
class _Mean:
    """Mean step of collapse, its standard error, and how many trajectories never collapsed.

    Those that never did count as one step after the last.
    """

    step: float
    error: float
    never: int


def _mean_steps(rows: Table, cut: float) -> dict[str, _Mean]:
    """score -> its mean step, conditioning first, then by temperature."""
    found = {}
    for name in dict.fromkeys(row["score"] for row in sorted(rows, key=lambda row: row["order"])):
        own = [row for row in rows if row["score"] == name and row["cut"] == cut]
        steps = np.array([row["step"] or row["levels"] + 1 for row in own], float)
        found[name] = _Mean(float(steps.mean()), mean_error(steps), sum(row["step"] == 0 for row in own))
    return found


def _summary(means: dict[str, _Mean]) -> str:
    return "; ".join(
        f"{name} {mean.step:.1f}" + (f" ({mean.never} never)" if mean.never else "") for name, mean in means.items()
    )


def _order_claim(means: dict[str, _Mean], cut: float, levels: int) -> Claim | None:
    values = [mean.step for name, mean in means.items() if name != "conditioning"]
    if len(values) < 2:
        return None
    return Statement(
        f"The hotter the weights, the later a trajectory collapses (cut {cut:g})",
        "first n with max_i w_i > cut, at T_1 < T_2 < …", "METHODS §3 [P]",
        f"mean steps: {_summary(means)}; of {levels} steps",
    ).holds(sum(later < earlier for earlier, later in zip(values, values[1:])), ORDER)  # fmt: skip


def _same_claim(means: dict[str, _Mean], cut: float, trajectories: int) -> Claim | None:
    if not {"conditioning", "T = 1"} <= set(means):
        return None
    known, blind = means["conditioning"], means["T = 1"]
    error = math.hypot(known.error, blind.error)
    return Statement(
        f"Unconditioning collapses when conditioning does (cut {cut:g})",
        "mean first step with max_i w_i > cut: unconditioning − conditioning", "METHODS §3 [chk]",
        f"{trajectories} trajectories: {_summary(means)}",
    ).equals(blind.step - known.step, 0.0, 1.0, '"within a step"', error=error)  # fmt: skip


def _cifar10_claims(means: dict[str, _Mean], cut: float, trajectories: int) -> list[Claim]:
    """The published step of conditioning, and the ranges found before (METHODS §3)."""
    published = (
        ("conditioning", 35.0, 1.0, "the paper states one step and no cut", "[P]"),
        ("conditioning", 43.0, 5.0, "38 to 48, depending on the cut", "[chk]"),
        ("T = 100", 91.0, 3.0, "88 to 94 was found before", "[chk]"),
    )
    steps = [
        Statement(
            f"CIFAR-10: {name} collapses at step {expected:g} ± {tolerance:g} (cut {cut:g})",
            "mean first n with max_i w_i > cut, 116 levels from 50 to 0.01", f"METHODS §3 {source}",
            f"10,000 images; {means[name].never} trajectories never",
        ).equals(means[name].step, expected, tolerance, reason, error=means[name].error)
        for name, expected, tolerance, reason, source in published if name in means
    ]  # fmt: skip
    never = [
        Statement(
            f"CIFAR-10: {name} never collapses (cut {cut:g})", "trajectories with max_i w_i > cut at some step",
            "METHODS §3 [chk]", f"{trajectories} trajectories, 10,000 images",
        ).holds(trajectories - means[name].never, "never")
        for name in ("T = 500", "T = 1000") if name in means
    ]  # fmt: skip
    return steps + never
