"""Bias and variance of the empirical score, and the LED-KDE density, as measured claims (METHODS §8, §1.7).

The mathematics is in bias_variance.py; all in float64 numpy.
"""

import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.integrate import quad

from stages.theory import bias_variance as bv
from stages.theory.claims import Block, Claim, Findings, Table

MIXTURE = bv.Mixture(
    weights=np.array([0.5, 0.3, 0.2]),
    means=np.array([[-0.8, 0.0], [0.7, 0.6], [0.6, -0.9]]),
    variances=np.array([0.09, 0.16, 0.04]),
)
PLACES = np.array([[-0.6, 0.1], [0.2, 0.2], [0.6, -0.6]])
REACH, SIDE = 4.0, 201  # the grid of the curves: step 0.04


class BiasVariance(Block):
    """The empirical score's covariance, the smoothed score's bias and variance, and the LED-KDE density."""

    TITLE: ClassVar[str] = "Bias and variance: smoothing the score acts like more training data"

    time: float = Field(gt=0, description="t of the covariance")
    count: int = Field(ge=50, description="training points per set, for the covariance")
    sets: int = Field(ge=200, description="training sets, for the covariance")
    level: float = Field(gt=0.1, description="σ of the curves; below 0.1 their grid is too coarse")
    counts: list[int] = Field(min_length=2, description="training points per set, for the curves; rising")
    repeats: int = Field(ge=3, description="training sets per count, for the curves")
    widths: list[float] = Field(min_length=4, description="kernel widths h, from 0, rising")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Covariance, curves and densities."""
        generator = np.random.default_rng(seed)
        claims, rows = covariance_claims(self.time, self.count, self.sets, generator)
        curves = error_curves(self.level, self.counts, self.repeats, self.widths, generator)
        led, densities = led_claims(generator)
        claims += [*curve_claims(curves), *led]
        return Findings(claims, {"score_covariance": rows, "bias_variance": curves, "led_density": densities})


def covariance_claims(t: float, count: int, sets: int, generator: np.random.Generator) -> tuple[list[Claim], Table]:
    """Covariance over resampled training sets against the re-weighted PCA, at three places."""
    predicted = bv.predicted_covariance(MIXTURE, PLACES, t, count)
    found, errors = bv.covariance_with_error(bv.resampled_scores(MIXTURE, PLACES, t, count, sets, generator))
    effective = bv.effective_count(MIXTURE, PLACES, t, count)
    claims, rows = [], []
    for place, own, formula, error, many in zip(PLACES, found, predicted, errors, effective):
        size = float(np.linalg.norm(formula))
        claims.append(
            Claim(
                claim=f"The empirical score's covariance is a re-weighted PCA of the data, at {_at(place)}",
                formula="(4πt)^{−d/2}/(M t²) · p_{t/2}/p_t² · E_{X|X_{t/2}=x}[(X−m_t)(X−m_t)ᵀ]",
                source="METHODS §8 [C]",
                computed=f"{sets:,} training sets of {count:,} draws of a 2-D mixture, t = {t:g}; Frobenius norms, the "
                f"deviation relative; {many:.0f} draws carry the score",
                expected=size,
                tolerance=float(4 * error / size + 5 / many),
                reason="four standard errors, and the next order of 1/M: a few over the draws that carry the score",
                measured=float(np.linalg.norm(own)),
                uncertainty=float(error),
                deviation=float(np.linalg.norm(own - formula) / size),
            )
        )
        rows += [
            {
                "place": _at(place),
                "entry": f"{i + 1}{j + 1}",
                "predicted": float(formula[i, j]),
                "found": float(own[i, j]),
            }
            for i, j in ((0, 0), (0, 1), (1, 1))
        ]
    return claims, rows


def _at(place: np.ndarray) -> str:
    return f"({place[0]:g}, {place[1]:g})"


def error_curves(
    level: float, counts: list[int], repeats: int, widths: list[float], generator: np.random.Generator
) -> Table:
    """E‖ŝ_h − s‖², its bias and its variance by kernel width and number of training points."""
    grid, t = bv.Grid(REACH, SIDE), level**2
    weight = MIXTURE.density(grid.points, t)
    near = weight > 1e-9 * weight.max()  # elsewhere the weight hides any error
    weight, truth = weight[near] / weight[near].sum(), MIXTURE.score(grid.points, t)[near]
    rows: Table = []
    for count in counts:
        scores = [_grid_score(grid, MIXTURE.draw((count,), generator), t) for _ in range(repeats)]
        for h in widths:
            found = bv.decompose(np.stack([grid.smooth(score, h)[near] for score in scores]), truth, weight)
            row = {"training_points": count, "h": h, "error": found.total, "bias": found.bias}
            rows.append({**row, "variance": found.variance, "standard_error": found.error})
    return rows


def _grid_score(grid: bv.Grid, points: np.ndarray, t: float, block: int = 4096) -> np.ndarray:
    parts = [
        bv.empirical_scores(grid.points[start : start + block], points[None], t)[0]
        for start in range(0, grid.side**2, block)
    ]
    return np.concatenate(parts)


def curve_claims(rows: Table) -> list[Claim]:
    """U-shape, monotone parts, and what smoothing is worth in training points."""
    counts = list(dict.fromkeys(row["training_points"] for row in rows))
    curves = {count: [row for row in rows if row["training_points"] == count] for count in counts}
    best = {count: min(own, key=lambda row: row["error"]) for count, own in curves.items()}
    widths = [row["h"] for row in curves[counts[0]]]
    edge = sum(row["h"] in (widths[0], widths[-1]) for row in best.values())
    wrong = sum(
        best[count]["variance"] >= own[0]["variance"] or best[count]["bias"] <= own[0]["bias"]
        for count, own in curves.items()
    )
    worth = {count: equivalent_count(best[count]["error"], curves) for count in counts}
    listing = ", ".join(f"M = {count}: h = {row['h']:g}" for count, row in best.items())
    gains = ", ".join(f"{count} like {worth[count]:.0f}" for count in counts)
    optima = [best[count]["h"] for count in counts]
    common = {"source": "METHODS §8 [C]", "expected": 0.0, "tolerance": 0.0}
    return [
        Claim(
            claim="The smoothed score's error is U-shaped in the kernel width",
            formula="argmin_h E‖ŝ_h − s‖² lies inside (0, h_max)",
            computed=f"2-D mixture, true score known; best widths {listing}",
            reason="counts the training set sizes with their optimum at either end",
            measured=float(edge),
            **common,
        ),
        Claim(
            claim="Smoothing trades variance for bias",
            formula="at the best h the variance is smaller and the bias larger than at h = 0",
            computed=f"{len(counts)} training set sizes, unbiased estimates",
            reason="counts the sizes where it is not so",
            measured=float(wrong),
            **common,
        ),
        Claim(
            claim="Smoothing acts like a larger training set",
            formula="min_h error(M, h) = error(M', 0) with M' > M",
            computed=f"power law through the unsmoothed errors: {gains}",
            reason="counts the sizes that gain nothing",
            measured=float(sum(worth[count] <= count * (1 + 1e-9) for count in counts)),
            **common,
        ),
        Claim(
            claim="The more training points, the less smoothing is best",
            formula="argmin_h falls with M",
            computed=f"best widths {listing}",
            reason="counts steps up in M with a larger optimum",
            measured=float(sum(later > earlier for earlier, later in zip(optima, optima[1:]))),
            **common,
        ),
    ]


def equivalent_count(error: float, curves: dict[int, Table]) -> float:
    """M' whose unsmoothed score has this error, by the power law through the unsmoothed errors."""
    counts = np.log(list(curves))
    errors = np.log([own[0]["error"] for own in curves.values()])
    slope, start = np.polyfit(counts, errors, 1)
    return float(np.exp((math.log(error) - start) / slope))


def led_claims(generator: np.random.Generator) -> tuple[list[Claim], Table]:
    """The LED-KDE in one and two dimensions, and that it smooths along a line only."""
    line = np.sort(generator.choice([-1.0, 0.8], 12) + 0.3 * generator.standard_normal(12))[:, None]
    plane = MIXTURE.draw((12,), generator)
    one, rows = _led_line(line, t=0.01, h=0.25)
    return [one, _led_plane(plane, t=0.04, h=0.3), *_gradient_claims(line, plane), _flat_claim(generator)], rows


def _led_line(points: np.ndarray, t: float, h: float) -> tuple[Claim, Table]:
    logarithm = bv.led_log_density(points, t, h, 32)
    x = np.linspace(-4, 4, 1601)
    values = np.exp(logarithm(x[:, None]))
    mass = float(values.sum() * (x[1] - x[0]))
    other = quad(lambda at: float(np.exp(logarithm(np.array([[at]])))[0]), -4, 4, limit=400, points=[-1, 0, 1])[0]
    plain = np.exp(bv.log_density(x[:, None], points, t))
    rows = [
        {"x": float(at), "led": float(led / mass), "kde": float(kde)}
        for at, led, kde in zip(x[::8], values[::8], plain[::8])
    ]
    return _mass_claim(1, other / mass, 1e-6, "adaptive quadrature against the grid that normalizes it"), rows


def _led_plane(points: np.ndarray, t: float, h: float) -> Claim:
    logarithm = bv.led_log_density(points, t, h, 12)
    masses = []
    for side in (97, 129):  # the trapezoidal rule converges fast on a smooth density that vanishes at the edge
        grid = bv.Grid(3.2, side)
        parts = np.array_split(grid.points, 64)
        masses.append(sum(float(np.exp(logarithm(part)).sum()) for part in parts) * grid.step**2)
    return _mass_claim(2, masses[0] / masses[1], 1e-6, "a grid of 97² against one of 129² that normalizes it")


def _mass_claim(dimension: int, mass: float, tolerance: float, computed: str) -> Claim:
    return Claim(
        claim=f"The LED-KDE density exists and integrates to one in {dimension}-D",
        formula="p ∝ exp(K_h * log(G_σ * μ_M))",
        source="METHODS §1.7 [C]",
        computed=f"12 points; {computed}",
        expected=1.0,
        tolerance=tolerance,
        reason="the error of the two quadratures",
        measured=mass,
    )


def _gradient_claims(line: np.ndarray, plane: np.ndarray, step: float = 1e-4) -> list[Claim]:
    found = []
    for points, t, h, nodes in ((line, 0.01, 0.25, 32), (plane, 0.04, 0.3, 12)):
        dimension = points.shape[1]
        logarithm, score = bv.led_log_density(points, t, h, nodes), bv.led_score(points, t, h, nodes)
        x = points + 0.1
        differences = np.stack([_difference(logarithm, x, axis, step) for axis in range(dimension)], axis=1)
        expected = score(x)
        found.append(
            Claim(
                claim=f"The LED-KDE's score is the kernel-smoothed empirical score in {dimension}-D",
                formula="∇(K_h * log p_σ)(x) = E_ξ s(x + hξ; σ)",
                source="METHODS §1.7 [C], [F]",
                computed=f"central differences of the log-density at {len(x)} points, Gauss–Hermite quadrature",
                expected=float(np.abs(expected).mean()),
                tolerance=1e-3,
                reason="central differences of step 1e-4 where the score bends on a scale of σ²",
                measured=float(np.abs(differences).mean()),
                deviation=float(np.abs(differences - expected).max()),
            )
        )
    return found


def _difference(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, axis: int, step: float) -> np.ndarray:
    shift = step * np.eye(x.shape[1])[axis]
    return (function(x + shift) - function(x - shift)) / (2 * step)


def _flat_claim(generator: np.random.Generator, t: float = 0.04, h: float = 0.5) -> Claim:
    """Data on a line in the plane: smoothing the log-density is smoothing along the line alone."""
    places = np.array([-1.0, 0.2, 1.0])
    angle = generator.uniform(0, math.pi)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    x = generator.standard_normal((40, 2))
    # product rule in the line's own axes: shifts along the line, and shifts across it
    shifts, weights = bv.gauss_hermite(h, 2, 16)
    shifted = (x[:, None] + shifts[:, :1] * along + shifts[:, 1:] * across).reshape(-1, 2)
    scores = bv.empirical_scores(shifted, (places[:, None] * along)[None], t)[0].reshape(len(x), -1, 2)
    smoothed = np.einsum("nmd,m->nd", scores, weights)
    tangent = bv.led_score(places[:, None], t, h, 16)((x @ along)[:, None])
    expected = tangent * along - ((x @ across) / t)[:, None] * across
    return Claim(
        claim="On a line, smoothing the log-density acts along the line alone",
        formula="E_ξ s(x + hξ) = (E_ζ s_∥(x_∥ + hζ), −x_⊥/σ²)",
        source="METHODS §1.7 [F]",
        computed="3 points on a line of the plane at a random angle, 40 places, Gauss–Hermite quadrature",
        expected=float(np.abs(expected).mean()),
        tolerance=1e-9,
        reason="float64 rounding over σ²",
        measured=float(np.abs(smoothed).mean()),
        deviation=float(np.abs(smoothed - expected).max()),
    )
