"""The scores of the comparison: `build_score` wires each closed form, `network_score` a trained network.

Its pair is `targets.build_target`, which wires what a network of the same specification learns. They are two files,
since training must not depend on the closed forms and their search.
"""

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from stages.diffusion import peer_scores, scores
from stages.diffusion.adaptive_temperature import adaptive_rule
from stages.diffusion.noise import Stream, normal
from stages.diffusion.parameters import ScoreSpec
from stages.diffusion.samplers import Score
from stages.diffusion.temperature import is_smoothed, shell_power, shell_precisions, temperature_rule

DRAWN_BYTES = 1 << 27
"""Memory that a batch's kernel draws may take along its trajectory; more are made again at every evaluation."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """The samples that a score is evaluated for: kernel draws are each sample's own and fixed along its trajectory.

    shape: (C, H, W) of their images, which form local needs.
    """

    seed: int
    indices: Tensor
    shape: tuple[int, int, int] | None = None


def build_score(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    """Return the closed-form score of a specification, as score(x, sigma) on images; for cfdm its velocity v(x, t).

    x: float32 (B, C, H, W) in [0,1] units; sigma: (B,); the score has the shape and type of x. Computed in float64.
    sigmas: the sampler's levels, over which the unified mixture runs. Raises InputError for more neighbours than there
    are images.
    """
    flat = CLOSED_FORMS[spec.form](spec, centres, sigmas, batch)
    return lambda x, sigma: as_images(flat(pixel_rows(x).double(), sigma.double()), x)


def pixel_rows(x: Tensor) -> Tensor:
    """Return images (B, C, H, W) as rows (B, d) in the order of image tables, (H, W, C)."""
    return x.movedim(1, -1).reshape(len(x), -1)


def as_images(rows: Tensor, like: Tensor) -> Tensor:
    """Return rows of `pixel_rows` (B, d) as images of the shape and type of `like` (B, C, H, W)."""
    batch, channels, height, width = like.shape
    return rows.to(like.dtype).reshape(batch, height, width, channels).movedim(-1, 1).contiguous()


def _conditioning(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    return functools.partial(scores.conditioning, centres)


def _mixture(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    power = shell_power(centres.dimension, spec.power)
    return lambda x, sigma: scores.mixture(centres, x, sigmas, power)


def _temperature(spec: ScoreSpec, centres: scores.Centres, power: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return T(x, sigma), (B,), of points float64 (B, d)."""
    adaptive = adaptive_rule(spec.temperature, power)
    if adaptive is None:
        rule = temperature_rule(1.0 if spec.temperature is None else spec.temperature, centres.dimension)
        return lambda x, sigma: rule(sigma)

    def temperature(x: Tensor, sigma: Tensor) -> Tensor:
        offsets, r2 = scores.nearest_offsets(centres, x, spec.neighbors.k)
        return adaptive(offsets, r2, shell_precisions(r2, power, spec.precision, sigma[:, None]))

    return temperature


def _shells(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    power = shell_power(centres.dimension, spec.power)
    rule, options = _temperature(spec, centres, power), {"power": power, "precision": spec.precision}
    few = {}
    if spec.neighbors is not None:
        spec.neighbors.check_count(len(centres.pixels))
        few = {"nearest": spec.neighbors.k, "radius": spec.neighbors.radius}

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        hot = rule(x, sigma)
        smooth, out = is_smoothed(sigma, hot, spec.smooth_below), torch.empty_like(x)
        for rows, temperature, only in ((smooth, hot, few), (~smooth, torch.ones_like(hot), {})):
            if rows.any():  # levels that are not smoothed sum over all training images
                some = {"sigma": sigma[rows], **options, **only}
                out[rows] = scores.unconditioning(centres, x[rows], temperature[rows], **some)
        return out

    return score


def kernel_draws(spec: ScoreSpec, dimension: int, batch: Batch) -> scores.Draws:
    """Return the kernel's draws of each sample, float32 (B, draws, d), in pairs xi, -xi, so that their mean is 0."""
    half = -(-spec.kernel.draws // 2)
    kept = half if 4 * half * len(batch.indices) * dimension <= DRAWN_BYTES else 1

    @functools.lru_cache(maxsize=kept)  # where they take little memory, they are made once and not at every evaluation
    def drawn(n: int) -> Tensor:
        return normal(batch.seed, batch.indices, Stream.KERNEL.draw(n), (dimension,))

    def take(start: int, stop: int) -> Tensor:
        return torch.stack([drawn(n) if n < half else -drawn(n - half) for n in range(start, stop)], dim=1)

    return scores.Draws(spec.kernel.draws, take)


def _kernel(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    plain = functools.partial(scores.conditioning, centres)
    return scores.smoothed(plain, spec.kernel.h, kernel_draws(spec, centres.dimension, batch))


def _kernel_density(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    """The score of the images' density with a Gaussian kernel of width h, noised to sigma (METHODS §1.7)."""
    return lambda x, sigma: scores.conditioning(centres, x, torch.hypot(sigma, torch.full_like(sigma, spec.kernel.h)))


def _cfdm(spec: ScoreSpec, centres: scores.Centres, sigmas: Tensor, batch: Batch) -> Score:
    shifts = kernel_draws(spec, centres.dimension, batch)
    return lambda z, t: scores.cfdm_velocity(centres, z, float(t[0]), shifts, spec.kernel.h)


CLOSED_FORMS: dict[str, Callable[[ScoreSpec, scores.Centres, Tensor, Batch], Score]] = {
    "conditioning": _conditioning,
    "mixture": _mixture,
    "unconditioning": _shells,
    "temperature": _shells,
    "kernel-smoothed": _kernel,
    "kernel-density": _kernel_density,
    "cfdm": _cfdm,
    "wiener": lambda spec, centres, sigmas, batch: peer_scores.wiener(centres),
    "local": lambda spec, centres, sigmas, batch: peer_scores.local(centres, batch.shape, spec.patch),
    "pca-locality": lambda spec, centres, sigmas, batch: peer_scores.pca_locality(
        centres, spec.mask_threshold, spec.loader_batch
    ),
    "tikhonov": lambda spec, centres, sigmas, batch: peer_scores.tikhonov(centres, spec.penalty),
    "loader-batches": lambda spec, centres, sigmas, batch: peer_scores.loader_batches(centres, spec.loader_batch),
}
"""Form -> its closed-form score on rows, x float64 (B, d) and sigma float64 (B,)."""


def network_score(network: nn.Module, conditioned: bool, bfloat16: bool = False, label: Tensor | None = None) -> Score:
    """Return the score F/sigma (METHODS §4) of F(x, sigma), or without conditioning of F(x), where sigma only scales.

    label: int64 (B,), for a class-conditional network the place of the class of each image that will be given.

    bfloat16: the network's products run in it (autocast); x and the score keep their type. On a CPU a single image is
    evaluated twice, since alone it would be rounded differently than in a batch (`fixed_rounding`).
    """

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        level = sigma.to(x.dtype)
        times = 2 if len(x) == 1 and x.device.type == "cpu" else 1
        classes = () if label is None else (label.repeat(times),)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=bfloat16):
            out = network(x.repeat(times, 1, 1, 1), level.repeat(times) if conditioned else None, *classes)[: len(x)]
        return out.to(x.dtype) / level[:, None, None, None]

    return score
