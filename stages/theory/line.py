"""Smoothing the score in one dimension, solved in closed form (Chen 2025; METHODS §7).

Forward dX = dW, p_t = p_0 * N(0, t), reverse flow dx/dt = −½ s_t(x). The data are sorted points on a line; between two
neighbours with midpoint m and half-gap D the empirical score becomes, as t → 0, (m + D sgn(x−m) − x)/t. Smoothed, the
jump is a ramp of half-width D − δ_t, δ_t = κ√t: within δ_t of a point the score is left alone. All in float64 numpy;
x and points in the unit of the data, t in its square.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.integrate import quad
from scipy.special import ndtr

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


def empirical_score(x: np.ndarray, t: float) -> np.ndarray:
    """(tanh(x/t) − x)/t: the exact score of p_t for the data {−1, 1}."""
    return (np.tanh(x / t) - x) / t


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


def euler(velocity: Velocity, x: np.ndarray, now: float, step: float) -> np.ndarray:
    """One Euler step of dx/du = velocity(x, u); order 1."""
    return x + step * velocity(x, now)


def heun(velocity: Velocity, x: np.ndarray, now: float, step: float) -> np.ndarray:
    """One step of Heun's method; order 2."""
    first = velocity(x, now)
    return x + step / 2 * (first + velocity(x + step * first, now + step))


def runge_kutta(velocity: Velocity, x: np.ndarray, now: float, step: float) -> np.ndarray:
    """One step of the classical Runge–Kutta method; order 4."""
    a = velocity(x, now)
    b = velocity(x + step / 2 * a, now + step / 2)
    c = velocity(x + step / 2 * b, now + step / 2)
    return x + step / 6 * (a + 2 * b + 2 * c + velocity(x + step * c, now + step))


METHODS: dict[str, tuple[Callable[..., np.ndarray], int]] = {
    "Euler": (euler, 1),
    "Heun": (heun, 2),
    "Runge–Kutta": (runge_kutta, 4),
}


def integrate(method: Callable[..., np.ndarray], velocity: Velocity, x: np.ndarray, ends: Sequence[float], steps: int):
    """x after `steps` equal steps of dx/du = velocity(x, u) from u = ends[0] to ends[1]."""
    grid = np.linspace(*ends, steps + 1)
    for now, following in zip(grid, grid[1:]):
        x = method(velocity, x, now, following - now)
    return x


def log_time_velocity(score: Callable[[np.ndarray, float], np.ndarray]) -> Velocity:
    """dx/d(ln t) = −½ t s_t(x) for score(x, t): in ln t the reverse flow has no singularity at t = 0."""
    return lambda x, u: -0.5 * math.exp(u) * score(x, math.exp(u))


def level_velocity(score: Callable[[np.ndarray, float], np.ndarray]) -> Velocity:
    """dx/dσ = −σ s(x), σ = √t: the variable in which samplers step (METHODS §5)."""
    return lambda x, sigma: -sigma * score(x, sigma**2)


def score_in_space(x: np.ndarray, t: float, kappa: float, direction: np.ndarray, points: np.ndarray = PAIR):
    """The smoothed score of data on the line R·direction in R^d: smoothed along it, −x_⊥/t across. x: (N, d).

    direction: unit vector (d,). Along the line the flow is slowed; across it, it is not, so x_⊥ ∝ √t.
    """
    along = x @ direction
    across = x - along[:, None] * direction
    return smoothed_score(along, t, kappa, points)[:, None] * direction - across / t
