"""What the numbers must show, as sentences with a verdict; nothing here changes a number."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.reporting.words import Rate, number, times

if TYPE_CHECKING:
    from stages.reporting.inputs import Variant

CLOSED_FORM_SHARE = 0.95  # the closed-form conditioning score is that of the training set itself: nearly all are copies


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: what must hold, whether it does, and the numbers that say so.

    sanity: True where it only guards against broken samples, False where it is a result.
    """

    title: str
    passed: bool
    sentence: str
    sanity: bool = False


def checks(variants: Sequence["Variant"]) -> list[Check]:
    """All checks that the variants at hand allow, in the order of the variants."""
    conditioned = [variant for variant in variants if variant.form == "conditioning"]
    found = [_beats_control(variant) if variant.network else _copies_nearly_all(variant) for variant in conditioned]
    return [*found, *(_sound(variant) for variant in variants)]


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
    """Blends are named and are no fault: their rate has a column of its own."""
    reasons = variant.broken
    numbers = (
        f"Median distance to the nearest training image {times(variant.median_multiple)} held-out; "
        f"{variant.fid['name']} to test {number(variant.fid['test']['distance'])}, "
        f"{times(variant.fd_over_floor)} the floor of {number(variant.fid['floor']['distance'])}."
    )
    warning = f"Its samples look broken: {'; '.join(reasons)}. A low copy rate says nothing here. " if reasons else ""
    blends = f" {variant.faults['blend']}." if "blend" in variant.faults else ""
    return Check(f"{variant.name} draws sound samples", not reasons, warning + numbers + blends, sanity=True)
