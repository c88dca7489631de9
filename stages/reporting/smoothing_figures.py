"""Figures of what smoothing the score does: Chen's line, ReLU networks, bias and variance, smoothed samples."""

from collections.abc import Callable

from stages.reporting.figures import CONTROL, DASHES, SERIES, to_svg
from stages.reporting.panels import Figure, Tables, column, groups, look, panels


def _line(tables: Tables) -> list[Figure]:
    figure, axes = panels(3, 3.3)
    _limit_law(axes[0], tables)
    kappa, own = next(iter(groups(tables["line_order"], "kappa").items()))
    for index, (method, rows) in enumerate(groups(own, "method").items()):
        axes[1].plot(column(rows, "step"), column(rows, "error"), **look(index), label=method)
    axes[1].set(xscale="log", yscale="log", xlabel="step in ln t", ylabel="largest error of x at the end")
    axes[1].set_title(f"Integrating the flow, κ = {kappa:g}")
    axes[1].legend(frameon=False, loc="lower right")
    for index, (score, rows) in enumerate(groups(tables["line_in_space"], "score").items()):
        axes[2].plot(column(rows, "t"), column(rows, "distance_to_line"), **look(index), label=score)
    rows = tables["line_in_space"]
    first = rows[0]["distance_to_line"] / rows[0]["t"] ** 0.5
    times = sorted({row["t"] for row in rows})
    axes[2].plot(times, [first * t**0.5 for t in times], color=CONTROL, linestyle="--", linewidth=1.4, label="∝ √t")
    axes[2].set(xscale="log", yscale="log", xlabel="time t (runs to the left)", ylabel="distance to the line")
    axes[2].set_title("A line in d dimensions")
    axes[2].legend(frameon=False)
    caption = (
        "Left: where the smoothed flow ends between the data points −1 and 1: samples (steps) and predicted density "
        "(lines); the rest ends on the points themselves. Middle: error of integration by step. Right: smoothing must "
        "not slow the score across the line."
    )
    return [Figure(to_svg(figure, "line"), caption)]


def _limit_law(axis, tables: Tables) -> None:
    for index, (kappa, rows) in enumerate(groups(tables["line_limit_law"], "kappa").items()):
        color, u = SERIES[index], column(rows, "u")
        axis.step(u, column(rows, "sampled"), where="mid", color=color, linewidth=0.9, alpha=0.6)
        mass = next(row["predicted"] for row in tables["line_atoms"] if row["kappa"] == kappa)
        label = f"κ = {kappa:g}: {100 * mass:.1f} % on each point"
        axis.plot(u, column(rows, "predicted"), color=color, linestyle=DASHES[index], linewidth=1.6, label=label)
    axis.set(xlabel="end point u", ylabel="density", ylim=(0, None))
    axis.set_title("Limit law")
    axis.legend(frameon=False, loc="upper center", fontsize=8)


def _relu_networks(tables: Tables) -> list[Figure]:
    found = []
    if "relu_fit" in tables:
        figure, axes = panels(2, 3.3)
        rows = tables["relu_fit"]
        for index, (score, own) in enumerate(groups(rows, "score").items()):
            style = {**look(index), "marker": None, "linewidth": 2.6 if score == "weight decay" else 1.4}
            axes[0].plot(column(own, "x"), column(own, "aim"), **style, label=score)
        axes[0].set(xlabel="x", ylabel="x + σ² · score: where the flow aims at", ylim=(-1.5, 1.5))
        axes[0].set_title(f"Two points, σ = {rows[0]['sigma']:.2g}")
        axes[0].legend(frameon=False, fontsize=8)
        _shares(axes[1], tables)
        caption = (
            "Left: with weight decay a network learns the ramp of the convex problem, without it the jump between the "
            "two data points. Right: samples farther than 0.2 half-gaps from every data point, ± 2 standard errors."
        )
        found.append(Figure(to_svg(figure, "relu-fit"), caption))
    return [*found, *_relu_points(tables)]


def _shares(axis, tables: Tables) -> None:
    data = groups(tables["relu_samples"], "data")
    for row, own in enumerate(data.values()):
        for entry in own:
            index = 0 if entry["decay"] == 0 else 1
            label = ("no weight decay", "weight decay")[index] if row == 0 else None
            axis.errorbar(100 * entry["share_between"], row, xerr=200 * entry["standard_error"], color=SERIES[index],
                          fmt=("o", "D")[index], markersize=5, label=label)  # fmt: skip
    axis.set_yticks(range(len(data)), list(data))
    axis.set_ylim(len(data) - 0.5, -0.5)
    axis.set_xlim(0, None)
    axis.grid(axis="x")
    axis.set_xlabel("samples between the data (%)")
    axis.legend(frameon=False, loc="lower right", fontsize=8)


def _relu_points(tables: Tables) -> list[Figure]:
    data = groups(tables.get("relu_points", []), "data")
    if not data:
        return []
    figure, axes = panels(2 * len(data), 10 / (2 * len(data)) + 0.5)
    for number, (name, rows) in enumerate(data.items()):
        for index, (_, own) in enumerate(groups(rows, "decay").items()):
            axis = axes[2 * number + index]
            axis.plot(column(own, "u"), column(own, "v"), color=SERIES[index], marker=".", linestyle="none",
                      markersize=3, alpha=0.5)  # fmt: skip
            axis.set_aspect("equal", "datalim")
            axis.set_title(f"{name}\n{('no weight decay', 'weight decay')[index]}", fontsize=8)
            axis.grid(visible=False)
            axis.set_xlabel("first coordinate (half-gaps)", fontsize=7)
    axes[0].set_ylabel("second coordinate", fontsize=7)
    return [Figure(to_svg(figure, "relu-points"), "Samples of the networks in the plane of the first two coordinates.")]


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {"line": _line, "relu_networks": _relu_networks}
