"""Score-matching losses: one signature, half a squared distance to a target (METHODS §4).

target(x0, sigma, z, neighbors) is what F must become at x = x0 + sigma z. The network knows nothing of the target.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.diffusion.parameters import Precision

Target = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def denoising_target(x0: Tensor, sigma: Tensor, z: Tensor, neighbors: Tensor | None) -> Tensor:
    """F* = -z: conditioning and unconditioning ([P] eq. 8, 9). x0, z: (B, C, H, W); sigma: (B,)."""
    return -z


def temperature_target(
    temperature: Callable[[Tensor], Tensor],
    smooth_below: float | None,
    power: int,
    precision: Precision = "optimal",
    radius: float | None = None,
) -> Target:
    """F* = sigma s_T(x) over the source's neighbours where sigma < smooth_below, else -z ([P] eq. 10, 11).

    s_T = -sum_k w_k (x - x_k)/sigma_k*^2, w = softmax(-c ln r_k / T), sigma_k*^2 = r_k^2/c, c = `power`. The target's
    neighbors: (B, K, C, H, W), the source first. With delta_k = x0 - x_k the distances are
    r_k^2 = |sigma z + delta_k|^2, summed without cancellation, since |delta_0| = 0 and sigma z is what was added.
    """

    def target(x0: Tensor, sigma: Tensor, z: Tensor, neighbors: Tensor | None) -> Tensor:
        noise, wide = z.flatten(1), sigma[:, None]
        delta = x0.flatten(1)[:, None] - neighbors.flatten(2)
        r2 = (delta + wide[..., None] * noise[:, None]).square().sum(2)
        t = temperature(sigma)[:, None]
        log_weight = -(power / (2 * t)) * torch.log(r2)
        if radius is not None:
            log_weight = log_weight.masked_fill(_too_far(r2, radius), -torch.inf)
        weight = torch.softmax(log_weight, dim=1)
        share = weight / wide**2 if precision == "scheduled" else weight * (power / r2)
        smooth = -wide * (share.sum(1, keepdim=True) * wide * noise + torch.einsum("bk,bkd->bd", share, delta))
        chosen = (t > 1) if smooth_below is None else (wide < smooth_below)
        return torch.where(chosen, smooth, -noise).reshape(z.shape)

    return target


def _too_far(r2: Tensor, radius: float) -> Tensor:
    """Centres beyond radius x the distance to the second nearest (METHODS §1.6). r2: (B, K); K = 1 keeps the one."""
    second = r2.topk(min(2, r2.shape[1]), dim=1, largest=False).values[:, -1:]
    return r2 > radius**2 * second


def denoising_loss(
    network: Callable[[Tensor, Tensor | None], Tensor],
    target: Target,
    x0: Tensor,
    sigma: Tensor,
    z: Tensor,
    neighbors: Tensor | None,
    conditioned: bool,
) -> Tensor:
    """1/2 |F(x0 + sigma z) - F*|^2 of every image: (B,), summed over pixels."""
    x = x0 + sigma[:, None, None, None] * z
    wanted = target(x0, sigma, z, neighbors)
    return 0.5 * (network(x, sigma if conditioned else None).float() - wanted).square().flatten(1).sum(1)
