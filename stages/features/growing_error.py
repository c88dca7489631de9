"""Intervals of an estimate whose standard error is itself estimated, and grows or falls with the value.

A set of samples that comes out too near its reference often reports too small an error as well, so that a symmetric
interval ends below the truth too often. An error that grows by k for each unit of the value is constant on the scale
ln(error)/k, where the interval is symmetric: it ends at value + error (exp(q k) − 1)/k, and where the error falls with
the value it begins as much lower. The growth is measured with weights of the samples that are tilted along the value's
derivative by them: the least favourable family (Efron 1981, Canadian Journal of Statistics 9:139–158).

q is Student's 97.5 % quantile with the degrees of freedom of the error's own estimate, 2 N/(kurtosis − 1) by
Satterthwaite's rule: a few far samples leave it uncertain.
"""

import dataclasses
import math

import numpy as np
from scipy.special import stdtrit

MOST = 1.0
"""The largest q k: that of an interval symmetric in the logarithm which begins at an e-th of the value."""


@dataclasses.dataclass(frozen=True)
class Reach:
    """How far a 95 % interval reaches: `plain` where the error does not change with the value, `up` and `down`."""

    plain: float
    down: float
    up: float


def tilted(influence: np.ndarray) -> np.ndarray:
    """Return weights (N,) of sum 1 that raise the value by about a standard error; influence (N,): its derivative."""
    centred = influence - influence.mean()
    weights = np.exp(centred / (centred.std() * math.sqrt(len(centred))))
    return weights / weights.sum()


def quantile(influence: np.ndarray) -> float:
    """Return Student's 97.5 % quantile with the degrees of freedom of the influence's variance."""
    squares = np.square(influence - influence.mean())
    spread = float(np.square(squares).mean() / squares.mean() ** 2) - 1  # the kurtosis less 1, 0 for two values
    freedom = 2 * len(influence) / max(spread, 2 / len(influence))
    return float(stdtrit(max(freedom, 2.0), 0.975))


def reach(error: float, growth: float, q: float, least: float = 0.0) -> Reach:
    """Return the reach of an interval for an error that grows by `growth`, taken as at least `least` upwards."""
    return Reach(q * error, _stretched(error, -growth, q), _stretched(error, max(growth, least), q))


def _stretched(error: float, growth: float, q: float) -> float:
    k = min(growth, MOST / q)
    return error * math.expm1(q * k) / k if k > 0 else q * error
