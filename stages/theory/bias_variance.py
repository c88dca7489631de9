"""Bias and variance of the empirical score and of its kernel smoothing (Gabriel et al. 2025; METHODS §8).

A known density, a mixture of isotropic Gaussians, gives the true score at every noise level; training sets are drawn
from it again and again. Time t = σ² as in METHODS §8. All in float64 numpy.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Isotropic Gaussians: weights (K,), means (K, d), variances (K,), each float64."""

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray

    def draw(self, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        """Points of the mixture, shape + (d,)."""
        which = generator.choice(len(self.weights), shape, p=self.weights)
        noise = generator.standard_normal((*shape, self.means.shape[1]))
        return self.means[which] + np.sqrt(self.variances[which])[..., None] * noise

    def _parts(self, x: np.ndarray, t: float) -> np.ndarray:
        """w_k N(x; μ_k, (s_k² + t) I), (N, K), for x (N, d)."""
        variance = self.variances + t
        squared = ((x[:, None] - self.means) ** 2).sum(axis=2)
        return self.weights * np.exp(-squared / (2 * variance)) / (2 * math.pi * variance) ** (x.shape[1] / 2)

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


def predicted_covariance(mixture: Mixture, x: np.ndarray, t: float, count: int) -> np.ndarray:
    """Covariance of the empirical score of `count` draws at x (N, d), to first order in 1/count: (N, d, d).

    (4πt)^{−d/2}/(M t²) · p_{t/2}(x)/p_t(x)² · E_{X|X_{t/2}=x}[(X−m_t)(X−m_t)ᵀ], m_t = E[X|X_t=x] (METHODS §8).
    """
    dimension = x.shape[1]
    mean, covariance = mixture.posterior(x, t / 2)
    offset = mean - mixture.posterior(x, t)[0]
    second = covariance + offset[:, :, None] * offset[:, None, :]
    scale = (4 * math.pi * t) ** (-dimension / 2) / (count * t**2)
    ratio = mixture.density(x, t / 2) / mixture.density(x, t) ** 2
    return scale * ratio[:, None, None] * second


def effective_count(mixture: Mixture, x: np.ndarray, t: float, count: int) -> np.ndarray:
    """M_eff (N,): (E Σ K)²/(M E K²), how many of `count` draws carry the empirical score at x."""
    overlap = (4 * math.pi * t) ** (-x.shape[1] / 2) * mixture.density(x, t / 2)
    return count * mixture.density(x, t) ** 2 / overlap


def empirical_scores(x: np.ndarray, sets: np.ndarray, t: float) -> np.ndarray:
    """Score of every training set (R, M, d) at every x (N, d): (R, N, d)."""
    log_weight = -((x[None, :, None] - sets[:, None]) ** 2).sum(axis=3) / (2 * t)
    weight = np.exp(log_weight - log_weight.max(axis=2, keepdims=True))
    return ((weight @ sets) / weight.sum(axis=2, keepdims=True) - x) / t


def resampled_scores(
    mixture: Mixture, x: np.ndarray, t: float, count: int, sets: int, generator: np.random.Generator
) -> np.ndarray:
    """Empirical scores at x (N, d) of `sets` training sets of `count` draws each: (sets, N, d), in blocks."""
    block = max(1, 2_000_000 // (count * len(x)))
    parts = [
        empirical_scores(x, mixture.draw((min(block, sets - start), count), generator), t)
        for start in range(0, sets, block)
    ]
    return np.concatenate(parts)


def covariance_with_error(scores: np.ndarray, groups: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Covariance (N, d, d) of scores (R, N, d) over R, and the standard error of its Frobenius norm's distance, (N,):
    from the spread of the covariances of `groups` equal groups."""
    centred = scores - scores.mean(axis=0)
    products = np.einsum("rni,rnj->rnij", centred, centred)
    size = len(scores) // groups
    means = products[: size * groups].reshape(groups, size, *products.shape[1:]).mean(axis=1)
    error = means.std(axis=0, ddof=1) / math.sqrt(groups)
    return products.sum(axis=0) / (len(scores) - 1), np.sqrt((error**2).sum(axis=(1, 2)))


@dataclasses.dataclass(frozen=True)
class Grid:
    """A square grid [−reach, reach]² of `side` points per axis."""

    reach: float
    side: int

    @property
    def step(self) -> float:
        """Distance of neighbouring points."""
        return 2 * self.reach / (self.side - 1)

    @property
    def points(self) -> np.ndarray:
        """(side², 2)."""
        axis = np.linspace(-self.reach, self.reach, self.side)
        return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)

    def smooth(self, values: np.ndarray, h: float) -> np.ndarray:
        """Values (side², …) averaged with the Gaussian kernel of width h, cut at 5 h; near the edge the outermost
        values are repeated."""
        if h == 0:
            return values
        shaped = values.reshape(self.side, self.side, -1)
        return gaussian_filter(shaped, h / self.step, mode="nearest", truncate=5.0, axes=(0, 1)).reshape(values.shape)


@dataclasses.dataclass(frozen=True)
class Errors:
    """Mean squared error of a smoothed score and its parts, each weighted by p_t; error: standard error of `total`."""

    total: float
    bias: float
    variance: float
    error: float


def decompose(scores: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> Errors:
    """scores (S, N, d) of S training sets, true score (N, d), weights (N,) that sum to 1.

    E‖ŝ − s‖² = ‖E ŝ − s‖² + E‖ŝ − E ŝ‖², each estimated without bias over the S sets.
    """
    count = len(scores)
    each = (((scores - truth) ** 2).sum(axis=2) * weight).sum(axis=1)
    mean = scores.mean(axis=0)
    variance = (((scores - mean) ** 2).sum(axis=(0, 2)) * weight).sum() / (count - 1)
    bias = (((mean - truth) ** 2).sum(axis=1) * weight).sum() - variance / count
    return Errors(float(each.mean()), float(bias), float(variance), float(each.std(ddof=1) / math.sqrt(count)))


def gauss_hermite(h: float, dimension: int, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Shifts hξ (n, dimension) and weights (n,) of E_ξ f(x + hξ), ξ ~ N(0, I), by a product rule."""
    place, weight = np.polynomial.hermite_e.hermegauss(nodes)
    weight = weight / weight.sum()
    places = np.stack(np.meshgrid(*[h * place] * dimension, indexing="ij"), axis=-1).reshape(-1, dimension)
    weights = np.prod(np.stack(np.meshgrid(*[weight] * dimension, indexing="ij"), axis=-1), axis=-1).ravel()
    return places, weights


def log_density(x: np.ndarray, points: np.ndarray, t: float) -> np.ndarray:
    """log(G_σ * μ_M)(x), (N,), for x (N, d), points (M, d), t = σ²."""
    exponent = -((x[:, None] - points) ** 2).sum(axis=2) / (2 * t)
    top = exponent.max(axis=1)
    constant = math.log(len(points)) + x.shape[1] / 2 * math.log(2 * math.pi * t)
    return top + np.log(np.exp(exponent - top[:, None]).sum(axis=1)) - constant


def averaged(function: Callable[[np.ndarray], np.ndarray], shifts: np.ndarray, weights: np.ndarray):
    """x -> Σ_m w_m f(x + shift_m), for f of (N, d); shifts (m, d), weights (m,)."""

    def smooth(x: np.ndarray) -> np.ndarray:
        values = function((x[:, None] + shifts).reshape(-1, x.shape[1]))
        return np.tensordot(values.reshape(len(x), len(shifts), -1), weights, axes=(1, 0)).squeeze(-1)

    return smooth


def led_log_density(points: np.ndarray, t: float, h: float, nodes: int) -> Callable[[np.ndarray], np.ndarray]:
    """x (N, d) -> K_h * log(G_σ * μ_M), (N,): the LED-KDE's log-density up to its constant (METHODS §1.7)."""
    shifts, weights = gauss_hermite(h, points.shape[1], nodes)
    return averaged(lambda x: log_density(x, points, t)[:, None], shifts, weights)


def led_score(points: np.ndarray, t: float, h: float, nodes: int) -> Callable[[np.ndarray], np.ndarray]:
    """x (N, d) -> the kernel-smoothed empirical score (N, d), with the quadrature of `led_log_density`."""
    shifts, weights = gauss_hermite(h, points.shape[1], nodes)

    def smooth(x: np.ndarray) -> np.ndarray:
        shifted = (x[:, None] + shifts).reshape(-1, x.shape[1])
        scores = empirical_scores(shifted, points[None], t)[0].reshape(len(x), len(shifts), -1)
        return np.einsum("nmd,m->nd", scores, weights)

    return smooth
