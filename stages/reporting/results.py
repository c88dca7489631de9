"""The results as tables: for the page, the terminal, `dvc metrics` and `dvc plots`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stages.memorization.ratios import PUBLISHED
from stages.reporting.answer import Opening, frontier_row
from stages.reporting.checks import Check
from stages.reporting.inputs import LOSS, Inputs, Variant
from stages.reporting.learned import NAME as LEARNED
from stages.reporting.onsets import onset_rows
from stages.reporting.runs import BLEND, DISTANCE, mean_at_the_end, seeds
from stages.reporting.words import RESULTS_VERSION, Rate, number

STRICT = "nn_ratio_copy"  # the limit of a copy, 1/3 unless filter.ratios says otherwise, shown beside the headline
ENDS = ("count", "rate", "low", "high")
FD = ("fd", "fd_low", "fd_high")
DESCRIBED = ("recall", "coverage", "vendi", "sharpness")  # of a set of samples, beside as many held-out images
OVER_SEEDS = {
    "calibrated_distance": DISTANCE,
    "blends": BLEND,
    "fd_test": "fd",
    "coverage": "coverage",
    "vendi": "vendi",
}

DECIDES = ("copies_rate", "blends_rate", "calibrated_distance_rate", "verified_rate", "fd_test", "median_multiple")
"""The numbers by which variants are compared: `dvc exp show` has a column for each. All others are in results.json."""


def kind(variant: Variant) -> str:
    """What the samples come from, in words."""
    return "network" if variant.network else "closed form"


def result_row(variant: Variant, over_seeds: bool) -> dict[str, Any]:
    """One variant's numbers, rates in [0, 1]: a row of results.json.

    over_seeds: whether the networks beside it have several training seeds. Their Fréchet distance, coverage and Vendi
    score, which depend on the number of samples, are then of sample.curve_count samples, and so are a closed form's.
    """
    metrics, ratio, fid = variant.filter["metrics"], variant.filter["ratio"], variant.fid
    return {
        "variant": variant.name,
        "score": kind(variant),
        "form": variant.form,
        **_rate("copies", variant.copies),
        **_rate("ratio_copy", Rate.of(metrics[STRICT]) if STRICT in metrics else None),
        **_rate("control", variant.control),
        **_rate("blends", variant.blends),
        **_rate("blends_control", Rate.of(metrics["blend"], "holdout_")),
        **_rate("calibrated_distance", Rate.of(metrics["calibrated_distance"])),
        "fd_name": fid["name"],
        "fd_test": fid["test"]["distance"],
        "fd_train": fid["train"]["distance"],
        "fd_floor": fid["floor"]["distance"],
        "fd_test_low": fid["test"]["low"],
        "fd_test_high": fid["test"]["high"],
        **{name: fid[name]["samples"] for name in DESCRIBED},
        **{f"{name}_holdout": fid[name]["holdout"] for name in DESCRIBED},
        "median_multiple": variant.median_multiple,
        **{f"rate_{name}": m["rate"] for name, m in sorted(metrics.items()) if name in PUBLISHED},
        "unique_training_images": variant.filter["unique_training_images"],
        "ratio_mean": ratio["mean"],
        "ratio_min": ratio["min"],
        **_rate("verified", variant.verified),
        **_rate("verified_without_repeated", variant.verified_without_repeated),
        **_open(variant),
        **(_of_the_first(variant) if over_seeds and variant.runs is None else _over_seeds(variant)),
        **{f"{name}_holdout_of_first": variant.fid["first_holdout"][name] for name in ("fd", "coverage", "vendi")},
    }


def _of_the_first(variant: Variant) -> dict[str, Any]:
    """Return what depends on the number of samples, of as many as the networks' runs have, in the means' columns."""
    first = variant.fid["first"]
    found = {f"fd_test_{end}": first[name] for end, name in zip(("mean", "mean_low", "mean_high"), FD)}
    for name in ("coverage", "vendi"):  # they have no interval within a set
        found |= {f"{name}_mean": first[name], f"{name}_mean_low": None, f"{name}_mean_high": None}
    return found | {"first_count": first["count"]}


def _over_seeds(variant: Variant) -> dict[str, Any]:
    """A network's means over the training seeds at the end of training, with their intervals where there are several.

    They rest on sample.curve_count samples of each seed; the other numbers of a row on all samples of the first seed.
    """
    if variant.runs is None:
        return {}
    found: dict[str, Any] = {"seeds": len(seeds(variant.runs)), "seeds_count": int(variant.runs["count"][0])}
    for name, measure in {**OVER_SEEDS, "copies": variant.metric}.items():
        if measure in variant.runs and variant.runs[measure].dtype.kind == "f":  # text where it is not defined
            mean = mean_at_the_end(variant.runs, measure)
            found[f"{name}_mean"] = mean.mean
            if mean.low is not None:
                found |= {f"{name}_mean_low": mean.low, f"{name}_mean_high": mean.high}
    return found


def _open(variant: Variant) -> dict[str, int]:
    """How many suspected pairs nobody has judged yet, where some are left: then `verified` is a lower bound."""
    found = variant.filter["verified"]
    return {"verified_open": found["open"]} if found and found["open"] else {}


def _rate(name: str, rate: Rate | None) -> dict[str, Any]:
    if rate is None:
        return {}
    flagged, *others = dataclasses.astuple(rate)
    return {name: flagged, **{f"{name}_{end}": value for end, value in zip(ENDS, others)}}


def results(
    inputs: Inputs, opening: Opening, found: Sequence[Check], contrasts: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """data/report/results.json, which `scoresmooth results` prints. contrasts: of `contrast_row`."""
    defined = inputs.variants[0].filter["metrics"]
    metric = {key: defined[inputs.metric][key] for key in ("definition", "threshold")}
    metric |= {"blend": defined["blend"]["definition"]}
    trained = [block for block in inputs.theory if block.name == LEARNED]
    return {
        "version": RESULTS_VERSION,
        "answer": opening.sentence,
        "rates": opening.rates,
        "frontier": [frontier_row(compared) for compared in opening.compared],
        "onsets": onset_rows(inputs.variants),
        "metric": {"name": inputs.metric, **metric},
        "rows": [result_row(variant, inputs.over_seeds) for variant in inputs.variants],
        "contrasts": list(contrasts),
        "checks": [dataclasses.asdict(check) for check in found],
        "theory": {
            "claims": len(inputs.claims),
            "passed": sum(claim["passed"] for claim in inputs.claims),
            "failed": [in_words(claim) for claim in inputs.claims if not claim["passed"]],
            "beside_verify": [{"name": b.name, "title": b.title, "claims": b.claims} for b in trained],
        },
        "questions": [
            {"name": block.name, "title": block.title, "question": block.question, "claims": block.claims}
            for block in inputs.questions
        ],
    }


def in_words(claim: dict[str, Any]) -> str:
    """Name what failed: one number, or the case that deviates most where a row summarizes many by their mean."""
    measured, expected, tolerance = number(claim["measured"], 5), number(claim["expected"], 5), claim["tolerance"]
    if claim["deviation"] is None:
        return f"{claim['claim']}: {measured} instead of {expected} ± {number(tolerance)}"
    return (
        f"{claim['claim']}: one case deviates by {number(claim['deviation'])}, the tolerance is {number(tolerance)} "
        f"(mean {measured}, expected {expected})"
    )


def metrics(inputs: Inputs, found: Sequence[Check]) -> dict[str, Any]:
    """metrics.json for `dvc metrics diff` and `dvc exp show`: what decides, per variant, and how many checks failed."""
    return {
        "variants": {variant.name: _numbers(variant) for variant in inputs.variants},
        "checks_failed": sum(not check.passed for check in found),
        "theory_failed": sum(not claim["passed"] for claim in inputs.claims),
    }


def _numbers(variant: Variant) -> dict[str, float]:
    row = result_row(variant, over_seeds=False)
    return {key: row[key] for key in DECIDES if key in row}


def loss_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """The networks' loss curves, a row per variant and step; NaN: no level of that third was drawn."""
    return [
        {"variant": variant.name, **{column: float(value) for column, value in zip(LOSS, row)}, "step": int(row[0])}
        for variant in variants
        if variant.loss is not None
        for row in zip(*(variant.loss[column] for column in LOSS))
    ]


def run_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every measured run of every network: variant, seed, step and the measures."""
    return [
        {"variant": variant.name, **dict(zip(variant.runs, row))}
        for variant in variants
        if variant.runs is not None
        for row in zip(*variant.runs.values())
    ]


def copy_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Copy rate by variant, in percent."""
    return [
        {
            "variant": variant.name,
            "score": kind(variant),
            "copy_rate_percent": 100 * variant.copies.rate,
            "low": 100 * variant.copies.low,
            "high": 100 * variant.copies.high,
            "control": 100 * variant.control.rate,
        }
        for variant in variants
    ]
