"""Empirical scores in closed form: what a network would learn if it learned its loss perfectly (METHODS §1).

Every score is a softmax over the training images ("centres") x_i at distances r_i = |x - x_i|. Distances come from a
float64 product |x|^2 + |x_i|^2 - 2 x.x_i: at d = 3072 and sigma = 50 its error is below 1e-8 on r^2, where float32
would lose the digits in which copies live. Centres are visited in blocks with a running maximum, so that nothing of
size samples x centres x d, nor samples x all centres, is ever held.

Many uint8 images on a CPU go through `truncated_score` where that has the form: integer products, few centres.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from stages.diffusion.parameters import Power, Precision
from stages.engine import truncated_score
from stages.engine.many_centres import ManyCentres, make_many_centres
from stages.errors import InputError

Score = Callable[[Tensor, Tensor], Tensor]
BATCH, ARRAYS = 1024, 9  # points at once, and arrays of (points, centres), for which a block is measured
CANCELLED = 1e-6  # of |x|^2
ROWS = 2048  # points at which a score is evaluated at once where a kernel shifts the samples
SHARE = 0.125  # of a GPU's memory that the centres may take as float64
MANY = 1 << 23  # values of uint8 images from which on they are kept as bytes: 2,731 images of CIFAR-10


@dataclasses.dataclass(frozen=True)
class Centres:
    """Training images as centres of the empirical distribution.

    Attributes:
        pixels: float64 (M, d) in [0,1], or uint8 (M, d).
        norms: float64 (M,), squared norms in units of [0,1]; None: computed with every block.
        block: how many centres are visited at once, with up to BATCH points; fewer with more.
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
            centres = _unit(self.pixels[start : start + step])
            norms = _squared(centres) if self.norms is None else self.norms[start : start + step]
            r2 = own + norms - 2 * (x @ centres.T)
            yield _by_differences(r2.clamp_min_(0), own, x, centres, self.block), centres


def _by_differences(r2: Tensor, own: Tensor, x: Tensor, centres: Tensor, block: int) -> Tensor:
    """r^2 with those that are small against |x|^2 computed again from the differences: the product has lost them.

    Beyond CANCELLED |x|^2 a product of d terms in float64 is off by about 1e-10 of r^2 at most, at d = 3072.
    own: |x|^2, (B, 1); block: how many centres fit the memory budget with BATCH points.
    """
    near = torch.nonzero(r2 < CANCELLED * own)
    for part in near.split(max(1, block * BATCH // centres.shape[1])):
        sample, centre = part.unbind(1)
        r2[sample, centre] = (x[sample] - centres[centre]).square().sum(1)
    return r2


def make_centres(images: Tensor, memory_budget: int = 1 << 28) -> Centres:
    """Centres from uint8 (M, ...) or floating (M, ...) in [0,1]; `memory_budget` bytes bound one block's work, beyond
    arrays of the points' own size. Raises InputError for an empty training set."""
    if len(images) == 0:
        raise InputError("the training set is empty: an empirical score needs at least one image")
    pixels = images.reshape(len(images), -1)
    keep = pixels.dtype == torch.uint8 and pixels.numel() >= _most(pixels.device)
    if not keep:
        pixels = _unit(pixels)
    per_centre = 8 * (ARRAYS * BATCH + (2 * pixels.shape[1] if keep else 0))  # float64 (points, block), and pixels
    block = max(1, memory_budget // per_centre)
    if keep and pixels.device.type == "cpu":  # rarely go in blocks: norms would be 8 bytes of memory per centre
        return Centres(pixels, None, block, make_many_centres(pixels.numpy()))
    return Centres(pixels, torch.cat([_squared(_unit(part)) for part in pixels.split(block)]), block)


def _most(device: torch.device) -> int:
    """Values of uint8 images from which on they are kept as bytes; a GPU with room for more spares converting them."""
    if device.type != "cuda":
        return MANY
    return max(MANY, int(SHARE * torch.cuda.get_device_properties(device).total_memory) // 8)


def _unit(pixels: Tensor) -> Tensor:
    """float64 in [0,1]."""
    return pixels.double() / 255 if pixels.dtype == torch.uint8 else pixels.double()


def _squared(centres: Tensor) -> Tensor:
    """Squared norms of float64 (m, d)."""
    return centres.square().sum(1)


def shell_power(dimension: int, convention: Power = "d-2") -> int:
    """The exponent c in sigma*^2 = r^2 / c: d-2 for the loss weight sigma^2, d for weight 1 (METHODS §1.3).

    For d <= 2 only weight 1 has an optimal level, so c = d.
    """
    return dimension - 2 if convention == "d-2" and dimension > 2 else dimension


def _weighted(centres: Centres, x: Tensor, weigh: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """Sum_i w_i p_i (x_i - x) with w = softmax of the log-weights. weigh(r2) -> (log-weight, precision p), (B, m) each.

    Online softmax over blocks of centres. x: float64 (B, d); returns float64 (B, d).
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
    return _weighted(centres, x, lambda r2: (-r2 / (2 * variance), torch.ones_like(r2))) / variance


def mixture(centres: Centres, x: Tensor, sigmas: Tensor, power: int | None = None) -> Tensor:
    """The unified mixture over all levels (METHODS §1.2): joint log-weights -c ln sigma_j - r_i^2/(2 sigma_j^2).

    sigmas: float64 (L,); x: float64 (B, d). Returns float64 (B, d). `power` c defaults to d-2.
    """
    c = shell_power(centres.dimension) if power is None else power
    variances = (sigmas.double() ** 2).tolist()  # numbers: no array of samples x centres x levels is made

    def weigh(r2: Tensor) -> tuple[Tensor, Tensor]:
        def joint(variance: float) -> Tensor:
            return -c / 2 * math.log(variance) - r2 / (2 * variance)

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
        nearest: sum over this many centres nearest to x (ties included), or over all (METHODS §1.6).
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
    tiny = torch.finfo(torch.float64).tiny
    farthest = None if nearest is None else farthest_squared_distance(centres, x, nearest, radius)

    def weigh(r2: Tensor) -> tuple[Tensor, Tensor]:
        r2 = r2.clamp_min(tiny)
        log_weight = -(c / (2 * t)) * torch.log(r2)
        if farthest is not None:
            log_weight = log_weight.masked_fill(r2 > farthest, -math.inf)
        if precision == "scheduled":
            return log_weight, (1 / sigma[:, None] ** 2).expand_as(r2)
        return log_weight, torch.where(r2 > tiny, c / r2, 0.0)

    return _weighted(centres, x, weigh)


def farthest_squared_distance(centres: Centres, x: Tensor, k: int, radius: float | None = None) -> Tensor:
    """The k-th smallest r_i^2, or the radius' square times the second smallest where that is less: float64 (B, 1).

    Infinite where there are fewer centres. x: float64 (B, d).
    """
    best = torch.full((len(x), k), math.inf, dtype=torch.float64, device=x.device)
    for r2, _ in centres.squared_distances(x):
        best = torch.cat((best, r2), dim=1).topk(k, dim=1, largest=False).values
    return best[:, -1:] if radius is None else torch.minimum(best[:, -1:], radius**2 * best[:, :2][:, -1:])


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
        """From all of them at once, (m, d) or (B, m, d)."""
        return draws if isinstance(draws, cls) else cls(draws.shape[-2], lambda a, b: draws[..., a:b, :])


def _mean_over_shifts(field: Callable[[Tensor], Tensor], x: Tensor, h: float, draws: Tensor | Draws) -> Tensor:
    """E field(x + h xi) over the draws, (B, d), of which as many are taken at once as ROWS shifted points hold.

    field(y) for y (n, d), n = B times the draws taken, sample by sample: (n, d).
    """
    draws, total = Draws.of(draws), torch.zeros_like(x)
    step = max(1, ROWS // len(x))
    for start in range(0, draws.count, step):
        some = draws.take(start, min(start + step, draws.count)).to(x)
        shifted = (x[:, None] + h * some).flatten(0, 1)
        total += field(shifted).reshape(len(x), -1, x.shape[1]).sum(1)
    return total / draws.count


def smoothed(score: Callable[[Tensor, Tensor], Tensor], h: float, draws: Tensor | Draws) -> Score:
    """Kernel smoothing (METHODS §1.7): E_xi score(x + h xi; sigma), xi ~ N(0, I), over the given draws.

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
        # k_t at y is t times the posterior mean of x_i at y/t with noise (1-t)/t.
        level = torch.full((len(y),), (1 - t) / t, dtype=torch.float64, device=y.device)
        return y + t * conditioning(centres, y / t, level) * level[:, None] ** 2

    s = (_mean_over_shifts(mean, z, smoothing, draws) - z) / (1 - t) ** 2
    return (z + (1 - t) * s) / t
