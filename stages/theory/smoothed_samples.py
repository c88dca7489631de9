"""Copies and diversity of closed-form samples against the strength of smoothing (METHODS §1.7, §1.8, §8).

Four ways to smooth a set of training images: a plain kernel density (the control), the kernel-smoothed score (LED-KDE;
log-domain smoothing), σ-CFDM, and none. No encoder: all measures are of pixels, and named so. All in float64; distances
are ‖a − b‖ on pixels in [0, 1].
"""

import math
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from stages.features.frechet import frechet_from_features
from stages.theory.claims import Block, Claim, Findings, ImageBlock, Picture, Table

if TYPE_CHECKING:
    from torch import Tensor

KDE, LED, CFDM = "kernel density", "log-domain (LED-KDE)", "σ-CFDM"
COPY = 0.7  # r_1/r_2 below this counts as a copy (METHODS §6)
SHIFTS, NOISE = 0, 1  # streams of random numbers of their own: the kernel's draws and the samplers'


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
        drawn = {(KDE, b): kernel_density(train, b, self.samples, seed) for b in self.bandwidths}
        drawn |= {(LED, h): self._led(train, h, seed) for h in (0.0, *self.widths)}
        drawn |= {(CFDM, h): self._cfdm(train, h, seed) for h in (0.0, *self.widths)}
        rows = [measure(method, h, x, train, rest) for (method, h), x in drawn.items()]
        control = measure("held-out images", 0.0, rest, train, rest)
        control["fd_pixels"] = frechet_from_features(train, rest)  # what real images reach
        strips = np.stack([_pixels(x[:20], images.shape[1:]) for x in drawn.values()])
        order = "; ".join(f"{method} {h:g}" for method, h in drawn)
        picture = Picture(f"Twenty samples per row, from the top: {order}", strips)
        return Findings(claims(rows, control), {"smoothed_images": [*rows, control]}, {"smoothed_images": picture})

    def _led(self, train: np.ndarray, h: float, seed: int) -> np.ndarray:
        return led_samples(train, h, self.samples, self.levels, (self.lowest, self.highest), self.draws, seed)

    def _cfdm(self, train: np.ndarray, h: float, seed: int) -> np.ndarray:
        return cfdm_samples(train, h, self.samples, self.levels, self.draws, seed)


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
        noise = (self.lowest, 2 * radius)
        rows = [_circle_row(KDE, b, kernel_density(train, b, self.samples, seed), train) for b in self.bandwidths]
        for h in (0.0, *self.widths):
            led = led_samples(train, h, self.samples, self.levels, noise, self.draws, seed)
            rows.append(_circle_row(LED, h, led, train))
            rows.append(
                _circle_row(CFDM, h, cfdm_samples(train, h, self.samples, self.levels, self.draws, seed), train)
            )
        return Findings([_circle_claim(rows)], {"smoothed_circle": sorted(rows, key=lambda row: row["method"])})


def split(images: np.ndarray, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images (M − held_out, d), (held_out, d) at random: a source may be in the order of its
    classes."""
    order = np.random.default_rng([seed, 5]).permutation(len(images))
    return images[np.sort(order[held_out:])], images[np.sort(order[:held_out])]


def kernel_density(train: np.ndarray, bandwidth: float, count: int, seed: int) -> np.ndarray:
    """Samples of the plain kernel density: training images (M, d) plus Gaussian noise; (count, d)."""
    generator = np.random.default_rng([seed, 1])
    rows = generator.integers(len(train), size=count)
    return train[rows] + bandwidth * generator.standard_normal((count, train.shape[1]))


def _draws(count: int, draws: int, dimension: int, seed: int) -> "Tensor":
    """Each sample's own kernel draws (count, draws, d), in pairs ξ, −ξ."""
    import torch

    from stages.diffusion.noise import generator_seed

    generator = torch.Generator().manual_seed(generator_seed(seed, SHIFTS))
    half = torch.randn(count, -(-draws // 2), dimension, generator=generator, dtype=torch.float64)
    return torch.cat([half, -half], dim=1)[:, :draws]


def led_samples(
    train: np.ndarray, h: float, count: int, levels: int, noise: tuple[float, float], draws: int, seed: int
) -> np.ndarray:
    """Reverse SDE with the kernel-smoothed empirical score, `levels` log-uniform levels over noise = (lowest, highest);
    the last step goes to the posterior mean. (count, d)."""
    import torch

    from stages.diffusion import scores as closed
    from stages.diffusion.noise import generator_seed
    from stages.diffusion.samplers import noise_levels, reverse_diffusion, run

    centres = closed.make_centres(torch.from_numpy(np.ascontiguousarray(train)))
    shape = (count, 1, 1, train.shape[1])  # samplers work on images

    def plain(x: "Tensor", sigma: "Tensor") -> "Tensor":
        return closed.conditioning(centres, x, sigma)

    smooth = plain if h == 0 else closed.smoothed(plain, h, _draws(count, draws, train.shape[1], seed))

    def draw(n: int) -> "Tensor":
        generator = torch.Generator().manual_seed(generator_seed(seed, NOISE, n))
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    sigmas = torch.logspace(math.log10(noise[1]), math.log10(noise[0]), levels, dtype=torch.float64)
    score = lambda x, sigma: smooth(x.flatten(1), sigma).reshape(x.shape)  # noqa: E731
    for x in run(reverse_diffusion, score, draw, *noise_levels(sigmas)):
        last = x
    return last.flatten(1).numpy()


def cfdm_samples(train: np.ndarray, h: float, count: int, levels: int, draws: int, seed: int) -> np.ndarray:
    """σ-CFDM with smoothing h: Euler from t = 1e-5 to 1 in `levels` steps (METHODS §1.8). (count, d)."""
    import torch

    from stages.diffusion.noise import generator_seed
    from stages.diffusion.samplers import run, time_euler, unit_times
    from stages.diffusion.scores import cfdm_velocity, make_centres

    dimension = train.shape[1]
    centres = make_centres(torch.from_numpy(np.ascontiguousarray(train)))
    shifts = torch.zeros(1, dimension, dtype=torch.float64) if h == 0 else _draws(count, draws, dimension, seed)
    generator = torch.Generator().manual_seed(generator_seed(seed, NOISE, 0))
    start = torch.randn(count, dimension, generator=generator, dtype=torch.float64)

    def velocity(z: "Tensor", t: "Tensor") -> "Tensor":
        return cfdm_velocity(centres, z, float(t[0]), shifts, h)

    for z in run(time_euler, velocity, lambda _: start, *unit_times(levels)):
        last = z
    return last.numpy()


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """‖a_i − b_j‖, float64 (N, M), for (N, d) and (M, d): exact on copies, by direct differences in blocks."""
    return np.concatenate([np.sqrt(((part[:, None] - b) ** 2).sum(axis=2)) for part in np.array_split(a, len(a))])


def copy_share(x: np.ndarray, train: np.ndarray) -> float:
    """Share of samples with r_1/r_2 < 0.7."""
    nearest = np.sort(distances(x, train), axis=1)[:, :2]
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
    own = np.sort(distances(reference, reference), axis=1)[:, min(k, len(reference) - 1)]
    return float((distances(reference, x).min(axis=1) <= own).mean())


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖ (Székely & Rizzo 2013), pairs of different rows; 0 where both have one law."""

    def within(z: np.ndarray) -> float:
        return float(distances(z, z).sum() / (len(z) * (len(z) - 1)))

    return float(2 * distances(x, y).mean() - within(x) - within(y))


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
        "median_distance": float(np.median(distances(x, train).min(axis=1)) / math.sqrt(x.shape[1])),
    }


def _pixels(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (x.clip(0, 1) * 255).round().astype(np.uint8).reshape(len(x), *shape)


def claims(rows: Table, control: dict[str, Any]) -> list[Claim]:
    """Copies fall with the width; and at equal copies log-domain smoothing stays nearer to the images than noise."""
    found = []
    for method in (LED, CFDM):
        own = [row for row in rows if row["method"] == method]
        listing = ", ".join(f"{100 * row['copies']:.0f} % at h = {row['width']:g}" for row in own)
        found += [
            _violations(
                f"Unsmoothed, {method} returns training images",
                "share with r_1/r_2 < 0.7 at h = 0 is at least 0.95",
                listing,
                float(own[0]["copies"] < 0.95),
            ),
            _violations(
                f"The wider the kernel of {method}, the fewer copies",
                "copies at the largest h below copies at h = 0",
                f"{listing}; held-out images: {100 * control['copies']:.0f} %",
                float(own[-1]["copies"] >= own[0]["copies"]),
            ),
        ]
    found += [
        claim
        for measure_, name in (("energy_distance", "energy distance"), ("fd_pixels", "FD-pixels"))
        if (claim := _nearer_claim(rows, measure_, name))
    ]
    if few := _few_copies(rows, LED):
        found.append(_diversity_claim(few[0], control))
    return found


def _nearer_claim(rows: Table, measured: str, name: str) -> Claim | None:
    """None where a method has no width with few copies."""
    best = {m: min(row[measured] for row in _few_copies(rows, m)) for m in (KDE, LED) if _few_copies(rows, m)}
    if len(best) < 2:
        return None
    return _violations(
        f"With fewer than half copies, log-domain smoothing draws nearer to held-out images than added noise ({name})",
        f"least {name} to held-out images among widths with copies < 50 %",
        f"{best[LED]:.3g} log-domain, {best[KDE]:.3g} kernel density",
        float(best[LED] >= best[KDE]),
    )


def _diversity_claim(row: dict[str, Any], control: dict[str, Any]) -> Claim:
    """row: of log-domain smoothing at the least width with few copies."""
    return Claim(
        claim="With fewer than half copies, log-domain smoothing still draws as diverse images as real ones",
        formula="Vendi score of the samples over that of held-out images",
        source="METHODS §8; [C]: smoothing mitigates memorization and helps generalization; measure [ours]",
        computed=f"h = {row['width']:g}, copies {100 * row['copies']:.0f} %: {row['vendi']:.2f} against "
        f"{control['vendi']:.2f}, cosines of pixels",
        expected=1.0,
        tolerance=0.2,
        reason="a fifth: the score depends on how many images are compared",
        measured=row["vendi"] / control["vendi"],
    )


def _few_copies(rows: Table, method: str) -> Table:
    return [row for row in rows if row["method"] == method and row["copies"] < 0.5]


def _violations(claim: str, formula: str, computed: str, measured: float) -> Claim:
    return Claim(
        claim=claim,
        formula=formula,
        source="METHODS §1.7, §8 [C], [F]",
        computed=computed,
        expected=0.0,
        tolerance=0.0,
        reason="counts 1 where it does not hold",
        measured=measured,
    )


def _circle_row(method: str, width: float, x: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """Spread along the circle, the share farther than a quarter of the spacing from every point, and off it."""
    radius, norms = float(np.linalg.norm(train[0])), np.linalg.norm(x, axis=1)
    on_circle = radius * x / norms[:, None]
    between = float((distances(on_circle, train).min(axis=1) > 0.25).mean())
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
    own = {method: [row for row in rows if row["method"] == method] for method in (KDE, LED, CFDM)}
    off = {method: off_at(found, share) for method, found in own.items()}
    listing = ", ".join(f"{method} {'not reached' if at is None else f'{at:.3f}'}" for method, at in off.items())
    holds = off[LED] is not None and off[KDE] is not None and off[LED] < off[KDE]
    return _violations(
        "Spread along a circle by the same amount, log-domain smoothing leaves it less than added noise does",
        f"rms distance off the circle where {100 * share:.0f} % of samples lie between the points, in spacings",
        listing,
        float(not holds),
    )
