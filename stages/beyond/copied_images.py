"""Which training images closed forms that smooth copy, and what tells them from the others (METHODS §8b).

A training set of which a tenth of the images is repeated up to three times, four closed forms that smooth as much as
the images are apart, and samples of each: an image is copied if one of five samples per image copies its duplicate
group. A sample copies its nearest image where r_1/r_2 < 0.7, r_2 to the nearest image outside that group (METHODS §6).
`python -m benchmarks.risk` measures the same on other images, sizes and networks, and fits the weights of the order.
"""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from stages.beyond.measures import flat
from stages.beyond.question import Question, by_seed, words
from stages.diffusion.parameters import Variant
from stages.memorization.groups import duplicates_among
from stages.memorization.risk import FEATURES, WEIGHTS, auc, calibration_slope, described, log_odds
from stages.memorization.seeds import over_seeds
from stages.search.nearest import nearest
from stages.theory.claims import Claim, Findings, Statement, Table

RATIO = 0.7  # r_1/r_2 below this is a copy
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


class CopiedImages(Question):
    """How well three orders of the training images tell those that are copied from the others."""

    TITLE: ClassVar[str] = "Who is copied: what tells the images that smoothed scores copy from the others"
    QUESTION: ClassVar[str] = (
        "Does the training set alone say which of its images a model copies? If it did not, every order of the images "
        "would have an AUC of 0.5; if repetition alone decided, none would be above that of the number of duplicates."
    )

    train: int = Field(ge=40, description="training images of a seed, of which a tenth is repeated")
    forms: list[str] = Field(min_length=1, description="closed forms: kernel, temperature, loader-25, tikhonov")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """See Block.findings: a row per training set and closed form, and the calibration of each set."""
        rows, odds = [], []
        for own in self.seeds:
            found, labelled = self._measured(with_repeats(self.drawn(images, own, self.train)[0], own), own)
            rows += found
            odds += [{"seed": own, "slope": slope(labelled)}] if labelled else []
        return Findings([], {"copied_images": rows, "copied_images_odds": odds})

    def _measured(self, train: np.ndarray, seed: int) -> tuple[Table, list[Labelled]]:
        """A row per closed form that copies some images and not all, and the model's score with the images' labels."""
        from stages.beyond import small_models

        known, group = described(train, self.noise.sigma_max), duplicates_among(train).group
        score = log_odds(np.stack([known[name] for name in FEATURES], axis=1), WEIGHTS)
        orders = {"model": score, "low_coverage": -known["coverage"], "duplicates": known["duplicates"]}
        rows, labelled = [], []
        for name in self.forms:
            drawn = small_models.samples(form(name, train), self.noise, train, self.samples, seed)
            copied = copies_of(drawn, train, group) > 0
            if 0 < copied.sum() < len(copied):
                found = {order: auc(values, copied) for order, values in orders.items()}
                rows.append({"seed": seed, "form": name, "copied": float(copied.mean()), **found})
                labelled.append((score, copied))
        return rows, labelled

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        return claims(tables["copied_images"], by_seed(tables["copied_images_odds"], "slope"))


def with_repeats(train: np.ndarray, seed: int) -> np.ndarray:
    """Images of which the first tenth stands in place of the last ones up to three more times."""
    train, place, generator = train.copy(), len(train) - 1, np.random.default_rng([seed, 1])
    for source in range(len(train) // 10):
        for _ in range(int(generator.integers(1, 4))):
            train[place], place = train[source], place - 1
    return train


def copied_groups(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The group that each copy among images copies, int64 (copies,)."""
    index, squared = nearest(flat(images), flat(train), min(NEAREST, len(train)))
    away = group[index] != group[index[:, :1]]
    beyond = np.where(away, squared, np.iinfo(np.int64).max).min(1)
    return group[index[np.sqrt(squared[:, 0]) < RATIO * np.sqrt(beyond), 0]]


def copies_of(images: np.ndarray, train: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How many images copy each training image's group, int64 (M,)."""
    return np.bincount(copied_groups(images, train, group), minlength=len(train))[group]


def spacing(train: np.ndarray, group: np.ndarray) -> float:
    """The median distance to the nearest image of another group, pixels in [0, 1]."""
    rows = flat(train)
    index, squared = nearest(rows, rows, min(NEAREST, len(rows)))
    return float(np.sqrt(np.median(np.where(group[index] != group[:, None], squared, np.inf).min(1)))) / 255


def form(name: str, train: np.ndarray, strength: float = 1.0) -> Variant:
    """One of CLOSED, which smooths by as much as the images are apart; more where the strength is above 1."""
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


def slope(labelled: list[Labelled]) -> float:
    """The calibration slope over the closed forms of one training set, each with an intercept of its own."""
    scores, copied = (np.concatenate(parts) for parts in zip(*labelled))
    return calibration_slope(scores, copied, np.repeat(np.arange(len(labelled)), [len(own) for own, _ in labelled]))


def claims(rows: Table, slopes: list[float]) -> list[Claim]:
    """Whether the order tells the copied images, better than their number does; low coverage; and the odds.

    None where fewer than two sets have both copied images and others.
    """
    sets = sorted({row["seed"] for row in rows})
    if len(sets) < 2:
        return []
    means = {name: [float(np.mean(by_seed(rows, name, seed=each))) for each in sets] for name in RANKINGS}
    auc_of = {name: over_seeds(values) for name, values in means.items()}
    gain = over_seeds(np.subtract(means["model"], means["duplicates"]))
    told = {name: words(mean) for name, mean in auc_of.items()}
    computed = f"{len(sets)} training sets, {', '.join(dict.fromkeys(row['form'] for row in rows))}"
    odds = over_seeds(slopes)
    return [
        Statement(
            "Where the noise begins and what smoothing leaves of an image tell better which images are copied than how "
            "often they repeat", "difference in AUC", SOURCE,
            f"AUC {told['model']} against {told['duplicates']}; {computed}",
        ).above(gain, 0.0, "0 or less"),
        Statement(
            "That order has an AUC of more than 0.9", "AUC", SOURCE, computed,
        ).above(auc_of["model"], 0.9, "0.9 or less"),
        Statement(
            "Images of low coverage are copied more than others", "AUC", "arXiv 2606.14390; measure [ours]", computed,
        ).above(auc_of["low_coverage"], 0.5, "0.5 or less"),
        Statement(
            "The odds of a copy are as the order says", "calibration slope within a tenth of 1", SOURCE, computed,
        ).within(odds, 1.0, 0.1),
    ]  # fmt: skip
