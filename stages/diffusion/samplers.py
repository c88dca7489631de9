"""Samplers of the VE-SDE (METHODS §5): each is one step from a noise level to the next, and `run` is the loop.

A step takes x float32 (B, C, H, W), its level sigma, the next level, score(x, sigma) with sigma float64 (B,), and
draws(stream), standard normal numbers shaped like x. Nothing is averaged over the batch, so sample i does not depend on
its companions.
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stages.diffusion.noise import Stream
from stages.diffusion.parameters import SamplerParams

Score = Callable[[Tensor, Tensor], Tensor]
Draw = Callable[[int], Tensor]
"""draw(n): the n-th standard normal of every sample, (B, C, H, W); `noise.Stream` numbers them."""
Draws = Callable[[Stream], Tensor]
Step = Callable[[Tensor, float, float, Score, Draws], Tensor]
Level = Callable[[Tensor], Tensor]
"""level(x): the actual noise level min_i |x - x_i| / sqrt d, float64 (B,)."""


def run(step: Step, score: Score, draw: Draw, levels: Sequence[float], scale: float) -> Iterator[Tensor]:
    """Yield the state after each step from levels[n] to levels[n + 1].

    The state before the first step is `scale` times a standard normal. A step that returns its own input ends the run;
    at least one state is yielded.
    """
    x = draw(Stream.INITIAL_STATE.draw()) * scale
    for n, (sigma, following) in enumerate(zip(levels, levels[1:])):
        state = step(x, sigma, following, score, lambda stream, n=n: draw(stream.draw(n)))
        if n and state is x:
            return
        x = state
        yield x


def _full(x: Tensor, value: float) -> Tensor:
    return torch.full((len(x),), value, dtype=torch.float64, device=x.device)


def _moved(x: Tensor, size: Tensor, direction: Tensor) -> Tensor:
    """Return x + size * direction with one step size per sample, size (B,)."""
    return x + size.to(x.dtype)[:, None, None, None] * direction


def langevin(x: Tensor, sigma: float, score: Score, z: Tensor, snr: float) -> Tensor:
    """Langevin corrector: x + eps s + sqrt(2 eps) z, eps = 2 (snr |z| / |s|)^2, with each sample's own norms.

    Song et al. 2021, algorithm 4, https://arxiv.org/abs/2011.13456
    """
    s = score(x, _full(x, sigma))
    ratio = z.flatten(1).norm(dim=1) / s.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    eps = (2 * (snr * ratio) ** 2)[:, None, None, None]
    return x + eps * s + torch.sqrt(2 * eps) * z


def reverse_diffusion(
    x: Tensor,
    sigma: float,
    following: float,
    score: Score,
    draws: Draws,
    *,
    ode: bool = False,
    snr: float | None = None,
) -> Tensor:
    """Reverse-diffusion predictor, after a Langevin corrector where `snr` is given ("PC").

    SDE: x + v s(x) + sqrt(v) z, v = sigma^2 - following^2. ODE: x + v/2 s(x). The last step of both, to level 0, is the
    posterior mean x + sigma^2 s(x). Song et al. 2021, algorithm 2, https://arxiv.org/abs/2011.13456
    """
    if snr is not None:
        x = langevin(x, sigma, score, draws(Stream.CORRECTOR), snr)
    variance = sigma**2 - following**2
    share = 0.5 if ode and following else 1.0
    x = x + share * variance * score(x, _full(x, sigma))
    return x + variance**0.5 * draws(Stream.PREDICTOR) if following and not ode else x


def euler(x: Tensor, sigma: float, following: float, score: Score, draws: Draws) -> Tensor:
    """Euler on dx/dsigma = -sigma s(x): x + (following - sigma) (-sigma s(x)).

    For noise-conditioned scores. Karras et al. 2022, algorithm 1 without its correction, https://arxiv.org/abs/2206.00364
    """
    return x + (following - sigma) * (-sigma * score(x, _full(x, sigma)))


def heun(x: Tensor, sigma: float, following: float, score: Score, draws: Draws) -> Tensor:
    """Heun on dx/dsigma = f(x, sigma) = -sigma s(x): x + (following - sigma) (f(x) + f(x'))/2, x' Euler's step.

    The last step, to level 0, is Euler's. Karras et al. 2022, algorithm 1, https://arxiv.org/abs/2206.00364
    """
    slope = -sigma * score(x, _full(x, sigma))
    ahead = x + (following - sigma) * slope
    if not following:
        return ahead
    slope = (slope - following * score(ahead, _full(x, following))) / 2
    return x + (following - sigma) * slope


def actual_noise(
    x: Tensor,
    sigma: float,
    following: float,
    score: Score,
    draws: Draws,
    *,
    step: float,
    exact_below: float,
    level: Level,
) -> Tensor:
    """x + alpha sigma^2 s(x) at the actual noise level, alpha = `step` (METHODS §5).

    The scheduled level stands in for the actual one above `exact_below`.
    """
    at = _full(x, sigma) if sigma > exact_below else level(x)
    return _moved(x, step * at**2, score(x, at))


def gradient_ascent(
    x: Tensor,
    sigma: float,
    following: float,
    score: Score,
    draws: Draws,
    *,
    step: float,
    stop_below: float,
    level: Level,
) -> Tensor:
    """x + alpha sigma^2 s(x) at the actual noise level, small fixed alpha, down to the level `stop_below` (METHODS §5).

    A sample below it stays where it is; with all of them there x itself is returned.
    """
    at = level(x)
    moving = at >= stop_below
    return _moved(x, step * moving * at**2, score(x, at)) if moving.any() else x


def time_euler(x: Tensor, time: float, following: float, velocity: Score, draws: Draws) -> Tensor:
    """Euler on dx/dt = v(x, t): x + (following - t) v(x, t), for flows from noise at t = 0 to images at t = 1.

    Scarvelis et al. 2023, https://arxiv.org/abs/2310.12395
    """
    return x + (following - time) * velocity(x, _full(x, time))


def consistency(x: Tensor, sigma: float, following: float, score: Score, draws: Draws) -> Tensor:
    """x0 + following z, x0 = x + sigma^2 s(x): where the path through x ends, and new noise of the next level.

    For consistency functions, whose F/sigma stands for s. Song et al. 2023, algorithm 1,
    https://arxiv.org/abs/2303.01469
    """
    end = x + sigma**2 * score(x, _full(x, sigma))
    return end + following * draws(Stream.PREDICTOR) if following else end


def noise_levels(sigmas: Tensor) -> tuple[list[float], float]:
    """Return the levels (L,), descending and followed by 0, and the scale of the first state, as `run` takes them."""
    return [*sigmas.tolist(), 0.0], float(sigmas[0])


def unit_times(steps: int) -> tuple[list[float], float]:
    """Return the times of `steps` steps from t = 1e-5, since the velocity does not exist at 0, to 1, and unit scale."""
    return torch.linspace(1e-5, 1, steps + 1, dtype=torch.float64).tolist(), 1.0


def few_levels(sigmas: Tensor) -> tuple[list[float], float]:
    """Return as many levels from the first of `sigmas` in equal ratios, which reach the last one a step later.

    The last of few evaluations is then not spent on nearly clean images.
    """
    count, first = len(sigmas), float(sigmas[0])
    ratio = (float(sigmas[-1]) / first) ** (1 / count) if count > 1 else 0.0
    return [*(first * ratio**n for n in range(count)), 0.0], first


SAMPLERS: dict[str, tuple[Step, tuple[str, ...], Callable[[Tensor], tuple[list[float], float]]]] = {
    "reverse-sde": (reverse_diffusion, ("snr",), noise_levels),
    "reverse-ode": (functools.partial(reverse_diffusion, ode=True), ("snr",), noise_levels),
    "euler": (euler, (), noise_levels),
    "heun": (heun, (), noise_levels),
    "actual-noise": (actual_noise, ("step", "exact_below", "level"), noise_levels),
    "gradient-ascent": (gradient_ascent, ("step", "stop_below", "level"), noise_levels),
    "consistency": (consistency, (), few_levels),
    "cfdm": (time_euler, (), lambda sigmas: unit_times(len(sigmas))),
}
"""Name -> step, the step's options (fields of `SamplerParams`, and the actual noise level), and its schedule."""


def sample(params: SamplerParams, sigmas: Tensor, level: Level, score: Score, draw: Draw) -> Iterator[Tensor]:
    """Yield the states of the sampler that `params` names, at the levels sigmas, float64 (L,) in descending order."""
    step, names, schedule = SAMPLERS[params.name]
    options = {name: level if name == "level" else getattr(params, name) for name in names}
    return run(functools.partial(step, **options), score, draw, *schedule(sigmas))
