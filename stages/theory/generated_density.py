"""The density that the reverse SDE generates from a kernel-smoothed score, and its Kullback-Leibler divergence from the
true one, by kernel width (Gabriel et al. 2025; METHODS §8).

On a line one step of `samplers.reverse_diffusion`, x + v s(x) + √v z with v = σ² − σ'², is a Gaussian transition, so
the density of the samples is known without drawing any: it is carried from level to level on a grid by the transition's
matrix. p is what the true score of a known mixture generates in the same steps, q_h what the smoothed score generates.
The divergence of the whole paths, ½ Σ v E (ŝ_h − s)² (Girsanov's theorem in discrete time), bounds KL(p ‖ q_h).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator
from scipy.stats import norm

from stages.theory import product
from stages.theory.bias_variance import Mixture
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
    repeats: int = Field(ge=6, description="training sets per count; half of them choose the width")
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
        truth = carried(sigmas, lambda x, sigma: LINE.score(x, sigma**2))
        exact = LINE.density(truth[-1].x, sigmas[-1] ** 2)
        floor = divergence(exact / exact.sum(), truth[-1].weights)
        shifts, rows = normal_quantiles(SHIFTS), []
        for count in self.counts:
            scores = [product.empirical(LINE.draw(count, generator), "conditioning") for _ in range(self.repeats)]
            found = [[measured(sigmas, product.smoothed(own, h, shifts), truth) for own in scores] for h in self.widths]
            rows += [
                {"training_points": count, "floor": floor, "h": h, "set": number, **one}
                for h, own in zip(self.widths, found)
                for number, one in enumerate(own)
            ]
        return Findings(claims(rows), {"generated_density": means(rows)})


def normal_quantiles(count: int) -> np.ndarray:
    """Shifts ξ (count, 1) at the mid-quantiles of N(0, 1), scaled to variance 1: their mean is 0."""
    at = norm.ppf((np.arange(count) + 0.5) / count)
    return (at / np.sqrt((at**2).mean()))[:, None]


def grid(sigma: float) -> np.ndarray:
    """Points (GRID, 1) that cover the mixture at level sigma."""
    ends = LINE.means[:, 0], REACH * np.sqrt(LINE.variances + sigma**2)
    return np.linspace((ends[0] - ends[1]).min(), (ends[0] + ends[1]).max(), GRID)[:, None]


@dataclasses.dataclass(frozen=True)
class Level:
    """A level of the reverse SDE: a grid (GRID, 1), there the weights of the samples (GRID,), whose sum is 1, and the
    score's values (GRID, 1)."""

    x: np.ndarray
    weights: np.ndarray
    values: np.ndarray


def carried(sigmas: Sequence[float], score: product.Score) -> list[Level]:
    """Return every level of the reverse SDE under a score. The start is N(0, σ_max²); the last level is the one before
    the noise is removed."""
    x, found = grid(sigmas[0]), []
    weights = norm.pdf(x[:, 0], scale=sigmas[0])
    for sigma, following in zip(sigmas, [*sigmas[1:], None]):
        found.append(Level(x, weights / weights.sum(), score(x, sigma)))
        if following is not None:
            variance, after = sigma**2 - following**2, grid(following)
            kernel = np.exp(-((after - (x + variance * found[-1].values).T) ** 2) / (2 * variance))
            x, weights = after, kernel @ found[-1].weights
    return found


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p ‖ q) in nats of weights on one grid, (GRID,) each."""
    present = p > 0
    return float((p[present] * np.log(p[present] / q[present])).sum())


def measured(sigmas: Sequence[float], score: product.Score, truth: Sequence[Level]) -> dict[str, float]:
    """The divergence of what a score generates from what the true one generates in the same steps, and its bound.

    bound: ½ Σ_n v_n E (ŝ − s)² over the true samples before each step n, of variance v_n: the divergence of the whole
    paths, whose steps are Gaussians of one variance with means that differ by v_n (ŝ − s).
    """
    own = carried(sigmas, score)
    errors = [(one.weights * ((one.values - other.values) ** 2)[:, 0]).sum() for one, other in zip(truth, own)]
    bound = -(np.array(errors[:-1]) * np.diff(np.square(sigmas))).sum() / 2
    return {"divergence": divergence(truth[-1].weights, own[-1].weights), "bound": float(bound)}


def _of(rows: Table, count: int, h: float, name: str) -> np.ndarray:
    """One column over the training sets, in their order."""
    return np.array([row[name] for row in rows if row["training_points"] == count and row["h"] == h])


def means(rows: Table) -> Table:
    """Geometric means over the training sets, by size and width: no single set outweighs the others."""
    keys = dict.fromkeys((row["training_points"], row["h"], row["floor"]) for row in rows)
    return [
        {
            "training_points": count,
            "h": h,
            "floor": floor,
            **{name: float(np.exp(np.log(_of(rows, count, h, name)).mean())) for name in ("divergence", "bound")},
        }
        for count, h, floor in keys
    ]


def chosen_and_judged(rows: Table, count: int) -> tuple[float, np.ndarray]:
    """The width of least geometric mean over the even training sets, and the falls of ln KL from h = 0 in the odd."""
    logs = {h: np.log(_of(rows, count, h, "divergence")) for h in dict.fromkeys(row["h"] for row in rows)}
    best = min(logs, key=lambda h: logs[h][::2].mean())
    return best, (logs[next(iter(logs))] - logs[best])[1::2]


def claims(rows: Table) -> list[Claim]:
    """Smoothing lowers the divergence, more so with few points, and the error of the score bounds it.

    The width is chosen on half of the training sets and judged on the other half. rows: one per size, width and set.
    """
    counts = list(dict.fromkeys(row["training_points"] for row in rows))
    found = {count: chosen_and_judged(rows, count) for count in counts}
    unclear = sum(fall.mean() <= 2 * mean_error(fall) for _, fall in found.values())
    last = rows[-1]["h"]
    listing = ", ".join(
        f"M = {count}: h = {h:g}, ln KL falls by {fall.mean():.2g} ± {mean_error(fall):.1g}"
        for count, (h, fall) in found.items()
    )
    optima = [h for h, _ in found.values()]
    over = sum(row["divergence"] > row["bound"] * (1 + 1e-9) + 1e-9 for row in rows)
    cases = (
        ("Smoothing the score brings what the reverse SDE generates nearer to the truth",
         "ln KL(p ‖ q_0) − ln KL(p ‖ q_h) exceeds two standard errors, h chosen on other training sets",
         f"known mixture on a line, {len(next(iter(found.values()))[1])} sets judge: {listing}",
         unclear, "counts the training set sizes where it does not"),
        ("Too wide a kernel takes it away again", "argmin_h KL(p ‖ q_h) < h_max",
         ", ".join(f"h = {h:g} at M = {count}" for count, h in zip(counts, optima)) + f"; h_max = {last:g}",
         sum(h == last for h in optima), "counts the sizes whose chosen width is the widest"),
        ("The more training points, the less smoothing is best", "argmin_h KL(p ‖ q_h) falls with M",
         ", ".join(f"h = {h:g} at M = {count}" for count, h in zip(counts, optima)),
         sum(later >= earlier for earlier, later in zip(optima, optima[1:])),
         "counts steps up in M without a smaller width"),
        ("The divergence stays below what the score's error allows",
         "KL(p ‖ q_h) ≤ ½ Σ v E (ŝ_h − s)²",
         f"{len(rows)} sets and widths; the true score in these steps is {rows[0]['floor']:.2g} from the truth itself",
         over, "counts those above it"),
    )  # fmt: skip
    return [
        Statement(claim, formula, SOURCE, computed).holds(violations, counted)
        for claim, formula, computed, violations, counted in cases
    ]
