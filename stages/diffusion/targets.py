"""What a network learns, by the form of its score (`build_target`), and the score-matching loss (METHODS §4).

target(x0, sigma, z, neighbors) is what F must become at x = x0 + sigma z; the network never sees it. Its pair is
`variants.build_score`, which wires the closed forms.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stages.diffusion.adaptive_temperature import Adaptive, adaptive_rule
from stages.diffusion.parameters import Precision, ScoreSpec
from stages.diffusion.temperature import (
    is_smoothed,
    radius_limit,
    shell_log_weights,
    shell_power,
    shell_precisions,
    temperature_rule,
)

Target = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def build_target(spec: ScoreSpec, dimension: int) -> Target:
    """Return what a network with this specification learns from images of `dimension` values.

    Of a consistency function it is its teacher's target; `consistency_target` needs the trained teacher.
    """
    own = spec.trained
    return TARGETS[own.form](own, dimension)


def denoising_target(x0: Tensor, sigma: Tensor, z: Tensor, neighbors: Tensor | None) -> Tensor:
    """F* = -z: conditioning and unconditioning ([P] eq. 8, 9). x0, z: (B, C, H, W); sigma: (B,)."""
    return -z


def temperature_target(
    temperature: Callable[[Tensor], Tensor] | None,
    smooth_below: float | None,
    power: int,
    precision: Precision = "optimal",
    radius: float | None = None,
    adaptive: Adaptive | None = None,
) -> Target:
    """F* = sigma s_T(x) over the source's neighbours where sigma < smooth_below, else -z ([P] eq. 10, 11).

    s_T = -sum_k w_k (x - x_k)/sigma_k*^2, w = softmax(-c ln r_k / T), sigma_k*^2 = r_k^2/c, c = `power`. The target's
    neighbors: (B, K, C, H, W), the source first. With delta_k = x0 - x_k the distances are
    r_k^2 = |sigma z + delta_k|^2, summed without cancellation, since |delta_0| = 0 and sigma z is what was added.
    T is temperature(sigma), or with `adaptive` a function of the point; one of the two is given.
    """

    def target(x0: Tensor, sigma: Tensor, z: Tensor, neighbors: Tensor | None) -> Tensor:
        noise, wide = z.flatten(1), sigma[:, None]
        delta = x0.flatten(1)[:, None] - neighbors.flatten(2)
        offsets = delta + wide[..., None] * noise[:, None]
        r2 = offsets.square().sum(2)
        precisions = shell_precisions(r2, power, precision, wide)
        t = (temperature(sigma) if adaptive is None else adaptive(offsets, r2, precisions))[:, None]
        log_weight = shell_log_weights(r2, power, t)
        if radius is not None:
            nearest = r2.topk(min(2, r2.shape[1]), dim=1, largest=False).values
            log_weight = log_weight.masked_fill(r2 > radius_limit(nearest, radius), -torch.inf)
        share = torch.softmax(log_weight, dim=1) * precisions
        smooth = -wide * (share.sum(1, keepdim=True) * wide * noise + torch.einsum("bk,bkd->bd", share, delta))
        return torch.where(is_smoothed(wide, t, smooth_below), smooth, -noise).reshape(z.shape)

    return target


def _temperature(spec: ScoreSpec, dimension: int) -> Target:
    power = shell_power(dimension, spec.power)
    adaptive = adaptive_rule(spec.temperature, power)
    rule = temperature_rule(spec.temperature, dimension) if adaptive is None else None
    return temperature_target(rule, spec.smooth_below, power, spec.precision, spec.neighbors.radius, adaptive)


Network = Callable[..., Tensor]


def consistency_target(teacher: Network, student: Network, step: float, smallest: float) -> Target:
    """F* = a F_t(x) + (1 - a) F(x'), x' = x + a sigma F_t(x), a = `step`; below level smallest/(1 - a) it is F_t(x).

    F_t is the teacher's output, F the student's own, both without a gradient. x' lies a step further on the teacher's
    path at the actual noise level: at (1 - a) sigma (METHODS §5). With f(x) = x + sigma F(x) this says f(x) = f(x'),
    and where the path ends f(x) = x + sigma F_t(x), the teacher's estimate of the image (METHODS §8b).
    """

    def target(x0: Tensor, sigma: Tensor, z: Tensor, neighbors: Tensor | None) -> Tensor:
        level = sigma[:, None, None, None]
        x = x0 + level * z
        with torch.no_grad():
            pull = teacher(x).float()
            onward = student(x + step * level * pull).float()
        last = (1 - step) * level < smallest
        return torch.where(last, pull, step * pull + (1 - step) * onward)

    return target


TARGETS: dict[str, Callable[[ScoreSpec, int], Target]] = {
    "conditioning": lambda spec, dimension: denoising_target,
    "unconditioning": lambda spec, dimension: denoising_target,
    "temperature": _temperature,
}


def denoising_loss(
    network: Callable[[Tensor, Tensor | None], Tensor],
    target: Target,
    x0: Tensor,
    sigma: Tensor,
    z: Tensor,
    neighbors: Tensor | None,
    conditioned: bool,
) -> Tensor:
    """Return 1/2 |F(x0 + sigma z) - F*|^2 of every image, (B,), summed over pixels."""
    x = x0 + sigma[:, None, None, None] * z
    wanted = target(x0, sigma, z, neighbors)
    return 0.5 * (network(x, sigma if conditioned else None).float() - wanted).square().flatten(1).sum(1)
