"""Empirical scores in closed form: what a network would learn if it learned its loss perfectly (METHODS §1).

Every score is a softmax over the training images ("centres") x_i at distances r_i = |x - x_i|. Distances come from a
float64 product |x|^2 + |x_i|^2 - 2 x.x_i: at d = 3072 and sigma = 50 its error is below 1e-8 on r^2, where float32
would lose the digits in which copies live. Centres are visited in blocks with a running maximum, so that nothing of
size samples x centres x d, nor samples x all centres, is ever held.

Where the form allows it, many uint8 images on a CPU go through `engine.truncated_score`: integer products, few centres.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stages.diffusion.parameters import Precision
from stages.diffusion.samplers import Score
from stages.diffusion.temperature import (
    conditioning_log_weights,
    mixture_log_weights,
    radius_limit,
    shell_log_weights,
    shell_power,
    shell_precisions,
)
from stages.engine import truncated_score
from stages.engine.many_centres import ManyCentres, make_many_centres
from stages.errors import InputError

BATCH, ARRAYS = 1024, 9  # the points, and the arrays (points, centres), that a block's memory budget allows for
CANCELLED = 1e-6  # share of |x|^2 below which r^2 is computed from differences
ROWS = 2048  # points at which a score is evaluated at once where a kernel shifts the samples
GPU_SHARE = 0.125  # share of a GPU's memory that the centres may take as float64
MANY = 1 << 23  # values of uint8 images from which on they are kept as bytes: 2,731 images of CIFAR-10


@dataclasses.dataclass(frozen=True)
class Centres:
    """Training images as centres of the empirical distribution.

    Attributes:
        pixels: float64 (M, d) in [0,1], or uint8 (M, d).
        norms: float64 (M,), squared norms in units of [0,1]; None: computed with every block.
        block: the number of centres visited at once with up to BATCH points; with more points it is smaller.
        many: the same centres for `truncated_score`, or None.
    """

    pixels: Tensor
    norms: Tensor | None
    block: int
    many: ManyCentres | None = None

    @property
    def dimension(self) -> int:
        """d."""
        return self.pixels.shape[1]

    def squared_distances(self, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (r^2, centres) block by block for x float64 (B, d): float64 (B, m) and (m, d)."""
        own = (x * x).sum(1, keepdim=True)
        step = max(1, self.block * BATCH // max(BATCH, len(x)))
        for start in range(0, len(self.pixels), step):
            centres = unit(self.pixels[start : start + step])
            norms = _squared(centres) if self.norms is None else self.norms[start : start + step]
            r2 = own + norms - 2 * (x @ centres.T)
            yield _by_differences(r2.clamp_min_(0), own, x, centres, self.block), centres


def _by_differences(r2: Tensor, own: Tensor, x: Tensor, centres: Tensor, block: int) -> Tensor:
    """Return r^2 with the values that are small against |x|^2, which the product has lost, computed from differences.

    Beyond CANCELLED |x|^2 a product of d terms in float64 is off by about 1e-10 of r^2 at most, at d = 3072.
    own: |x|^2, (B, 1); block: the number of centres that fit the memory budget with BATCH points.
    """
    near = torch.nonzero(r2 < CANCELLED * own)
    for part in near.split(max(1, block * BATCH // centres.shape[1])):
        sample, centre = part.unbind(1)
        r2[sample, centre] = (x[sample] - centres[centre]).square().sum(1)
    return r2


def make_centres(images: Tensor, memory_budget: int = 1 << 28) -> Centres:
    """Return centres from uint8 (M, ...) or floating (M, ...) images in [0,1].

    memory_budget: bytes that bound one block's work, beyond arrays of the points' own size. Raises InputError for an
    empty training set.
    """
    if len(images) == 0:
        raise InputError("the training set is empty: an empirical score needs at least one image")
    pixels = images.reshape(len(images), -1)
    keep = pixels.dtype == torch.uint8 and pixels.numel() >= _most(pixels.device)
    if not keep:
        pixels = unit(pixels)
    per_centre = 8 * (ARRAYS * BATCH + (2 * pixels.shape[1] if keep else 0))  # float64 (points, block), and pixels
    block = max(1, memory_budget // per_centre)
    if keep and pixels.device.type == "cpu":  # they rarely go in blocks: their norms, 8 bytes each, are not kept
        return Centres(pixels, None, block, make_many_centres(pixels.numpy()))
    return Centres(pixels, torch.cat([_squared(unit(part)) for part in pixels.split(block)]), block)


def _most(device: torch.device) -> int:
    """Return the number of values from which on uint8 images are kept as bytes; a GPU with room converts more."""
    if device.type != "cuda":
        return MANY
    return max(MANY, int(GPU_SHARE * torch.cuda.get_device_properties(device).total_memory) // 8)


def unit(pixels: Tensor) -> Tensor:
    """Return pixels as float64 in [0,1]."""
    return pixels.double() / 255 if pixels.dtype == torch.uint8 else pixels.double()


def _squared(centres: Tensor) -> Tensor:
    """Return the squared norms of float64 (m, d)."""
    return centres.square().sum(1)


def _weighted(centres: Centres, x: Tensor, weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Return sum_i w_i p_i (x_i - x), w = softmax of the log-weights, float64 (B, d), by online softmax over blocks.

    x: float64 (B, d). weigh(r2) -> (log-weights, precisions p), (B, m) each.
    """
    lowest = torch.finfo(torch.float64).min  # finite, so that a block without any weight gives 0 and not NaN
    top = torch.full((len(x), 1), lowest, dtype=torch.float64, device=x.device)
    total = torch.zeros_like(top)
    precision = torch.zeros_like(top)
    moment = torch.zeros_like(x)
    for r2, block in centres.squared_distances(x):
        log_weight, p = weigh(r2)
        new_top = torch.maximum(top, log_weight.amax(1, keepdim=True))
        shrink = torch.exp(top - new_top)
        weight = torch.exp(log_weight - new_top)
        mass = weight * p
        total = total * shrink + weight.sum(1, keepdim=True)
        precision = precision * shrink + mass.sum(1, keepdim=True)
        moment = moment * shrink + mass @ block
        top = new_top
    return (moment - precision * x) / total


def conditioning(centres: Centres, x: Tensor, sigma: Tensor) -> Tensor:
    """s(x; sigma) = -sum_i w_i (x - x_i)/sigma^2, w = softmax(-r_i^2 / 2 sigma^2) (METHODS §1.1).

    x: float64 (B, d); sigma: float64 (B,). Returns float64 (B, d).
    """
    if centres.many is not None:
        return torch.from_numpy(truncated_score.conditioning(centres.many, x.numpy(), sigma.numpy()))
    variance = sigma[:, None] ** 2
    return _weighted(centres, x, lambda r2: (conditioning_log_weights(r2, variance), torch.ones_like(r2))) / variance


def mixture(centres: Centres, x: Tensor, sigmas: Tensor, power: int | None = None) -> Tensor:
    """The unified mixture over all levels (METHODS §1.2): joint log-weights -c ln sigma_j - r_i^2/(2 sigma_j^2).

    sigmas: float64 (L,); x: float64 (B, d). Returns float64 (B, d). `power` c defaults to d-2.
    """
    c = shell_power(centres.dimension) if power is None else power
    variances = (sigmas.double() ** 2).tolist()  # numbers: no array of samples x centres x levels is made

    def weigh(r2: Tensor) -> tuple[Tensor, Tensor]:
        joint = functools.partial(mixture_log_weights, r2, power=c)
        top = functools.reduce(torch.maximum, map(joint, variances))
        total, precision = torch.zeros_like(r2), torch.zeros_like(r2)
        for variance in variances:
            weight = torch.exp(joint(variance) - top)
            total += weight
            precision += weight / variance
        return top + torch.log(total), precision / total

    return _weighted(centres, x, weigh)


def unconditioning(
    centres: Centres,
    x: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    power: int | None = None,
    precision: Precision = "optimal",
    sigma: Tensor | None = None,
    nearest: int | None = None,
    radius: float | None = None,
) -> Tensor:
    """Optimal-shell score, smoothed by temperature: s = -sum_i w_i (x-x_i)/sigma_i*^2 with
    w = softmax(-(d-2) ln r_i / T) and sigma_i*^2 = r_i^2/(d-2) (METHODS §1.4-1.5).

    Args:
        x: float64 (B, d).
        temperature: T, a number or float64 (B,). T = 1 is the unconditioning score.
        power: c in place of d-2.
        precision: "optimal" divides by sigma_i*^2, "scheduled" by the given sigma^2 (METHODS §1.6).
        sigma: float64 (B,), needed for "scheduled" only.
        nearest: the number of centres nearest to x that are summed (ties included); None: all (METHODS §1.6).
        radius: of the `nearest`, keep those within radius x distance to the second nearest.
    Returns float64 (B, d). On a centre itself (r_i = 0) the score is singular in every direction; 0 is returned.
    """
    c = shell_power(centres.dimension) if power is None else power
    t = torch.as_tensor(temperature, dtype=torch.float64, device=x.device).reshape(-1, 1)
    if precision == "scheduled" and sigma is None:
        raise ValueError("precision 'scheduled' needs sigma")
    if centres.many is not None and nearest is None:
        own, level = t.flatten().expand(len(x)).numpy(), sigma.numpy() if precision == "scheduled" else None
        return torch.from_numpy(truncated_score.unconditioning(centres.many, x.numpy(), own, c, level))
    farthest = None if nearest is None else farthest_squared_distance(centres, x, nearest, radius)
    level = None if sigma is None else sigma[:, None]

    def weigh(r2: Tensor) -> tuple[Tensor, Tensor]:
        log_weight = shell_log_weights(r2, c, t)
        if farthest is not None:
            log_weight = log_weight.masked_fill(r2 > farthest, -math.inf)
        return log_weight, shell_precisions(r2, c, precision, level)

    return _weighted(centres, x, weigh)


def farthest_squared_distance(centres: Centres, x: Tensor, k: int, radius: float | None = None) -> Tensor:
    """Return the k-th smallest r_i^2, or `radius_limit` where that is less, float64 (B, 1), for x float64 (B, d).

    It is infinite where there are fewer centres than k.
    """
    best = torch.full((len(x), k), math.inf, dtype=torch.float64, device=x.device)
    for r2, _ in centres.squared_distances(x):
        best = torch.cat((best, r2), dim=1).topk(k, dim=1, largest=False).values
    return best[:, -1:] if radius is None else torch.minimum(best[:, -1:], radius_limit(best, radius))


def nearest_offsets(centres: Centres, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return x - x_i and r_i^2 of the k nearest centres, float64 (B, k, d) and (B, k), for x float64 (B, d).

    Raises InputError for fewer centres than k.
    """
    if k > len(centres.pixels):
        raise InputError(f"neighbors.k is {k} but the training set has {len(centres.pixels)} images: lower k")
    best = torch.full((len(x), k), math.inf, dtype=torch.float64, device=x.device)
    rows, start = torch.zeros((len(x), k), dtype=torch.int64, device=x.device), 0
    for r2, block in centres.squared_distances(x):
        numbers = torch.arange(start, start + len(block), device=x.device).expand(len(x), -1)
        best, order = torch.cat((best, r2), dim=1).topk(k, dim=1, largest=False)
        rows, start = torch.cat((rows, numbers), dim=1).gather(1, order), start + len(block)
    return x[:, None] - unit(centres.pixels[rows.flatten()]).reshape(*rows.shape, -1), best


@dataclasses.dataclass(frozen=True)
class Draws:
    """Standard normal shifts of a kernel, the same along a trajectory.

    Attributes:
        count: m.
        take: (start, stop) -> draws start..stop, (stop - start, d) common to all samples, or (B, stop - start, d).
    """

    count: int
    take: Callable[[int, int], Tensor]

    @classmethod
    def of(cls, draws: "Tensor | Draws") -> "Draws":
        """Return the draws of one tensor, (m, d) or (B, m, d)."""
        return draws if isinstance(draws, cls) else cls(draws.shape[-2], lambda a, b: draws[..., a:b, :])


def _mean_over_shifts(field: Callable[[Tensor], Tensor], x: Tensor, h: float, draws: Tensor | Draws) -> Tensor:
    """Return the mean of field(x + h xi) over the draws, (B, d), evaluated at up to ROWS shifted points at once.

    field(y): (n, d) for y (n, d), sample by sample, n = B times the draws taken.
    """
    draws, total = Draws.of(draws), torch.zeros_like(x)
    step = max(1, ROWS // len(x))
    for start in range(0, draws.count, step):
        some = draws.take(start, min(start + step, draws.count)).to(x)
        shifted = (x[:, None] + h * some).flatten(0, 1)
        total += field(shifted).reshape(len(x), -1, x.shape[1]).sum(1)
    return total / draws.count


def smoothed(score: Score, h: float, draws: Tensor | Draws) -> Score:
    """Return the kernel-smoothed score (METHODS §1.7): E_xi score(x + h xi; sigma), xi ~ N(0, I), over given draws.

    draws: (m, d), common to all samples, or (B, m, d), each sample's own. The same draws along a trajectory make the
    smoothed score a fixed vector field, the gradient of K_h * log(G_sigma * mu_M) up to Monte Carlo error.
    """

    def smooth(x: Tensor, sigma: Tensor) -> Tensor:
        return _mean_over_shifts(lambda y: score(y, sigma.repeat_interleave(len(y) // len(x))), x, h, draws)

    return smooth


def cfdm_velocity(centres: Centres, z: Tensor, t: float, draws: Tensor | Draws, smoothing: float) -> Tensor:
    """sigma-CFDM (Scarvelis et al. 2023; METHODS §1.8): v = (z + (1-t) s)/t with
    s = (1-t)^-2 mean_m [k_t(z + smoothing eps_m) - z], k_t(z) = sum softmax(-|z - t x_i|^2 / 2(1-t)^2) t x_i.

    z: float64 (B, d); draws: (m, d) or (B, m, d). Returns float64 (B, d).
    """

    def mean(y: Tensor) -> Tensor:
        # k_t(y) is t times the posterior mean of x_i at y/t with noise (1-t)/t
        level = torch.full((len(y),), (1 - t) / t, dtype=torch.float64, device=y.device)
        return y + t * conditioning(centres, y / t, level) * level[:, None] ** 2

    s = (_mean_over_shifts(mean, z, smoothing, draws) - z) / (1 - t) ** 2
    return (z + (1 - t) * s) / t
