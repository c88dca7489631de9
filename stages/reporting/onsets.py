"""The last safe step of every network's training, per seed: after it copies exceed what held-out images show."""

from collections.abc import Sequence
from typing import Any

from stages.memorization.onset import Onset, onset
from stages.reporting.inputs import Variant
from stages.reporting.runs import RATIO, Columns, of_seed, seeds
from stages.reporting.words import listing


def onset_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Return a row for every network that is measured at two steps or more: its last safe step by seed."""
    rows = []
    for variant in variants:
        if variant.runs is not None and len(set(variant.runs["step"])) > 1:
            found = {seed: _onset(variant, of_seed(variant.runs, seed)) for seed in sorted(seeds(variant.runs))}
            last = int(variant.runs["step"].max())
            safe = {str(seed): each.last_safe for seed, each in found.items()}
            rows.append({"variant": variant.name, "last_safe": safe, "steps": last, "words": _words(found, last)})
    return rows


def _onset(variant: Variant, runs: Columns) -> Onset:
    control = variant.filter["metrics"][RATIO]
    counts = control["holdout_flagged"], control["holdout_count"]
    return onset(runs["step"].tolist(), runs[RATIO].tolist(), runs["count"].tolist(), *counts)


def _words(found: dict[int, Onset], last: int) -> str:
    """Return the last safe steps of all seeds as one sentence."""
    return f"Last safe step: {listing([_of_seed(seed, each, last) for seed, each in found.items()])}."


def _of_seed(seed: int, found: Onset, last: int) -> str:
    if found.last_safe is None:
        return f"none (seed {seed}; step {found.first_copying:,}, the first measured one, copies already)"
    if found.first_copying is None:
        return f"{found.last_safe:,} (seed {seed}; no measured step copies)"
    return f"{found.last_safe:,} (seed {seed}; step {found.first_copying:,} of {last:,} copies)"
