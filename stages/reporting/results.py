"""The results as tables: for the page, the terminal, `dvc metrics` and `dvc plots`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stages.memorization.ratios import PUBLISHED
from stages.reporting.answer import Opening, frontier_row
from stages.reporting.checks import Check
from stages.reporting.inputs import CURVES, Inputs, Variant
from stages.reporting.learned import NAME as LEARNED
from stages.reporting.words import Rate, number

THIRD = "nn_ratio_1_3"  # r_1/r_2 < 1/3, the literature's usual rule, shown beside the headline
ENDS = ("count", "rate", "low", "high")


def kind(variant: Variant) -> str:
    """What the samples come from, in words."""
    return "network" if variant.network else "closed form"


def result_row(variant: Variant) -> dict[str, Any]:
    """One variant's numbers, rates in [0, 1]: a row of results.json."""
    metrics, ratio, fid = variant.filter["metrics"], variant.filter["ratio"], variant.fid
    return {
        "variant": variant.name,
        "score": kind(variant),
        "form": variant.form,
        **_rate("copies", variant.copies),
        **_rate("ratio_below_third", Rate.of(metrics[THIRD]) if THIRD in metrics else None),
        **_rate("control", variant.control),
        **_rate("blends", variant.blends),
        **_rate("blends_control", Rate.of(metrics["blend"], "holdout_")),
        **_rate("calibrated_distance", Rate.of(metrics["calibrated_distance"])),
        "fd_name": fid["name"],
        "fd_test": fid["test"]["distance"],
        "fd_train": fid["train"]["distance"],
        "fd_floor": fid["floor"]["distance"],
        "vendi": fid["vendi"]["samples"],
        "vendi_holdout": fid["vendi"]["holdout"],
        "median_multiple": variant.median_multiple,
        "ratio_mean": ratio["mean"],
        "ratio_min": ratio["min"],
        **_rate("verified", variant.verified),
        **_rate("verified_without_repeated", variant.verified_without_repeated),
        **_open(variant),
    }


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
        "answer": opening.sentence,
        "rates": opening.rates,
        "frontier": [frontier_row(compared) for compared in opening.compared],
        "metric": {"name": inputs.metric, **metric},
        "rows": [result_row(variant) for variant in inputs.variants],
        "contrasts": list(contrasts),
        "checks": [dataclasses.asdict(check) for check in found],
        "theory": {
            "claims": len(inputs.claims),
            "passed": sum(claim["passed"] for claim in inputs.claims),
            "failed": [_in_words(claim) for claim in inputs.claims if not claim["passed"]],
            "beside_verify": [{"name": b.name, "title": b.title, "claims": b.claims} for b in trained],
        },
    }


def _in_words(claim: dict[str, Any]) -> str:
    return (
        f"{claim['claim']}: {number(claim['measured'], 5)} instead of {number(claim['expected'], 5)} "
        f"± {number(claim['tolerance'])}"
    )


def metrics(inputs: Inputs, found: Sequence[Check]) -> dict[str, Any]:
    """metrics.json for `dvc metrics diff`: numbers only, per variant and in total."""
    return {
        "variants": {variant.name: _numbers(variant) for variant in inputs.variants},
        "checks": _outcomes([check.passed for check in found]),
        "theory": _outcomes([claim["passed"] for claim in inputs.claims]),
    }


def _numbers(variant: Variant) -> dict[str, float]:
    return {
        **{key: value for key, value in result_row(variant).items() if isinstance(value, int | float)},
        **{f"rate_{name}": m["rate"] for name, m in sorted(variant.filter["metrics"].items()) if name in PUBLISHED},
        "unique_training_images": variant.filter["unique_training_images"],
    }


def _outcomes(passed: Sequence[bool]) -> dict[str, int]:
    return {"passed": sum(passed), "failed": len(passed) - sum(passed)}


def curve_rows(variants: Sequence[Variant], curve: str) -> list[dict[str, Any]]:
    """The networks' `loss` or `curve` (copies, Fréchet distance), a row per variant and step; NaN: no level drawn."""
    columns = {variant.name: getattr(variant, curve) for variant in variants if getattr(variant, curve) is not None}
    return [
        {"variant": name, **{column: float(value) for column, value in zip(CURVES[curve], row)}, "step": int(row[0])}
        for name, found in columns.items()
        for row in zip(*(found[column] for column in CURVES[curve]))
    ]


def run_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Every measured run of every network: variant, seed, step and the measures."""
    return [
        {"variant": variant.name, **{name: float(value) for name, value in zip(variant.runs, row)}}
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
