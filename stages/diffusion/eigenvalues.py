"""The top eigenvalue of a score's Jacobian: of a trained score by power iteration, of closed forms from their centres.

With g_i = -(x - x_i)/sigma_i*^2 and the weights w at temperature T the Jacobian of METHODS §1.4-1.5 is

    J = (1/T) Cov_w(g) + (2/c) sum_i w_i g_i g_i^T - lambda_bar I,   lambda_bar = sum_i w_i / sigma_i*^2.

The middle term comes from sigma_i*^2 = r_i^2/c, which moves with x (METHODS §2). The score at a given level has none:
`frozen` leaves it out. Points are (B, d), float64.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from stages.diffusion.scores import Centres, nearest_offsets
from stages.diffusion.temperature import shell_log_weights, shell_precisions
from stages.diffusion.thermometer import temperatures

STEPS = 12  # of the power iteration of a trained score, from the direction between two centres
CLOSED_STEPS = 60
CENTRES = 512  # nearest centres that a closed form's eigenvalue sums over, at most
DIFFERENCE = 0.05  # length of the difference quotient, in units of sigma^2 over the distance of two centres


def learned_top(score: Callable[[Tensor], Tensor], x: Tensor, sigma: float, axes: Tensor) -> Tensor:
    """Return the top eigenvalue of D score at x, (B,), by power iteration on D score + I/sigma^2.

    score: (B, d) -> (B, d) at level sigma. axes: (B, d), from one centre to another: the iteration starts along them,
    and their length, over which the score turns within sigma^2 / |axis|, sets that of the central differences.
    """
    gap = axes.norm(dim=1, keepdim=True)
    length, v = DIFFERENCE * sigma**2 / gap, axes / gap
    found = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for _ in range(STEPS):
        image = (score(x + length * v) - score(x - length * v)) / (2 * length)
        found = (image * v).sum(1)
        v = image + v / sigma**2
        v = v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return found


def closed_tops(centres: Centres, x: Tensor, power: int, frozen: bool) -> Tensor:
    """Return the top eigenvalue of the closed form's Jacobian at all `temperatures`, (EVALUATED, B).

    The eigenvalues of J + lambda_bar I are those of A K, K the Gram matrix of g over the centres (the nearest CENTRES)
    and A = (1/T) (diag w - w w^T) + (2/c) diag w.
    """
    offsets, r2 = nearest_offsets(centres, x, min(CENTRES, len(centres.pixels)))
    precisions = shell_precisions(r2, power)
    scaled = offsets * precisions[..., None]
    gram = scaled @ scaled.transpose(1, 2)
    start = torch.from_numpy(np.random.default_rng(0).standard_normal(r2.shape)).to(x)
    more = 0.0 if frozen else 2 / power
    return torch.stack([_top(gram, r2, precisions, t, power, more, start) for t in temperatures(x.shape[1]).tolist()])


def _top(gram: Tensor, r2: Tensor, precisions: Tensor, t: float, power: int, more: float, v: Tensor) -> Tensor:
    w = torch.softmax(shell_log_weights(r2, power, t), dim=1)
    found = torch.zeros(len(w), dtype=w.dtype, device=w.device)
    for _ in range(CLOSED_STEPS):
        image = w * (gram @ v[..., None])[..., 0]
        v = (image - w * image.sum(1, keepdim=True)) / t + more * image
        found = v.norm(dim=1)
        v = v / found.clamp_min(torch.finfo(w.dtype).tiny)[:, None]
    return found - (w * precisions).sum(1)
