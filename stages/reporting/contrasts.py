"""Contrasts: which parameters two variants differ in, and what may be said about the difference of their numbers.

A contrast differs in one factor with everything else equal; variants that differ in more are confounded, and no
sentence may attribute anything to either factor (METHODS §6, contrast). `stages.reporting.changes` words a difference.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic import Field

from stages.errors import InputError
from stages.protocol import Section
from stages.reporting.changes import Change, at_the_end, between_closed_forms, one_run
from stages.reporting.runs import seeds
from stages.reporting.words import listing

if TYPE_CHECKING:
    from stages.reporting.inputs import Variant

Tree = Mapping[str, Any]

TARGET, NOISE_CONDITIONING = "the target's smoothing", "noise conditioning"
PLAIN = ("conditioning", "unconditioning")  # the two forms of the plain target, with the noise level and without
LEVEL_GIVEN = (
    "conditioning",
    "kernel-smoothed",
    "kernel-density",
    "cfdm",
    "wiener",
    "local",
    "loader-batches",
)  # forms that are given the noise level unless spec says else

FACTORS = (  # dotted keys of a variant's tree -> the factor that they belong to; the first pattern that fits
    ("spec.score", "network or closed form"),
    ("spec.conditioning", "class conditioning"),
    ("spec.distillation.*", "distillation"),
    ("spec.temperature", "temperature"),
    ("spec.smooth_below", "the levels that are smoothed"),
    ("spec.neighbors.space", "the neighbours' space"),
    ("spec.neighbors.*", "the number of neighbours"),
    ("spec.kernel.h", "the kernel's width"),
    ("spec.kernel.draws", "the kernel's draws"),
    ("spec.p*", "the shells' convention"),
    ("spec.sampler.*", "sampler"),
    ("train.noise.*", "noise levels"),
    ("train.network.*", "network"),
    ("train.optimization.steps", "training length"),
    ("train.optimization.max_seconds", "training length"),
    ("train.stopped_at", "training length"),
    ("train.seeds", "seeds"),
    ("sample.seed", "seeds"),
    ("data.*", "data"),
)
SMOOTHING = ("spec.temperature", "spec.smooth_below", "spec.neighbors.*", "spec.kernel.*")


class ContrastParams(Section):
    """One entry of report.contrasts: the variant `of` against the variant `against`."""

    name: str = Field(min_length=1, description="what the report calls it")
    of: str = Field(description="the variant whose numbers are compared")
    against: str = Field(description="the variant that they are compared with")


@dataclasses.dataclass(frozen=True)
class Contrast:
    """Two variants and what they differ in.

    Attributes:
        name, of, against: as in report.contrasts.
        differences: dotted key -> (value of `of`, value of `against`), every key in which they differ.
        factors: what these keys amount to, sorted.
    """

    name: str
    of: str
    against: str
    differences: dict[str, tuple[Any, Any]]
    factors: tuple[str, ...]

    @property
    def supports_claims(self) -> bool:
        """Tell whether a sentence may attribute a difference: to one factor, everything else equal."""
        return len(self.factors) == 1

    @property
    def confounded(self) -> bool:
        """Tell whether more than one factor differs."""
        return len(self.factors) > 1


def read_contrasts(entries: Sequence[ContrastParams], trees: Mapping[str, Tree]) -> list[Contrast]:
    """Return the contrasts of report.contrasts. Raises InputError for a variant that does not exist.

    trees: variant -> its full parameters, as `contrast` takes them.
    """
    require_variants(entries, trees)
    return [contrast(entry, trees[entry.of], trees[entry.against]) for entry in entries]


def require_variants(entries: Sequence[ContrastParams], variants: Iterable[str]) -> None:
    """Raise InputError for a contrast that names a variant which does not exist."""
    names = list(variants)
    for entry in entries:
        for key in ("of", "against"):
            if getattr(entry, key) not in names:
                raise InputError(
                    f"report.contrasts: {entry.name}.{key} names {getattr(entry, key)!r}, which is not a variant: "
                    f"choose one of {', '.join(names)}"
                )


def contrast(entry: ContrastParams, of: Tree, against: Tree) -> Contrast:
    """Return what two variants differ in.

    of, against: {"spec": the variant, "train": …, "sample": …, "data": …}, as the stages' Params hold them, so that
    every key is spelled out. A key that is absent counts as null.
    """
    of, against = _as_learned(of), _as_learned(against)
    found = differences(of, against)
    return Contrast(entry.name, entry.of, entry.against, found, factors(of["spec"], against["spec"], found))


def _as_learned(tree: Tree) -> Tree:
    """Return a variant's parameters with those of a teacher as its own, so that distillation is a factor by itself."""
    spec = tree["spec"]
    return {**tree, "spec": {**spec, **spec["teacher"], "teacher": None}} if spec.get("teacher") else tree


def differences(of: Tree, against: Tree) -> dict[str, tuple[Any, Any]]:
    """Return every dotted key in which two nested mappings differ, with both values, sorted by key."""
    one, other = dict(_leaves(of)), dict(_leaves(against))
    pairs = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other})}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every leaf; null is the absence of one."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        elif value is not None:
            yield prefix + key, list(value) if isinstance(value, tuple) else value


def factors(of: Tree, against: Tree, found: Mapping[str, tuple[Any, Any]]) -> tuple[str, ...]:
    """Return the factors that the differing keys `found` amount to; of, against: the two variants' spec.

    Forms conditioning and unconditioning are one target with the noise level and without, so a form says two things.
    Keys of smoothing that one of two different forms alone uses follow from the form: a temperature has neighbours, and
    a plain target has none. A key that no factor claims is a factor of its own.
    """
    names = set()
    if _target(of) != _target(against):
        names.add(TARGET)
    if _level_given(of) != _level_given(against):
        names.add(NOISE_CONDITIONING)
    for key, values in found.items():
        implied = of["form"] != against["form"] and any(map(_unused, (of, against), (key, key), values))
        if key not in ("spec.form", "spec.noise_conditioning") and not implied:
            names.add(next((factor for pattern, factor in FACTORS if fnmatchcase(key, pattern)), key))
    return tuple(sorted(names))


def _target(spec: Tree) -> str:
    return "plain" if spec["form"] in PLAIN else spec["form"]


def _level_given(spec: Tree) -> bool:
    """Tell whether the score is given the noise level (Variant.conditioned, and closed forms)."""
    stated = spec.get("noise_conditioning")
    return spec["form"] in LEVEL_GIVEN if stated is None else stated


def _unused(spec: Tree, key: str, value: Any) -> bool:
    """Tell whether a form has no use for a key of smoothing; precision and power have values even then."""
    if key in ("spec.precision", "spec.power"):
        closed = spec["score"] == "closed-form" and spec["form"] in ("unconditioning", "mixture")
        return not (closed or spec["form"] == "temperature")
    return value is None and any(fnmatchcase(key, pattern) for pattern in SMOOTHING)


def sentence(found: Contrast, change: Change | None = None) -> str:
    """Return what may be said about a contrast; a difference is attributed where one factor differs, else never.

    change: the measured changes; None where the variants have none, which is then said.
    """
    pair = f"{found.of} and {found.against}"
    if not found.factors:
        return f"{pair} do not differ in any parameter of this comparison."
    if found.confounded:
        return (
            f"{pair} are confounded by {listing(found.factors)}, which differ at once ({_keys(found)}): the difference "
            f"of their numbers says nothing about any of these."
        )
    opening = f"{pair} differ in {found.factors[0]} alone ({_keys(found)}). "
    if change is None:
        return opening + "The difference is not measured."
    return opening + f"From {found.against} to {found.of}: {change.words}."


def measured(found: Sequence[Contrast], variants: Mapping[str, "Variant"]) -> list[tuple[Contrast, Change]]:
    """Return every contrast with the change between its two variants."""
    return [(item, _change(variants[item.of], variants[item.against])) for item in found]


def contrast_row(item: Contrast, change: Change) -> dict[str, Any]:
    """Return a contrast with what may be said of it: a row of the report's section and of results.json."""
    return {
        "name": item.name,
        "of": item.of,
        "against": item.against,
        "factors": list(item.factors),
        "confounded": item.confounded,
        "sentence": sentence(item, change),
        "points": change.points,
    }


def _change(of: "Variant", against: "Variant") -> Change:
    """Return the change between two variants, over the seeds where both are trained networks that share seeds."""
    if of.runs is not None and against.runs is not None and seeds(of.runs) & seeds(against.runs):
        found = at_the_end(of.runs, against.runs)
    else:
        measures = of.filter["metrics"], against.filter["metrics"]
        found = one_run(*measures) if of.network or against.network else between_closed_forms(*measures)
    return dataclasses.replace(found, broken=tuple(variant.name for variant in (of, against) if variant.broken))


def _keys(found: Contrast) -> str:
    """Name every differing key with both values."""
    values = {key: [json.dumps(value) for value in pair] for key, pair in found.differences.items()}
    return "; ".join(f"{key} {one} against {other}" for key, (one, other) in values.items())
