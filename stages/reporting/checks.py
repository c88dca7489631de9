"""What the numbers must show, as sentences with a verdict; nothing here changes a number."""

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.reporting.words import Rate, listing, number, times

if TYPE_CHECKING:
    from stages.reporting.inputs import Variant

CLOSED_FORM_SHARE = 0.95  # the closed-form conditioning score is that of the training set itself: nearly all are copies
MOST_LEAD = 1.0  # nats by which one training image may lead another where sampling starts (METHODS §4)
MOST_SPREAD = 1.5  # largest distance over sigma_max; digits are copied evenly even at 2.5, photographs at 12 are not
UNEVEN = 3.0, 0.02  # standard deviations, and share, that distinct copies may fall below those of even draws


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: what must hold, whether it does, and the numbers that say so.

    sanity: True where it only guards against broken samples, False where it is a result.
    """

    title: str
    passed: bool
    sentence: str
    sanity: bool = False


def checks(variants: Sequence["Variant"], training_images: int) -> list[Check]:
    """All checks that the variants at hand allow, in the order of the variants.

    training_images: how many there are.
    """
    found = [_level_fits(variants[0]), _unseen(variants[0])]
    for variant in (variant for variant in variants if variant.form == "conditioning"):
        if variant.network:
            found.append(_beats_control(variant))
        else:
            found += [_copies_nearly_all(variant), _copies_evenly(variant, training_images)]
    return [*found, *(_sound(variant) for variant in variants)]


def _level_fits(variant: "Variant") -> Check:
    """The largest noise level, which all variants share, against the spread of the training images."""
    start, sigma = variant.score["start"], variant.score["noise"]["sigma_max"]
    lead, distance = start["lead"], start["largest_distance"]
    passed = lead <= MOST_LEAD and distance <= MOST_SPREAD * sigma
    remedy = f" Samples fall to the darkest images: set train.noise.sigma_max to auto ({start['fitting_sigma_max']:g})."
    return Check(
        title="The largest noise level fits the images",
        passed=passed,
        sentence=f"At sigma_max {sigma:g} the darkest training image leads the brightest by {number(lead)} nats "
        f"(at most {MOST_LEAD:g}); the largest distance between training images is {number(distance)}, "
        f"{times(distance / sigma)} sigma_max (at most {times(MOST_SPREAD)}).{'' if passed else remedy}",
    )


def _unseen(variant: "Variant") -> Check:
    """The held-out images, which all variants share, hold no training images."""
    leaks = variant.filter["leaks"]
    named = listing([f"{leak['where'][:12]}… ({leak['train_where'][:12]}…)" for leak in leaks[:3]])
    return Check(
        title="No held-out image is a training image",
        passed=not leaks,
        sentence=f"{len(leaks):,} held-out images are training images, equal, re-encoded or changed, and were left out "
        f"of every control: {named}."
        if leaks
        else "None equals a training image or is a re-encoded or changed copy of one.",
    )


def _copies_evenly(variant: "Variant", count: int) -> Check:
    """The exact score of the training set makes each image equally likely; its copies must show as many of them."""
    copies = sum(variant.filter["verdicts"].get(verdict, 0) for verdict in ("copy", "near_copy"))
    found = variant.filter["unique_training_images"]
    expected, deviation = even_draws(copies, count)
    passed = found >= expected * (1 - UNEVEN[1]) - UNEVEN[0] * deviation
    remedy = "" if passed else " Some images are favoured: see train.noise.sigma_max."
    return Check(
        title=f"{variant.name} copies all training images alike",
        passed=passed,
        sentence=f"Its {copies:,} copies show {found:,} different training images; as many even draws from {count:,} "
        f"show {expected:.1f} ± {deviation:.1f}.{remedy}",
    )


def even_draws(draws: int, count: int) -> tuple[float, float]:
    """Return mean and standard deviation of the number of different images among even draws from `count` images."""
    missed, both = (1 - 1 / count) ** draws, (1 - 2 / count) ** draws if count > 2 else float(draws == 0)
    variance = count * missed + count * (count - 1) * both - (count * missed) ** 2
    return count * (1 - missed), math.sqrt(max(0.0, variance))


def _copies_nearly_all(variant: "Variant") -> Check:
    return Check(
        title=f"{variant.name} copies at least {CLOSED_FORM_SHARE:.0%}",
        passed=variant.copies.rate >= CLOSED_FORM_SHARE,
        sentence=f"The closed-form conditioning score copies {variant.copies}.",
    )


def _beats_control(variant: "Variant") -> Check:
    copies, control = variant.copies, variant.control
    return Check(
        title=f"{variant.name} copies clearly more than chance",
        passed=copies.low > control.high,
        sentence=f"It copies {copies}; of held-out real images the same rule flags {control}. "
        + _overlap(copies, control),
    )


def _overlap(a: Rate, b: Rate) -> str:
    apart = a.high < b.low or b.high < a.low
    return "The intervals do not overlap." if apart else "The intervals overlap."


def _sound(variant: "Variant") -> Check:
    """Blends are named and do not count as a fault: their rate has a column of its own."""
    reasons = variant.broken
    numbers = (
        f"Median distance to the nearest training image {times(variant.median_multiple)} held-out; "
        f"{variant.fid['name']} to test {number(variant.fid['test']['distance'])}, "
        f"{times(variant.fd_over_floor)} the floor of {number(variant.fid['floor']['distance'])}."
    )
    warning = f"Its samples look broken: {'; '.join(reasons)}. A low copy rate says nothing here. " if reasons else ""
    blends = f" {variant.faults['blend']}." if "blend" in variant.faults else ""
    return Check(f"{variant.name} draws sound samples", not reasons, warning + numbers + blends, sanity=True)
