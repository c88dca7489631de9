"""Bias and variance of the empirical score and of its kernel smoothing, and the LED-KDE density (Gabriel et al. 2025;
METHODS §8, §1.7).

A known density, a mixture of isotropic Gaussians, gives the true score at every noise level; training sets are drawn
from it again and again. Time t = σ² as in METHODS §8. The scores are the pipeline's: `scores.conditioning`, smoothed by
`scores.smoothed` over fixed shifts.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from pydantic import Field
from scipy.integrate import quad
from scipy.spatial.distance import cdist
from scipy.special import logsumexp

from stages.theory import product
from stages.theory.claims import Block, Claim, Findings, Statement, Table, mean_error

PLACES = np.array([[-0.6, 0.1], [0.2, 0.2], [0.6, -0.6]])
POINTS, SHIFTS = 128, 32  # points of p_t at which a score's error is measured, and shifts of the kernel


class BiasVariance(Block):
    """The empirical score's covariance, the smoothed score's bias and variance, and the LED-KDE density."""

    TITLE: ClassVar[str] = "Bias and variance: smoothing the score acts like more training data"

    time: float = Field(gt=0, description="t of the covariance")
    count: int = Field(ge=50, description="training points per set, for the covariance")
    sets: int = Field(ge=200, description="training sets, for the covariance")
    level: float = Field(gt=0.1, description="σ of the curves")
    counts: list[int] = Field(min_length=2, description="training points per set, for the curves; rising")
    repeats: int = Field(ge=3, description="training sets per count, for the curves")
    widths: list[float] = Field(min_length=4, description="kernel widths h, from 0, rising")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        generator = np.random.default_rng(seed)
        claims, rows = covariance_claims(self.time, self.count, self.sets, generator)
        curves = error_curves(self.level, self.counts, self.repeats, self.widths, generator)
        led, densities = led_claims(generator)
        tables = {"score_covariance": rows, "bias_variance": curves, "led_density": densities}
        return Findings([*claims, *curve_claims(curves), *led], tables)


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians: weights (K,), means (K, d), variances (K,), each float64."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Points of the mixture, (count, d)."""
        which = generator.choice(len(self.weights), count, p=self.weights)
        noise = generator.standard_normal((count, self.means.shape[1]))
        return self.means[which] + np.sqrt(self.variances[which])[:, None] * noise

    def _parts(self, x: np.ndarray, t: float) -> np.ndarray:
        """w_k N(x; μ_k, (s_k² + t) I), (N, K), for x (N, d)."""
        variance = self.variances + t
        gaussian = np.exp(-cdist(x, self.means, "sqeuclidean") / (2 * variance))
        return self.weights * gaussian / (2 * math.pi * variance) ** (x.shape[1] / 2)

    def density(self, x: np.ndarray, t: float) -> np.ndarray:
        """p_t(x), (N,), of the mixture plus noise of variance t."""
        return self._parts(x, t).sum(axis=1)

    def posterior(self, x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean (N, d) and covariance (N, d, d) of X given X + √t z = x."""
        share = self._parts(x, t)
        share /= share.sum(axis=1, keepdims=True)
        keep = (self.variances / (self.variances + t))[None, :, None]
        means = self.means + keep * (x[:, None] - self.means)
        mean = (share[..., None] * means).sum(axis=1)
        offset = means - mean[:, None]
        within = (share * (self.variances * t / (self.variances + t))).sum(axis=1)
        between = np.einsum("nk,nki,nkj->nij", share, offset, offset)
        return mean, between + within[:, None, None] * np.eye(x.shape[1])

    def score(self, x: np.ndarray, t: float) -> np.ndarray:
        """∇ log p_t(x) = (E[X|x] − x)/t, (N, d)."""
        return (self.posterior(x, t)[0] - x) / t


MIXTURE = Mixture(
    weights=np.array([0.5, 0.3, 0.2]),
    means=np.array([[-0.8, 0.0], [0.7, 0.6], [0.6, -0.9]]),
    variances=np.array([0.09, 0.16, 0.04]),
)


def overlap(mixture: Mixture, x: np.ndarray, t: float) -> np.ndarray:
    """E K² at x (N, d), K = N(x − X; t): (4πt)^{−d/2} p_{t/2}(x), (N,)."""
    return (4 * math.pi * t) ** (-x.shape[1] / 2) * mixture.density(x, t / 2)


def predicted_covariance(mixture: Mixture, x: np.ndarray, t: float, count: int) -> np.ndarray:
    """Covariance of the empirical score of `count` draws at x (N, d), to first order in 1/count: (N, d, d).

    (4πt)^{−d/2}/(M t²) · p_{t/2}(x)/p_t(x)² · E_{X|X_{t/2}=x}[(X−m_t)(X−m_t)ᵀ], m_t = E[X|X_t=x] (METHODS §8).
    """
    mean, covariance = mixture.posterior(x, t / 2)
    offset = mean - mixture.posterior(x, t)[0]
    second = covariance + offset[:, :, None] * offset[:, None, :]
    scale = overlap(mixture, x, t) / (count * t**2 * mixture.density(x, t) ** 2)
    return scale[:, None, None] * second


def effective_count(mixture: Mixture, x: np.ndarray, t: float, count: int) -> np.ndarray:
    """M_eff (N,): (E Σ K)²/(M E K²), how many of `count` draws carry the empirical score at x."""
    return count * mixture.density(x, t) ** 2 / overlap(mixture, x, t)


def empirical_score(points: np.ndarray, t: float) -> product.Score:
    """The pipeline's conditioning score of training points (M, d) at level √t; the level given to it is ignored."""
    score = product.empirical(points, "conditioning")
    return lambda x, sigma=0.0: score(x, math.sqrt(t))


def covariance_with_error(scores: np.ndarray, groups: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Covariance (N, d, d) of scores (R, N, d) over R, and the standard error of its Frobenius norm's distance, (N,):
    from the spread of the covariances of `groups` equal groups."""
    centred = scores - scores.mean(axis=0)
    products = np.einsum("rni,rnj->rnij", centred, centred)
    size = len(scores) // groups
    means = products[: size * groups].reshape(groups, size, *products.shape[1:]).mean(axis=1)
    error = means.std(axis=0, ddof=1) / math.sqrt(groups)
    return products.sum(axis=0) / (len(scores) - 1), np.sqrt((error**2).sum(axis=(1, 2)))


def covariance_claims(t: float, count: int, sets: int, generator: np.random.Generator) -> tuple[list[Claim], Table]:
    """Covariance over resampled training sets against the re-weighted PCA, at three places."""
    scores = np.stack([empirical_score(MIXTURE.draw(count, generator), t)(PLACES) for _ in range(sets)])
    predicted, effective = predicted_covariance(MIXTURE, PLACES, t, count), effective_count(MIXTURE, PLACES, t, count)
    claims, rows = [], []
    for place, own, error, formula, many in zip(PLACES, *covariance_with_error(scores), predicted, effective):
        name, size = f"({place[0]:g}, {place[1]:g})", float(np.linalg.norm(formula))
        claim = Statement(
            f"The empirical score's covariance is a re-weighted PCA of the data, at {name}",
            "(4πt)^{−d/2}/(M t²) · p_{t/2}/p_t² · E_{X|X_{t/2}=x}[(X−m_t)(X−m_t)ᵀ]", "METHODS §8 [C]",
            f"{sets:,} training sets of {count:,} draws of a 2-D mixture, t = {t:g}; Frobenius norm of the difference, "
            f"relative; {many:.0f} draws carry the score",
        ).near(
            float(np.linalg.norm(own - formula) / size), 0.0, float(error / size),
            "four standard errors, and the next order of 1/M: a few over the draws that carry the score", 5 / many,
        )  # fmt: skip
        claims.append(claim)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            row = {"place": name, "entry": f"{i + 1}{j + 1}", "predicted": float(formula[i, j])}
            rows.append({**row, "found": float(own[i, j])})
    return claims, rows


def decompose(scores: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Mean squared error of scores (S, N, d) of S training sets against the true score (N, d) at N points of p_t, its
    parts, and its standard error.

    E‖ŝ − s‖² = ‖E ŝ − s‖² + E‖ŝ − E ŝ‖², each estimated without bias over the S sets.
    """
    count, mean = len(scores), scores.mean(axis=0)
    each = ((scores - truth) ** 2).sum(axis=2).mean(axis=1)
    variance = ((scores - mean) ** 2).sum(axis=2).mean(axis=1).sum() / (count - 1)
    bias = ((mean - truth) ** 2).sum(axis=1).mean() - variance / count
    values = {"error": each.mean(), "bias": bias, "variance": variance, "standard_error": mean_error(each)}
    return {name: float(value) for name, value in values.items()}


def normal_shifts(count: int, dimension: int, generator: np.random.Generator) -> np.ndarray:
    """Shifts ξ (count, dimension) in pairs ξ, −ξ whose mean is 0 and whose covariance is I, both exactly."""
    half = generator.standard_normal((count // 2, dimension))
    shifts = np.concatenate([half, -half])
    return shifts @ np.linalg.inv(np.linalg.cholesky(shifts.T @ shifts / count)).T


def error_curves(
    level: float, counts: list[int], repeats: int, widths: list[float], generator: np.random.Generator
) -> Table:
    """E‖ŝ_h − s‖² under p_t, its bias and its variance by kernel width and number of training points."""
    t, shifts = level**2, normal_shifts(SHIFTS, 2, generator)
    x = MIXTURE.draw(POINTS, generator) + level * generator.standard_normal((POINTS, 2))
    truth, rows = MIXTURE.score(x, t), []
    for count in counts:
        scores = [empirical_score(MIXTURE.draw(count, generator), t) for _ in range(repeats)]
        for h in widths:
            found = decompose(np.stack([product.smoothed(score, h, shifts)(x) for score in scores]), truth)
            rows.append({"training_points": count, "h": h, **found})
    return rows


def curve_claims(rows: Table) -> list[Claim]:
    """U-shape, monotone parts, and what smoothing is worth in training points."""
    counts = list(dict.fromkeys(row["training_points"] for row in rows))
    curves = {count: [row for row in rows if row["training_points"] == count] for count in counts}
    best = {count: min(own, key=lambda row: row["error"]) for count, own in curves.items()}
    ends = [curves[counts[0]][place]["h"] for place in (0, -1)]
    edge = sum(row["h"] in ends for row in best.values())
    wrong = sum(
        best[count]["variance"] >= own[0]["variance"] or best[count]["bias"] <= own[0]["bias"]
        for count, own in curves.items()
    )
    worth = {count: equivalent_count(best[count]["error"], curves) for count in counts}
    listing = ", ".join(f"M = {count}: h = {row['h']:g}" for count, row in best.items())
    gains = ", ".join(f"{count} like {worth[count]:.0f}" for count in counts)
    optima = [best[count]["h"] for count in counts]
    claims = (
        ("The smoothed score's error is U-shaped in the kernel width", "argmin_h E‖ŝ_h − s‖² lies inside (0, h_max)",
         f"2-D mixture, true score known; best widths {listing}",
         edge, "counts the training set sizes with their optimum at either end"),
        ("Smoothing trades variance for bias",
         "at the best h the variance is smaller and the bias larger than at h = 0",
         f"{len(counts)} training set sizes, unbiased estimates", wrong, "counts the sizes where it is not so"),
        ("Smoothing acts like a larger training set", "min_h error(M, h) = error(M', 0) with M' > M",
         f"power law through the unsmoothed errors: {gains}",
         sum(worth[count] <= count * (1 + 1e-9) for count in counts), "counts the sizes that gain nothing"),
        ("The more training points, the less smoothing is best", "argmin_h falls with M", f"best widths {listing}",
         sum(later > earlier for earlier, later in zip(optima, optima[1:])),
         "counts steps up in M with a larger optimum"),
    )  # fmt: skip
    return [
        Statement(claim, formula, "METHODS §8 [C]", computed).holds(violations, counted)
        for claim, formula, computed, violations, counted in claims
    ]


def equivalent_count(error: float, curves: dict[int, Table]) -> float:
    """M' whose unsmoothed score has this error, by the power law through the unsmoothed errors."""
    errors = np.log([own[0]["error"] for own in curves.values()])
    slope, start = np.polyfit(np.log(list(curves)), errors, 1)
    return float(np.exp((math.log(error) - start) / slope))


def log_density(x: np.ndarray, points: np.ndarray, t: float) -> np.ndarray:
    """log(G_σ * μ_M)(x), (N,), for x (N, d), points (M, d), t = σ²."""
    constant = math.log(len(points)) + x.shape[1] / 2 * math.log(2 * math.pi * t)
    return logsumexp(-cdist(x, points, "sqeuclidean") / (2 * t), axis=1) - constant


def led_log_density(points: np.ndarray, t: float, h: float, shifts: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """x (N, d) -> K_h * log(G_σ * μ_M), (N,), as a mean over shifts ξ (m, d): the LED-KDE's log-density up to its
    constant (METHODS §1.7)."""
    moved = h * shifts
    return lambda x: (
        log_density((x[:, None] + moved).reshape(-1, x.shape[1]), points, t).reshape(len(x), -1).mean(axis=1)
    )


def led_claims(generator: np.random.Generator) -> tuple[list[Claim], Table]:
    """The LED-KDE in one and two dimensions, and that it smooths along a line only."""
    line = np.sort(generator.choice([-1.0, 0.8], 12) + 0.3 * generator.standard_normal(12))[:, None]
    cases = ((line, 0.01, 0.25), (MIXTURE.draw(12, generator), 0.04, 0.3))
    shifts = [normal_shifts(SHIFTS, points.shape[1], generator) for points, _, _ in cases]
    one, rows = _led_line(*cases[0], shifts[0])
    gradients = [_gradient_claim(*case, own) for case, own in zip(cases, shifts)]
    return [one, _led_plane(*cases[1], shifts[1]), *gradients, _flat_claim(generator)], rows


def _led_line(points: np.ndarray, t: float, h: float, shifts: np.ndarray) -> tuple[Claim, Table]:
    logarithm, x = led_log_density(points, t, h, shifts), np.linspace(-4, 4, 1601)
    values, plain = np.exp(logarithm(x[:, None])), np.exp(log_density(x[:, None], points, t))
    mass = float(values.sum() * (x[1] - x[0]))
    other = quad(lambda at: float(np.exp(logarithm(np.array([[at]])))[0]), -4, 4, limit=400, points=[-1, 0, 1])[0]
    rows = [{"x": a, "led": b, "kde": c} for a, b, c in np.stack([x, values / mass, plain], axis=1)[::8].tolist()]
    return _mass_claim(1, other / mass, "adaptive quadrature against the grid that normalizes it"), rows


def _led_plane(points: np.ndarray, t: float, h: float, shifts: np.ndarray) -> Claim:
    logarithm, masses = led_log_density(points, t, h, shifts), []
    for side in (97, 129):  # the trapezoidal rule converges fast on a smooth density that vanishes at the edge
        axis = np.linspace(-3.2, 3.2, side)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
        masses.append(np.exp(logarithm(grid)).sum() * (axis[1] - axis[0]) ** 2)
    return _mass_claim(2, masses[0] / masses[1], "a grid of 97² against one of 129² that normalizes it")


def _mass_claim(dimension: int, mass: float, computed: str) -> Claim:
    return Statement(
        f"The LED-KDE density exists and integrates to one in {dimension}-D", "p ∝ exp(K_h * log(G_σ * μ_M))",
        "METHODS §1.7 [C]", f"12 points; {computed}",
    ).equals(mass, 1.0, 1e-6, "the error of the two quadratures")  # fmt: skip


def _gradient_claim(points: np.ndarray, t: float, h: float, shifts: np.ndarray, step: float = 1e-4) -> Claim:
    logarithm, x = led_log_density(points, t, h, shifts), points + 0.1
    axes = step * np.eye(points.shape[1])
    differences = np.stack([(logarithm(x + e) - logarithm(x - e)) / (2 * step) for e in axes], axis=1)
    smoothed = product.smoothed(empirical_score(points, t), h, shifts)(x)
    return Statement(
        f"The LED-KDE's score is the kernel-smoothed empirical score in {points.shape[1]}-D",
        "∇(K_h * log p_σ)(x) = E_ξ s(x + hξ; σ)", "METHODS §1.7 [C], [F]",
        f"the pipeline's smoothed score against central differences of the log-density at {len(x)} points, "
        f"{len(shifts)} shifts",
    ).equals(
        smoothed, differences, 1e-3, "central differences of step 1e-4 where the score bends on a scale of σ²"
    )  # fmt: skip


def _flat_claim(generator: np.random.Generator, t: float = 0.04, h: float = 0.5) -> Claim:
    """Data on a line in the plane: smoothing the log-density is smoothing along the line alone."""
    places, angle = np.array([-1.0, 0.2, 1.0])[:, None], generator.uniform(0, math.pi)
    along, across = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    x, shifts = generator.standard_normal((40, 2)), normal_shifts(SHIFTS, 2, generator)
    smoothed = product.smoothed(empirical_score(places * along, t), h, shifts)(x)
    tangent = product.smoothed(empirical_score(places, t), h, (shifts @ along)[:, None])((x @ along)[:, None])
    return Statement(
        "On a line, smoothing the log-density acts along the line alone",
        "E_ξ s(x + hξ) = (E_ζ s_∥(x_∥ + hζ), −x_⊥/σ²)", "METHODS §1.7 [F]",
        f"the pipeline's smoothed score, 3 points on a line of the plane at a random angle, 40 places, {SHIFTS} shifts",
    ).equals(
        smoothed, tangent * along - ((x @ across) / t)[:, None] * across, 1e-9, "float64 rounding over σ²"
    )  # fmt: skip
