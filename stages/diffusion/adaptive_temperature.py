"""Temperatures that depend on the point x and not on the noise level (METHODS §8b).

"perplexity(p)": the T at which the effective number of neighbours, exp of the weights' entropy, is p.
"nonexpansive": the least T at which the score's Jacobian (1/T) Cov_w(g) - lambda-bar I has no positive eigenvalue, so
that no two nearby points are driven apart (METHODS §2). Both look at the K nearest training images alone, and at the
weights that shells give them: w = softmax(-(c/2T) ln r^2).
"""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from stages.diffusion.parameters import HOTTEST, perplexity
from stages.diffusion.temperature import shell_log_weights

Adaptive = Callable[[Tensor, Tensor, Tensor], Tensor]
GRID, HALVINGS = 12, 5  # up to T = 1000 the least T is found to 2 %
ENTROPY_HALVINGS = 24  # of 69 nats: ln T to 4e-6


def adaptive_rule(rule: float | str | None, power: int) -> Adaptive | None:
    """Return T(offsets, r2, precisions) of a rule that depends on the point, or None for a schedule of the level.

    offsets: x - x_k for the K nearest images, (B, K, d); r2: their squared distances, (B, K); precisions: p_k of the
    shells, (B, K). T has the shape (B,) and the type of r2.
    """
    if rule == "nonexpansive":
        return functools.partial(_nonexpansive, power=power)
    number = perplexity(rule) if isinstance(rule, str) else None
    return None if number is None else lambda offsets, r2, precisions: perplexity_temperature(r2, power, number)


def _nonexpansive(offsets: Tensor, r2: Tensor, precisions: Tensor, power: int) -> Tensor:
    g = offsets * precisions[..., None]
    return nonexpansive_temperature(g @ g.mT, r2, precisions, power)


def perplexity_temperature(r2: Tensor, power: int, number: float) -> Tensor:
    """Return the T >= 1 at which exp(-sum w ln w) = number, (B,); 1 where it is at least that already.

    r2: (B, K), K > number > 1. The entropy rises with T, so bisection on ln T finds it.
    """
    low = torch.zeros(len(r2), dtype=r2.dtype, device=r2.device)
    high = torch.full_like(low, math.log(HOTTEST))
    for _ in range(ENTROPY_HALVINGS):
        middle = (low + high) / 2
        few = _entropy(shell_log_weights(r2, power, middle.exp()[:, None])) < math.log(number)
        low, high = torch.where(few, middle, low), torch.where(few, high, middle)
    enough = _entropy(shell_log_weights(r2, power, 1.0)) >= math.log(number)
    return torch.where(enough, 1.0, high.exp())


def _entropy(log_weights: Tensor) -> Tensor:
    """Return the entropy of the softmax of (B, K), in nats, (B,)."""
    return torch.special.entr(torch.softmax(log_weights, dim=1)).sum(1)


def nonexpansive_temperature(gram: Tensor, r2: Tensor, precisions: Tensor, power: int) -> Tensor:
    """Return the least T >= 1 with lambda_max(Cov_w(g)) <= T lambda-bar, lambda-bar = sum w p, (B,).

    gram: g_k . g_l of g_k = -p_k (x - x_k), (B, K, K); r2, precisions: (B, K).

    T = max p r^2 always suffices, since Cov_w(g) is at most the mean of |g|^2 = p (p r^2). T is searched from 1 to
    there: the first of GRID values, in equal steps of ln T, at which the inequality holds, and then by bisection
    between it and the value before.
    """
    most = (precisions * r2).amax(1).clamp_min(1.0).log()
    steps = torch.linspace(0, 1, GRID, dtype=r2.dtype, device=r2.device)
    holds = _holds(steps * most[:, None], gram, r2, precisions, power)
    holds[:, -1] = True  # by the bound; rounding alone could deny it
    first = holds.to(torch.uint8).argmax(1)
    high, low = steps[first] * most, steps[(first - 1).clamp_min(0)] * most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = _holds(middle[:, None], gram, r2, precisions, power)[:, 0]
        low, high = torch.where(found, low, middle), torch.where(found, middle, high)
    return torch.where(first == 0, 1.0, high.exp())


def _holds(log_t: Tensor, gram: Tensor, r2: Tensor, precisions: Tensor, power: int) -> Tensor:
    """Return whether lambda_max(Cov_w(g)) <= T lambda-bar at every T of log_t (B, n), bool (B, n).

    The eigenvalues of Cov_w(g) in d dimensions are those of the K x K matrix sqrt(w_k w_l) (g_k - S) . (g_l - S).
    """
    t = log_t.exp()
    w = torch.softmax(shell_log_weights(r2[:, None], power, t[..., None]), dim=2)
    mean = torch.einsum("bnk,bkl->bnl", w, gram)
    centred = gram[:, None] - mean[..., None, :] - mean[..., :, None] + (mean * w).sum(2)[..., None, None]
    root = w.sqrt()
    largest = torch.linalg.eigvalsh(root[..., None] * centred * root[..., None, :])[..., -1]
    return largest <= t * (w * precisions[:, None]).sum(2)
