"""Figures of the analytic league and of loader batches: means over seeds, with their 95 % intervals."""

from collections.abc import Callable, Sequence
from typing import Any

from stages.memorization.seeds import over_seeds
from stages.reporting import panels
from stages.reporting.panels import Figure, Table, Tables, column

NETWORK = "network"


def _bars(rows: Table, value: str, scale: float = 1.0, least: float = 0.0) -> tuple[float, list[list[float]]]:
    """The mean of a column over seeds, and how far its interval reaches below and above, not below `least`."""
    mean = over_seeds([scale * row[value] for row in rows])
    low, high = (mean.mean, mean.mean) if mean.low is None else (max(least, mean.low), mean.high)
    return mean.mean, [[max(0.0, mean.mean - low)], [high - mean.mean]]


def _points(axis: Any, x: Sequence[Any], each: Sequence[Table], value: str, index: int, **options: Any) -> None:
    """A series of means over seeds, one per group of rows `each`, at the places x."""
    found = [_bars(rows, value, options.get("scale", 1.0)) for rows in each]
    errors = [[ends[side][0] for _, ends in found] for side in (0, 1)]
    axis.errorbar(x, [mean for mean, _ in found], errors, capsize=3, label=options.get("label"), **panels.look(index))


def _named(axis: Any, rows: Table, name: str) -> None:
    """Name a column's values on the x axis, and no others."""
    places = list(panels.groups(rows, name))
    axis.set_xticks(places, [f"{place:g}" for place in places])
    axis.xaxis.minorticks_off()


def _loader_batches(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2)
    for index, (name, rows) in enumerate(panels.groups(tables["loader_batches"], "softmax").items()):
        own = panels.groups(rows, "batch")
        _points(axes[0], list(own), list(own.values()), "copies", index, scale=100, label=f"softmax over {name}")
    control = over_seeds([100 * value for value in column(tables["loader_batches"], "control")]).mean
    panels.expected_line(axes[0], control, "held-out images")
    axes[0].set(xscale="log", ylim=(-3, 103), xlabel="images that share a softmax", ylabel="copies (%)")
    axes[0].legend(frameon=False, fontsize=8)
    whole = next(iter(panels.groups(tables["loader_batches_error"], "softmax").values()))
    for index, (batch, rows) in enumerate(panels.groups(whole, "batch").items()):
        own = panels.groups(rows, "sigma")
        _points(axes[1], list(own), list(own.values()), "error", index, label=f"{batch:g}")
    axes[1].set(xscale="log", xlabel="noise level σ (pixel units)", ylabel="rms error of the posterior mean")
    panels.legend(axes[1], title="images per batch", fontsize=8)
    _named(axes[0], tables["loader_batches"], "batch")
    _named(axes[1], tables["loader_batches_error"], "sigma")
    caption = (
        "Left: copies by the number of images over which the softmax is normalised; the last is one batch of all of "
        "them, the exact form. Right: how far the mean over batches is from the posterior mean, whole images. Bars: "
        "95 % intervals over seeds. If batches did not smooth, copies would be level and errors 0."
    )
    return panels.drawn(figure, "loader-batches", caption)


def _league(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(3, 3.8)
    forms = panels.groups(tables["league"], "form")
    for axis, value, scale in ((axes[0], "copies", 100.0), (axes[1], "fd", 1.0)):
        for place, (name, rows) in enumerate(forms.items()):
            mean, ends = _bars(rows, value, scale)
            index = 1 if name == NETWORK else 0
            axis.errorbar(mean, place, xerr=ends, capsize=3, **panels.look(index))
        panels.named_rows(axis, list(forms), 8)
    axes[0].axvline(over_seeds([100 * row["control"] for row in tables["league"]]).mean, **panels.DASHED)
    axes[0].set(xlim=(-3, 103), xlabel="copies (%)")
    axes[1].set(xlim=(0, None), xlabel="FD-pixels to held-out images")
    axes[1].tick_params(labelleft=False)
    for index, (name, rows) in enumerate(panels.groups(tables["league_levels"], "form").items()):
        own = panels.groups(rows, "sigma")
        _points(axes[2], list(own), list(own.values()), "cosine", index, label=name)
    axes[2].set(xscale="log", xlabel="noise level σ (pixel units)", ylabel="cosine with the network's score")
    _named(axes[2], tables["league_levels"], "sigma")
    panels.legend(axes[2], fontsize=8)
    caption = (
        "Left and middle: copies (dashed: held-out images) and distance of the samples of each closed form and of the "
        "network. Right: how alike each form's score and the network's are at noised held-out images. Bars: 95 % "
        "intervals over seeds."
    )
    return panels.drawn(figure, "league", caption)


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {"loader_batches": _loader_batches, "league": _league}
