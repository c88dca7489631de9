"""The empirical score's noise at small times: its variance, its correlation in space, and what smoothing leaves of it
(Gabriel et al. 2025; METHODS §8).

Over training sets of M draws the empirical score is the true one plus noise, a random field in x. To first order in 1/M
its covariance between two points follows from E[K_x(X) K_y(X) (X − m_x)(X − m_y)ᵀ], K_x(X) = N(x − X; t):

    C(x, y) = N(x − y; 2t) · p_{t/2}(u)/(M t² p_t(x) p_t(y)) · E_{X|X_{t/2}=u}[(X − m_t(x))(X − m_t(y))ᵀ]

with u = (x + y)/2. At x = y it is the re-weighted PCA of `bias_variance`. As t falls its trace grows as t^{−(d/2+1)},
and N(x − y; 2t) makes the noise at two points independent. The smoothed score's noise is the mean of C over two
independent shifts.
"""

import math
from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.theory import product
from stages.theory.bias_variance import MIXTURE, Mixture, effective_count, empirical_score, normal_shifts
from stages.theory.claims import Block, Claim, Findings, Positive, Statement, Table

PLACE = np.array([-0.6, 0.1])
DIRECTION = np.array([0.6, 0.8])
SHIFTS, GROUPS = 16, 20
SOURCE = "METHODS §8 [C]"


class ScoreNoise(Block):
    """Variance, spatial correlation and smoothing of the empirical score's noise as the time falls."""

    TITLE: ClassVar[str] = "The score's noise at small times: it grows, it loses its correlation, smoothing averages it"

    times: list[Positive] = Field(min_length=2, description="times t = σ², falling")
    separations: list[Positive] = Field(min_length=2, description="distances between the two points, rising")
    count: int = Field(ge=200, description="training points per set")
    sets: int = Field(ge=200, description="training sets")
    width: float = Field(gt=0, description="kernel width h of the smoothed score")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        generator = np.random.default_rng(seed)
        shifts = normal_shifts(SHIFTS, 2, generator)
        points = np.vstack([PLACE, PLACE + np.outer(self.separations, DIRECTION)])
        rows, correlations = [], []
        for t in sorted(self.times, reverse=True):
            scores = [empirical_score(MIXTURE.draw(self.count, generator), t) for _ in range(self.sets)]
            plain = np.stack([score(points) for score in scores])
            smooth = np.stack([product.smoothed(score, self.width, shifts)(points[:1]) for score in scores])
            rows.append(variance_row(t, self.width, shifts, self.count, plain[:, :1], smooth))
            correlations += correlation_rows(t, points, self.separations, self.count, plain)
        claims = [*variance_claims(rows, self.sets), *correlation_claims(correlations, self.sets)]
        return Findings(
            [*claims, *smoothing_claims(rows, self.sets)],
            {"score_noise": rows, "score_noise_correlation": correlations},
        )


def cross_covariance(mixture: Mixture, x: np.ndarray, y: np.ndarray, t: float, count: int) -> np.ndarray:
    """Covariance of the empirical score of `count` draws between x and y, (N, d) each, to first order in 1/count.

    Returns (N, d, d), the module's C(x, y).
    """
    dimension, middle = x.shape[1], (x + y) / 2
    mean, covariance = mixture.posterior(middle, t / 2)
    one, other = (mean - mixture.posterior(point, t)[0] for point in (x, y))
    second = covariance + one[:, :, None] * other[:, None, :]
    kernel = np.exp(-((x - y) ** 2).sum(axis=1) / (4 * t)) / (4 * math.pi * t) ** (dimension / 2)
    densities = mixture.density(x, t) * mixture.density(y, t)
    return (kernel * mixture.density(middle, t / 2) / (count * t**2 * densities))[:, None, None] * second


def smoothed_covariance(
    mixture: Mixture, x: np.ndarray, t: float, count: int, h: float, shifts: np.ndarray
) -> np.ndarray:
    """Covariance (d, d) of the score smoothed over shifts ξ (m, d) at x (d,): the mean of C(x + hξ_i, x + hξ_j)."""
    moved = x + h * shifts
    one, other = (np.repeat(moved, len(moved), axis=0), np.tile(moved, (len(moved), 1)))
    return cross_covariance(mixture, one, other, t, count).mean(axis=0)


def trace_with_error(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """E (a − Ea)·(b − Eb) of scores (R, d) at two points, and its standard error from `GROUPS` equal groups."""
    products = ((one - one.mean(axis=0)) * (other - other.mean(axis=0))).sum(axis=1)
    size = len(products) // GROUPS
    means = products[: size * GROUPS].reshape(GROUPS, size).mean(axis=1)
    return float(products.sum() / (len(products) - 1)), float(means.std(ddof=1) / math.sqrt(GROUPS))


def limit_trace(mixture: Mixture, x: np.ndarray, t: float, count: int) -> float:
    """The trace of C(x, x) as t → 0: d (4πt)^{−d/2}/(2 M t p_0(x)), for x (d,)."""
    dimension = len(x)
    return float(dimension * (4 * math.pi * t) ** (-dimension / 2) / (2 * count * t * mixture.density(x[None], 0.0)[0]))


def variance_row(
    t: float, h: float, shifts: np.ndarray, count: int, plain: np.ndarray, smooth: np.ndarray
) -> dict[str, float]:
    """The traces of the covariance at PLACE of the plain and the smoothed score, (R, 1, d) each, and the formula's."""
    found, error = trace_with_error(plain[:, 0], plain[:, 0])
    after, after_error = trace_with_error(smooth[:, 0], smooth[:, 0])
    predicted = np.trace(cross_covariance(MIXTURE, PLACE[None], PLACE[None], t, count)[0])
    places = PLACE + h * shifts
    return {
        "t": t,
        "h": h,
        "found": found,
        "error": error,
        "predicted": float(predicted),
        "limit": limit_trace(MIXTURE, PLACE, t, count),
        "smoothed": after,
        "smoothed_error": after_error,
        "smoothed_predicted": float(np.trace(smoothed_covariance(MIXTURE, PLACE, t, count, h, shifts))),
        "draws": float(effective_count(MIXTURE, PLACE[None], t, count)[0]),
        "smoothed_draws": float(effective_count(MIXTURE, places, t, count).min()),
    }


def correlation_rows(t: float, points: np.ndarray, separations: list[float], count: int, scores: np.ndarray) -> Table:
    """Correlation of the noise at PLACE and at each separation: tr C(x, y)/√(tr C(x, x) tr C(y, y)).

    scores: (R, n, d), at PLACE and at the separations.
    """
    rows = []
    for number, separation in enumerate(separations, 1):
        own, far = scores[:, 0], scores[:, number]
        cross, error = trace_with_error(own, far)
        scale = math.sqrt(trace_with_error(own, own)[0] * trace_with_error(far, far)[0])
        pairs = [(0, number), (0, 0), (number, number)]
        traces = [np.trace(cross_covariance(MIXTURE, points[[a]], points[[b]], t, count)[0]) for a, b in pairs]
        predicted = traces[0] / math.sqrt(traces[1] * traces[2])
        draws = effective_count(MIXTURE, points[[0, number]], t, count).min()
        row = {"t": t, "separation": separation, "found": cross / scale, "error": error / scale}
        rows.append({**row, "predicted": float(predicted), "draws": float(draws)})
    return rows


def _within(rows: Table, found: str, error: str, predicted: str, draws: str, relative: bool) -> np.ndarray:
    """Deviations over four standard errors and the next order of 1/M (5 over the draws that carry the score)."""
    scale = [row[predicted] if relative else 1.0 for row in rows]
    limits = [4 * row[error] + 5 / row[draws] * size for row, size in zip(rows, scale)]
    return np.array([abs(row[found] - row[predicted]) / limit for row, limit in zip(rows, limits)])


REASON = "1: four standard errors and the next order of 1/M, five over the draws that carry the score"


def variance_claims(rows: Table, sets: int) -> list[Claim]:
    """The variance follows its formula, grows as the time falls, and comes nearer to the limit's law."""
    listing = ", ".join(f"{row['found']:.3g} against {row['predicted']:.3g} at t = {row['t']:g}" for row in rows)
    off = [abs(row["predicted"] / row["limit"] - 1) for row in rows]
    slopes = [_slope(rows[place], rows[place + 1]) for place in range(len(rows) - 1)]
    steep = ", ".join(f"{slope:.2f}" for slope in slopes)
    deviations = _within(rows, "found", "error", "predicted", "draws", relative=True)
    return [
        Statement(
            "The variance of the empirical score follows the re-weighted PCA down to small times",
            "|tr Ĉ(x, x) − tr C(x, x)| over its tolerance", SOURCE,
            f"{sets:,} training sets of a 2-D mixture: {listing}; {_tolerances(rows, 'error', 'draws', 'predicted')}",
        ).equals(float(deviations.max()), 0.0, 1.0, REASON),
        Statement(
            "As the time falls the variance grows clearly, and its formula comes nearer to t^{−(d/2+1)}",
            "tr C(x, x) → d (4πt)^{−d/2}/(2 M t p_0(x))", SOURCE,
            f"slopes of ln tr Ĉ over ln t between the times, falling: {steep}; limit −2 in the plane; the formula is "
            f"{', '.join(f'{100 * value:.0f} %' for value in off)} from its limit",
        ).holds(_rises(off) + _unclear(rows), "counts steps of less than two standard errors, and away from the limit"),
    ]  # fmt: skip


def _rises(values: list[float]) -> int:
    return sum(later >= earlier for earlier, later in zip(values, values[1:]))


def _unclear(rows: Table) -> int:
    """The steps in time at which the variance does not rise by more than two standard errors."""
    errors = [math.hypot(one["error"], other["error"]) for one, other in zip(rows, rows[1:])]
    return sum(other["found"] - one["found"] <= 2 * e for one, other, e in zip(rows, rows[1:], errors))


def _tolerances(rows: Table, error: str, draws: str, size: str | None = None) -> str:
    """The least and the largest tolerance, in per cent of the column `size` or of 1."""
    found = [100 * (4 * row[error] / (row[size] if size else 1.0) + 5 / row[draws]) for row in rows]
    return f"tolerances {min(found):.0f} to {max(found):.0f} %"


def _slope(one: dict[str, float], other: dict[str, float]) -> float:
    return math.log(other["found"] / one["found"]) / math.log(other["t"] / one["t"])


def correlation_claims(rows: Table, sets: int) -> list[Claim]:
    """The correlation follows its formula, and at every separation it falls with the time."""
    times = sorted({row["t"] for row in rows}, reverse=True)
    by_time = [{row["separation"]: row for row in rows if row["t"] == t} for t in times]
    wrong = sum(
        later[place]["predicted"] >= row["predicted"] or later[place]["found"] >= row["found"] + 4 * row["error"]
        for earlier, later in zip(by_time, by_time[1:])
        for place, row in earlier.items()
    )
    nearest = ", ".join(f"{next(iter(own.values()))['found']:.2f} at t = {t:g}" for t, own in zip(times, by_time))
    first = next(iter(by_time[0]))
    return [
        Statement(
            "The score's noise at two points is correlated as its covariance says",
            "tr C(x, y)/√(tr C(x, x) tr C(y, y)), C ∝ N(x − y; 2t)", SOURCE,
            f"{sets:,} training sets, {len(rows)} separations and times; largest deviation over its tolerance; "
            f"{_tolerances(rows, 'error', 'draws')} of full correlation",
        ).equals(float(_within(rows, "found", "error", "predicted", "draws", relative=False).max()), 0.0, 1.0, REASON),
        Statement(
            "As the time falls the noise loses its correlation in space, by the formula; no measurement contradicts it",
            "corr(t, ‖x − y‖) falls with t", SOURCE,
            f"{first:g} apart: {nearest}",
        ).holds(wrong, "counts steps in time, over separations, at which the formula or clearly the measurement rises"),
    ]  # fmt: skip


def smoothing_claims(rows: Table, sets: int) -> list[Claim]:
    """The smoothed score's variance follows from the correlation, and smoothing removes more of it at smaller times."""
    left = [row["smoothed"] / row["found"] for row in rows]
    listing = ", ".join(f"{100 * share:.1f} % at t = {row['t']:g}" for share, row in zip(left, rows))
    deviations = _within(rows, "smoothed", "smoothed_error", "smoothed_predicted", "smoothed_draws", relative=True)
    return [
        Statement(
            "What kernel smoothing leaves of the variance follows from the noise's correlation",
            "tr Cov ŝ_h(x) = mean over ξ, ξ' of tr C(x + hξ, x + hξ')", "METHODS §8, §1.7 [C]",
            f"{sets:,} training sets, h = {rows[0]['h']:g}, {SHIFTS} shifts; largest deviation over its tolerance; "
            f"{_tolerances(rows, 'smoothed_error', 'smoothed_draws', 'smoothed_predicted')}",
        ).equals(float(deviations.max()), 0.0, 1.0, REASON),
        Statement(
            "The smaller the time, the larger the share of the variance that smoothing removes",
            "tr Cov ŝ_h(x)/tr Cov ŝ(x) falls with t", "METHODS §8, §1.7 [C]", f"variance left: {listing}",
        ).holds(_rises(left), "counts the steps in time at which it does not fall"),
    ]  # fmt: skip
