"""What the figures of the theory's claims share: panels, the look of a series, groups of rows, legends."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stages.reporting.figures import CONTROL, DASHES, MUTED, SERIES, to_svg

Table = Sequence[dict[str, Any]]
Tables = dict[str, list[dict[str, Any]]]
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHED: dict[str, Any] = {"color": CONTROL, "linewidth": 1.4, "linestyle": "--"}
DOTTED: dict[str, Any] = {"color": MUTED, "linewidth": 0.8, "linestyle": ":"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG and what it shows."""

    svg: str
    caption: str


def canvas(count: int, height: float = 3.1) -> tuple[Any, Sequence[Any]]:
    """Return a figure of the page's width with `count` axes beside each other, and the axes."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(10, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(axis="y")
    return figure, axes


def drawn(figure: Any, name: str, caption: str) -> list[Figure]:
    """Return the figure as the only one of its block. name: prefix of the SVG's ids."""
    return [Figure(to_svg(figure, name), caption)]


def look(index: int) -> dict[str, Any]:
    """Return colour, dash and marker of the series number `index`: colour is never the only sign."""
    place = index % len(SERIES)
    return {"color": SERIES[place], "linestyle": DASHES[place], "marker": MARKERS[place], "markersize": 4}


def curves(
    axis: Any, table: Table, by: str, x: str, y: str, *, band: tuple[str, str] | None = None, named: bool = True,
    label: str = "{}", **changes: Any,
) -> None:  # fmt: skip
    """Draw column y over column x, one series per value of the column `by`.

    band: the columns between which the area is shaded. named: whether the series enter the legend, as `label` formats
    them. changes: of the series' look.
    """
    for index, (name, rows) in enumerate(groups(table, by).items()):
        style = {**look(index), **changes}
        axis.plot(column(rows, x), column(rows, y), **style, label=label.format(name) if named else None)
        if band:
            low, high = (column(rows, end) for end in band)
            axis.fill_between(column(rows, x), low, high, color=style["color"], alpha=0.15, linewidth=0)


def legend(axis: Any, **places: Any) -> None:
    """Draw a legend without a frame; without a place to the right of the panel."""
    axis.legend(frameon=False, **(places or {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}))


def shared_legend(figure: Any, axis: Any, columns: int) -> None:
    """Draw the legend of one panel below all of them."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)


def expected_line(axis: Any, value: float, label: str | None = None) -> None:
    """Draw the expected value as a line across the panel."""
    axis.axhline(value, **DASHED, label=label)


def named_rows(axis: Any, names: Sequence[str], size: float | None = None) -> None:
    """Name the categories that a panel's y axis counts from the top."""
    axis.set_yticks(range(len(names)), names, fontsize=size)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(axis="x")


def plain_ticks(axis: Any) -> None:
    """Set ticks at 1, 2, 3 and 5 of every power of ten, as plain numbers: for a logarithmic axis of few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def column(rows: Table, name: str) -> list[Any]:
    """Return one column of a table."""
    return [row[name] for row in rows]


def groups(rows: Table, name: str) -> dict[Any, list[dict[str, Any]]]:
    """Return the rows by the values of one column, in their order."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found
