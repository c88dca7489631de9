"""When copying starts: small networks on nested training sets of several sizes, sampled along their training.

Bonnaire et al. 2025 (arXiv 2505.17638) find the step at which a network begins to copy in proportion to the number of
training images. Here a step copies where more samples than among the control do, by `memorization.onset`.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.beyond.measures import copied
from stages.beyond.question import Question, words
from stages.diffusion.parameters import NetworkParams, OptimizationParams, Variant
from stages.memorization.onset import crossing, exponent, onset
from stages.memorization.seeds import SeedMean, paired_difference
from stages.theory.claims import Claim, Findings, Statement, Table

PLAIN, SMOOTHED = "plain", "smoothed"
SOURCE = "METHODS §8b; Bonnaire et al. 2025"
UNKNOWN = "fewer than two seeds have the onsets that it takes"


class CopyingOnset(Question):
    """The share of copies along the training, by target, number of images and seed."""

    TITLE: ClassVar[str] = "When copying starts: the step against the number of training images"
    QUESTION: ClassVar[str] = (
        "Does a network begin to copy in proportion to the number of its images, and does smoothing delay it? If the "
        "number did not matter, the exponent would be 0; in proportion it is 1. If smoothing did not delay, the ratio "
        "of both steps would be 1."
    )

    sizes: list[int] = Field(min_length=2, description="training images, rising")
    delays: list[int] = Field(description="of these, where the smoothed network is trained, too")
    plain: Variant = Field(description="a network and its sampler")
    smoothed: Variant = Field(description="a network of another target, with the same sampler")
    network: NetworkParams
    optimization: OptimizationParams = Field(description="steps: of a training whose copies never reach `share`")
    first: int = Field(ge=1, description="first step that is sampled; the others follow a factor of √2 apart")
    share: float = Field(gt=0, lt=1, description="share of copies that ends a training; its crossing is the onset")

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per measured step of the trainings of the piece's seed."""
        rows = []
        for own in self.seeds:
            for size in self.sizes:
                train, held_out = self.drawn(images, own, size)
                control = int(copied(held_out, train).sum())
                for name in (PLAIN, SMOOTHED) if size in self.delays else (PLAIN,):
                    about = {"variant": name, "images": size, "seed": own, "samples": self.samples}
                    about |= {"control": control, "held_out": self.held_out}
                    rows += [about | row for row in self._training(name, train, own)]
        steps = onset_steps(rows, self.share)
        return Findings([], {"copying_onset": rows, "copying_onset_steps": steps})

    def _training(self, name: str, train: np.ndarray, seed: int) -> Iterator[dict[str, int]]:
        """Yield step and copies along one training, until more than `share` of its samples are copies."""
        from stages.beyond import small_models

        form, steps = getattr(self, name), grid(self.first, self.optimization.steps)
        training = small_models.new_training(form, self.noise, self.network, self.optimization, train, seed)
        for step, network in small_models.trained(training, steps):
            drawn = small_models.samples(form, self.noise, train, self.samples, seed, network)
            copies = int(copied(drawn, train).sum())
            yield {"step": step, "copies": copies}
            if copies > self.share * self.samples:
                return

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        return conclusions(tables["copying_onset_steps"])


def grid(first: int, last: int) -> list[int]:
    """Steps √2 apart from `first` to at most `last`."""
    count = int(2 * math.log2(last / first) + 1e-9)
    return [round(first * 2 ** (i / 2)) for i in range(count + 1)]


def onset_steps(rows: Table, share: float) -> Table:
    """Return a row per training: the last safe step, and where the share of copies crosses `share`; −1 where unknown.

    rows: one per measured step.
    """
    found = []
    for key in dict.fromkeys((row["variant"], row["images"], row["seed"]) for row in rows):
        own = [row for row in rows if (row["variant"], row["images"], row["seed"]) == key]
        steps, copies = [row["step"] for row in own], [row["copies"] for row in own]
        count, control, held_out = (own[0][name] for name in ("samples", "control", "held_out"))
        safe = onset(steps, copies, [count] * len(own), control, held_out).last_safe
        crossed = crossing(steps, [k / count for k in copies], share)
        about = dict(zip(("variant", "images", "seed"), key))
        known = {"last_safe": safe, "crossed": crossed}
        found.append(about | {name: -1 if value is None else value for name, value in known.items()})
    return found


def _crossed(steps: Table, name: str) -> dict[int, dict[int, float]]:
    """Seed -> images -> step of the crossing, of the trainings that have one."""
    found: dict[int, dict[int, float]] = {}
    for row in steps:
        if row["variant"] == name and row["crossed"] > 0:
            found.setdefault(row["seed"], {})[row["images"]] = row["crossed"]
    return found


def slope(steps: Table, name: str) -> SeedMean | None:
    """Return the exponent of the crossing against the number of images; None without a seed that has two sizes."""
    several = [own for own in _crossed(steps, name).values() if len(own) > 1]
    return exponent([list(own) for own in several], [list(own.values()) for own in several]) if several else None


def conclusions(steps: Table) -> list[Claim]:
    """Return what the onsets of all trainings say of the number of images, and of smoothing."""
    return [*_exponent_claims(steps), *_delay_claims(steps)]


def _exponent_claims(steps: Table) -> list[Claim]:
    found = slope(steps, PLAIN)
    known = found is not None and found.low is not None
    computed = f"plain: exponent {words(found)}, {len(found.points)} seeds, at the crossing" if known else UNKNOWN
    grows, equal = (
        Statement(claim, formula, SOURCE, computed)
        for claim, formula in (
            ("The more training images, the later a network begins to copy", "exponent > 0"),
            ("The step is in proportion to the number of images", "exponent within a tenth of 1"),
        )
    )
    if not known:
        return [grows.holds(1, UNKNOWN), equal.holds(1, UNKNOWN)]
    return [grows.above(found, 0.0, "0"), equal.within(found, 1.0, 0.1)]


def _delay_claims(steps: Table) -> list[Claim]:
    sizes = dict.fromkeys(row["images"] for row in steps if row["variant"] == SMOOTHED)
    return [_delay_claim(size, _crossed(steps, PLAIN), _crossed(steps, SMOOTHED)) for size in sizes]


def _delay_claim(size: int, plain: dict[int, dict[int, float]], smoothed: dict[int, dict[int, float]]) -> Claim:
    both = [seed for seed in plain if size in plain[seed] and size in smoothed.get(seed, {})]
    named = f"A smoothed target delays the copies of {size:g} images", "ln(step smoothed / step plain) > 0", SOURCE
    if len(both) < 2:
        return Statement(*named, UNKNOWN).holds(1, UNKNOWN)
    found = paired_difference(*([math.log(own[seed][size]) for seed in both] for own in (smoothed, plain)))
    mean, low, high = (math.exp(value) for value in (found.mean, found.low, found.high))
    computed = f"{mean:.2f} [{low:.2f}, {high:.2f}] times as late, {len(both)} seeds"
    return Statement(*named, computed).above(found, 0.0, "0")
