"""Which training images a model is likely to copy, from the training set alone.

A logistic model of three FEATURES of every image: how much of the noise begins there, and what smoothing does to it
among its exact nearest neighbours. How many images are copied depends on the model and on its training, so the
intercept is that of a model which copies a given share; only the order of the images and the ratios of their odds are
learned. `python -m benchmarks.risk` fits WEIGHTS and measures them on runs with other seeds, sizes, images and scores,
beside what is DESCRIBED (low coverage: Merger & Goldt 2026, arXiv 2606.14390).
"""

import dataclasses

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, logsumexp

from stages.errors import InputError
from stages.memorization.groups import duplicates_among
from stages.memorization.neighbors import BUDGET, own_neighbors

FEATURES = ("start", "mode", "blend")
"""With s, the median distance to the nearest image outside the own duplicate group, and l = LEVEL s:

start: ln of M times the share of the noise that begins at the group. A sampler begins at x in N(0, sigma^2 I), sigma
    its first level. The weight of an image x_i there has the mean exp(-c.m / sigma^2), over that of all, to first
    order: m is the mean image and c = x_i - m. Without that lead it is ln of the group's size.
mode: -ln(r1/r2) where mean shift by exp(-r^2 / 2 l^2) ends that begins at the image: what is left of it in the data
    smoothed by N(0, l^2 I). r1: distance to the own group, r2: to the nearest image outside it.
blend: -ln(r1/r2) of sum_j W_ij x_j, with W_ij proportional to exp(-D_ij^2 / 8 l^2), the overlap (Bhattacharyya
    coefficient) of N(x_i, l^2 I) and N(x_j, l^2 I): how far a single smoothing moves the image."""

DESCRIBED = ("duplicates", "coverage", "isolation")
"""Not in the model, and shown beside it.

duplicates: ln of the size of the duplicate group.
coverage: ln of how many images list it among their NEAR nearest, over NEAR (one added to both).
isolation: ln of the distance to the nearest image outside the duplicate group, over s."""

NEAR = 10
FEWEST = 12  # training images
LEVEL = 0.3  # chosen on the runs of the fit, a closed form left out at a time; 0.25 and 0.35 lose 0.01 of AUC
SHIFTS = 30  # of mean shift
LEAST, MOST = 0.02, 3.0  # r1/r2 is taken as no less and no more
FIRST_LEVEL = 5 / 16  # of a sampler, over the side in pixels: 5 at 16 x 16, as params.yaml has it

WEIGHTS = np.array([2.44, 0.21, 0.54])
"""Of FEATURES, as `python -m benchmarks.risk` fits them."""

SPREAD = 1.67
"""Standard deviation of the weighted sum over the images of a training set, mean over the sets of the fit. Sets whose
images differ more in `start` (photographs in brightness) spread it more, and are not copied by that much more
unevenly: with the sum as it is the odds are too sure there."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A logistic model: weights of FEATURES, and the intercept of every run that it was fitted on."""

    weights: np.ndarray
    intercepts: np.ndarray


def features(images: np.ndarray, sigma_max: float | None = None) -> np.ndarray:
    """Return FEATURES of training images uint8 (M, H, W, C), float64 (M, 3); arguments as `described`."""
    found = described(images, sigma_max)
    return np.stack([found[name] for name in FEATURES], axis=1)


def described(images: np.ndarray, sigma_max: float | None = None) -> dict[str, np.ndarray]:
    """Return FEATURES and DESCRIBED of training images uint8 (M, H, W, C), float64 (M,) each.

    sigma_max: first level of the sampler, for pixels in [0, 1]; None: FIRST_LEVEL times the height.

    Raises InputError for fewer than FEWEST images.
    """
    if len(images) < FEWEST:
        raise InputError(f"risk: {len(images)} training images are too few: give at least {FEWEST}")
    flat, sigma = images.reshape(len(images), -1), sigma_max or FIRST_LEVEL * images.shape[1]
    own = own_neighbors(flat, 0, len(flat), BUDGET)
    group = duplicates_among(images, own).group
    index, distance = own["index"], np.sqrt(own["squared"].astype(np.float64))
    first = np.where(group[index] != group[:, None], distance, np.inf).min(1)
    first = np.where(np.isfinite(first), first, distance[:, -1])  # all that are listed belong to the group
    apart = max(float(np.median(first)), 1.0)
    listed = np.bincount(index[:, :NEAR].ravel(), minlength=len(flat))
    return {
        "start": _start(flat, group, sigma),
        **_smoothed(flat, group, index, LEVEL * apart),
        "duplicates": np.log(np.bincount(group)[group]),
        "coverage": np.log((1 + listed) / (1 + NEAR)),
        "isolation": np.log(np.maximum(first, 1) / apart),
    }


def _start(flat: np.ndarray, group: np.ndarray, sigma: float) -> np.ndarray:
    """Return `start` of all images uint8 (M, d), (M,)."""
    mean = flat.mean(0, dtype=np.float64)
    blocks = range(0, len(flat), 4096)
    lead = (mean @ mean - np.concatenate([flat[at : at + 4096] @ mean for at in blocks])) / (255 * sigma) ** 2
    weight = np.exp(lead - lead.max())
    return np.log(np.bincount(group, weight)[group]) + lead.max() + np.log(len(flat)) - logsumexp(lead)


def _smoothed(flat: np.ndarray, group: np.ndarray, index: np.ndarray, level: float) -> dict[str, np.ndarray]:
    """Return `mode` and `blend` of all images uint8 (M, d), (M,) each, from their listed neighbours (M, n).

    All places are weighted means z of the image and its neighbours, so that their distances follow from those between
    the points: |z - x_j|^2 = sum_k v_k D_jk^2 - sum_kl v_k v_l D_kl^2 / 2 for weights v of sum 1.
    """
    found: dict[str, list[np.ndarray]] = {"mode": [], "blend": []}
    rows = max(1, BUDGET // (32 * (index.shape[1] + 1) * (flat.shape[1] + index.shape[1])))
    for at in range(0, len(flat), rows):
        who = np.concatenate([np.arange(at, min(at + rows, len(flat)))[:, None], index[at : at + rows]], axis=1)
        squared, same = _between(flat[who].astype(np.float64)), group[who] == group[who[:, :1]]
        found["blend"].append(_kept(_places(squared, _softmax(-squared[:, 0] / (8 * level**2))), same))
        reached = squared[:, 0]
        for _ in range(SHIFTS):
            reached = _places(squared, _softmax(-reached / (2 * level**2)))
        found["mode"].append(_kept(reached, same))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _between(points: np.ndarray) -> np.ndarray:
    """Return all squared distances between points (B, n, d), (B, n, n)."""
    centred = points - points[:, :1]
    square = (centred**2).sum(2)
    return np.maximum(square[:, :, None] + square[:, None] - 2 * centred @ centred.transpose(0, 2, 1), 0)


def _softmax(logs: np.ndarray) -> np.ndarray:
    weight = np.exp(logs - logs.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


def _places(squared: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the squared distances of weighted means to the points, (B, n); squared (B, n, n), weight (B, n)."""
    mean = (squared @ weight[:, :, None])[:, :, 0]
    return np.maximum(mean - (weight * mean).sum(1, keepdims=True) / 2, 0)


def _kept(squared: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Return - ln r1/r2 from squared distances to the points (B, n), of which `same` are of the image's own group."""
    one, other = (np.sqrt(np.where(which, squared, np.inf).min(1)) for which in (same, ~same))
    return -np.log(np.clip(one / np.maximum(other, 1e-9), LEAST, MOST))


def fit(x: np.ndarray, copied: np.ndarray, run: np.ndarray, ridge: float = 1.0) -> Fit:
    """Return the weights of least penalized logistic loss, with an intercept of its own for every run.

    x: float64 (N, F); copied: bool (N,), or its probability; run: int64 (N,), from 0. ridge: weight of |weights|^2 / 2;
    the intercepts have 1e-3 of it, so that a run in which all images are copied has one. Raises ArithmeticError without
    convergence.
    """
    design = np.concatenate([x, np.eye(run.max() + 1)[run]], axis=1)
    penalty = ridge * np.concatenate([np.ones(x.shape[1]), np.full(run.max() + 1, 1e-3)])
    beta = np.zeros(design.shape[1])
    for _ in range(100):
        p = expit(design @ beta)
        slope = design.T @ (p - copied) + penalty * beta
        step = np.linalg.solve((design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty), slope)
        beta -= step * min(1.0, 5 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-8:
            return Fit(beta[: x.shape[1]], beta[x.shape[1] :])
    raise ArithmeticError(f"the logistic fit did not converge: its last step was {np.abs(step).max():.3g}")


def log_odds(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the log-odds of a copy of every image of one training set, up to a constant, float64 (M,).

    x: FEATURES of the whole set, (M, 3). The weighted sum is scaled so that it spreads by SPREAD at most.
    """
    score = x @ weights
    return score * (SPREAD / max(SPREAD, float(score.std())))


def probabilities(x: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Return the probability that each image is copied by a model that copies the given share of all, float64 (M,)."""
    score = log_odds(x, weights)
    middle = brentq(
        lambda b: expit(score + b).mean() - share, -score.max() + logit(share) - 1, -score.min() + logit(share) + 1
    )
    return expit(score + middle)


def auc(score: np.ndarray, copied: np.ndarray) -> float:
    """Return the chance that a copied image scores above one that is not, ties counted half. NaN without both."""
    positive, negative = score[copied], score[~copied]
    if not len(positive) or not len(negative):
        return float("nan")
    above = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    return float(above)


def calibration_slope(score: np.ndarray, copied: np.ndarray, run: np.ndarray) -> float:
    """Return the weight of the score in a logistic fit with an intercept per run: 1 where the odds are right."""
    return float(fit(score[:, None], copied, run, ridge=1e-6).weights[0])
