"""The figure that opens the report: copies against quality along the training, a curve per network and seed."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stages.reporting.figures import CONTROL, INK, MUTED, SERIES, STYLE, to_svg
from stages.reporting.frontier import baselines
from stages.reporting.inputs import Variant
from stages.reporting.panels import MARKERS, plain_ticks
from stages.reporting.runs import BLEND, DISTANCE, RATIO, of_seed, rates, seeds
from stages.reporting.words import limit

PANELS = {
    RATIO: "copied: r₁/r₂ < {limit}",
    DISTANCE: "nearer than 99 % of held-out images",
    BLEND: "blends",
}


def frontier_figure(variants: Sequence[Variant]) -> str | None:
    """Return shares of the samples against FD, a row of panels per plain network; None without measured runs. SVG text.

    A row holds a plain network and the smoothed ones that equal it in all but the target; networks without such a
    partner share the last row.
    """
    rows = _rows(variants)
    if not rows:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.2 + 2.9 * len(rows)), layout="constrained")
        axes = figure.subplots(len(rows), len(PANELS), squeeze=False, sharex=True, sharey=True)
        for row, (own, title) in zip(axes, rows):
            for axis, (measure, words) in zip(row, PANELS.items()):
                _panel(axis, own, measure)
                axis.set_title(words.format(limit=limit(variants[0].limits[-1])))
            row[0].set_ylabel(title)
            row[-1].legend(*row[0].get_legend_handles_labels(), frameon=False, fontsize=8)
        axes[0][0].set_ylim(0, None)
        values = np.concatenate([v.runs["fd"] for own, _ in rows for v in own])
        if values.min() > 0 and values.max() > 3 * values.min():
            axes[0][0].set_xscale("log")
            plain_ticks(axes[0][0].xaxis)
        figure.supxlabel(f"{variants[0].fid['name']} to test images: better to the left", fontsize=9)
        return to_svg(figure, "frontier")


def _rows(variants: Sequence[Variant]) -> list[tuple[list[Variant], str]]:
    """Return the networks by plain network, each group with its title."""
    partner = baselines(variants)
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        if variant.runs is not None:
            plain = partner.get(variant.name) or (variant.name if variant.name in partner.values() else "")
            groups.setdefault(plain, []).append(variant)
    ordered = sorted(groups.items(), key=lambda group: group[0] == "")
    return [(sorted(own, key=lambda v: v.name != plain), _title(plain)) for plain, own in ordered]


def _title(plain: str) -> str:
    return "samples (%)" if plain else "samples (%)\nno partner, so not comparable"


def _panel(axis: Any, own: Sequence[Variant], measure: str) -> None:
    for index, variant in enumerate(own):
        color, mark = SERIES[index % len(SERIES)], MARKERS[index % len(MARKERS)]
        for number, seed in enumerate(sorted(seeds(variant.runs))):
            runs = of_seed(variant.runs, seed)
            x, y = runs["fd"], 100 * rates(runs, measure)
            axis.plot(x, y, color=color, linewidth=1, marker=mark, markersize=3, alpha=0.75)
            axis.plot([runs["fd_low"][-1], runs["fd_high"][-1]], [y[-1], y[-1]], color=color, linewidth=0.8, alpha=0.6)
            axis.plot(
                x[-1], y[-1], mark, color=color, markersize=8, markeredgecolor=INK, markeredgewidth=0.8,
                label=variant.name if number == 0 else None, linestyle="none",
            )  # fmt: skip
    control = own[0].filter["metrics"][measure]["holdout_rate"]
    axis.axhline(100 * control, color=CONTROL, linewidth=1.2, linestyle="--")
    axis.axvline(own[0].fid["first_holdout"]["fd"], color=MUTED, linewidth=0.8, linestyle=":")
    axis.grid()
