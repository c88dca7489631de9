"""Copies and diversity of closed-form samples against the strength of smoothing (METHODS §1.7, §1.8, §8).

Three ways to smooth a set of training images: a plain kernel density (the control), the kernel-smoothed score (LED-KDE;
log-domain smoothing) and σ-CFDM; the latter two also without smoothing. Scores and samplers are the pipeline's. All
measures compare pixels in [0, 1], in float64, and distances are ‖a − b‖.
"""

import math
from typing import Any, ClassVar

import numpy as np
from pydantic import Field
from scipy.spatial.distance import cdist

from stages.features.frechet import frechet_from_features
from stages.theory import product
from stages.theory.claims import Block, Claim, Findings, ImageBlock, Picture, Statement, Table

KDE, LED, CFDM = "kernel density", "log-domain (LED-KDE)", "σ-CFDM"
SOURCE = "METHODS §1.7, §8 [C], [F]"
COPY = 0.7  # r_1/r_2 below this counts as a copy (METHODS §6)
SHIFTS, NOISE = 0, 1  # random streams: the kernel's draws, and the samplers' noise


class SmoothedSamples(ImageBlock):
    """Closed-form samples of the training images by method and width of the kernel."""

    TITLE: ClassVar[str] = "Smoothing training images: copies, diversity and distance to other images"

    dataset: str | None = Field(min_length=1, description="a source of images; null: those of verify.dataset")
    samples: int = Field(ge=20, description="samples per method and width")
    held_out: int = Field(ge=10, description="of `images`, how many are held out as the reference; the others train")
    levels: int = Field(ge=4, description="steps of every sampler")
    lowest: float = Field(gt=0, description="lowest noise level of the reverse SDE, pixel units")
    highest: float = Field(gt=0, description="highest noise level")
    draws: int = Field(ge=2, description="Monte Carlo draws of the kernel, each sample's own")
    widths: list[float] = Field(min_length=2, description="widths h, rising; 0 is added")
    bandwidths: list[float] = Field(min_length=2, description="of the plain kernel density, rising")

    def source(self, default: str | None) -> str | None:
        """See ImageBlock.source: the block's own data set, where it names one."""
        return self.dataset or default

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Samples of every method and width, their measures, and their pictures."""
        if self.held_out >= len(images) - 1:
            raise ValueError(f"held_out {self.held_out} leaves no training images of {len(images)}: lower it")
        flat = images.reshape(len(images), -1) / 255.0
        train, rest = split(flat, self.held_out, seed)
        levels = product.noise_levels(self.lowest, self.highest, self.levels)
        drawn = draw_all(train, levels, self, seed)
        rows = [measure(method, h, x, train, rest) for (method, h), x in drawn.items()]
        control = measure("held-out images", 0.0, rest, train, rest)
        control["fd_pixels"] = frechet_from_features(train, rest)  # what real images reach
        strips = np.stack([_pixels(x[:20], images.shape[1:]) for x in drawn.values()])
        order = "; ".join(f"{method} {h:g}" for method, h in drawn)
        picture = Picture(f"Twenty samples per row, from the top: {order}", strips)
        return Findings(claims(rows, control), {"smoothed_images": [*rows, control]}, {"smoothed_images": picture})


class SmoothedCircle(Block):
    """The same methods on points of a circle: along it, and off it."""

    TITLE: ClassVar[str] = "Smoothing points on a circle: log-domain smoothing follows it"

    points: int = Field(ge=4, description="training points, evenly spaced on a circle whose neighbours lie 1 apart")
    samples: int = Field(ge=100)
    levels: int = Field(ge=4)
    lowest: float = Field(gt=0)
    draws: int = Field(ge=2)
    widths: list[float] = Field(min_length=2, description="widths h of the kernels, rising, over the spacing")
    bandwidths: list[float] = Field(min_length=2, description="of the plain kernel density, rising, over the spacing")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """How far samples spread along the circle, and how far off it, by method and width."""
        angles = 2 * math.pi * np.arange(self.points) / self.points
        radius = 0.5 / math.sin(math.pi / self.points)
        train = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        levels = product.noise_levels(self.lowest, 2 * radius, self.levels)
        drawn = draw_all(train, levels, self, seed)
        rows = [_circle_row(method, width, x, train) for (method, width), x in drawn.items()]
        return Findings([_circle_claim(rows)], {"smoothed_circle": sorted(rows, key=lambda row: row["method"])})


def split(images: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images (M − held_out, d), (held_out, d) at random: a source may be in the order of its
    classes."""
    order = np.random.default_rng([seed, 5]).permutation(len(images))
    return images[np.sort(order[held_out:])], images[np.sort(order[:held_out])]


def draw_all(
    train: np.ndarray, sigmas: np.ndarray, block: "SmoothedSamples | SmoothedCircle", seed: int
) -> dict[tuple[str, float], np.ndarray]:
    """Samples (count, d) by method and width, as the block's parameters say; the smoothed scores also at width 0."""
    count, draws, widths = block.samples, block.draws, (0.0, *block.widths)
    drawn = {(KDE, b): kernel_density(train, b, count, seed) for b in block.bandwidths}
    drawn |= {(LED, h): led_samples(train, h, count, sigmas, draws, seed) for h in widths}
    return drawn | {(CFDM, h): cfdm_samples(train, h, count, len(sigmas), draws, seed) for h in widths}


def kernel_density(train: np.ndarray, bandwidth: float, count: int, seed: int) -> np.ndarray:
    """Samples of the plain kernel density: training images (M, d) plus Gaussian noise; (count, d)."""
    generator = np.random.default_rng([seed, 1])
    rows = generator.integers(len(train), size=count)
    return train[rows] + bandwidth * generator.standard_normal((count, train.shape[1]))


def kernel_shifts(count: int, draws: int, dimension: int, seed: int) -> np.ndarray:
    """Each sample's own kernel draws (count, draws, d), in pairs ξ, −ξ."""
    half = product.seeded_normals((count, -(-draws // 2), dimension), seed, SHIFTS)
    return np.concatenate([half, -half], axis=1)[:, :draws]


def led_samples(train: np.ndarray, h: float, count: int, sigmas: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """The pipeline's reverse SDE down the levels `sigmas` with its kernel-smoothed empirical score; the last step goes
    to the posterior mean. (count, d)."""
    shape = (count, train.shape[1])
    score = product.smoothed(product.empirical(train, "conditioning"), h, kernel_shifts(count, draws, shape[1], seed))
    noise = product.path("reverse_diffusion", score, lambda n: product.seeded_normals(shape, seed, NOISE, n), sigmas)
    return product.end(noise)


def cfdm_samples(train: np.ndarray, h: float, count: int, levels: int, draws: int, seed: int) -> np.ndarray:
    """The pipeline's σ-CFDM with smoothing h: Euler from t = 1e-5 to 1 in `levels` steps (METHODS §1.8). (count, d)."""
    shape = (count, train.shape[1])
    shifts = np.zeros((1, shape[1])) if h == 0 else kernel_shifts(count, draws, shape[1], seed)
    return product.cfdm(train, product.seeded_normals(shape, seed, NOISE, 0), levels, shifts, h)


def copy_share(x: np.ndarray, train: np.ndarray) -> float:
    """Share of samples with r_1/r_2 < 0.7."""
    nearest = np.sort(cdist(x, train), axis=1)[:, :2]
    return float((nearest[:, 0] < COPY * nearest[:, 1]).mean())


def vendi_score(x: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K/N, K the cosine similarities of the rows: the effective number of
    different samples (Friedman & Dieng 2023), between 1 and N."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / len(x))
    values = values[values > 1e-15]
    return float(np.exp(-(values * np.log(values)).sum()))


def coverage(x: np.ndarray, reference: np.ndarray, k: int = 5) -> float:
    """Share of reference images (N, d) with a sample within the distance of their own k-th nearest reference image
    (Naeem et al. 2020)."""
    own = np.sort(cdist(reference, reference), axis=1)[:, min(k, len(reference) - 1)]
    return float((cdist(reference, x).min(axis=1) <= own).mean())


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖ (Székely & Rizzo 2013), pairs of different rows; 0 where both have one law."""

    def within(z: np.ndarray) -> float:
        return float(cdist(z, z).sum() / (len(z) * (len(z) - 1)))

    return float(2 * cdist(x, y).mean() - within(x) - within(y))


def measure(method: str, width: float, x: np.ndarray, train: np.ndarray, rest: np.ndarray) -> dict[str, Any]:
    """One row: copies, diversity, and distance to the held-out images: energy distance, and Fréchet distance of the
    pixels (FD-pixels)."""
    return {
        "method": method,
        "width": width,
        "copies": copy_share(x, train),
        "vendi": vendi_score(x),
        "coverage": coverage(x, rest),
        "energy_distance": 0.0 if x is rest else energy_distance(x, rest),
        "fd_pixels": frechet_from_features(x, rest),
        "median_distance": float(np.median(cdist(x, train).min(axis=1)) / math.sqrt(x.shape[1])),
    }


def _pixels(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (x.clip(0, 1) * 255).round().astype(np.uint8).reshape(len(x), *shape)


def claims(rows: Table, control: dict[str, Any]) -> list[Claim]:
    """Copies fall with the width; and at equal copies log-domain smoothing stays nearer to the images than noise."""
    found = [claim for method in (LED, CFDM) for claim in _copy_claims(method, rows, control["copies"])]
    few = {method: [row for row in rows if row["method"] == method and row["copies"] < 0.5] for method in (KDE, LED)}
    if few[KDE] and few[LED]:
        measures = {"energy_distance": "energy distance", "fd_pixels": "FD-pixels"}
        found += [_nearer_claim(few, measured, name) for measured, name in measures.items()]
    if few[LED]:
        found.append(_diversity_claim(few[LED][0], control))
    return found


def _copy_claims(method: str, rows: Table, control: float) -> list[Claim]:
    own = [row for row in rows if row["method"] == method]
    listing = ", ".join(f"{100 * row['copies']:.0f} % at h = {row['width']:g}" for row in own)
    return [
        Statement(
            f"Unsmoothed, {method} returns training images", "share with r_1/r_2 < 0.7 at h = 0 is at least 0.95",
            SOURCE, listing,
        ).holds(own[0]["copies"] < 0.95),
        Statement(
            f"The wider the kernel of {method}, the fewer copies", "copies at the largest h below copies at h = 0",
            SOURCE, f"{listing}; held-out images: {100 * control:.0f} %",
        ).holds(own[-1]["copies"] >= own[0]["copies"]),
    ]  # fmt: skip


def _nearer_claim(few: dict[str, Table], measured: str, name: str) -> Claim:
    """few: method -> the rows with few copies."""
    best = {method: min(row[measured] for row in rows) for method, rows in few.items()}
    return Statement(
        f"With fewer than half copies, log-domain smoothing draws nearer to held-out images than added noise ({name})",
        f"least {name} to held-out images among widths with copies < 50 %",
        SOURCE, f"{best[LED]:.3g} log-domain, {best[KDE]:.3g} kernel density",
    ).holds(best[LED] >= best[KDE])  # fmt: skip


def _diversity_claim(row: dict[str, Any], control: dict[str, Any]) -> Claim:
    """row: log-domain smoothing at the least width with few copies."""
    return Statement(
        "With fewer than half copies, log-domain smoothing still draws as diverse images as real ones",
        "Vendi score of the samples over that of held-out images",
        "METHODS §8; [C]: smoothing mitigates memorization and helps generalization; measure [ours]",
        f"h = {row['width']:g}, copies {100 * row['copies']:.0f} %: {row['vendi']:.2f} against {control['vendi']:.2f}, "
        "cosines of pixels",
    ).equals(
        row["vendi"] / control["vendi"], 1.0, 0.2, "a fifth: the score depends on how many images are compared"
    )  # fmt: skip


def _circle_row(method: str, width: float, x: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """Spread along the circle, the share farther than a quarter of the spacing from every point, and off it."""
    radius, norms = float(np.linalg.norm(train[0])), np.linalg.norm(x, axis=1)
    on_circle = radius * x / norms[:, None]
    between = float((cdist(on_circle, train).min(axis=1) > 0.25).mean())
    off = float(np.sqrt(((norms - radius) ** 2).mean()))
    return {"method": method, "width": width, "share_between": between, "rms_off": off}


def off_at(rows: Table, share: float) -> float | None:
    """Distance off the circle at which a method's samples lie between the points with this share, by linear
    interpolation over its widths; None where no two widths enclose the share."""
    for low, high in zip(rows, rows[1:]):
        first, last = low["share_between"], high["share_between"]
        if first <= share <= last and last > first:
            weight = (share - first) / (last - first)
            return low["rms_off"] + weight * (high["rms_off"] - low["rms_off"])
    return None


def _circle_claim(rows: Table, share: float = 0.2) -> Claim:
    off = {m: off_at([row for row in rows if row["method"] == m], share) for m in (KDE, LED, CFDM)}
    listing = ", ".join(f"{method} {'not reached' if at is None else f'{at:.3f}'}" for method, at in off.items())
    holds = off[LED] is not None and off[KDE] is not None and off[LED] < off[KDE]
    return Statement(
        "Spread along a circle by the same amount, log-domain smoothing leaves it less than added noise does",
        f"rms distance off the circle where {100 * share:.0f} % of samples lie between the points, in spacings",
        SOURCE, listing,
    ).holds(not holds)  # fmt: skip
