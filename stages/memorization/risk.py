"""Which training images a model is likely to copy, from the training set alone (coverage: Merger & Goldt 2026, arXiv
2606.14390).

A logistic model of FEATURES of every image, all from its exact nearest neighbours. How many images are copied
depends on the model and on its training, so the intercept is that of a model which copies a given share; only the order
of the images and the ratios of their odds are learned. `python -m benchmarks.risk` fits WEIGHTS and measures them on
runs with other seeds, sizes, images and scores.
"""

import dataclasses

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit

from stages.errors import InputError
from stages.files.images import image_id
from stages.memorization.groups import find_duplicates
from stages.memorization.matching import BUDGET, own_neighbors

FEATURES = (
    "isolation", "gap", "coverage", "duplicates", "contrast", "class_share", "dark", "keep", "mass"
)  # fmt: skip
"""With s, the median distance to the nearest image outside the own duplicate group, and W_ij(l), the overlap weight of
the images i and j under noise of level l (`_overlaps`):

isolation: ln of the distance to the nearest image outside the duplicate group, over s.
gap: ln of that distance over the mean of the listed ones outside the group.
coverage: ln of how many images list it among their NEAR nearest, over NEAR (one added to both).
duplicates: ln of the size of its duplicate group.
contrast: ln of the standard deviation of its pixels, over the set's median.
class_share: ln of its class's share of the images, over an even one; 0 without labels.
dark: (mean of |x|^2 - its own |x|^2) / s^2. A sampler begins in N(0, sigma_max^2 I), where an image's log-weight leads
    by that difference over 2 sigma_max^2 (METHODS section 4, largest level).
keep: log-odds of the sum of W_ij(KEEP s) over its own group: whether noise leaves it there.
mass: ln of the sum of W_ji(MASS s) over all images j and all i of the group: how much of the set's noise ends there."""

NEAR = 10
FEWEST = 12  # training images
KEEP, MASS = 0.35, 0.25  # levels in units of s, chosen on the runs of the fit; 0.25 to 1 differ little
LEAST = 1e-4  # probability from which on an image counts as kept or lost for certain

WEIGHTS = np.array([0.66, 0.42, 0.25, 0.46, -0.06, 0.0, 0.35, 1.05, 0.65])
"""Of FEATURES, as `python -m benchmarks.risk` fits them; its runs have no classes, so that of class_share is 0."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """A logistic model: weights of FEATURES, and the intercept of every run that it was fitted on."""

    weights: np.ndarray
    intercepts: np.ndarray


def features(images: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
    """Return FEATURES of training images uint8 (M, H, W, C), float64 (M, 9). labels: int64 (M,), -1 where unknown.

    Raises InputError for fewer than FEWEST images.
    """
    if len(images) < FEWEST:
        raise InputError(f"risk: {len(images)} training images are too few: give at least {FEWEST}")
    flat = images.reshape(len(images), -1)
    own = own_neighbors(flat, 0, len(flat), BUDGET)
    group = find_duplicates([image_id(image) for image in images], own, flat.shape[1]).group
    index, distance = own["index"], np.sqrt(own["squared"].astype(np.float64))
    first, mean = _beyond(distance, group[index] != group[:, None])
    apart = max(float(np.median(first)), 1.0)
    square = np.square(flat, dtype=np.float64).sum(1)
    listed = np.bincount(index[:, :NEAR].ravel(), minlength=len(flat))
    columns = {
        "isolation": _relative(first),
        "gap": np.log(np.maximum(first, 1)) - np.log(np.maximum(mean, 1)),
        "coverage": np.log((1 + listed) / (1 + NEAR)),
        "duplicates": np.log(np.bincount(group)[group]),
        "contrast": _relative(flat.std(axis=1)),
        "class_share": _class_share(labels, len(flat)),
        "dark": (square.mean() - square) / apart**2,
        **_shares(index, distance / apart, group),
    }
    return np.stack([columns[name] for name in FEATURES], axis=1)


def _beyond(distance: np.ndarray, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest listed image outside the own group and the mean over all of these, (M,) each.

    Both are that of the last listed image where all belong to the group.
    """
    some = away.any(1)
    first = np.where(some, np.where(away, distance, np.inf).min(1), distance[:, -1])
    mean = np.where(away, distance, 0).sum(1) / np.maximum(away.sum(1), 1)
    return first, np.where(some, mean, distance[:, -1])


def _shares(index: np.ndarray, distance: np.ndarray, group: np.ndarray) -> dict[str, np.ndarray]:
    """Return `keep` and `mass` of all images, (M,) each, from their listed neighbours (M, n); distances over s."""
    who = group[np.concatenate([np.arange(len(index))[:, None], index], axis=1)]
    kept = np.where(who == group[:, None], _overlaps(distance / KEEP), 0).sum(1)
    total = np.bincount(who.ravel(), _overlaps(distance / MASS).ravel(), minlength=len(index))
    return {"keep": logit(np.clip(kept, LEAST, 1 - LEAST)), "mass": np.log(total[group])}


def _overlaps(distance: np.ndarray) -> np.ndarray:
    """Return W of every image and its listed neighbours, (M, 1 + n), itself first; distances (M, n) in units of l.

    W_ij is proportional to exp(-D_ij^2 / 8 l^2), the overlap (Bhattacharyya coefficient) of N(x_i, l^2 I) and
    N(x_j, l^2 I); each row sums to 1.
    """
    weight = np.exp(-(np.pad(distance, ((0, 0), (1, 0))) ** 2) / 8)
    return weight / weight.sum(1, keepdims=True)


def _relative(values: np.ndarray) -> np.ndarray:
    """Return ln(value / median), of at least one grey level each."""
    return np.log(np.maximum(values, 1)) - np.log(max(float(np.median(values)), 1))


def _class_share(labels: np.ndarray | None, count: int) -> np.ndarray:
    if labels is None or (labels < 0).any():
        return np.zeros(count)
    _, place, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return np.log(sizes[place] * len(sizes) / count)


def fit(x: np.ndarray, copied: np.ndarray, run: np.ndarray, ridge: float = 1.0) -> Fit:
    """Return the weights of least penalized logistic loss, with an intercept of its own for every run.

    x: float64 (N, F); copied: bool (N,); run: int64 (N,), from 0. ridge: weight of |weights|^2 / 2; the intercepts have
    1e-3 of it, so that a run in which all images are copied has one. Raises ArithmeticError without convergence.
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


def probabilities(x: np.ndarray, weights: np.ndarray, share: float) -> np.ndarray:
    """Return the probability that each image is copied by a model that copies the given share of all, float64 (M,)."""
    score = x @ weights
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
