"""Copies, diversity and quality against the kernel's width h, of closed forms that differ in it only (METHODS §8)."""

import json
from collections.abc import Sequence
from typing import Any

import matplotlib

from stages.reporting.figures import CONTROL, STYLE, to_svg
from stages.reporting.inputs import Variant
from stages.reporting.panels import canvas, look, shared_legend
from stages.reporting.results import result_row
from stages.reporting.words import cell

UNSMOOTHED, SMOOTHED = "conditioning", ("kernel-smoothed", "kernel-density")
"""The form that a kernel-smoothed score, and that of a kernel density, is at h = 0."""

PANELS = {"copies": "copied samples (%)", "vendi": "Vendi score", "fd_test": "{} to test images"}
Row = dict[str, Any]


def width_groups(variants: Sequence[Variant]) -> list[list[Row]]:
    """Return the groups of closed forms that differ in kernel.h alone, two of them at least, by rising h.

    A row has variant, width, and of each of PANELS the value with the ends of its interval (the Vendi score has none)
    and the value of held-out images. The unsmoothed score under the same sampler is the row of h = 0.
    """
    groups: dict[str, list[Variant]] = {}
    for variant in variants:
        if variant.tree["spec"].get("kernel") is not None:
            groups.setdefault(_all_else(variant), []).append(variant)
    plain = {_all_else(variant): variant for variant in variants if variant.form == UNSMOOTHED and not variant.network}
    found = []
    for group in groups.values():
        if len({_width(variant) for variant in group}) > 1:
            first = plain.get(_all_else(group[0], form=UNSMOOTHED)) if group[0].form in SMOOTHED else None
            found.append(sorted([*group, *([first] if first else [])], key=_width))
    return [[_row(variant) for variant in own] for own in found]


def _width(variant: Variant) -> float:
    kernel = variant.tree["spec"].get("kernel")
    return kernel["h"] if kernel else 0.0


def _all_else(variant: Variant, **changes: str) -> str:
    """Return everything but the kernel's width as text, with `changes` of the specification.

    The draws belong to a kernel: a score without one has none. The samples under the Fréchet distance count, too.
    """
    tree = variant.tree
    spec = {**tree["spec"], **changes}
    kernel = spec.pop("kernel", None)
    draws = kernel["draws"] if kernel and not changes else None
    rest = [spec, draws, tree["train"], tree["sample"], len(variant.samples), variant.fid["samples"]]
    return json.dumps(rest, sort_keys=True)


def _row(variant: Variant) -> Row:
    row = result_row(variant, over_seeds=False)
    holdout = (row["control_rate"], row["vendi_holdout"], row["fd_floor"])
    return {
        "variant": variant.name,
        "width": _width(variant),
        "copies": cell(row, "copies"),
        "vendi": (row["vendi"], row["vendi"], row["vendi"]),
        "fd_test": cell(row, "fd_test"),
        "holdout": dict(zip(PANELS, holdout)),
    }


def width_figure(groups: Sequence[Sequence[Row]], distance: str) -> str | None:
    """Return the groups' copies, Vendi score and Fréchet distance over h, SVG text; None without groups.

    distance: the Fréchet distance's name.
    """
    if not groups:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = canvas(len(PANELS))
        for axis, (name, title) in zip(axes, PANELS.items()):
            for index, rows in enumerate(groups):
                _line(axis, rows, name, 100 if name == "copies" else 1, look(index))
            axis.set(title=title.format(distance), xlabel="kernel width h (pixels in [0, 1])", ylim=(0, None))
        shared_legend(figure, axes[0], columns=2)
        return to_svg(figure, "kernel-widths")


def _line(axis: Any, rows: Sequence[Row], name: str, scale: float, style: dict[str, Any]) -> None:
    widths, values = [row["width"] for row in rows], [[scale * end for end in row[name]] for row in rows]
    axis.plot(widths, [value for value, *_ in values], **style, label=" · ".join(row["variant"] for row in rows))
    lows, highs = [low for _, low, _ in values], [high for *_, high in values]
    axis.vlines(widths, lows, highs, color=style["color"], linewidth=2)
    axis.plot(widths, [scale * row["holdout"][name] for row in rows], color=CONTROL, linestyle="--", linewidth=1.2)
