"""How three shares of the samples change from one variant to another, and the words that such a change supports.

"Fewer copied samples" needs r₁/r₂ and a distance-based measure to agree, because r₁/r₂ cannot see blends (METHODS §6,
blend measure). Without an interval no direction is claimed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from stages.memorization.seeds import SeedMean, over_seeds, paired_rates
from stages.memorization.statistics import newcombe
from stages.reporting.runs import SHARES, Columns, final, seeds
from stages.reporting.words import listing

OUTCOMES = {
    "unknown": "without an interval no direction is claimed",
    "blending": "by blending, samples turn into averages of training images, which r₁/r₂ does not count",
    "fewer": "fewer copied samples",
    "more": "more copied samples",
    "more, with blends": "more copied samples and more blends",
    "contradiction": "r₁/r₂ and distance contradict each other, so nothing is said about copies",
    "none": "no change of the copied share that r₁/r₂ and distance both show clearly",
    "none, with blends": "no change of the copied share that r₁/r₂ and distance both show clearly, and more blends",
}
"""Outcome of a change -> its words."""


@dataclasses.dataclass(frozen=True)
class Change:
    """How three shares of the samples change from `against` to `of`.

    Attributes:
        ratio: copied by r₁/r₂.
        distance: samples nearer to the training set than all but 1 % of held-out images.
        blend: samples that are blends.
        basis: what the intervals rest on.
        broken: the variants whose samples look broken, so that their shares say nothing of a working model.
    """

    ratio: SeedMean
    distance: SeedMean
    blend: SeedMean
    basis: str = ""
    broken: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """Return which of OUTCOMES the intervals support."""
        ratio, distance, blend = (direction(value) for value in (self.ratio, self.distance, self.blend))
        if self.ratio.low is self.distance.low is self.blend.low is None:
            return "unknown"
        if blend > 0 and ratio <= 0:
            return "blending"
        if ratio == distance != 0:
            return "fewer" if ratio < 0 else "more, with blends" if blend > 0 else "more"
        if ratio * distance < 0:
            return "contradiction"
        return "none, with blends" if blend > 0 else "none"

    @property
    def points(self) -> dict[str, list[float]]:
        """Return each share's change per seed, in the order of the seeds."""
        return {name: list(getattr(self, name).points) for name in ("ratio", "distance", "blend")}

    @property
    def words(self) -> str:
        """Return the outcome with the three changes and their intervals."""
        numbers = (
            f"by r₁/r₂ {points(self.ratio)}, by held-out-calibrated distance {points(self.distance)}, "
            f"blends {points(self.blend)}"
        )
        basis = f"; {self.basis}" if self.basis else ""
        warning = f"; the samples of {listing(self.broken)} look broken" if self.broken else ""
        if self.outcome == "unknown":
            return f"{numbers}; {OUTCOMES['unknown']}{warning}"
        return f"{OUTCOMES[self.outcome]} ({numbers}{basis}){warning}"


def direction(value: SeedMean) -> int:
    """Return the sign of a mean whose interval is clear of 0, else 0; one seed has no interval."""
    if value.low is None or value.high is None or value.low <= 0 <= value.high:
        return 0
    return 1 if value.mean > 0 else -1


def points(value: SeedMean) -> str:
    """Return a change of a share in percentage points: −12.3 points [−15.0, −9.6]."""
    if value.low is None or value.high is None:
        return f"{signed(value.mean)} points (one seed, no interval)"
    return f"{signed(value.mean)} points [{signed(value.low)}, {signed(value.high)}]"


def signed(share: float) -> str:
    """Return a share in percent with its sign: −12.3."""
    return f"{100 * share:+.1f}".replace("-", "−")


def at_the_end(of: Columns, against: Columns) -> Change:
    """Return the change between two networks at the end of training, paired over the seeds that both have.

    Raises ValueError where they share none.
    """
    common = sorted(seeds(of) & seeds(against))
    one, other = (final(runs, common) for runs in (of, against))
    ends = (paired_rates(one[name], other[name], int(one["count"][0])) for name in SHARES)
    return Change(*ends, basis(common))


def basis(found: Sequence[Any]) -> str:
    """Return the number of training seeds in words."""
    return f"{len(found)} training seed{'s' if len(found) > 1 else ''}"


def between_closed_forms(of: Mapping[str, Any], against: Mapping[str, Any]) -> Change:
    """Return the change between two closed forms, from the metrics of their filter.json.

    A closed form has no training, so Newcombe's intervals over the samples say all that there is to say. The thresholds
    are those of one held-out set for both.
    """
    return Change(*(_difference(of[name], against[name]) for name in SHARES), "sampling; closed forms have no training")


def _difference(of: Mapping[str, Any], against: Mapping[str, Any]) -> SeedMean:
    low, high = newcombe(of["flagged"], of["count"], against["flagged"], against["count"])
    return SeedMean(of["rate"] - against["rate"], low, high, ())


def one_run(of: Mapping[str, Any], against: Mapping[str, Any]) -> Change:
    """Return the change between the reference samples of two variants, without intervals."""
    return Change(*(over_seeds([of[name]["rate"] - against[name]["rate"]]) for name in SHARES))
