"""Temperatures that depend on the point or the level, as closed forms, against constant ones at equal Fréchet distance.

A lower constant temperature is to a closed form what a longer training is to a network: more copies at a smaller
distance. So a temperature that follows the point or the level is compared with the constant one of the same distance,
the highest that has it.
"""

from typing import ClassVar

import numpy as np
from pydantic import Field

from stages.beyond.measures import shares
from stages.beyond.question import Question, percent, words
from stages.diffusion.parameters import Neighbors, SamplerParams, Variant
from stages.memorization.first_reached import Stop, first_reached
from stages.memorization.seeds import DIFFERENCE, over_seeds, rate_variance
from stages.theory.claims import Claim, Findings, Statement, Table

CONSTANT = "constant"
SOURCE = "METHODS §8b [ours]"
SHARES = ("copies", "nearer", "blends")
OUTSIDE = "counts the seeds that cannot be compared"


class AdaptiveTemperatures(Question):
    """Copies, blends and distance of closed forms by their temperature's rule."""

    TITLE: ClassVar[str] = "Temperatures that depend on the point or the level, at equal distance to real images"
    QUESTION: ClassVar[str] = (
        "Does a temperature that follows the point, or the level, copy less than a constant one whose samples are as "
        "far from real images? If it did not, the difference of copies at equal distance would be 0."
    )

    size: int = Field(ge=10, description="training images")
    constant: list[float] = Field(min_length=2, description="constant temperatures, falling")
    rules: list[str] = Field(min_length=1, description="temperatures that depend on the point or on the level")
    smooth_below: float = Field(gt=0, description="level below which all of them smooth")
    neighbors: Neighbors
    sampler: SamplerParams

    def form(self, temperature: float | str) -> Variant:
        """The closed form at a temperature."""
        how = {"smooth_below": self.smooth_below, "neighbors": self.neighbors, "sampler": self.sampler}
        return Variant(score="closed-form", form="temperature", temperature=temperature, **how)

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """A row per temperature of the piece's seed."""
        from stages.beyond import small_models

        rows: Table = []
        for own in self.seeds:
            train, held_out = self.drawn(images, own, self.size)
            for rule, temperature in [*((CONSTANT, t) for t in self.constant), *((rule, rule) for rule in self.rules)]:
                drawn = small_models.samples(self.form(temperature), self.noise, train, self.samples, own)
                about = {"rule": rule, "temperature": str(temperature), "seed": own, "samples": self.samples}
                rows.append(about | shares(drawn, train, held_out))
        return Findings([], {"adaptive_targets": rows})

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """See Block.conclude."""
        return [_at_equal_distance(rule, tables["adaptive_targets"]) for rule in self.rules]


def at_equal_distance(rule: str, rows: Table, seed: int) -> dict[str, tuple[float, float]] | None:
    """Return a rule's shares minus those of the highest constant temperature that has its FD, with their variances.

    None where no constant temperature has it. rows: of all seeds, those of the constant temperatures in falling order.
    """
    own = next(row for row in rows if (row["rule"], row["seed"]) == (rule, seed))
    constant = [row for row in rows if (row["rule"], row["seed"]) == (CONSTANT, seed)]
    stop = first_reached(np.array([row["fd"] for row in constant]), own["fd"])
    if not isinstance(stop, Stop):
        return None
    found = {}
    for name in SHARES:
        curve, count = np.array([row[name] for row in constant]), own["samples"]
        variance = rate_variance(own[name] * count, count) + stop.value(rate_variance(curve * count, count))
        found[name] = own[name] - stop.value(curve), float(variance)
    return found


def _at_equal_distance(rule: str, rows: Table) -> Claim:
    found = [at_equal_distance(rule, rows, seed) for seed in dict.fromkeys(row["seed"] for row in rows)]
    named = (
        f"Temperature {rule} copies less than a constant one of the same distance",
        "difference of copied shares",
    )
    if None in found:
        computed = f"{found.count(None)} of {len(found)} seeds lie outside the constant temperatures' distances"
        return Statement(*named, SOURCE, computed).holds(found.count(None), OUTSIDE)
    change = {name: over_seeds(*zip(*(each[name] for each in found)), DIFFERENCE) for name in SHARES}
    listing = ", ".join(f"{name} {words(each, 100, 1)}" for name, each in change.items())
    computed = f"{percent(rows, 'copies', rule=rule)} % copies; in points: {listing}"
    return Statement(*named, SOURCE, computed).below(change["copies"], 0.0, "0")
