"""Which training images closed forms that smooth copy, and what tells them from the others (METHODS §8b).

A training set of which a tenth of the images is repeated up to three times, four closed forms that smooth as much as
the images are apart, and samples of each: an image is copied if one of five samples per image copies its duplicate
group. A sample copies its nearest image where r_1/r_2 < 0.7, r_2 to the nearest image outside that group (METHODS §6).
`python -m benchmarks.risk` measures the same on other images, sizes and networks, and fits the weights of the order.
"""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from stages.memorization.groups import duplicates_among
from stages.memorization.risk import FEATURES, WEIGHTS, auc, calibration_slope, described
from stages.memorization.seeds import SeedMean, over_seeds
from stages.search.nearest import nearest
from stages.theory.claims import Claim, Findings, ImageBlock, Statement, Table, mean_error

if TYPE_CHECKING:
    from stages.diffusion.model import Model
    from stages.diffusion.parameters import Variant

RATIO = 0.7  # r_1/r_2 below this is a copy
PER_IMAGE = 5  # samples
WIDTH = 0.385  # the kernel's h, over the median distance to the nearest other image
RADIUS, LEFT = 1.9, 1.05  # sigma sqrt(d) over that distance: where temperature begins, and what tikhonov leaves
LOADER = 25  # images of a batch
NEAREST = 12  # neighbours that are looked at for one outside the group
HEUN = {"name": "heun", "levels": 12}
ACTUAL = {"name": "actual-noise", "levels": 60, "step": 0.12, "exact_below": 2.5}
CLOSED = ("kernel", "temperature", "loader-25", "tikhonov")
RANKINGS = ("model", "low_coverage", "duplicates")
Labelled = tuple[np.ndarray, np.ndarray]
"""The score of every image, float64 (M,), and whether it is copied, bool (M,)."""
SOURCE = "METHODS §8b [ours]"


class CopiedImages(ImageBlock):
    """How well three orders of the training images tell those that are copied from the others."""

    TITLE: ClassVar[str] = "Who is copied: what tells the images that smoothed scores copy from the others"

    dataset: str | None = Field(min_length=1, description="a source of images; null: those of verify.dataset")
    shrink: int = Field(ge=1, description="pixels along a side that become one, as their mean")
    train: int = Field(ge=40, description="training images of a set, of which a tenth is repeated")
    sets: int = Field(ge=3, description="training sets, drawn one by one from `images`")
    forms: list[str] = Field(min_length=1, description="closed forms: kernel, temperature, loader-25, tikhonov")
    lowest: float = Field(gt=0, description="lowest noise level, pixel units")
    highest: float = Field(gt=0, description="highest noise level")

    def source(self, default: str | None) -> str | None:
        """See ImageBlock.source: the block's own data set, where it names one."""
        return self.dataset or default

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per training set and closed form, and the claims over the sets."""
        if self.train > len(images):
            raise ValueError(f"train {self.train} images cannot be drawn from {len(images)}: lower it")
        pool, rows, slopes = shrunk(images, self.shrink), [], []
        for number in range(self.sets):
            order = np.random.default_rng([seed, number]).permutation(len(pool))[: self.train]
            found, labelled = set_rows(with_repeats(pool[order], seed + number), self, seed + number)
            rows += [{"set": number, **row} for row in found]
            slopes += [slope(labelled)] if labelled else []
        return Findings(claims(rows, slopes), {"copied_images": rows})


def shrunk(images: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` pixels, uint8; images (M, H, W, C), whose last rows and columns may be cut."""
    count, height, width, channels = images.shape
    high, wide = height // factor, width // factor
    cut = images[:, : high * factor, : wide * factor].reshape(count, high, factor, wide, factor, channels)
    return np.round(cut.mean(axis=(2, 4))).astype(np.uint8)


def with_repeats(train: np.ndarray, seed: int) -> np.ndarray:
    """Images of which the first tenth stands in place of the last ones up to three more times."""
    train, place, generator = train.copy(), len(train) - 1, np.random.default_rng([seed, 1])
    for source in range(len(train) // 10):
        for _ in range(int(generator.integers(1, 4))):
            train[place], place = train[source], place - 1
    return train


def copied_groups(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The group that each copy among images copies, int64 (copies,)."""
    flat = _flat(train)
    index, squared = nearest(_flat(images), flat, min(NEAREST, len(flat)))
    away = group[index] != group[index[:, :1]]
    beyond = np.where(away, squared, np.iinfo(np.int64).max).min(1)
    return group[index[np.sqrt(squared[:, 0]) < RATIO * np.sqrt(beyond), 0]]


def copies_of(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How many images copy each training image's group, int64 (M,)."""
    return np.bincount(copied_groups(images, train, group), minlength=len(train))[group]


def spacing(train: np.ndarray, group: np.ndarray) -> float:
    """The median distance to the nearest image of another group, pixels in [0, 1]."""
    flat = _flat(train)
    index, squared = nearest(flat, flat, min(NEAREST, len(flat)))
    return float(np.sqrt(np.median(np.where(group[index] != group[:, None], squared, np.inf).min(1)))) / 255


def form(name: str, train: np.ndarray, strength: float = 1.0) -> "Variant":
    """One of CLOSED, which smooths by as much as the images are apart; more where the strength is above 1."""
    from stages.diffusion.parameters import Variant

    apart = strength * spacing(train, duplicates_among(train).group)
    level = apart / train[0].size ** 0.5
    own: dict[str, dict[str, Any]] = {
        "kernel": {"form": "kernel-smoothed", "kernel": {"h": round(WIDTH * apart, 4), "draws": 16}},
        "temperature": {"form": "temperature", "temperature": "d", "smooth_below": round(RADIUS * level, 4),
                        "neighbors": {"space": "pixel", "k": 6}, "sampler": ACTUAL},
        "loader-25": {"form": "loader-batches", "loader_batch": max(2, round(LOADER / strength))},
        "tikhonov": {"form": "tikhonov", "penalty": round(LEFT * level, 4)},
    }  # fmt: skip
    return Variant(score="closed-form", **{"sampler": HEUN, **own[name]})


def closed_form(spec: "Variant", train: np.ndarray, lowest: float, highest: float) -> "Model":
    """A closed form over training images, between two noise levels."""
    import torch

    from stages.diffusion.model import make_model
    from stages.diffusion.parameters import NoiseParams

    return make_model(spec, NoiseParams(sigma_min=lowest, sigma_max=highest), train, None, torch.device("cpu"))


def drawn(model: "Model", seed: int, count: int, at_once: int = 500) -> np.ndarray:
    """Samples of a model, uint8 (count, H, W, C); `seed` draws the noise alone."""
    import torch

    from stages.diffusion.sampling import draw_samples

    with torch.inference_mode():
        return draw_samples(model, seed, count, at_once)


def _flat(images: np.ndarray) -> np.ndarray:
    """Images as rows, uint8 (N, d)."""
    return images.reshape(len(images), -1)


def set_rows(train: np.ndarray, block: CopiedImages, seed: int) -> tuple[Table, list[Labelled]]:
    """A row per closed form, and its images' score by the model with the label of each."""
    known, group = described(train, block.highest), duplicates_among(train).group
    score = np.stack([known[name] for name in FEATURES], axis=1) @ WEIGHTS
    orders = {"model": score, "low_coverage": -known["coverage"], "duplicates": known["duplicates"]}
    rows, labelled = [], []
    for name in block.forms:
        made = closed_form(form(name, train), train, block.lowest, block.highest)
        copied = copies_of(drawn(made, seed, PER_IMAGE * len(train)), train, group) > 0
        if 0 < copied.sum() < len(copied):
            found = {order: auc(values, copied) for order, values in orders.items()}
            rows.append({"form": name, "copied": float(copied.mean()), **found})
            labelled.append((score, copied))
    return rows, labelled


def slope(labelled: list[Labelled]) -> float:
    """The calibration slope over the closed forms of one training set, each with an intercept of its own."""
    scores, copied = (np.concatenate(parts) for parts in zip(*labelled))
    return calibration_slope(scores, copied, np.repeat(np.arange(len(labelled)), [len(own) for own, _ in labelled]))


def claims(rows: Table, slopes: list[float]) -> list[Claim]:
    """Whether the order tells the copied images, better than their number does; low coverage; and the odds.

    None where fewer than two sets have both copied images and others.
    """
    sets = sorted({row["set"] for row in rows})
    if len(sets) < 2:
        return []
    means = {name: [float(np.mean([row[name] for row in rows if row["set"] == each])) for each in sets] for name in
             RANKINGS}  # fmt: skip
    auc = {name: over_seeds(values) for name, values in means.items()}
    gain = over_seeds(np.subtract(means["model"], means["duplicates"]))
    told = {name: _words(mean) for name, mean in auc.items()}
    computed = f"{len(sets)} training sets, {', '.join(dict.fromkeys(row['form'] for row in rows))}"
    odds = over_seeds(slopes)
    return [
        Statement(
            "Where the noise begins and what smoothing leaves of an image tell better which images are copied than how "
            "often they repeat", "lower end of the 95 % interval of the difference in AUC is above 0", SOURCE,
            f"{_words(gain)}: AUC {told['model']} against {told['duplicates']}; {computed}",
        ).holds(gain.low <= 0),
        Statement(
            "That order has an AUC of at least 0.9", "mean AUC over training sets", SOURCE,
            f"{told['model']}; {computed}",
        ).holds(auc["model"].mean < 0.9),
        Statement(
            "Low coverage decides which images are copied", "lower end of the 95 % interval of its AUC is above 0.5",
            "arXiv 2606.14390; measure [ours]", f"AUC {told['low_coverage']}; {computed}",
        ).holds(auc["low_coverage"].low <= 0.5),
        Statement(
            "The odds of a copy are as the order says", "calibration slope", SOURCE, f"{_words(odds)}; {computed}",
        ).equals(odds.mean, 1.0, 0.1, "a tenth, the aim that was set before", error=mean_error(np.array(slopes))),
    ]  # fmt: skip


def _words(mean: SeedMean) -> str:
    return f"{mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]"
