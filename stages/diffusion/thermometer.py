"""A thermometer for scores: the temperature at which the closed form of METHODS §1.4-1.6 matches one best (§8b).

The reading at one noise level compares curves over temperatures from 1 to d, one per point, and resamples the points
for an interval. Where the weights hardly depend on T, no T is identified: at low levels a point has one centre at any
small T, at high levels all centres weigh about the same. The interval then says which temperatures are possible.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from stages.diffusion.scores import Centres, unconditioning

EVALUATED = 48  # temperatures at which the closed form is evaluated; between them curves are splines in ln T
STEP = 0.01  # of ln T between the temperatures that a reading chooses from
DRAWS = 400  # resamples of the points
COVERED = (0.025, 0.975)
FLAT = 1e-6  # squares that differ by less are not told apart: a thousandth of the score's length
WIDEST = 2.0  # quotient of the interval's ends up to which T counts as identified


@dataclasses.dataclass(frozen=True)
class Reading:
    """T_eff with its 95 % interval.

    `identified`: whether the interval spans no more than a factor of WIDEST and ends below T = d; an interval from 1 is
    a reading of T = 1. error, error_at_1: root mean square of what was made small, at T_eff and at T = 1:
    |s_θ - s_T|/|s_θ|, or by direction the sine of the angle between them.
    """

    t_eff: float
    low: float
    high: float
    identified: bool
    error: float
    error_at_1: float


def temperatures(dimension: int) -> np.ndarray:
    """Return the temperatures at which closed forms are evaluated, 1 to d, float64 (EVALUATED,)."""
    return np.geomspace(1.0, float(dimension), EVALUATED)


def closed_scores(centres: Centres, x: Tensor, sigma: float, **options: Any) -> Tensor:
    """Return the closed form at all `temperatures`, float64 (EVALUATED, B, d), for x float64 (B, d).

    options: those of `scores.unconditioning` that are the same at all points, such as `nearest`.
    """
    each = torch.from_numpy(temperatures(x.shape[1])).to(x).repeat_interleave(len(x))
    found = unconditioning(centres, x.repeat(EVALUATED, 1), each, sigma=torch.full_like(each, sigma), **options)
    return found.reshape(EVALUATED, *x.shape)


def by_error(learned: Tensor, closed: Tensor, generator: np.random.Generator) -> Reading:
    """Return the T of least mean |s_θ - s_T|²/|s_θ|² over points, from scores (B, d) and `closed_scores` of them."""
    errors = (closed - learned).square().sum(2) / learned.square().sum(1)
    return _read(errors.cpu().numpy(), learned.shape[1], generator)


def by_direction(learned: Tensor, closed: Tensor, generator: np.random.Generator) -> Reading:
    """Return the T of least mean sin² of the angle between s_θ and s_T, from what `by_error` takes.

    A score that is merely too short, as of a network that has learned too little, reads hot by its error: at low levels
    a higher T shortens s_T and hardly turns it. Its direction does not read hot.
    """
    cosine = (closed * learned).sum(2) / (closed.norm(dim=2) * learned.norm(dim=1))
    return _read((1 - cosine.square()).cpu().numpy(), learned.shape[1], generator)


def by_expansion(factors: np.ndarray, closed: np.ndarray, dimension: int, generator: np.random.Generator) -> Reading:
    """Return the T whose mean expansion factor over pairs is nearest to that of a score.

    factors: float64 (P,), the score's; closed: float64 (EVALUATED, P), the closed form's at all `temperatures`. The
    Reading's errors are differences of the mean factors.
    """
    return _read(closed - factors, dimension, generator, np.square)


READINGS = {"error": by_error, "direction": by_direction}


def _read(
    curves: np.ndarray,
    dimension: int,
    generator: np.random.Generator,
    badness: Callable[[np.ndarray], np.ndarray] = lambda mean: mean,
) -> Reading:
    """Return where `badness` of the curves' mean is least. curves: float64 (EVALUATED, points)."""
    known = np.log(temperatures(dimension))
    fine = np.linspace(known[0], known[-1], 1 + int(np.ceil(known[-1] / STEP)))
    between = CubicSpline(known, curves)(fine)
    points = curves.shape[1]
    shares = generator.multinomial(points, np.full(points, 1 / points), DRAWS) / points
    whole = badness(between.mean(axis=1))
    best = int(whole.argmin())
    resampled = np.quantile(badness(shares @ between.T).argmin(axis=1), COVERED)
    alike = np.flatnonzero(whole <= whole[best] + FLAT)
    first = max(0, int(min(resampled[0], alike[0])) - 1)  # one step more: T lies between two of them
    last = min(len(fine) - 1, int(np.ceil(max(resampled[1], alike[-1]))) + 1)
    t_eff, low, high = np.exp(fine[[best, first, last]]).tolist()
    found = last < len(fine) - 1 and high <= WIDEST * low
    error, error_at_1 = np.sqrt(np.maximum(whole[[best, 0]], 0)).tolist()  # a spline through squares may dip below 0
    return Reading(t_eff, low, high, found, error, error_at_1)
