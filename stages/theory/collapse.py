"""Collapse: from which step on a sampler of the empirical score follows a single training image (METHODS §3).

Trajectories start at x = σ_1 z and take x ← x + (1 − σ_{n+1}/σ_n) σ² s(x) down a geometric schedule; σ is the scheduled
level for conditioning and the actual noise σ̂(x) = min_i r_i/√d for a score that does not know the level. Both are the
exact step of the probability-flow ODE towards one image. A trajectory has collapsed at the first step at which
max_i w_i exceeds a cut. float64 numpy.
"""

import dataclasses
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.errors import InputError
from stages.theory.claims import Claim, Findings, ImageBlock, Picture, Table
from stages.theory.weights import Score, inverse_temperature, label, squared_distances, weigh


class Collapse(ImageBlock):
    """When trajectories of the empirical score collapse onto one training image (METHODS §3)."""

    TITLE: ClassVar[str] = "Collapse time: when a trajectory settles on one training image"

    trajectories: int = Field(ge=2, description="trajectories per score, from the same starting noise")
    levels: int = Field(ge=3, description="noise levels, geometric")
    largest: float = Field(gt=0, description="first noise level, in pixel units of [0,1]")
    smallest: float = Field(gt=0, description="last noise level")
    scores: list[Score] = Field(min_length=1, description="conditioning, or temperatures of unconditioning")
    cuts: list[Annotated[float, Field(gt=0, lt=1)]] = Field(min_length=1, description="of max_i w_i")
    shown: int = Field(ge=2, description="states of the first trajectory in the picture")
    cifar10: bool = Field(description="10,000 CIFAR-10 images: compare with the published numbers")

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        return self

    def pieces(self) -> list[Self]:
        """One per score."""
        return [self.model_copy(update={"scores": [score]}) for score in self.scores]

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """The trajectories of this piece's scores."""
        if images is None:
            raise ValueError("collapse needs images")
        if np.prod(images.shape[1:]) < 3:
            raise InputError(f"verify.collapse needs images of at least 3 values, these are {images.shape[1:]}")
        tables: dict[str, Table] = {"collapse": [], "collapse_steps": []}
        pictures = {}
        for score in self.scores:
            found = run(images, score, self, seed)
            tables["collapse"] += _curve(found, score)
            tables["collapse_steps"] += _steps(found, score, self.cuts)
            name = score if isinstance(score, str) else f"t{score:g}"
            pictures[f"collapse_{name}"] = Picture(_caption(found, score), found.states[None])
        return Findings([], tables, pictures)

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """Claims that compare the scores."""
        rows = tables["collapse_steps"]
        claims = [_order_claim(rows, cut) for cut in self.cuts]
        claims += [_same_claim(rows, cut) for cut in self.cuts]
        return [*(claim for claim in claims if claim), *(_cifar10_claims(rows, self) if self.cifar10 else [])]


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


def schedule(largest: float, smallest: float, levels: int) -> np.ndarray:
    """Geometric noise levels from `largest` down to `smallest`, float64 (levels,)."""
    return np.geomspace(largest, smallest, levels)


def run(images: np.ndarray, score: Score, block: Collapse, seed: int) -> Trajectories:
    """Sample with the empirical score of `images` (M, H, W, C) uint8 and watch its weights."""
    centres = images.reshape(len(images), -1) / 255.0
    dimension = centres.shape[1]
    sigmas = schedule(block.largest, block.smallest, block.levels)
    x = sigmas[0] * np.random.default_rng([seed, 4]).standard_normal((block.trajectories, dimension))
    weight, actual = np.empty((2, len(x), len(sigmas)))
    shown = np.unique(np.linspace(0, len(sigmas) - 1, block.shown).round().astype(int))
    states = []
    for step, sigma in enumerate(sigmas):
        squared = squared_distances(x, centres)
        level = np.sqrt(squared.min(axis=1, keepdims=True) / dimension)
        weights, precision = weigh(squared, dimension, score, sigma)
        weight[:, step], actual[:, step] = weights.max(axis=1), level[:, 0]
        if step in shown:
            states.append(_visible(x[0], level[0, 0], images.shape[1:]))
        if step + 1 < len(sigmas):
            used = sigma if score == "conditioning" else level
            pull = weights * precision
            drift = pull @ centres - pull.sum(axis=1, keepdims=True) * x
            x = x + (1 - sigmas[step + 1] / sigma) * used**2 * drift
    return Trajectories(weight, actual, sigmas, shown + 1, np.stack(states))


def _visible(x: np.ndarray, level: float, shape: tuple[int, ...]) -> np.ndarray:
    """A state as uint8: as it is while its noise is small, else with its contrast lowered so that ±3σ̂ fits."""
    return (255 * np.clip(0.5 + (x - 0.5) / max(1.0, 6 * level), 0, 1)).round().astype(np.uint8).reshape(shape)


def first_above(weight: np.ndarray, cut: float) -> np.ndarray:
    """The first step, counted from 1, at which weight (B, N) exceeds `cut`; 0 where it never does. int64 (B,)."""
    above = weight > cut
    return np.where(above.any(axis=1), above.argmax(axis=1) + 1, 0)


def _curve(found: Trajectories, score: Score) -> Table:
    return [
        {
            "score": label(score),
            "step": step + 1,
            "sigma": float(found.sigmas[step]),
            "weight": float(np.median(found.weight[:, step])),
            "low": float(np.quantile(found.weight[:, step], 0.1)),
            "high": float(np.quantile(found.weight[:, step], 0.9)),
            "actual": float(np.median(found.actual[:, step])),
        }
        for step in range(len(found.sigmas))
    ]


def _steps(found: Trajectories, score: Score, cuts: list[float]) -> Table:
    rows: Table = []
    for cut in cuts:
        steps = first_above(found.weight, cut)
        # the score's own steepness orders the rows: conditioning first, then by temperature
        order = -1.0 if score == "conditioning" else 1 - inverse_temperature(score)
        rows += [
            {
                "score": label(score),
                "order": order,
                "cut": cut,
                "trajectory": i,
                "step": int(step),
                "levels": len(found.sigmas),
            }
            for i, step in enumerate(steps)
        ]
    return rows


def _caption(found: Trajectories, score: Score) -> str:
    marks = ", ".join(f"{step} ({found.weight[0, step - 1]:.2g})" for step in found.shown)
    return f"{label(score)}: one trajectory at the steps (and max_i w_i): {marks}. Contrast is lowered while σ̂ > 1/6."


def _mean_steps(rows: Table, cut: float) -> dict[str, tuple[float, float, int]]:
    """score -> (mean step, its standard error, how many never collapsed; those count as one step after the last)."""
    found = {}
    for name in dict.fromkeys(row["score"] for row in sorted(rows, key=lambda row: row["order"])):
        own = [row for row in rows if row["score"] == name and row["cut"] == cut]
        steps = np.array([row["step"] or row["levels"] + 1 for row in own], float)
        never = sum(row["step"] == 0 for row in own)
        found[name] = (float(steps.mean()), float(steps.std(ddof=1)) / len(steps) ** 0.5, never)
    return found


def _summary(means: dict[str, tuple[float, float, int]]) -> str:
    return "; ".join(
        f"{name} {mean:.1f}" + (f" ({never} never)" if never else "") for name, (mean, _, never) in means.items()
    )


def _order_claim(rows: Table, cut: float) -> Claim | None:
    means = {name: value for name, value in _mean_steps(rows, cut).items() if name != "conditioning"}
    if len(means) < 2:
        return None
    values = [value[0] for value in means.values()]
    return Claim(
        claim=f"The hotter the weights, the later a trajectory collapses (cut {cut:g})",
        formula="first n with max_i w_i > cut, at T_1 < T_2 < …",
        source="METHODS §3 [P]",
        computed=f"mean steps: {_summary(means)}; of {int(rows[0]['levels'])} steps",
        expected=0.0,
        tolerance=0.0,
        reason="an order holds or does not; the number counts its violations",
        measured=float(sum(later < earlier for earlier, later in zip(values, values[1:]))),
    )


def _same_claim(rows: Table, cut: float) -> Claim | None:
    means = _mean_steps(rows, cut)
    if not {"conditioning", "T = 1"} <= set(means):
        return None
    (cond, error, _), (uncond, other, _) = means["conditioning"], means["T = 1"]
    return Claim(
        claim=f"Unconditioning collapses when conditioning does (cut {cut:g})",
        formula="mean first step with max_i w_i > cut: unconditioning − conditioning",
        source="METHODS §3 [chk]",
        computed=f"{len({row['trajectory'] for row in rows})} trajectories: {_summary(means)}",
        expected=0.0,
        tolerance=1.0,
        reason='"within a step"',
        measured=uncond - cond,
        uncertainty=float(np.hypot(error, other)),
    )


def _cifar10_claims(rows: Table, block: Collapse) -> list[Claim]:
    """The published step of conditioning, and the ranges found before (METHODS §3)."""
    claims = []
    for cut in block.cuts:
        means = _mean_steps(rows, cut)
        if "conditioning" in means:
            claims += [
                _step_claim(means, "conditioning", cut, 35.0, 1.0, "the paper states one step and no cut", "[P]"),
                _step_claim(means, "conditioning", cut, 43.0, 5.0, "38 to 48, depending on the cut", "[chk]"),
            ]
        if "T = 100" in means:
            claims.append(_step_claim(means, "T = 100", cut, 91.0, 3.0, "88 to 94 was found before", "[chk]"))
        claims += [
            _never_claim(means, name, cut, block.trajectories) for name in ("T = 500", "T = 1000") if name in means
        ]
    return claims


def _step_claim(
    means: dict[str, tuple[float, float, int]], name: str, cut: float, expected: float, tolerance: float, reason: str,
    source: str,
) -> Claim:  # fmt: skip
    mean, error, never = means[name]
    return Claim(
        claim=f"CIFAR-10: {name} collapses at step {expected:g} ± {tolerance:g} (cut {cut:g})",
        formula="mean first n with max_i w_i > cut, 116 levels from 50 to 0.01",
        source=f"METHODS §3 {source}",
        computed=f"10,000 images; {never} trajectories never",
        expected=expected,
        tolerance=tolerance,
        reason=reason,
        measured=mean,
        uncertainty=error,
    )


def _never_claim(means: dict[str, tuple[float, float, int]], name: str, cut: float, trajectories: int) -> Claim:
    return Claim(
        claim=f"CIFAR-10: {name} never collapses (cut {cut:g})",
        formula="trajectories with max_i w_i > cut at some step",
        source="METHODS §3 [chk]",
        computed=f"{trajectories} trajectories, 10,000 images",
        expected=0.0,
        tolerance=0.0,
        reason="never",
        measured=float(trajectories - means[name][2]),
    )
