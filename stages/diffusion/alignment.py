"""How a trained score compares with the empirical one, by noise level (METHODS §2, §3).

Cosine, angle and length on noised training images; the two-point expansion factor of one step; and what a
deterministic sampler makes of the mixtures of two noised images. Levels in pixel units, images in [0, 1]. The network
works in float32; empirical scores, cosines and distances are float64.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stages.diffusion.expansion import factor_conditioning, place
from stages.protocol import Section

if TYPE_CHECKING:
    from torch import Tensor

    from stages.diffusion.sampling import Model

IMAGE_DRAW, NOISE_DRAW, PAIR_DRAW, END_DRAW = (1 << 29) + np.arange(4)  # draw numbers that no sampler uses


class Alignment(Section):
    """How closely a trained score is looked at."""

    levels: int = Field(ge=2, description="noise levels, log-uniform between sigma_min and sigma_max")
    images: int = Field(ge=1, description="noised training images per level")
    pairs: int = Field(ge=1, description="pairs of training images per level, for the expansion factor")
    paths: int = Field(ge=1, description="pairs of noised images that are interpolated")
    points: int = Field(ge=3, description="mixtures per pair, the two ends included")
    level: float = Field(gt=0, description="noise level of the interpolated images")
    steps: int = Field(ge=1, description="of the deterministic sampler that runs from there")


@dataclasses.dataclass(frozen=True)
class Aligned:
    """What was measured: rows by level, rows by path, and images uint8 (kinds, paths, points, H, W, C)."""

    levels: list[dict[str, Any]]
    paths: list[dict[str, Any]]
    images: np.ndarray


def align(model: "Model", params: Alignment, seed: int) -> Aligned:
    """Everything about one trained network. model: with its network and the training images; seed: of all draws."""
    import torch

    with torch.inference_mode():
        levels = []
        for number, sigma in enumerate(np.geomspace(float(model.sigmas[-1]), float(model.sigmas[0]), params.levels)):
            cosines = cosine_row(model, float(sigma), number, params.images, seed)
            levels.append({**cosines, **expansion_row(model, float(sigma), number, params.pairs, seed)})
        paths, images = interpolate(model, params, seed)
    return Aligned(levels, paths, images)


def chosen(model: "Model", count: int, draw: int, seed: int) -> "Tensor":
    """`count` training images float64 (count, C, H, W), a function of (seed, draw)."""
    import torch

    from stages.diffusion.noise import integers

    rows = integers(seed, torch.arange(count, device=model.device), int(draw), len(model.images))
    return model.training_images(rows).double() / 255


def cosine_row(model: "Model", sigma: float, number: int, count: int, seed: int) -> dict[str, float]:
    """Cosine and angle between the trained score and the empirical score of METHODS §1.1 at x_i + σz, and the ratio of
    their lengths: means and 10 and 90 % quantiles over `count` noised training images."""
    import torch

    from stages.diffusion.noise import normal
    from stages.diffusion.scores import conditioning
    from stages.diffusion.variants import pixel_rows

    numbers = torch.arange(count, device=model.device) + number * count
    x = chosen(model, count, IMAGE_DRAW, seed).float() + sigma * normal(seed, numbers, int(NOISE_DRAW), model.shape)
    level = torch.full((count,), sigma, dtype=torch.float64, device=x.device)
    learned = pixel_rows(_network(model, x, level)).double()
    empirical = conditioning(model.centres, pixel_rows(x).double(), level)
    cosine, lengths = cosines(learned, empirical)
    low, high = np.quantile(cosine, [0.1, 0.9])
    return {
        "sigma": sigma,
        "cosine": float(cosine.mean()),
        "cosine_low": float(low),
        "cosine_high": float(high),
        "angle": float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean()),
        "length_ratio": float(np.median(lengths)),
    }


def cosines(learned: "Tensor", empirical: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Cosine and quotient of lengths of matching rows, float64 (B, d) each: two arrays (B,)."""
    one, other = learned.norm(dim=1), empirical.norm(dim=1)
    return ((learned * empirical).sum(1) / (one * other)).cpu().numpy(), (one / other).cpu().numpy()


def _network(model: "Model", x: "Tensor", level: "Tensor") -> "Tensor":
    from stages.diffusion.variants import network_score

    return network_score(model.network, model.variant.conditioned)(x, level)


def expansion_row(model: "Model", sigma: float, number: int, count: int, seed: int) -> dict[str, float | None]:
    """Mean expansion factor of the step x + σ² s(x) at r_1 = σ√d, C = 1 + 1/√d (METHODS §2): of the network, of the
    empirical score over all training images, and in closed form for the two centres alone.

    `expansion_error` is one standard error of the network's (None for a single pair). Where σ√d is below half the
    distance of two images no such points exist; such pairs are left out, and a level without any pair has None.
    """
    import torch

    from stages.diffusion.scores import conditioning
    from stages.diffusion.variants import as_images, pixel_rows

    found = _pairs(model, sigma, number, count, seed)
    names = ("expansion", "expansion_error", "expansion_empirical", "expansion_closed_form")
    if not found:
        return {**dict.fromkeys(names), "expansion_pairs": 0}
    where = {"device": model.device}
    flat = torch.tensor(np.stack([[pair.point, pair.mirror] for pair in found]), **where).flatten(0, 1)
    level = torch.full((len(flat),), sigma, dtype=torch.float64, **where)
    x = as_images(flat, torch.empty((len(flat), *model.shape), **where))
    learned = pixel_rows(x).double() + sigma**2 * pixel_rows(_network(model, x, level)).double()
    empirical = flat + sigma**2 * conditioning(model.centres, flat, level)
    before = spread(flat)
    ratio, gap = found[0].ratio, np.array([pair.gap for pair in found])
    stretch = gap**2 / ((ratio**2 - 1) * np.array([pair.radius for pair in found]) ** 2)
    closed = [factor_conditioning(flat.shape[1], ratio, 1.0, float(one)) for one in stretch]
    factors = spread(learned) / before
    error = factors.std(ddof=1) / math.sqrt(len(factors)) if len(factors) > 1 else math.inf
    values = factors.mean(), error, (spread(empirical) / before).mean(), np.mean(closed)
    found_values = [float(value) if math.isfinite(value) else None for value in values]
    return {**dict(zip(names, found_values)), "expansion_pairs": len(found)}


def spread(points: "Tensor") -> np.ndarray:
    """Distances of rows 0 and 1, 2 and 3, …: float64 (P,) for points (2P, d)."""
    return (points[1::2] - points[::2]).norm(dim=1).cpu().numpy()


def _pairs(model: "Model", sigma: float, number: int, count: int, seed: int) -> list:
    """The mirrored pairs of points that exist at this level, in the plane of two images and a random direction."""
    from stages.diffusion.variants import pixel_rows

    centres = pixel_rows(chosen(model, 2 * count, PAIR_DRAW, seed)).cpu().numpy().reshape(count, 2, -1)
    dimension = centres.shape[2]
    radius, ratio = sigma * math.sqrt(dimension), 1 + 1 / math.sqrt(dimension)
    generator = np.random.default_rng([seed, number])
    found = []
    for pair in centres:
        direction = generator.standard_normal(dimension)
        gap = float(np.linalg.norm(pair[0] - pair[1]))
        if gap > 0 and (1 + ratio) * radius >= gap and ratio * radius <= gap + radius:
            found.append(place(pair, radius / gap, ratio, direction))
    return found


def mixtures(one: "Tensor", other: "Tensor", shares: np.ndarray) -> "Tensor":
    """Linear and spherical mixtures of matching images (P, C, H, W): (2, P, points, C, H, W), float32.

    Linear: (1−τ)a + τb. Spherical: (sin((1−τ)ω) a + sin(τω) b)/sin ω, ω the angle between a and b.
    """
    import torch

    a, b = one.flatten(1).double(), other.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    omega = torch.arccos(cosine.clamp(-1, 1))[:, None, None]
    share = torch.from_numpy(shares).to(a)[None, :, None]
    linear = (1 - share) * a[:, None] + share * b[:, None]
    spherical = (torch.sin((1 - share) * omega) * a[:, None] + torch.sin(share * omega) * b[:, None]) / torch.sin(omega)
    return torch.stack([linear, spherical]).float().reshape(2, len(a), len(shares), *one.shape[1:])


def interpolate(model: "Model", params: Alignment, seed: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """What the network makes of the mixtures of two noised images: one row per path, and the images.

    A row says how even the path is: its longest step over its length (1/(points−1) if even, 1 if it jumps once), and
    the median of r_1/r_2 along it (0: training images).
    """
    import torch

    from stages.diffusion.noise import normal

    count = params.paths
    numbers = torch.arange(2 * count, device=model.device)
    noise = normal(seed, numbers, int(END_DRAW) + 1, model.shape)
    noised = chosen(model, 2 * count, END_DRAW, seed).float() + params.level * noise
    start = mixtures(noised[:count], noised[count:], np.linspace(0, 1, params.points))
    final = denoise(model, start.flatten(0, 2), params.level, params.steps).double()
    flat = final.flatten(1).reshape(2, count, params.points, -1).cpu().numpy()
    ratios = nearest_ratios(model, final).reshape(2, count, params.points)
    rows = []
    for kind, name in enumerate(("linear", "spherical")):
        for path in range(count):
            lengths = np.linalg.norm(np.diff(flat[kind, path], axis=0), axis=1)
            total = float(lengths.sum())
            row = {"mixture": name, "path": path, "length": total, "even_step": 1 / (params.points - 1)}
            longest = float(lengths.max()) / total if total > 0 else 0.0
            rows.append({**row, "longest_step": longest, "median_ratio": float(np.median(ratios[kind, path]))})
    pixels = (final.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return rows, pixels.reshape(2, count, params.points, *pixels.shape[1:])


def denoise(model: "Model", x: "Tensor", level: float, steps: int) -> "Tensor":
    """x float32 (B, C, H, W) at noise `level`, run down to sigma_min and then denoised, without adding noise.

    A network that knows its level: Euler on the probability-flow ODE. One that does not: actual-noise steps that take
    the same share of the level away (METHODS §5).
    """
    import torch

    from stages.diffusion import samplers
    from stages.diffusion.variants import network_score

    lowest = float(model.sigmas[-1])
    sigmas = torch.logspace(math.log10(level), math.log10(lowest), steps + 1, dtype=torch.float64)
    score = network_score(model.network, model.variant.conditioned)
    if model.variant.conditioned:
        return _last(samplers.karras(score, lambda _: x / level, sigmas))
    share = 1 - (lowest / level) ** (1 / steps)
    moves = samplers.actual_noise(
        score, lambda _: x / level, sigmas[:steps], step=share, exact_below=math.inf, level=model.actual_level
    )
    x = _last(moves)
    at = model.actual_level(x)
    return x + (at**2).to(x.dtype)[:, None, None, None] * score(x, at)


def _last(states: Any) -> "Tensor":
    state = None
    for state in states:  # noqa: B007 (only the last one is wanted)
        pass
    return state


def nearest_ratios(model: "Model", x: "Tensor") -> np.ndarray:
    """r_1/r_2 of every image to the training images, float64 (B,); 1 where there is but one training image."""
    import torch

    from stages.diffusion.variants import pixel_rows

    squared = torch.cat([block for block, _ in model.centres.squared_distances(pixel_rows(x).double())], dim=1)
    if squared.shape[1] < 2:
        return np.ones(len(x))
    two = squared.topk(2, dim=1, largest=False).values.sqrt()
    return (two[:, 0] / two[:, 1].clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()
