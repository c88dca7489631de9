"""The pipeline's own scores and samplers on points, so that a claim about the code calls the code.

Points are float64 numpy arrays (B, d); stages/diffusion works on tensors, its samplers on images (B, C, H, W). A score
here is a function score(x, sigma) of points (B, d) and a level (a number or (B,)) that returns (B, d).

This module imports torch inside its functions only: the modules of the claims define parameters, and reading
params.yaml must not wait for torch.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

Points = np.ndarray
Score = Callable[[Points, Any], Points]
Draw = Callable[[int], Points]
Form = Literal["conditioning", "infinity"] | Annotated[float, Field(gt=0, allow_inf_nan=False)]
"""Conditioning, or unconditioning at a temperature T; infinity is uniform weights."""


def label(form: Form) -> str:
    """The form's name in tables and figures: conditioning, T = 10, T = ∞."""
    if form == "conditioning":
        return form
    return "T = ∞" if form == "infinity" else f"T = {form:g}"


def inverse_temperature(form: Form) -> float:
    """1/T; 1 for conditioning."""
    return {"conditioning": 1.0, "infinity": 0.0}[form] if isinstance(form, str) else 1 / form


def temperature(form: Form) -> float:
    """T of unconditioning; infinite for "infinity"."""
    return math.inf if form == "infinity" else form


def _tensor(x: Points) -> "Tensor":
    import torch

    return torch.from_numpy(np.require(x, np.float64, ["C", "W"]))


def on_points(score: Callable[["Tensor", "Tensor"], "Tensor"]) -> Score:
    """A score on tensors (B, d), (B,) as one on numpy points."""
    return lambda x, sigma=0.0: score(_tensor(x), _tensor(np.broadcast_to(sigma, len(x)))).numpy()


def on_tensors(score: Score) -> Callable[["Tensor", "Tensor"], "Tensor"]:
    """A score on numpy points as one on tensors (B, d), (B,)."""
    return lambda x, sigma: _tensor(score(x.numpy(), sigma.numpy()))


def empirical(centres: Points, form: Form) -> Score:
    """The empirical score of training images (M, d): `conditioning` or `unconditioning` of diffusion/scores.py."""
    from stages.diffusion import scores

    if form != "conditioning":
        return unconditioning(centres, temperature(form))
    found = scores.make_centres(_tensor(centres))
    return on_points(lambda x, sigma: scores.conditioning(found, x, sigma))


def unconditioning(centres: Points, heat: float | np.ndarray = 1.0, power: int | None = None) -> Score:
    """The optimal-shell score at temperature `heat`, a number or one per point (B,); it ignores the level.

    power: c in σ_i*² = r_i²/c, in place of d − 2.
    """
    from stages.diffusion import scores

    found, heats = scores.make_centres(_tensor(centres)), _tensor(heat)
    return on_points(lambda x, sigma: scores.unconditioning(found, x, heats, power=power))


def mixture(centres: Points, sigmas: Sequence[float]) -> Score:
    """The unified mixture over the levels `sigmas` (METHODS §1.2), `mixture` of stages/diffusion/scores.py."""
    from stages.diffusion import scores

    found, levels = scores.make_centres(_tensor(centres)), _tensor(sigmas)
    return on_points(lambda x, sigma: scores.mixture(found, x, levels))


def smoothed(score: Score, h: float, shifts: Points) -> Score:
    """The mean of a score over x + hξ for the standard normal shifts ξ: (m, d), common to all points, or (B, m, d)."""
    from stages.diffusion import scores

    return score if h == 0 else on_points(scores.smoothed(on_tensors(score), h, _tensor(shifts)))


def squared_distances(x: Points, centres: Points) -> np.ndarray:
    """‖x − x_i‖² (B, M) of points (B, d) and centres (M, d), as the scores compute them."""
    from stages.diffusion.scores import make_centres

    return np.concatenate([r2.numpy() for r2, _ in make_centres(_tensor(centres)).squared_distances(_tensor(x))], 1)


def weigh(squared: np.ndarray, dimension: int, form: Form, sigma: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Weights w_i (B, M), rows summing to 1, and precisions p_i (B, M): the score is −Σ w_i p_i (x − x_i).

    squared: ‖x − x_i‖² (B, M). sigma: level of conditioning, a number or (B, 1); None: the actual one, min_i r_i/√d.
    """
    import torch

    from stages.diffusion.temperature import conditioning_log_weights, shell_log_weights, shell_power, shell_precisions

    r2, power = _tensor(squared), shell_power(dimension)
    if form == "conditioning":
        actual = r2.amin(1, keepdim=True) / dimension
        variance = actual if sigma is None else _tensor(np.square(sigma))
        logits, precision = conditioning_log_weights(r2, variance), (1 / variance).expand_as(r2)
    else:
        logits, precision = shell_log_weights(r2, power, temperature(form)), shell_precisions(r2, power)
    return torch.softmax(logits, dim=1).numpy(), precision.numpy()


def level_log_weight(squared: float, sigma: float, dimension: int) -> float:
    """The joint log-weight of a centre at r² = `squared` and a level in the unified mixture (METHODS §1.2)."""
    import torch

    from stages.diffusion.temperature import mixture_log_weights, shell_power

    r2 = torch.tensor(squared, dtype=torch.float64)
    return mixture_log_weights(r2, sigma**2, shell_power(dimension)).item()


def pulls(value: Points, x: Points, centres: Points) -> np.ndarray:
    """The α_i (M,) of one score s(x) = Σ_i α_i (x_i − x), read back from its value (d,): α_i = w_i p_i.

    x: (d,); centres: (M, d), such that the x_i − x are linearly independent.
    """
    return np.linalg.lstsq((centres - x).T, value, rcond=None)[0]


def as_images(score: Score) -> Callable[["Tensor", "Tensor"], "Tensor"]:
    """A score of points as one of images (B, 1, 1, d), which the samplers take."""
    flat = on_tensors(score)
    return lambda x, sigma: flat(x.flatten(1), sigma).reshape(x.shape)


def path(sampler: str, score: Score, draw: Draw, sigmas: Points, **options: Any) -> Iterator[Points]:
    """Yield the state (B, d) after every step of a sampler, named by its function in diffusion/samplers.py.

    draw(n): the n-th standard normal (B, d); draw(0) is the initial state over sigmas[0]. sigmas: descending (L,).
    `level`, where the sampler takes one, is a function of points (B, d).
    """
    from stages.diffusion import samplers

    if "level" in options:
        level = options.pop("level")
        options["level"] = lambda x: _tensor(level(x.flatten(1).numpy()))
    one = functools.partial(getattr(samplers, sampler), **options)
    levels = samplers.noise_levels(_tensor(sigmas))
    for x in samplers.run(one, as_images(score), lambda n: _tensor(draw(n))[:, None, None], *levels):
        yield x.flatten(1).numpy()


def draws(seed: Sequence[int], shape: tuple[int, ...], start: Points | None = None) -> Draw:
    """Standard normals of one shape, a function of (seed, n); `start` in place of the first."""
    return lambda n: start if n == 0 and start is not None else np.random.default_rng([*seed, n]).standard_normal(shape)


def cfdm(train: Points, start: Points, steps: int, shifts: Points, smoothing: float) -> Points:
    """Where the pipeline's σ-CFDM takes `start` (B, d) in `steps` Euler steps (METHODS §1.8). shifts: (m, d) or
    (B, m, d)."""
    from stages.diffusion import samplers, scores

    centres, draws = scores.make_centres(_tensor(train)), _tensor(shifts)

    def velocity(z: "Tensor", t: "Tensor") -> "Tensor":
        return scores.cfdm_velocity(centres, z, t[0].item(), draws, smoothing)

    run = samplers.run(samplers.time_euler, velocity, lambda _: _tensor(start), *samplers.unit_times(steps))
    return end(z.numpy() for z in run)


def seeded_normals(shape: tuple[int, ...], *seed: int) -> np.ndarray:
    """Standard normals of torch's own generator, float64, a function of the numbers `seed`."""
    import torch

    from stages.diffusion.noise import generator_seed

    generator = torch.Generator().manual_seed(generator_seed(*seed))
    return torch.randn(shape, generator=generator, dtype=torch.float64).numpy()


def noise_levels(smallest: float, largest: float, count: int) -> np.ndarray:
    """The pipeline's schedule: `count` levels, log-uniform from `largest` down to `smallest`."""
    from stages.diffusion.noise import levels
    from stages.diffusion.parameters import NoiseParams

    return levels(NoiseParams(sigma_min=smallest, sigma_max=largest), count).numpy()


def noise(seed: int, numbers: range, draw: int, dimension: int) -> np.ndarray:
    """The pipeline's standard normals of the samples `numbers`, float64 (len(numbers), dimension)."""
    import torch

    from stages.diffusion.noise import normal

    return normal(seed, torch.arange(numbers.start, numbers.stop), draw, (dimension,)).double().numpy()


def denoising_losses(
    network: Callable[[Points, Any], Points], x0: Points, sigma: np.ndarray, z: Points, conditioned: bool
) -> np.ndarray:
    """The training's loss ½‖F − F*‖² of every point, (B,), for the plain target F* = −z (METHODS §4).

    network(x, σ): F at points (B, d) and levels (B,), which are None unless `conditioned`.
    """
    from stages.diffusion.targets import denoising_loss, denoising_target

    def on_images(x: "Tensor", level: "Tensor | None") -> "Tensor":
        found = network(x.flatten(1).numpy(), None if level is None else level.numpy())
        return _tensor(found).reshape(x.shape)

    images = (_tensor(points)[:, None, None] for points in (x0, z))
    first, second = images
    return (
        denoising_loss(on_images, denoising_target, first, _tensor(sigma), second, None, conditioned).double().numpy()
    )


def end(states: Iterator[Points]) -> Points:
    """The last of the states that `path` yields."""
    return collections.deque(states, maxlen=1)[0]
