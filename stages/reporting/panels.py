"""What the figures of the theory's claims share: panels, the look of a series, and a table's columns."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from stages.reporting.figures import CONTROL, DASHES, SERIES

Tables = dict[str, list[dict[str, Any]]]
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclasses.dataclass(frozen=True)
class Figure:
    """An SVG and what it shows."""

    svg: str
    caption: str


def panels(count: int, height: float = 3.1) -> tuple[Any, Sequence[Any]]:
    """A figure of the page's width with `count` axes beside each other."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(10, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.grid(axis="y")
    return figure, axes


def look(index: int) -> dict[str, Any]:
    """Colour, dash and marker of the series number `index`: colour is never the only sign."""
    place = index % len(SERIES)
    return {"color": SERIES[place], "linestyle": DASHES[place], "marker": MARKERS[place], "markersize": 4}


def expected_line(axis: Any, value: float, label: str | None = None) -> None:
    """The expected value, as a line across the panel."""
    axis.axhline(value, color=CONTROL, linewidth=1.4, linestyle="--", label=label)


def plain_ticks(axis: Any) -> None:
    """Ticks at 1, 2, 3 and 5 of every power of ten, as plain numbers: for a logarithmic axis of few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    """One column of a table."""
    return [row[name] for row in rows]


def groups(rows: Sequence[dict[str, Any]], name: str) -> dict[Any, list[dict[str, Any]]]:
    """The rows by the values of one column, in their order."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found
