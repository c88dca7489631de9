"""A variant as data, and the one table that wires it: score, conditioning, smoothing, sampler."""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stages.diffusion import scores as closed
from stages.diffusion.noise import normal
from stages.diffusion.parameters import Variant, check_temperature, over_sigma
from stages.errors import InputError

KERNEL_DRAWS = 1 << 30  # draw numbers from here on belong to the kernel, below to the sampler


def temperature_rule(rule: float | str, dimension: int) -> Callable[[Tensor], Tensor]:
    """T(sigma) of METHODS §1.5, elementwise on sigma: a number, "C/sigma" = max(C/sigma, 1), "sqrt_d" or "d"."""
    check_temperature(rule)
    sigma_c = over_sigma(rule) if isinstance(rule, str) else None
    if sigma_c is not None:
        return lambda sigma: (sigma_c / sigma).clamp_min(1.0)
    constant = {"sqrt_d": math.sqrt(dimension), "d": float(dimension)}.get(rule, rule)
    return lambda sigma: torch.full_like(sigma, constant)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Which samples a score is evaluated for: kernel draws are each sample's own and fixed along its trajectory."""

    seed: int
    indices: Tensor


def closed_form_score(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    """The closed-form score of a variant, as score(x, sigma) on images.

    x: float32 (B, C, H, W) in [0,1] units; sigma: (B,); returns the shape and dtype of x. Computed in float64.
    sigmas: the sampler's levels, over which the unified mixture runs.
    """
    flat = CLOSED_FORMS[variant.form](variant, centres, sigmas, batch)
    return lambda x, sigma: as_images(flat(pixel_rows(x).double(), sigma.double()), x)


def pixel_rows(x: Tensor) -> Tensor:
    """Images (B, C, H, W) as rows (B, d) in the order of image tables, (H, W, C), so that these stay as they are."""
    return x.movedim(1, -1).reshape(len(x), -1)


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of `pixel_rows` (B, d) as images of the shape and type of `like` (B, C, H, W)."""
    batch, channels, height, width = like.shape
    return rows.to(like.dtype).reshape(batch, height, width, channels).movedim(-1, 1).contiguous()


def _conditioning(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    return lambda x, sigma: closed.conditioning(centres, x, sigma)


def _mixture(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    power = closed.shell_power(centres.dimension, variant.power)
    return lambda x, sigma: closed.mixture(centres, x, sigmas, power)


def _shells(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    rule = temperature_rule(1.0 if variant.temperature is None else variant.temperature, centres.dimension)
    below, count = math.inf if variant.smooth_below is None else variant.smooth_below, len(centres.pixels)
    options = {"power": closed.shell_power(centres.dimension, variant.power), "precision": variant.precision}
    if variant.neighbors is not None:
        k = variant.neighbors.k
        if k > count:
            raise InputError(
                f"neighbors.k is {k} but the training set has {count} images: lower k or ingest.train more"
            )
        options |= {"nearest": k, "radius": variant.neighbors.radius}

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        temperature = torch.where(sigma < below, rule(sigma), 1.0)
        return closed.unconditioning(centres, x, temperature, sigma=sigma, **options)

    return score


def kernel_draws(variant: Variant, dimension: int, batch: Batch) -> closed.Draws:
    """The kernel's draws of each sample, float32 (B, draws, d); pairs xi, -xi, so that their mean is 0."""
    half = -(-variant.kernel.draws // 2)

    @functools.lru_cache(maxsize=1)  # few are drawn once, many again at every evaluation, a part at a time
    def take(start: int, stop: int) -> Tensor:
        drawn = {}
        for n in sorted({number % half for number in range(start, stop)}):
            drawn[n] = normal(batch.seed, batch.indices, KERNEL_DRAWS + n, (dimension,))
        return torch.stack([drawn[n] if n < half else -drawn[n - half] for n in range(start, stop)], dim=1)

    return closed.Draws(variant.kernel.draws, take)


def _kernel(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    plain = _conditioning(variant, centres, sigmas, batch)
    return closed.smoothed(plain, variant.kernel.h, kernel_draws(variant, centres.dimension, batch))


CLOSED_FORMS: dict[str, Callable[[Variant, closed.Centres, Tensor, Batch], closed.Score]] = {
    "conditioning": _conditioning,
    "mixture": _mixture,
    "unconditioning": _shells,
    "temperature": _shells,
    "kernel-smoothed": _kernel,
}


def network_score(network: nn.Module, conditioned: bool, bfloat16: bool = False) -> closed.Score:
    """score = F/sigma (METHODS §4): F(x, sigma) with noise conditioning, F(x) without, where sigma only scales.

    bfloat16: run the network's products in it (autocast); what comes in and goes out keeps the type of x.
    A single image is taken twice on a CPU: alone it would be rounded otherwise than in company (`fixed_rounding`).
    """

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.dtype)
        times = 2 if len(x) == 1 and x.device.type == "cpu" else 1
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            out = network(x.repeat(times, 1, 1, 1), level.repeat(times) if conditioned else None)[: len(x)]
        return out.to(x.dtype) / level[:, None, None, None]

    return score
