"""The density that the reverse SDE generates from a kernel-smoothed score, and its Kullback-Leibler divergence from the
true one, by kernel width (Gabriel et al. 2025; METHODS §8).

On a line one step of `samplers.reverse_diffusion`, x + v s(x) + √v z with v = σ² − σ'², is a Gaussian transition, so
the density of the samples is known without drawing any: it is carried from level to level on a grid by the transition's
matrix. The true density at the last level is a known mixture's, so the divergence has no error but the grid's.
Girsanov's theorem bounds it by that of the start plus ½ ∫ E_{p_t} (ŝ_h − s)² dt; steps of finite size add to it, which
is measured with the true score.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator
from scipy.stats import norm

from stages.theory import product
from stages.theory.bias_variance import Mixture, equivalent_count
from stages.theory.claims import Claim, Findings, Schedule, Statement, Table, mean_error

LINE = Mixture(
    weights=np.array([0.5, 0.3, 0.2]), means=np.array([[-0.8], [0.2], [0.9]]), variances=np.array([0.04, 0.02, 0.05])
)
GRID, REACH, SHIFTS = 201, 5.0, 16  # points of a level's grid, its half-width in standard deviations, kernel shifts
SOURCE = "METHODS §8 [C]"


class GeneratedDensity(Schedule):
    """KL(p ‖ q_h) against h, for training sets of several sizes."""

    TITLE: ClassVar[str] = "What a smoothed score generates: divergence from the truth against the kernel's width"

    levels: int = Field(ge=10, description="noise levels of the reverse SDE")
    counts: list[int] = Field(min_length=2, description="training points per set, rising")
    repeats: int = Field(ge=3, description="training sets per count")
    widths: list[float] = Field(min_length=4, description="kernel widths h, from 0, rising")

    @field_validator("widths")
    @classmethod
    def _from_zero(cls, widths: list[float]) -> list[float]:
        if widths[0] != 0 or widths != sorted(set(widths)):
            raise ValueError("the widths must rise from 0, the unsmoothed score")
        return widths

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        generator = np.random.default_rng(seed)
        sigmas = product.noise_levels(self.smallest, self.largest, self.levels)
        floor = measured(sigmas, lambda x, sigma: LINE.score(x, sigma**2))["divergence"]
        shifts, rows = normal_quantiles(SHIFTS), []
        for count in self.counts:
            scores = [product.empirical(LINE.draw(count, generator), "conditioning") for _ in range(self.repeats)]
            found = {h: [measured(sigmas, product.smoothed(own, h, shifts)) for own in scores] for h in self.widths}
            about = {"training_points": count, "floor": floor}
            rows += [{**about, "h": h, **_summary(own, found[self.widths[0]])} for h, own in found.items()]
        return Findings(claims(rows, self.repeats), {"generated_density": rows})


def normal_quantiles(count: int) -> np.ndarray:
    """Shifts ξ (count, 1) at the mid-quantiles of N(0, 1), scaled to variance 1: their mean is 0."""
    at = norm.ppf((np.arange(count) + 0.5) / count)
    return (at / np.sqrt((at**2).mean()))[:, None]


def grid(sigma: float) -> np.ndarray:
    """Points (GRID, 1) that cover the mixture at level sigma."""
    ends = LINE.means[:, 0], REACH * np.sqrt(LINE.variances + sigma**2)
    return np.linspace((ends[0] - ends[1]).min(), (ends[0] + ends[1]).max(), GRID)[:, None]


def generated(sigmas: Sequence[float], score: product.Score) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the grid (GRID, 1) of the last level, there the density (GRID,) of the reverse SDE's samples, and the
    score's mean squared error E_{p_t} (ŝ − s)² at every level (L,).

    The start is N(0, σ_max²), and the states are those before the noise is removed. Each density is normalised on its
    own grid.
    """
    x, errors = grid(sigmas[0]), []
    density = norm.pdf(x[:, 0], scale=sigmas[0])
    for sigma, following in zip(sigmas, [*sigmas[1:], None]):
        values = score(x, sigma)
        errors.append(_squared_error(x, sigma, values))
        if following is not None:
            variance, after = sigma**2 - following**2, grid(following)
            kernel = np.exp(-((after - (x + variance * values).T) ** 2) / (2 * variance))
            density, x = kernel @ (density / density.sum()), after
    return x, density / (density.sum() * (x[1, 0] - x[0, 0])), np.array(errors)


def _squared_error(x: np.ndarray, sigma: float, values: np.ndarray) -> float:
    weight = LINE.density(x, sigma**2)
    return float((weight * ((values - LINE.score(x, sigma**2)) ** 2)[:, 0]).sum() / weight.sum())


def divergence(x: np.ndarray, density: np.ndarray, sigma: float) -> float:
    """KL(p ‖ q) in nats of the mixture p at level sigma and a density q on a grid, (GRID, 1) and (GRID,)."""
    true = LINE.density(x, sigma**2)
    present = true > 0
    return float((true[present] * np.log(true[present] / density[present])).sum() * (x[1, 0] - x[0, 0]))


def measured(sigmas: Sequence[float], score: product.Score) -> dict[str, float]:
    """The divergence of what a score generates, and its bound without those of the start and of the steps:
    ½ ∫ E (ŝ − s)² dt from the last level to the first, t = σ²."""
    x, density, errors = generated(sigmas, score)
    bound = -np.trapezoid(errors, np.square(sigmas)) / 2
    return {"divergence": divergence(x, density, sigmas[-1]), "bound": float(bound)}


def _summary(found: Sequence[dict[str, float]], plain: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over training sets, and the fall of the divergence from the unsmoothed score's, paired, with its error."""
    means = {name: float(np.mean([row[name] for row in found])) for name in found[0]}
    fall = np.array([before["divergence"] - row["divergence"] for before, row in zip(plain, found)])
    return {**means, "fall": float(fall.mean()), "fall_error": mean_error(fall)}


def claims(rows: Table, repeats: int) -> list[Claim]:
    """The divergence is U-shaped in h, smoothing is worth training points, and Girsanov's bound holds."""
    counts = list(dict.fromkeys(row["training_points"] for row in rows))
    curves = {count: [row for row in rows if row["training_points"] == count] for count in counts}
    best = {count: min(own, key=lambda row: row["divergence"]) for count, own in curves.items()}
    edge = sum(row["h"] in (curves[count][0]["h"], curves[count][-1]["h"]) for count, row in best.items())
    listing = ", ".join(
        f"{curves[count][0]['divergence']:.3g} falls to {row['divergence']:.3g} at h = {row['h']:g}, M = {count} (by "
        f"{row['fall']:.2g} ± {row['fall_error']:.1g}, one standard error of paired sets)"
        for count, row in best.items()
    )
    as_errors = {count: [{**own[0], "error": own[0]["divergence"]}] for count, own in curves.items()}
    worth = {count: equivalent_count(row["divergence"], as_errors) for count, row in best.items()}
    gains = ", ".join(f"{count} like {worth[count]:.0f}" for count in counts)
    over = [row for row in rows if row["divergence"] > row["bound"] + row["floor"]]
    optima = [row["h"] for row in best.values()]
    floor = rows[0]["floor"]
    cases = (
        ("What the reverse SDE generates is nearest to the truth at a kernel width above 0",
         "argmin_h KL(p ‖ q_h) lies inside (0, h_max)", f"known mixture on a line, {repeats} training sets: {listing}",
         edge, "counts the training set sizes with their optimum at either end"),
        ("Smoothing the score has the effect of more training data",
         "min_h KL(M, h) = KL(M', 0) with M' > M", f"power law through the unsmoothed divergences: {gains}",
         sum(worth[count] <= count * (1 + 1e-9) for count in counts), "counts the sizes that gain nothing"),
        ("The more training points, the less smoothing is best", "argmin_h KL(p ‖ q_h) falls with M",
         ", ".join(f"h = {h:g} at M = {count}" for count, h in zip(counts, optima)),
         sum(later > earlier for earlier, later in zip(optima, optima[1:])),
         "counts steps up in M with a larger optimum"),
        ("The divergence stays below the bound from the score's error", "KL(p ‖ q_h) ≤ ½ ∫ E (ŝ_h − s)² dt + ε",
         f"ε = {floor:.2g}: what start and finite steps give the true score; {len(rows)} means over training sets",
         len(over), "counts the means above it"),
    )  # fmt: skip
    return [
        Statement(claim, formula, SOURCE, computed).holds(violations, counted)
        for claim, formula, computed, violations, counted in cases
    ]
