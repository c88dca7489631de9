"""Samplers of the VE-SDE (METHODS §5), as generators that yield the state after every step.

All take score(x, sigma) with x float32 (B, C, H, W) and sigma (B,), the levels float64 (L,) in descending order, and
draw(n), the n-th standard normal of every sample, shaped like x. Draw 0 is the initial state. Below the last level
comes 0, and the last step adds no noise. Nothing is averaged over the batch, so sample i is its own.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Score = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[int], Tensor]


def _full(x: Tensor, value: Tensor | float) -> Tensor:
    return torch.full((len(x),), float(value), dtype=torch.float64, device=x.device)


def langevin(score: Score, x: Tensor, sigma: float, snr: float, z: Tensor) -> Tensor:
    """One Langevin corrector step: eps = 2 (snr |z|/|s|)^2, x + eps s + sqrt(2 eps) z, with each sample's own norms."""
    s = score(x, _full(x, sigma))
    ratio = z.flatten(1).norm(dim=1) / s.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    eps = (2 * (snr * ratio) ** 2)[:, None, None, None]
    return x + eps * s + torch.sqrt(2 * eps) * z


def reverse_diffusion(
    score: Score, draw: Draw, sigmas: Tensor, *, ode: bool = False, snr: float | None = None
) -> Iterator[Tensor]:
    """Reverse-diffusion predictor, SDE or ODE, after an optional Langevin corrector ("PC").

    SDE: x += (s_i^2 - s_{i-1}^2) score + sqrt(s_i^2 - s_{i-1}^2) z; ODE: half the drift, no noise.
    """
    x = draw(0) * float(sigmas[0])
    below = torch.cat((sigmas[1:], sigmas.new_zeros(1)))
    for n, (sigma, following) in enumerate(zip(sigmas.tolist(), below.tolist())):
        if snr is not None:
            x = langevin(score, x, sigma, snr, draw(2 * n + 2))
        variance = sigma**2 - following**2
        share = 0.5 if ode and following else 1.0  # the last step removes the noise: it goes to the posterior mean
        x = x + share * variance * score(x, _full(x, sigma))
        if following and not ode:
            x = x + variance**0.5 * draw(2 * n + 1)
        yield x


def karras(score: Score, draw: Draw, sigmas: Tensor, *, heun: bool = False) -> Iterator[Tensor]:
    """Euler or Heun on dx/dsigma = -sigma score (Karras et al. 2022), for noise-conditioned scores."""
    x = draw(0) * float(sigmas[0])
    below = torch.cat((sigmas[1:], sigmas.new_zeros(1)))
    for sigma, following in zip(sigmas.tolist(), below.tolist()):
        slope = -sigma * score(x, _full(x, sigma))
        ahead = x + (following - sigma) * slope
        if heun and following:
            slope = (slope - following * score(ahead, _full(x, following))) / 2
            ahead = x + (following - sigma) * slope
        x = ahead
        yield x


def actual_noise(
    score: Score, draw: Draw, sigmas: Tensor, *, step: float, exact_below: float, level: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """x += alpha sigma^2 s(x) at the actual noise level sigma = min_i r_i / sqrt d (METHODS §5).

    level(x) float64 (B,): that level by exact search. The schedule's level stands in for it above `exact_below`.
    """
    x = draw(0) * float(sigmas[0])
    for sigma in sigmas.tolist():
        at = _full(x, sigma) if sigma > exact_below else level(x)
        x = x + (step * at**2).to(x.dtype)[:, None, None, None] * score(x, at)
        yield x


def gradient_ascent(
    score: Score, draw: Draw, sigmas: Tensor, *, step: float, stop_below: float, level: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """x += alpha s(x) sigma_hat^2 with a small fixed alpha until the actual noise level is below `stop_below`.

    A sample that has stopped stays where it is; the generator ends when all have, or after len(sigmas) steps, and
    yields at least once.
    """
    x = draw(0) * float(sigmas[0])
    for step_number in range(len(sigmas)):
        at = level(x)
        going = at >= stop_below
        if step_number and not going.any():
            return
        x = x + (step * going * at**2).to(x.dtype)[:, None, None, None] * score(x, at)
        yield x


def cfdm(velocity: Callable[[Tensor, float], Tensor], draw: Draw, steps: int, start: float = 1e-5) -> Iterator[Tensor]:
    """Euler on dz/dt = v(z, t) from t = 1e-5 to 1, z_0 ~ N(0, I) (sigma-CFDM, METHODS §1.8)."""
    z, times = draw(0), torch.linspace(start, 1, steps + 1, dtype=torch.float64).tolist()
    for now, following in zip(times, times[1:]):
        z = z + (following - now) * velocity(z, now)
        yield z
