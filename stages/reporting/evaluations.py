"""Copies and quality against score evaluations, of variants that differ in the number of the sampler's levels only."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.ticker import NullLocator

from stages.reporting.figures import CONTROL, STYLE, to_svg
from stages.reporting.inputs import Variant
from stages.reporting.panels import canvas, look, shared_legend
from stages.reporting.results import result_row
from stages.reporting.words import cell

ALONG = ("levels", "step")  # the sampler's keys that may differ: a step's size belongs to the number of levels
ENDLESS = "gradient-ascent"  # ends at a noise level, so that nobody sets the number of its evaluations
PANELS = {"copies": "copied samples (%)", "blends": "blends (%)", "fd_test": "{} to test images"}
Row = dict[str, Any]


def evaluation_groups(variants: Sequence[Variant]) -> list[list[Row]]:
    """Return the groups of variants that differ in evaluations only, each as rows of numbers, fewest evaluations first.

    A row has variant, sampler, evaluations, step, and of each of PANELS the value with the ends of its interval, as in
    the table of variants, and the value of held-out images.
    """
    bounded = [variant for variant in variants if variant.sample["sampler"]["name"] != ENDLESS]
    found = []
    for group in _grouped(bounded, lambda v: _all_else(v, *ALONG)):
        distinct = len({v.sample["nfe"] for v in group}) == len(group)
        found += [group] if distinct else _grouped(group, lambda v: _all_else(v, "levels"))  # steps were compared
    ordered = [sorted(own, key=lambda v: v.sample["nfe"]) for own in found]
    return [[_row(v) for v in own] for own in ordered if own[0].sample["nfe"] != own[-1].sample["nfe"]]


def _grouped(variants: Sequence[Variant], key: Callable[[Variant], str]) -> list[list[Variant]]:
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        groups.setdefault(key(variant), []).append(variant)
    return list(groups.values())


def _all_else(variant: Variant, *along: str) -> str:
    """Return everything but the sampler's keys `along`, as text. The samples under the Fréchet distance count, too."""
    tree = variant.tree
    spec = {key: value for key, value in tree["spec"].items() if key != "sampler"}
    sampler = {key: value for key, value in tree["spec"]["sampler"].items() if key not in along}
    return json.dumps([spec, sampler, tree["train"], tree["sample"], variant.fid["samples"]], sort_keys=True)


def _row(variant: Variant) -> Row:
    row, sampler = result_row(variant, over_seeds=False), variant.sample["sampler"]
    floor = row["fd_holdout_of_first" if "fd_test_mean_low" in row else "fd_floor"]
    return {
        "variant": variant.name,
        "sampler": sampler["name"],
        "evaluations": variant.sample["nfe"],
        "step": sampler.get("step"),
        **{name: cell(row, name) for name in PANELS},
        "holdout": dict(zip(PANELS, (row["control_rate"], row["blends_control_rate"], floor))),
    }


def evaluation_figure(groups: Sequence[Sequence[Row]], distance: str) -> str | None:
    """Return the groups' shares and Fréchet distance over evaluations, with intervals; None without groups. SVG text.

    distance: the Fréchet distance's name.
    """
    if not groups:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(len(PANELS))
        for axis, (name, title) in zip(axes, PANELS.items()):
            for index, rows in enumerate(groups):
                _line(axis, rows, name, 1 if name == "fd_test" else 100, look(index))
            axis.set(xscale="log", title=title.format(distance), xlabel="score evaluations per sample")
            ticks = sorted({row["evaluations"] for rows in groups for row in rows})
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.set_ylim(0, None)
        shared_legend(figure, axes[0], columns=2)
        return to_svg(figure, "evaluations")


def _line(axis: Any, rows: Sequence[Row], name: str, scale: float, style: dict[str, Any]) -> None:
    x, values = [row["evaluations"] for row in rows], [[scale * end for end in row[name]] for row in rows]
    axis.plot(x, [value for value, *_ in values], **style, label=" · ".join(row["variant"] for row in rows))
    axis.vlines(x, [low for _, low, _ in values], [high for *_, high in values], color=style["color"], linewidth=2)
    axis.plot(x, [scale * row["holdout"][name] for row in rows], color=CONTROL, linestyle="--", linewidth=1.2)
