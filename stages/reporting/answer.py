"""The report's opening: what smoothing does to copies, in one sentence, and the numbers of the variants beside it.

The sentence rests on contrasts of one factor with intervals, and on nothing else: at equal Fréchet distance where the
frontier allows it, else at the end of training, else among closed forms. Where no contrast has an interval it says why.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from stages.reporting.changes import Change, basis, direction, points
from stages.reporting.contrasts import TARGET, Contrast
from stages.reporting.frontier import BEFORE, NEVER, AtEqualDistance
from stages.reporting.runs import BLEND, mean_at_the_end
from stages.reporting.words import interval, listing, percent

if TYPE_CHECKING:
    from stages.reporting.inputs import Variant

GIVES = {  # outcome of a change -> what smoothing gives
    "fewer": "fewer copied samples",
    "more": "more copied samples",
    "more, with blends": "more copied samples and more blends",
    "blending": "more blends, which r₁/r₂ does not count as copies,",
    "contradiction": "r₁/r₂ and distance that contradict each other",
    "none": "no change that both measures show clearly",
    "none, with blends": "no change that both measures show clearly, and more blends,",
}
OUTSIDE = {
    NEVER: "the plain network never comes down to its distance",
    BEFORE: "the plain network is below its distance at the first measured step",
}
AT_EQUAL_DISTANCE = "Trained to the end, beside the plain network stopped earlier at the same Fréchet distance,"
BROKEN = " (its samples look broken)"
ONE_SEED = "one training seed stands behind each network (train.seeds)"


@dataclasses.dataclass(frozen=True)
class Opening:
    """What the report opens with.

    Attributes:
        sentence: `answer`.
        rates: `rates`.
        compared: the smoothed networks at equal Fréchet distance.
    """

    sentence: str
    rates: list[str]
    compared: list[AtEqualDistance]


def answer(
    variants: Sequence["Variant"], contrasts: Sequence[tuple[Contrast, Change]], compared: Sequence[AtEqualDistance]
) -> str:
    """Return the one sentence. contrasts: of `measured`; compared: of `frontier`."""
    named = {variant.name: variant for variant in variants}
    equal = {found.of: found.change for found in compared if found.change is not None}
    targets = {item.of: change for item, change in contrasts if item.factors == (TARGET,)}
    ends, closed = ({n: c for n, c in targets.items() if named[n].network is network} for network in (True, False))
    for start, changes in (
        (f"{AT_EQUAL_DISTANCE} a smoothed target gives", equal),
        ("At the end of training, whatever the quality, smoothing the target gives", ends),
        ("In closed form, smoothing gives", closed),
    ):
        if known := {name: change for name, change in changes.items() if change.outcome in GIVES}:
            rest = _unsaid(variants, compared, known)
            return f"{start} {_given(known, named)}{f'; {rest}' if rest else ''}."
    return f"What smoothing does to copies is not known from this run: {_reason(variants, compared)}."


def _given(changes: Mapping[str, Change], named: Mapping[str, "Variant"]) -> str:
    """Return what smoothing gives, by outcome, with the variants and their numbers."""
    clauses = []
    for outcome, words in GIVES.items():
        found = {name: change for name, change in changes.items() if change.outcome == outcome}
        those = [f"{name}{BROKEN if named[name].broken else ''} ({_numbers(c)})" for name, c in found.items()]
        clauses += [f"{words} with {listing(those)}"] if those else []
    return f"{'; '.join(clauses)}; {next(iter(changes.values())).basis}"


def _numbers(change: Change) -> str:
    second = "blends", change.blend
    if "blend" not in change.outcome:
        second = "by distance", change.distance
    return f"by r₁/r₂ {points(change.ratio)}, {second[0]} {points(second[1])}"


def _unsaid(variants: Sequence["Variant"], compared: Sequence[AtEqualDistance], known: Iterable[str]) -> str:
    """Name the smoothed networks about which nothing is said, and say why."""
    left = [found for found in compared if found.change is None]
    if any(variant.network and variant.name in known for variant in variants):
        return "; ".join(f"at equal distance nothing is said of {found.of}: {outside(found)}" for found in left)
    networks = any(variant.network for variant in variants)
    return f"of trained networks nothing is said: {_reason(variants, compared)}" if networks else ""


def _reason(variants: Sequence["Variant"], compared: Sequence[AtEqualDistance]) -> str:
    if not compared:
        return "no smoothed variant has a plain one that equals it in everything else, with an interval"
    if all(len(found.seeds) == 1 for found in compared):
        return ONE_SEED
    return "; ".join(f"{found.of}: {outside(found)}" for found in compared if found.change is None)


def outside(found: AtEqualDistance) -> str:
    """Return why a smoothed network cannot be compared at equal distance; empty where it can."""
    parts = [f"{OUTSIDE[why]} in {len(seeds)} of {basis(found.seeds)}" for why, seeds in found.outside.items() if seeds]
    return listing(parts)


def rates(variants: Sequence["Variant"], contrasts: Sequence[Contrast]) -> list[str]:
    """Return each variant's rates, and which comparisons say nothing, as sentences; they compare nothing."""
    shown = [variant for variant in variants if variant.network] or list(variants)
    names = {variant.name for variant in shown}
    copied = [f"{v.name} {_share(v, v.metric)}{BROKEN if v.broken else ''}" for v in shown]
    blends = [f"{v.name} {_share(v, BLEND)}" for v in shown]
    sentences = [
        f"Copied samples [95 % interval]: {listing(copied)}; held-out images by the same rule: "
        f"{percent(shown[0].control.rate)}.",
        f"Blends of training images: {listing(blends)}.",
    ]
    confounded = [c for c in contrasts if c.confounded and {c.of, c.against} <= names]
    if confounded:
        pairs = "; ".join(f"{c.of} against {c.against} (by {listing(c.factors)})" for c in confounded)
        sentences.append(f"Confounded, so that their difference says nothing: {pairs}.")
    return sentences


def _share(variant: "Variant", measure: str) -> str:
    """Return a share with its interval: over the training seeds where there are several, else of the samples."""
    if variant.runs is not None and measure in variant.runs:
        mean = mean_at_the_end(variant.runs, measure)
        if mean.low is not None and mean.high is not None:
            return f"{percent(mean.mean)} {interval(mean.low, mean.high)}"
    rate = variant.filter["metrics"][measure]
    return f"{percent(rate['rate'])} {interval(rate['ci_low'], rate['ci_high'])}"


def equal_words(found: AtEqualDistance) -> str:
    """Return what may be said of a smoothed network at equal distance."""
    if found.change is None:
        return f"Nothing is compared: {outside(found)}."
    stops = listing([f"{step:,.0f}" for step in found.stopped])
    return f"From {found.baseline}, stopped at step {stops}, to {found.of}: {found.change.words}."


def earlier_words(found: AtEqualDistance) -> str:
    """Return the changes where the smoothed network is stopped earlier, too; empty without such a step."""
    known = {step: change for step, change in found.earlier.items() if change is not None}
    if not known:
        return ""
    said = [f"at step {step:,} {_numbers(change)}" for step, change in known.items()]
    left = [f"{step:,}" for step in found.earlier if step not in known]
    rest = f" Outside the plain network's distances: step {listing(left)}." if left else ""
    return f"Where the smoothed network is stopped earlier, too: {'; '.join(said)}.{rest}"


def late_words(found: AtEqualDistance) -> str:
    """Return how the copied shares grow in the last half of the training, per doubling of the steps."""
    if found.late is None:
        return "Not known: fewer than two measured steps lie in the last half of the training (train.snapshots)."
    own, plain, difference = found.late
    numbers = "; ".join(
        f"{words} {points(getattr(own, name))} against {points(getattr(plain, name))}, difference "
        f"{points(getattr(difference, name))}"
        for name, words in (("ratio", "by r₁/r₂"), ("distance", "by distance"))
    )
    return f"{_growth(own, difference)}. Change of the copied share per doubling of the steps, {numbers}."


def _growth(own: Change, difference: Change) -> str:
    if difference.outcome == "unknown":
        return "Without an interval nothing is said"
    rises = max(direction(own.ratio), direction(own.distance)) > 0
    slower = {"fewer": "more slowly than", "more": "faster than", "more, with blends": "faster than"}
    than = slower.get(difference.outcome, "neither clearly faster nor clearly slower than")
    state = "still rises" if rises else "no longer clearly rises"
    return f"Its copied share {state}; it grows {than} that of the plain network"


def frontier_row(found: AtEqualDistance) -> dict[str, object]:
    """Return a comparison at equal distance as a row of the report's section and of results.json."""
    return {
        "of": found.of,
        "against": found.baseline,
        "seeds": list(found.seeds),
        "outcome": found.change.outcome if found.change else None,
        "at_equal_distance": equal_words(found),
        "points": found.change.points if found.change else None,
        "earlier": earlier_words(found),
        "late": late_words(found),
    }
