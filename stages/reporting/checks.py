"""What the numbers must show, as sentences with a verdict; nothing here changes a number."""

import dataclasses
from collections.abc import Sequence

from stages.reporting.inputs import Rate, Variant
from stages.reporting.words import listing, number, percent, rate_words, times

CLOSED_FORM_SHARE = 0.95  # a closed-form conditioning score is the training set's own: it must copy nearly always


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the report: what must hold, whether it does, and the numbers that say so.

    sanity: True where it only guards against broken samples, False where it is a result.
    """

    title: str
    passed: bool
    sentence: str
    sanity: bool = False


@dataclasses.dataclass(frozen=True)
class BrokenRule:
    """When samples are broken, so that few copies mean nothing.

    median: allowed range of the median-distance multiple. fd: largest allowed FD over its floor.
    """

    median: tuple[float, float]
    fd: float

    def reasons(self, variant: Variant) -> list[str]:
        """Why this variant's samples are broken; empty when they are not."""
        low, high = self.median
        multiple, over = variant.median_multiple, variant.fd_over_floor
        found = []
        distance = f"their median distance to the training set is {times(multiple)} the held-out one"
        if multiple < low and variant.copies.rate < 0.5:  # where most samples are copies the median is a copy's
            found.append(f"{distance} (< {low:g}) though fewer than half are copies")
        if multiple > high:
            found.append(f"{distance} (> {high:g})")
        if over > self.fd:
            found.append(f"their {variant.fid['name']} to test is {times(over)} the floor (> {self.fd:g})")
        return found


def checks(variants: Sequence[Variant], broken: BrokenRule) -> list[Check]:
    """All checks that the variants at hand allow, in the order of the variants."""
    found: list[Check] = []
    for variant in variants:
        if variant.form == "conditioning":
            found.append(_beats_control(variant) if variant.network else _copies_nearly_all(variant))
    for variant in variants:
        if variant.form == "temperature":
            peers = [peer for peer in variants if peer.form == "conditioning" and peer.network == variant.network]
            found += [_copies_less(variant, peer) for peer in peers]
    return [*found, *(_sound(variant, broken) for variant in variants)]


def _copies_nearly_all(variant: Variant) -> Check:
    copies = variant.copies
    return Check(
        title=f"{variant.name} copies at least {CLOSED_FORM_SHARE:.0%}",
        passed=copies.rate >= CLOSED_FORM_SHARE,
        sentence=f"The closed-form conditioning score copies {rate_words(copies)}.",
    )


def _beats_control(variant: Variant) -> Check:
    copies, control = variant.copies, variant.control
    return Check(
        title=f"{variant.name} copies clearly more than chance",
        passed=copies.low > control.high,
        sentence=f"It copies {rate_words(copies)}; of held-out real images the same rule flags {rate_words(control)}. "
        + _overlap(copies, control),
    )


def _copies_less(variant: Variant, peer: Variant) -> Check:
    return Check(
        title=f"{variant.name} copies less than {peer.name}",
        passed=variant.copies.high < peer.copies.low,
        sentence=f"{rate_words(variant.copies)} against {rate_words(peer.copies)}. "
        + _overlap(variant.copies, peer.copies),
    )


def _overlap(a: Rate, b: Rate) -> str:
    apart = a.high < b.low or b.high < a.low
    return "The intervals do not overlap." if apart else "The intervals overlap."


def _sound(variant: Variant, broken: BrokenRule) -> Check:
    reasons = broken.reasons(variant)
    numbers = (
        f"Median distance to the nearest training image {times(variant.median_multiple)} held-out; "
        f"{variant.fid['name']} to test {number(variant.fid['test']['distance'])}, "
        f"{times(variant.fd_over_floor)} the floor of {number(variant.fid['floor']['distance'])}."
    )
    warning = f"Its samples look broken: {listing(reasons)}. A low copy rate says nothing here. " if reasons else ""
    return Check(f"{variant.name} draws sound samples", not reasons, warning + numbers, sanity=True)


def answer(variants: Sequence[Variant], broken: BrokenRule) -> str:
    """The report's one sentence: how much is copied, and what smoothing changes, with the numbers."""
    baseline = [variant for variant in variants if variant.form == "conditioning"]
    first = next((variant for variant in baseline if variant.network), baseline[0] if baseline else None)
    if first is None:
        most = max(variants, key=lambda variant: variant.copies.rate)
        return f"The most any variant copies is {percent(most.copies.rate)} of its samples ({most.name})."
    kind = "trained network" if first.network else "closed-form score"
    opening = (
        f"With noise conditioning, the {kind} copies {percent(first.copies.rate)} of its samples from the training set "
        f"[95 % interval {percent(first.copies.low)}–{percent(first.copies.high)}; "
        f"held-out images: {percent(first.control.rate)}]"
    )
    smoothed = [variant for variant in variants if variant.form == "temperature" and variant.network == first.network]
    if not smoothed:
        return opening + "."
    parts = [f"{percent(v.copies.rate)} ({_smoothing(v)}{_caveat(v, broken)})" for v in smoothed]
    falls = all(variant.copies.high < first.copies.low for variant in smoothed)
    verb = "smoothing the score by temperature brings that down to" if falls else "smoothed by temperature it copies"
    return f"{opening}; {verb} {listing(parts)}."


def _smoothing(variant: Variant) -> str:
    neighbors = variant.spec.get("neighbors")
    if neighbors:
        return f"over {neighbors['k']} {neighbors['space']} neighbours"
    return f"T = {variant.spec.get('temperature')}"


def _caveat(variant: Variant, broken: BrokenRule) -> str:
    return ", but its samples look broken" if broken.reasons(variant) else ""
