"""A trained score compared with the empirical one, by noise level (METHODS §2, §3).

Cosine, angle, length and effective temperature on noised training images; the two-point expansion factor of one step;
and where a deterministic sampler takes the mixtures of two noised images. Levels are in pixel units, images in [0, 1].
The network works in float32; empirical scores, cosines and distances are float64.
"""

import collections
import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.diffusion import samplers
from stages.diffusion.adaptive_temperature import adaptive_rule
from stages.diffusion.eigenvalues import closed_tops, learned_top
from stages.diffusion.expansion import Pair, factor_conditioning, factor_unconditioning, place, point_exists
from stages.diffusion.model import Model
from stages.diffusion.noise import Stream, integers, normal
from stages.diffusion.parameters import AlignmentParams, ScoreSpec
from stages.diffusion.sampling import to_uint8
from stages.diffusion.scores import conditioning
from stages.diffusion.temperature import is_smoothed, shell_power, temperature_rule
from stages.diffusion.thermometer import READINGS, by_expansion, closed_scores
from stages.diffusion.variants import as_images, network_score, pixel_rows

CLOSED_TEMPERATURES = (1, 10, 100, 1000)
"""The temperatures of the closed forms beside a network's expansion factor, those of [P]."""

FACTORS = (
    "expansion",
    "expansion_empirical",
    "expansion_closed_form",
    *(f"expansion_t_{temperature}" for temperature in CLOSED_TEMPERATURES),
)
"""Columns of mean expansion factors: a network's, that of the empirical score, and those of closed forms of a pair."""

PAIRS_AT_ONCE = 128
"""Pairs that are evaluated together."""


@dataclasses.dataclass(frozen=True)
class Aligned:
    """The measurements: rows by level, readings of the temperature, rows by path, and images uint8 (kinds, paths,
    points, H, W, C)."""

    levels: list[dict[str, Any]]
    temperatures: list[dict[str, Any]]
    paths: list[dict[str, Any]]
    images: np.ndarray


@torch.inference_mode()
def align(model: Model, params: AlignmentParams, seed: int) -> Aligned:
    """Return all measurements of a model with a network; seed: that of all draws."""
    levels, temperatures = [], []
    for number, sigma in enumerate(
        np.geomspace(float(model.sigmas[-1]), float(model.sigmas[0]), params.levels).tolist()
    ):
        x, learned = at_noised_images(model, sigma, number, params.images, seed)
        expansion = expansion_row(model, sigma, number, params, seed)
        eigenvalue = eigenvalue_row(model, sigma, number, params.pairs, seed)
        levels.append({**cosine_row(model, sigma, x, learned), **expansion, **eigenvalue})
        temperatures += temperature_rows(model, sigma, x, learned, seed)
    return Aligned(levels, temperatures, *interpolate(model, params, seed))


def chosen(model: Model, count: int, stream: Stream, seed: int, start: int = 0) -> Tensor:
    """Return `count` training images float64 (count, C, H, W): image i is a function of (seed, stream, start + i)."""
    numbers = torch.arange(start, start + count, device=model.device)
    rows = integers(seed, numbers, stream.draw(), len(model.images))
    return model.training_images(rows).double() / 255


def at_noised_images(model: Model, sigma: float, number: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return x_i + σz of `count` training images and the trained score there, float64 (count, d) each."""
    numbers = torch.arange(count, device=model.device) + number * count
    noise = normal(seed, numbers, Stream.ALIGNED_NOISE.draw(), model.shape)
    x = chosen(model, count, Stream.ALIGNED_IMAGE, seed).float() + sigma * noise
    level = torch.full((count,), sigma, dtype=torch.float64, device=x.device)
    return pixel_rows(x).double(), pixel_rows(_network_score(model)(x, level)).double()


def cosine_row(model: Model, sigma: float, x: Tensor, learned: Tensor) -> dict[str, float]:
    """Compare the trained score at x with the empirical score of METHODS §1.1, (B, d) each.

    Returns mean and 10 and 90 % quantiles of the cosine, the mean angle in degrees, and the median ratio of lengths.
    """
    level = torch.full((len(x),), sigma, dtype=torch.float64, device=x.device)
    empirical = conditioning(model.centres, x, level)
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


def temperature_rows(model: Model, sigma: float, x: Tensor, learned: Tensor, seed: int) -> list[dict[str, Any]]:
    """Return the thermometer's readings of the trained score at x, (B, d) each, over all training images.

    Where the network's own target has neighbours, each is also read over as many: the nearest ones of x itself, which
    are the source image's except near the border between two images.
    """
    spec = model.variant
    few = {} if spec.neighbors is None else {"nearest": spec.neighbors.k, "radius": spec.neighbors.radius}
    rows = []
    for own in ({}, few) if few else ({},):
        closed = _closed(model, x, sigma, **own)
        for name, read in READINGS.items():
            found = read(learned, closed, np.random.default_rng([seed, len(model.images)]))
            about = {"sigma": sigma, "neighbors": own.get("nearest"), "reading": name}
            rows.append({**about, **dataclasses.asdict(found)})
    return rows


def _closed(model: Model, x: Tensor, sigma: float, **few: Any) -> Tensor:
    spec = model.variant
    options = {"power": shell_power(x.shape[1], spec.power), "precision": spec.precision}
    return closed_scores(model.centres, x, sigma, **options, **few)


def cosines(learned: Tensor, empirical: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the cosine and the quotient of lengths of matching rows, float64 (B, d) each: two arrays (B,)."""
    one, other = learned.norm(dim=1), empirical.norm(dim=1)
    return ((learned * empirical).sum(1) / (one * other)).cpu().numpy(), (one / other).cpu().numpy()


def _network_score(model: Model) -> samplers.Score:
    return network_score(model.network, model.variant.conditioned)


def expansion_row(
    model: Model, sigma: float, number: int, params: AlignmentParams, seed: int
) -> dict[str, float | bool | None]:
    """Return mean expansion factors of the step x + σ² s(x) at r_1 = σ√d, C = 1 + 1/√d (METHODS §2).

    They are the network's, with its standard error (None for a single pair), that of the empirical score over all
    training images, and the closed forms for the two centres alone: with the noise level, and without it at each of
    CLOSED_TEMPERATURES. Where σ√d is below half the distance of two images no such points exist; such pairs are left
    out, and a level without any pair has None. The thermometer's reading is the T at which the closed form of METHODS
    §1.4-1.5 has the network's mean factor over the first `params.pairs`.
    """
    parts = [*_factors(model, sigma, number, params.expansion_pairs, seed)]
    factors, images = (np.concatenate(own, axis=1) for own in zip(*parts))
    row = {name: float(values.mean()) if len(values) else None for name, values in zip(FACTORS, factors)}
    own = factors[0]
    reading = _expansion_reading(model, sigma, number, params.pairs, own, seed)
    return {**row, "expansion_error": error_over_images(own, images), **reading, "expansion_pairs": len(own)}


def _factors(model: Model, sigma: float, number: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the factors of FACTORS, float64 (len(FACTORS), pairs), of the existing pairs, PAIRS_AT_ONCE at a time, and
    numbers that tell the pairs' two images apart, int64 (2, pairs)."""
    yield np.empty((len(FACTORS), 0)), np.empty((2, 0), np.int64)
    pairs = mirrored_pairs(model, sigma, number, count, seed)
    while some := list(itertools.islice(pairs, PAIRS_AT_ONCE)):
        yield _factors_of(model, sigma, some), _images(some)


def _images(pairs: Sequence[Pair]) -> np.ndarray:
    """Return numbers that tell the pairs' two images apart, int64 (2, pairs), the same ones in every process."""
    return np.array([[_number(centre) for centre in pair.centres] for pair in pairs]).T


def _number(image: np.ndarray) -> int:
    """A digest of 64 bits. Python's own hash differs between processes, and with it the order of sums."""
    return int.from_bytes(hashlib.blake2b(image.tobytes(), digest_size=8).digest(), "little", signed=True)


def _factors_of(model: Model, sigma: float, pairs: Sequence[Pair]) -> np.ndarray:
    """Return the factors of FACTORS of every pair, float64 (len(FACTORS), pairs)."""
    flat = torch.tensor(np.stack([[pair.point, pair.mirror] for pair in pairs]), device=model.device).flatten(0, 1)
    level = torch.full((len(flat),), sigma, dtype=torch.float64, device=model.device)
    x = as_images(flat, torch.empty((len(flat), *model.shape), device=model.device))
    learned = pixel_rows(x).double() + sigma**2 * pixel_rows(_network_score(model)(x, level)).double()
    empirical = flat + sigma**2 * conditioning(model.centres, flat, level)
    closed = [[factor_conditioning(flat.shape[1], pair.ratio, 1.0, pair.stretch) for pair in pairs]]
    for temperature in CLOSED_TEMPERATURES:
        closed.append(
            [factor_unconditioning(flat.shape[1], pair.ratio, 1.0, pair.stretch, temperature) for pair in pairs]
        )
    return np.stack([spread(learned) / spread(flat), spread(empirical) / spread(flat), *closed])


def error_over_images(values: np.ndarray, images: np.ndarray) -> float | None:
    """Return the standard error of the mean of values of pairs, float64 (n,), where pairs with a common image go
    together; None for fewer than two. images: int64 (2, n).

    The sum of the products of residuals over all pairs that share an image, each pair with itself included, over n²
    (Aronow, Samii & Assenova 2015, https://arxiv.org/abs/1312.3398), and at least what independent pairs have.
    """
    if len(values) < 2:
        return None
    residuals = values - values.mean()
    _, places = np.unique(images, return_inverse=True)
    sums = np.bincount(places.reshape(images.shape).ravel(), weights=np.tile(residuals, 2))
    shared = (sums**2).sum() - (residuals**2).sum()
    return max(math.sqrt(max(shared, 0.0)) / len(values), standard_error(values))


def standard_error(values: np.ndarray) -> float | None:
    """Return the standard error of the mean of float64 (n,); None for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _expansion_reading(
    model: Model, sigma: float, number: int, count: int, factors: np.ndarray, seed: int
) -> dict[str, float | bool | None]:
    """Return the thermometer's reading of the network's factors, float64 (P,), over its first `count` images' pairs."""
    names = {name: f"expansion_{name}" for name in ("t_eff", "low", "high", "identified")}
    pairs = list(mirrored_pairs(model, sigma, number, count, seed))
    if not pairs:
        return dict.fromkeys(names.values())
    own = factors[: len(pairs)]
    flat = torch.tensor(np.stack([[pair.point, pair.mirror] for pair in pairs]), device=model.device).flatten(0, 1)
    hot = np.stack([spread(flat + sigma**2 * score) / spread(flat) for score in _closed(model, flat, sigma)])
    found = by_expansion(own, hot, flat.shape[1], np.random.default_rng([seed, len(model.images)]))
    reading = {own_name: getattr(found, name) for name, own_name in names.items()}
    error = error_over_images(own, _images(pairs))  # where it is exceeded, no T has the network's factor
    reading["expansion_identified"] &= error is None or bool(found.error <= 2 * error)
    return reading


def eigenvalue_row(model: Model, sigma: float, number: int, count: int, seed: int) -> dict[str, float | bool | None]:
    """Return the mean of sigma^2 times the top eigenvalue of the trained score's Jacobian, and the T that has it.

    The points lie half-way between those of `expansion_row`: as far from both centres of a pair, where the closed
    form's eigenvalue falls as T rises. With its standard error (None for a single point); None without points, and for
    a target with precision `scheduled`, whose Jacobian is another one.
    """
    pairs, spec = list(mirrored_pairs(model, sigma, number, count, seed)), model.variant
    names = {name: f"jacobian_{name}" for name in ("t_eff", "low", "high", "identified")}
    if not pairs or spec.precision == "scheduled":
        return dict.fromkeys(("jacobian", "jacobian_error", *names.values()))
    x = torch.tensor(np.stack([(pair.point + pair.mirror) / 2 for pair in pairs]), device=model.device)
    axes = torch.tensor(np.stack([pair.centres[1] - pair.centres[0] for pair in pairs]), device=model.device)
    like = torch.empty((len(x), *model.shape), device=model.device)
    level = torch.full((len(x),), sigma, dtype=torch.float64, device=model.device)

    def score(points: Tensor) -> Tensor:
        return pixel_rows(_network_score(model)(as_images(points, like), level)).double()

    own = (sigma**2 * learned_top(score, x, sigma, axes)).cpu().numpy()
    power, given = shell_power(x.shape[1], spec.power), learns_given_level(spec, sigma, x.shape[1])
    closed = (sigma**2 * closed_tops(model.centres, x, power, frozen=given)).cpu().numpy()
    error = error_over_images(own, _images(pairs))
    found = by_expansion(own, closed, x.shape[1], np.random.default_rng([seed, len(model.images)]))
    reading = {own_name: getattr(found, name) for name, own_name in names.items()}
    reading["jacobian_identified"] &= error is not None and bool(found.error <= 2 * error)
    return {"jacobian": float(own.mean()), "jacobian_error": error, **reading}


def learns_given_level(spec: ScoreSpec, sigma: float, dimension: int) -> bool:
    """Return whether a network's target at a level is a score at that level, and not at the levels of its shells.

    The latter move with x, and the Jacobian of what it learns has a term of them: of a network that is blind to the
    level always, of one that is given it where its target is smoothed by a temperature.
    """
    if not spec.conditioned or spec.form != "temperature":
        return spec.conditioned
    if adaptive_rule(spec.temperature, shell_power(dimension, spec.power)) is not None:
        return spec.smooth_below is not None and sigma >= spec.smooth_below
    level = torch.tensor([sigma], dtype=torch.float64)
    heat = temperature_rule(spec.temperature, dimension)(level)
    return not bool(is_smoothed(level, heat, spec.smooth_below))


def spread(points: Tensor) -> np.ndarray:
    """Return the distances of rows 0 and 1, 2 and 3, …: float64 (P,) for points (2P, d)."""
    return (points[1::2] - points[::2]).norm(dim=1).cpu().numpy()


def mirrored_pairs(model: Model, sigma: float, number: int, count: int, seed: int) -> Iterator[Pair]:
    """Yield the mirrored pairs that exist at this level among `count` pairs of images, in the plane of the two images
    and a random direction. The first of them do not depend on `count`."""
    generator = np.random.default_rng([seed, number])
    for start in range(0, count, PAIRS_AT_ONCE):
        some = min(PAIRS_AT_ONCE, count - start)
        images = chosen(model, 2 * some, Stream.PAIR_IMAGE, seed, 2 * start)
        for centres in pixel_rows(images).cpu().numpy().reshape(some, 2, -1):
            yield from _placed(centres, sigma, generator.standard_normal(centres.shape[1]))


def _placed(centres: np.ndarray, sigma: float, direction: np.ndarray) -> Iterator[Pair]:
    dimension, gap = centres.shape[1], float(np.linalg.norm(centres[0] - centres[1]))
    ratio = 1 + 1 / math.sqrt(dimension)
    if gap > 0 and point_exists(sigma * math.sqrt(dimension) / gap, ratio):
        yield place(centres, sigma * math.sqrt(dimension) / gap, ratio, direction)


def mixtures(one: Tensor, other: Tensor, shares: np.ndarray) -> Tensor:
    """Return linear and spherical mixtures of matching images (P, C, H, W): (2, P, points, C, H, W), float32.

    Linear: (1−τ)a + τb. Spherical: (sin((1−τ)ω) a + sin(τω) b)/sin ω, ω the angle between a and b.
    """
    a, b = one.flatten(1).double(), other.flatten(1).double()
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    omega = torch.arccos(cosine.clamp(-1, 1))[:, None, None]
    share = torch.from_numpy(shares).to(a)[None, :, None]
    linear = (1 - share) * a[:, None] + share * b[:, None]
    spherical = (torch.sin((1 - share) * omega) * a[:, None] + torch.sin(share * omega) * b[:, None]) / torch.sin(omega)
    return torch.stack([linear, spherical]).float().reshape(2, len(a), len(shares), *one.shape[1:])


def interpolate(model: Model, params: AlignmentParams, seed: int) -> tuple[list[dict[str, Any]], np.ndarray]:
    """Return one row per path of mixtures of two noised images after denoising, and the denoised images.

    A row says how even the path is: its longest step over its length (1/(points−1) if even, 1 if it jumps once), and
    the median of r_1/r_2 along it (0: training images).
    """
    count = params.paths
    numbers = torch.arange(2 * count, device=model.device)
    noise = normal(seed, numbers, Stream.PATH_NOISE.draw(), model.shape)
    noised = chosen(model, 2 * count, Stream.PATH_IMAGE, seed).float() + params.level * noise
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
    pixels = to_uint8(final)
    return rows, pixels.reshape(2, count, params.points, *pixels.shape[1:])


def denoise(model: Model, x: Tensor, level: float, steps: int) -> Tensor:
    """Return x float32 (B, C, H, W), at noise `level`, after `steps` steps to sigma_min and one to 0, without noise.

    A noise-conditioned network takes Euler steps on the probability-flow ODE. A blind one takes actual-noise steps,
    each of which removes the same share of the level (METHODS §5), and the last one all of it.
    """
    lowest = float(model.sigmas[-1])
    sigmas = torch.logspace(math.log10(level), math.log10(lowest), steps + 1, dtype=torch.float64)
    share = 1 - (lowest / level) ** (1 / steps)

    def blind(x: Tensor, sigma: float, following: float, score: samplers.Score, draws: samplers.Draws) -> Tensor:
        exact = {"exact_below": math.inf, "level": model.actual_level}
        return samplers.actual_noise(x, sigma, following, score, draws, step=share if following else 1.0, **exact)

    step = samplers.euler if model.variant.conditioned else blind
    states = samplers.run(step, _network_score(model), lambda _: x / level, *samplers.noise_levels(sigmas))
    return collections.deque(states, maxlen=1).pop()


def nearest_ratios(model: Model, x: Tensor) -> np.ndarray:
    """Return r_1/r_2 of every image to the training images, float64 (B,); 1 where there is one training image."""
    squared = torch.cat([block for block, _ in model.centres.squared_distances(pixel_rows(x).double())], dim=1)
    if squared.shape[1] < 2:
        return np.ones(len(x))
    two = squared.topk(2, dim=1, largest=False).values.sqrt()
    return (two[:, 0] / two[:, 1].clamp_min(torch.finfo(torch.float64).tiny)).cpu().numpy()
