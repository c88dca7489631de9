"""The samples of several checkpoints of one training: which there are, and the copies against the step."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages.errors import InputError
from stages.images.sources.open import READERS, parse

RATES = ("flagged", "count", "rate", "ci_low", "ci_high", "excess", "excess_low", "excess_high", "holdout_rate")


class Run(NamedTuple):
    """One set of samples. name: the last part of its path; step: the last number in it, or its place in the order."""

    name: str
    step: int
    source: str


def is_pattern(spec: str) -> bool:
    """Whether a source stands for several ones: its path has *, ? or [. One of parquet: is the shards of one set."""
    kind = spec.partition(":")[0]
    if kind not in READERS or kind == "parquet":
        return False
    place = parse(spec)[1]
    return any(mark in place for mark in "*?[") and not Path(place).exists()


def named_runs(specs: Sequence[str]) -> list[Run]:
    """Return the runs that these sources and patterns name, by step where every name has another one, else in order.

    InputError where a pattern matches nothing, or two runs have one name.
    """
    sources = [source for spec in specs for source in (_matching(spec) if is_pattern(spec) else [spec])]
    names = [Path(parse(source)[1]).stem or parse(source)[1] for source in sources]
    (name, often), *_ = Counter(names).most_common(1)
    if often > 1:
        raise InputError(f"--samples: {often} sets are called {name!r}: give their folders different names")
    numbers = [re.findall(r"\d+", name) for name in names]
    steps = [int(found[-1]) for found in numbers if found]
    if len(set(steps)) < len(sources):
        steps = list(range(1, len(sources) + 1))
    return sorted(map(Run, names, steps, sources), key=lambda run: run.step)


def _matching(spec: str) -> list[str]:
    place = parse(spec)[1]
    found = sorted(glob.glob(place))
    if not found:
        raise InputError(f"--samples {spec}: nothing matches (looked from {Path.cwd()})")
    kind, _, rest = spec.partition(":")
    options = rest.rpartition("?")[2] if re.search(r"\?\w+=", rest) else ""
    return [f"{kind}:{path}{'?' + options if options else ''}" for path in found]


def curve(runs: Sequence[Run], results: Sequence[dict[str, Any]], limit: float | None) -> dict[str, Any]:
    """Return what curve.json holds. results: of each run, what audit.json holds; limit: `fail_above`.

    `last_below` is the last run whose interval does not reach above the limit.
    """
    rows = [_row(run, result) for run, result in zip(runs, results, strict=True)]
    below = [row for row in rows if limit is not None and row["failure"] is None and row["ci_high"] <= limit]
    control = results[-1]["holdout"]["control"]
    return {
        "schema": {"name": "scoresmooth curve", "version": 1},
        "runs": rows,
        "fail_above": limit,
        "last_below": below[-1]["name"] if below else None,
        "control": control,
        "train": {"count": results[-1]["train"]["count"], "digest": results[-1]["digests"]["train"]},
    }


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    metric = result["metrics"]["calibrated"]
    known = {"name": run.name, "step": run.step, "samples_digest": result["digests"]["samples"]}
    rates = {name: metric[name] for name in RATES}
    return {**known, **rates, "verdicts": result["verdicts"], "failure": result["failure"]}


def check_one_size(runs: Sequence[Run], results: Sequence[dict[str, Any]]) -> None:
    """InputError where the runs were compared at different sizes: their rates would differ for that reason alone."""
    first, last = results[0]["resolution"], results[-1]["resolution"]
    if first != last:
        sizes = f"{runs[0].name} at {first[0]} pixels and {runs[len(results) - 1].name} at {last[0]}"
        raise InputError(f"--samples: {sizes} cannot be compared: give --resolution")
