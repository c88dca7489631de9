"""Smoothing the score in one dimension, solved in closed form (Chen 2025; METHODS §7).

Forward dX = dW, p_t = p_0 * N(0, t), reverse flow dx/dt = −½ s_t(x). The data are sorted points on a line; between two
neighbours with midpoint m and half-gap D the empirical score becomes, as t → 0, (m + D sgn(x−m) − x)/t. Smoothed, the
jump is a ramp of half-width D − δ_t, δ_t = κ√t: within δ_t of a point the score is left alone. All in float64 numpy;
x (N,) and points in the unit of the data, t in its square.
"""

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr

from stages.theory import product

PAIR = np.array([-1.0, 1.0])
Velocity = Callable[[np.ndarray, float], np.ndarray]


def gaps(x: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Midpoint and half-gap, each (N,), of the gap that x (N,) lies in; beyond the ends those of the outermost gap."""
    left = np.clip(np.searchsorted(points, x) - 1, 0, len(points) - 2)
    return (points[left] + points[left + 1]) / 2, (points[left + 1] - points[left]) / 2


def posterior_mean(x: np.ndarray, delta: float, points: np.ndarray = PAIR) -> np.ndarray:
    """m + D clip((x−m)/(D−δ), −1, 1): where the smoothed flow aims at; δ ≥ D leaves the jump m + D sgn(x−m)."""
    middle, half = gaps(x, points)
    width = half - delta
    ramp = np.clip((x - middle) / np.where(width > 0, width, 1.0), -1, 1)
    return middle + half * np.where(width > 0, ramp, np.sign(x - middle))


def smoothed_score(x: np.ndarray, t: float, kappa: float, points: np.ndarray = PAIR) -> np.ndarray:
    """The piecewise-linear score smoothed over δ_t = κ√t; between two points its ramp is (δ/(D−δ)) (x−m)/t."""
    return (posterior_mean(x, kappa * math.sqrt(t), points) - x) / t


def flow(x: np.ndarray, start: float, end: float, kappa: float, points: np.ndarray = PAIR) -> np.ndarray:
    """Where the reverse flow takes x from time `start` to `end` < start, end = 0 included; needs κ√start < D.

    On the ramp x−m shrinks or grows like D − δ_t; outside it the distance to the nearest point falls like √t.
    """
    middle, half = gaps(x, points)
    before, after = half - kappa * math.sqrt(start), half - kappa * math.sqrt(end)
    if before.min() <= 0:
        raise ValueError(f"κ√t = {kappa * math.sqrt(start):g} must lie below the half-gap {half.min():g}")
    nearest = middle + half * np.sign(x - middle)
    inside = np.abs(x - middle) <= before
    return np.where(inside, middle + (x - middle) * after / before, nearest + (x - nearest) * math.sqrt(end / start))


def marginal(x: np.ndarray, t: float, points: np.ndarray = PAIR) -> np.ndarray:
    """Density of p_t = p_0 * N(0, t) at x (N,), p_0 uniform on `points`."""
    return np.exp(-((x[:, None] - points) ** 2) / (2 * t)).mean(axis=1) / math.sqrt(2 * math.pi * t)


def atom_mass(start: float, kappa: float) -> float:
    """P(x ≥ 1 − δ) under p_start on the data {−1, 1}: the mass of the limit law's atom at 1, and of the one at −1."""
    root = math.sqrt(start)
    return float(ndtr(kappa) + ndtr(kappa - 2 / root)) / 2


def limit_density(u: np.ndarray, start: float, kappa: float) -> np.ndarray:
    """Density of the limit law on (−1, 1), data {−1, 1}: (1−δ) p_start((1−δ) u), δ = κ√start."""
    width = 1 - kappa * math.sqrt(start)
    return width * marginal(width * u, start)


def interior_distribution(u: np.ndarray, kappa: float, start: float) -> np.ndarray:
    """P(x ≤ u | not on an atom) of the limit law: p_start's distribution function at (1−δ)u, rescaled."""
    width, root = 1 - kappa * math.sqrt(start), math.sqrt(start)
    low, at, high = ((ndtr((x + 1) / root) + ndtr((x - 1) / root)) / 2 for x in (-width, width * u, width))
    return (at - low) / (high - low)


def empirical_score(x: np.ndarray, t: float) -> np.ndarray:
    """The pipeline's empirical score of the data {−1, 1} at x (N,) and level √t: (tanh(x/t) − x)/t."""
    return product.empirical(PAIR[:, None], "conditioning")(x[:, None], math.sqrt(t))[:, 0]


def box_average(x: float, t: float, half_width: float) -> float:
    """Average of (sgn y − y)/t over |y − x| ≤ half_width, by adaptive quadrature split at the jump."""
    low, high = x - half_width, x + half_width
    edges = [low, *([0.0] if low < 0 < high else []), high]
    sides = [quad(lambda y: (math.copysign(1, y) - y) / t, a, b)[0] for a, b in zip(edges, edges[1:])]
    return sum(sides) / (2 * half_width)


def variation_of_slope(x: np.ndarray, values: np.ndarray) -> float:
    """∫|f''| of f given on an even grid: the sum of |second differences| over the step. Exact for a broken line."""
    return float(np.abs(np.diff(values, 2)).sum() / (x[1] - x[0]))


def smoothed_variation(t: float, kappa: float) -> float:
    """R[s_t] = ∫|s_t''| = 2/(t (1−δ_t)) of the smoothed score on the data {−1, 1}; the empirical score has 2/t²."""
    return 2 / (t * (1 - kappa * math.sqrt(t)))


def loss_limit(kappa: float) -> float:
    """ε(κ) = (1+κ²) Φ(−κ) − κ φ(κ) = E[(u+κ)²; u < −κ], u ~ N(0,1): the limit of t·E‖s_smoothed − s_empirical‖²."""
    return float((1 + kappa**2) * ndtr(-kappa) - kappa * math.exp(-(kappa**2) / 2) / math.sqrt(2 * math.pi))


def loss(t: float, kappa: float, nodes: int = 128) -> float:
    """t · E‖s_smoothed − s_empirical‖² under p_t on the data {−1, 1}, by Gauss–Legendre quadrature between the kinks,
    40 √t to either side."""
    delta, root = kappa * math.sqrt(t), math.sqrt(t)
    inner = (1 - delta - 8 * root, 1 - delta, 1.0, 1 + 8 * root)
    edges = np.array([0.0, *sorted(edge for edge in inner if edge > 0), 1 + 40 * root])
    place, weight = np.polynomial.legendre.leggauss(nodes)
    half = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half * (place + 1)).ravel()
    gap = smoothed_score(x, t, kappa) - empirical_score(x, t)
    return float(2 * t * ((half * weight).ravel() * gap**2 * marginal(x, t)).sum())


def score_in_space(x: np.ndarray, t: float, kappa: float, direction: np.ndarray) -> np.ndarray:
    """The smoothed score of data on the line R·direction in R^d: smoothed along it, −x_⊥/t across. x: (N, d).

    direction: unit vector (d,). Along the line the flow is slowed; across it, it is not, so x_⊥ ∝ √t.
    """
    along = x @ direction
    across = x - along[:, None] * direction
    return smoothed_score(along, t, kappa)[:, None] * direction - across / t


def sampled(step: str, velocity: Velocity, x: np.ndarray, ends: tuple[float, float], steps: int) -> np.ndarray:
    """x (N, …) after `steps` equal steps of dx/du = velocity(x, u) from u = ends[0] down to ends[1], by the pipeline's
    sampler `step`: euler or heun.

    The sampler solves dx/dσ = −σ s(x, σ): s = −velocity/σ with σ = u − ends[1] + 1. Its step to σ = 0 is left out.
    """
    shift = 1 - ends[1]
    sigmas = np.linspace(ends[0] + shift, 1.0, steps + 1)

    def score(flat: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return -velocity(flat.reshape(x.shape), sigma[0] - shift).reshape(flat.shape) / sigma[0]

    states = product.path(step, score, lambda _: x.reshape(len(x), -1) / sigmas[0], sigmas)
    return next(itertools.islice(states, steps - 1, None)).reshape(x.shape)


def runge_kutta(velocity: Velocity, x: np.ndarray, ends: tuple[float, float], steps: int) -> np.ndarray:
    """The same by the classical Runge–Kutta method, which the pipeline does not have: the reference, of order 4."""
    step = (ends[1] - ends[0]) / steps
    for now in ends[0] + step * np.arange(steps):
        a = velocity(x, now)
        b = velocity(x + step / 2 * a, now + step / 2)
        c = velocity(x + step / 2 * b, now + step / 2)
        x = x + step / 6 * (a + 2 * b + 2 * c + velocity(x + step * c, now + step))
    return x


METHODS: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "Euler": (functools.partial(sampled, "euler"), 1),
    "Heun": (functools.partial(sampled, "heun"), 2),
    "Runge–Kutta": (runge_kutta, 4),
}
"""Integrators by name, with their order."""


def log_time_velocity(score: Callable[[np.ndarray, float], np.ndarray]) -> Velocity:
    """dx/d(ln t) = −½ t s_t(x) for score(x, t): in ln t the reverse flow has no singularity at t = 0."""
    return lambda x, u: -0.5 * math.exp(u) * score(x, math.exp(u))


def sample_limit(kappa: float, start: float, count: int, generator: np.random.Generator, steps: int = 20):
    """Draws of p_start on {−1, 1}, float64 (count,), and where the pipeline's Euler sampler takes them, (count,).

    Levels evenly spaced in σ down to 0.001, then the sampler's last step to the posterior mean. In ln t a step takes
    samples near a ramp's edge to its other side, which shows in the histogram beside the atoms.
    """
    x = generator.choice(PAIR, count) + math.sqrt(start) * generator.standard_normal(count)
    sigmas = np.linspace(math.sqrt(start), 1e-3, steps + 1)
    return x, product.end(euler_path(kappa, x, sigmas))[:, 0]


def euler_path(kappa: float, x: np.ndarray, sigmas: np.ndarray):
    """The states (N, 1) of the pipeline's Euler sampler with the smoothed score, from x (N,) at sigmas[0]."""

    def score(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return smoothed_score(x[:, 0], sigma[0] ** 2, kappa)[:, None]

    return product.path("euler", score, lambda _: x[:, None] / sigmas[0], sigmas)
