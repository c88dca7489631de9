"""Temperature, log-weights and precisions of the training images in a score (METHODS §1).

Every empirical score is a weighted sum over the training images ("centres") x_i at distances r_i = |x - x_i|:

    s(x) = - sum_i w_i p_i (x - x_i),    w = softmax over i of the log-weights

Conditioning: log-weight -r^2 / 2 sigma^2, precision p = 1 / sigma^2 (§1.1). Optimal shells, smoothed by T: log-weight
-(c/2T) ln r^2, precision p = c / r^2, or the scheduled 1 / sigma^2 (§1.4-1.6). Closed forms, training targets and the
claims all take these formulas from here.

r2 is a tensor (B, M) of squared distances; sigma, variance and temperature are numbers or tensors that broadcast with
it, (B, 1). Results have the type of r2.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from stages.diffusion.parameters import Power, Precision, check_temperature, over_sigma


def temperature_rule(rule: float | str, dimension: int) -> Callable[[Tensor], Tensor]:
    """T(sigma) of METHODS §1.5, elementwise: a number, "C/sigma" = max(C/sigma, 1), "sqrt_d" or "d".

    Raises ValueError for any other rule, and for a number below 1.
    """
    check_temperature(rule)
    sigma_c = over_sigma(rule) if isinstance(rule, str) else None
    if sigma_c is not None:
        return lambda sigma: (sigma_c / sigma).clamp_min(1.0)
    constant = {"sqrt_d": math.sqrt(dimension), "d": float(dimension)}.get(rule, rule)
    return lambda sigma: torch.full_like(sigma, constant)


def is_smoothed(sigma: Tensor, temperature: Tensor, smooth_below: float | None = None) -> Tensor:
    """Return where a score is smoothed, bool: at levels below `smooth_below`, or with None wherever T > 1."""
    return temperature > 1 if smooth_below is None else sigma < smooth_below


def shell_power(dimension: int, convention: Power = "d-2") -> int:
    """Return c in sigma*^2 = r^2 / c: d-2 for the loss weight sigma^2, d for weight 1 (METHODS §1.3).

    For d <= 2 only weight 1 has an optimal level, so c = d.
    """
    return dimension - 2 if convention == "d-2" and dimension > 2 else dimension


def conditioning_log_weights(r2: Tensor, variance: Tensor | float) -> Tensor:
    """Return -r^2 / 2 sigma^2 (METHODS §1.1). variance: sigma^2."""
    return -r2 / (2 * variance)


def mixture_log_weights(r2: Tensor, variance: float, power: int) -> Tensor:
    """Return -c ln sigma - r^2 / 2 sigma^2, the joint log-weights of image and level (METHODS §1.2)."""
    return -power / 2 * math.log(variance) + conditioning_log_weights(r2, variance)


def shell_log_weights(r2: Tensor, power: int, temperature: Tensor | float) -> Tensor:
    """Return -(c/2T) ln r^2 (METHODS §1.4-1.5); T may be infinite, which gives even weights. On a centre r^2 counts as
    the smallest positive number, so that the logarithm exists."""
    return -(power / (2 * temperature)) * torch.log(r2.clamp_min(torch.finfo(r2.dtype).tiny))


def shell_precisions(r2: Tensor, power: int, precision: Precision = "optimal", sigma: Tensor | None = None) -> Tensor:
    """Return p = c / r^2 ("optimal") or 1 / sigma^2 ("scheduled", METHODS §1.6), of the shape of r2.

    On a centre (r = 0) the optimal precision is infinite and the score singular in every direction; 0 is returned.
    Raises ValueError where "scheduled" comes without sigma.
    """
    if precision == "scheduled":
        if sigma is None:
            raise ValueError("precision 'scheduled' needs sigma")
        return (1 / sigma**2).expand_as(r2)
    return torch.where(r2 > torch.finfo(r2.dtype).tiny, power / r2, 0.0)


def radius_limit(nearest: Tensor, radius: float) -> Tensor:
    """Return the largest r^2 that counts: radius^2 times that of the second nearest centre (METHODS §1.6).

    nearest: the smallest r^2, ascending, (B, k); with k = 1 the only centre takes the place of the second. Returns
    (B, 1).
    """
    return radius**2 * nearest[:, :2][:, -1:]
