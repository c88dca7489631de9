"""A variant as data, and the one table that wires it: score, conditioning, smoothing, sampler."""

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from stages.diffusion import empirical_score as closed
from stages.diffusion.noise import normal
from stages.diffusion.samplers import SamplerParams
from stages.protocol import Section

KERNEL_DRAWS = 1 << 30  # draw numbers from here on belong to the kernel, below to the sampler


class Neighbors(Section):
    """Over which training images a smoothed score's sums run (METHODS §1.6).

    A network's target sums over the neighbours of the clean source image; a closed form knows none and sums over the
    neighbours of x itself, in pixels.
    """

    space: Literal["pixel", "feature"] = Field(description="the space in which the neighbours are near")
    k: int = Field(gt=0, description="how many centres, the source image itself included")
    radius: float | None = Field(
        default=None, ge=1, description="of the k, keep those within radius x distance to the second nearest"
    )


class Kernel(Section):
    """Gaussian smoothing of a closed-form score (METHODS §1.7-1.8)."""

    h: float = Field(gt=0, description="standard deviation of the shifts, in units of pixels in [0,1]")
    draws: int = Field(gt=0, description="Monte Carlo draws, the same along a trajectory")


class Variant(Section):
    """One diffusion model of the comparison.

    score: a trained network, or the closed-form empirical score.
    form: what it targets (METHODS §1, §4).
    """

    score: Literal["network", "closed-form"]
    form: Literal["conditioning", "unconditioning", "temperature", "kernel-smoothed", "cfdm", "mixture"]
    noise_conditioning: bool | None = Field(default=None, description="networks: null means form == conditioning")
    temperature: float | str | None = Field(
        default=None, description="T: a number, 'C/sigma' for max(C/sigma, 1), 'sqrt_d' or 'd' (METHODS §1.5)"
    )
    smooth_below: float | None = Field(
        default=None, gt=0, description="only levels below this are smoothed; null: all with T > 1"
    )
    precision: closed.Precision = Field(default="optimal", description="divide by sigma*^2 or by the scheduled sigma^2")
    neighbors: Neighbors | None = None
    kernel: Kernel | None = None
    sampler: SamplerParams

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.temperature is not None) != (self.form == "temperature"):
            raise ValueError(f"form {self.form!r} and temperature {self.temperature!r} do not go together")
        if self.smooth_below is not None and self.temperature is None:
            raise ValueError("smooth_below goes with form temperature: remove it")
        if self.temperature is not None:
            temperature_rule(self.temperature, 2)
        if (self.kernel is not None) != (self.form in ("kernel-smoothed", "cfdm")):
            raise ValueError(f"form {self.form!r} and kernel {self.kernel!r} do not go together")
        if self.score == "network":
            self._check_network()
        else:
            self._check_closed_form()
        if (self.form == "cfdm") != (self.sampler.name == "cfdm"):
            raise ValueError(f"form {self.form!r} cannot use sampler {self.sampler.name!r}: cfdm goes with cfdm alone")
        return self

    def _check_network(self) -> None:
        if self.form not in ("conditioning", "unconditioning", "temperature"):
            raise ValueError(f"a network cannot be trained as {self.form!r}: use score: closed-form")
        if (self.neighbors is not None) != (self.form == "temperature"):
            raise ValueError("neighbors are needed for a network's form temperature, and for that alone")
        if self.form == "conditioning" and self.noise_conditioning is False:
            raise ValueError("form conditioning without noise_conditioning is form unconditioning")

    def _check_closed_form(self) -> None:
        if self.noise_conditioning is not None:
            raise ValueError("noise_conditioning belongs to networks: a closed form's follows from its form")
        if self.neighbors is not None and (self.form != "temperature" or self.neighbors.space != "pixel"):
            raise ValueError("a closed form has neighbors only with form temperature, and only in pixel space")
        if self.neighbors is not None and self.neighbors.radius is not None:
            raise ValueError("neighbors.radius belongs to networks: remove it")

    @property
    def conditioned(self) -> bool:
        """Does sigma reach the score?"""
        return self.form == "conditioning" if self.noise_conditioning is None else self.noise_conditioning


def temperature_rule(rule: float | str, dimension: int) -> Callable[[Tensor], Tensor]:
    """T(sigma) of METHODS §1.5, elementwise on sigma: a number, "C/sigma" = max(C/sigma, 1), "sqrt_d" or "d"."""
    if isinstance(rule, str):
        match = re.fullmatch(r"\s*([0-9.]+)\s*/\s*sigma\s*", rule)
        if match:
            sigma_c = float(match[1])
            return lambda sigma: (sigma_c / sigma).clamp_min(1.0)
        named = {"sqrt_d": math.sqrt(dimension), "d": float(dimension)}
        if rule not in named:
            raise ValueError(f"temperature {rule!r} is neither a number, 'C/sigma', 'sqrt_d' nor 'd'")
        constant = named[rule]
    else:
        constant = float(rule)
    if constant < 1:
        raise ValueError(f"temperature {rule!r} must be at least 1")
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

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        return flat(x.reshape(len(x), -1).double(), sigma.double()).to(x.dtype).reshape(x.shape)

    return score


def _conditioning(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    return lambda x, sigma: closed.conditioning(centres, x, sigma)


def _mixture(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    return lambda x, sigma: closed.mixture(centres, x, sigmas)


def _shells(variant: Variant, centres: closed.Centres, sigmas: Tensor, batch: Batch) -> closed.Score:
    rule = temperature_rule(1.0 if variant.temperature is None else variant.temperature, centres.dimension)

    below = math.inf if variant.smooth_below is None else variant.smooth_below
    nearest = None if variant.neighbors is None else variant.neighbors.k

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        temperature = torch.where(sigma < below, rule(sigma), 1.0)
        return closed.unconditioning(centres, x, temperature, precision=variant.precision, sigma=sigma, nearest=nearest)

    return score


def kernel_draws(variant: Variant, dimension: int, batch: Batch) -> Tensor:
    """The kernel's draws of each sample, float32 (B, draws, d); pairs xi, -xi, so that their mean is 0."""
    half = -(-variant.kernel.draws // 2)
    xi = torch.stack([normal(batch.seed, batch.indices, KERNEL_DRAWS + n, (dimension,)) for n in range(half)], dim=1)
    return torch.cat((xi, -xi), dim=1)[:, : variant.kernel.draws]


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


def network_score(network: nn.Module, conditioned: bool) -> closed.Score:
    """score = F/sigma (METHODS §4): F(x, sigma) with noise conditioning, F(x) without, where sigma only scales."""

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        return network(x, sigma.to(x.dtype) if conditioned else None) / sigma.to(x.dtype)[:, None, None, None]

    return score
