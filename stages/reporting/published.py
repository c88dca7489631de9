"""A paper's numbers beside ours: the difference, and in what the protocols differ (report.published, from a preset)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from stages.errors import InputError
from stages.protocol import Section
from stages.reporting.inputs import Inputs, Variant

UNJUDGED = "nobody has judged the pairs (scoresmooth review)"

MEASURES = {  # measure -> (what the page calls it, its number; None where there is none)
    "fid_train": ("Fréchet distance to train", lambda v: v.fid["train"]["distance"]),
    "fid_test": ("Fréchet distance to test", lambda v: v.fid["test"]["distance"]),
    "near_copies": (
        "samples with r1/r2 below filter.ratios.near_copy_below",
        lambda v: v.filter["metrics"]["nn_ratio_near_copy"]["flagged"],
    ),
    "ratio_mean": ("mean of r1/r2", lambda v: v.filter["ratio"]["mean"]),
    "ratio_min": ("least r1/r2", lambda v: v.filter["ratio"]["min"]),
    "verified": ("verified copies", lambda v: v.verified and v.verified.flagged),
    "verified_without_repeated": (
        "verified copies of images that do not repeat",
        lambda v: v.verified_without_repeated and v.verified_without_repeated.flagged,
    ),
}


class PublishedTable(Section):
    """One table of a paper: a number per variant, all of one measure."""

    table: str = Field(min_length=1, description="which table of the paper")
    measure: Literal[tuple(MEASURES)] = Field(description="what its numbers measure")
    numbers: dict[str, float] = Field(min_length=1, description="variant -> the paper's number")
    protocol: dict[str, Any] = Field(default={}, description="dotted key of a stage's results -> the paper's value")
    note: str | None = Field(default=None, description="what the table has besides")


class Published(Section):
    """A paper's numbers, and the protocol behind all of them."""

    source: str = Field(min_length=1, description="the paper")
    protocol: dict[str, Any] = Field(description="dotted key of a stage's results -> the paper's value, for all tables")
    tables: list[PublishedTable] = Field(min_length=1)

    def require_variants(self, variants: Iterable[str]) -> None:
        """Raise InputError for a number of a variant that does not exist."""
        names = list(variants)
        for table in self.tables:
            for name in table.numbers:
                if name not in names:
                    raise InputError(
                        f"report.published: {table.table} has a number of {name!r}, which is not a variant: choose "
                        f"one of {', '.join(names)}, or set report.published to null"
                    )


def published_tables(published: Published | None, inputs: Inputs) -> list[dict[str, Any]]:
    """Return each table with a row per variant: ours, the paper's number, the difference, and differing protocol.

    A protocol's key that our results lack counts as a difference, since the comparison cannot be shown to be equal.
    """
    if published is None:
        return []
    variants = {variant.name: variant for variant in inputs.variants}
    return [
        {
            "source": published.source,
            "table": table.table,
            "measure": MEASURES[table.measure][0],
            "note": table.note,
            "rows": [
                _row(variants[name], table.measure, number, {**published.protocol, **table.protocol}, inputs)
                for name, number in table.numbers.items()
            ],
        }
        for table in published.tables
    ]


def _row(variant: Variant, measure: str, paper: float, protocol: Mapping[str, Any], inputs: Inputs) -> dict[str, Any]:
    ours = MEASURES[measure][1](variant)
    fid = variant.fid
    return {
        "variant": variant.name,
        "ours": ours,
        "paper": paper,
        "difference": None if ours is None else ours - paper,
        "missing": UNJUDGED if ours is None else "",
        "test_over_train": fid["test"]["distance"] / fid["train"]["distance"] if measure == "fid_train" else None,
        "protocol": differing(protocol, results_of(variant, inputs)),
    }


def results_of(variant: Variant, inputs: Inputs) -> dict[str, Any]:
    """Return what the stages wrote, by stage: the protocol's dotted keys are looked up here."""
    return {
        "ingest": inputs.ingest,
        "deduplicate": inputs.deduplicate,
        "index": inputs.index,
        "train": variant.score,
        "sample": variant.sample,
        "filter": variant.filter,
        "fid": variant.fid,
    }


def differing(protocol: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return "KEY: OURS instead of PAPER'S" for every key of the protocol in which we differ."""
    ours = {key: _lookup(found, key.split(".")) for key in protocol}
    return [
        f"{key}: {_word(ours[key])} instead of {_word(wanted)}"
        for key, wanted in protocol.items()
        if ours[key] != wanted
    ]


def _lookup(node: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _word(value: Any) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value).lower()
