"""Figures of what smoothing the score does: Chen's line, ReLU networks, bias and variance, smoothed samples."""

import math
from collections.abc import Callable

from stages.reporting.figures import CONTROL, DASHES, SERIES, to_svg
from stages.reporting.panels import Figure, Tables, column, groups, look, panels, plain_ticks


def _line(tables: Tables) -> list[Figure]:
    figure, axes = panels(3, 3.3)
    _limit_law(axes[0], tables)
    kappa, own = next(iter(groups(tables["line_order"], "kappa").items()))
    for index, (method, rows) in enumerate(groups(own, "method").items()):
        axes[1].plot(column(rows, "step"), column(rows, "error"), **look(index), label=method)
    axes[1].set(xscale="log", yscale="log", xlabel="step in ln t", ylabel="largest error of x at the end")
    axes[1].set_title(f"Integrating the flow, κ = {kappa:g}")
    axes[1].set_ylim(bottom=1e-14)
    axes[1].legend(frameon=False, loc="lower left")
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
        styles = {
            "empirical score": {"color": CONTROL, "linewidth": 1.4},
            "no weight decay": {"color": SERIES[0], "linestyle": DASHES[1], "linewidth": 1.4},
            "weight decay": {"color": SERIES[1], "linewidth": 2.6},
            "convex problem": {"color": SERIES[3], "linestyle": DASHES[3], "linewidth": 1.8},
        }
        for score, own in groups(rows, "score").items():
            axes[0].plot(column(own, "x"), column(own, "aim"), **styles[score], label=score)
        axes[0].set(xlabel="x", ylabel="x + σ² · score: where the flow aims at", ylim=(-1.5, 1.5))
        axes[0].set_title(f"Two points, σ = {rows[0]['sigma']:.2g}")
        axes[0].legend(frameon=False, fontsize=8)
        _shares(axes[1], tables)
        caption = (
            "Left: with weight decay a network learns the ramp of the convex problem, without it a steeper one; the "
            "empirical score jumps. Right: samples over 0.2 half-gaps from all data points, ± 2 standard errors."
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
    axis.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)


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
            axis.set_xlabel("u (half-gaps)", fontsize=8.5)
    axes[0].set_ylabel("v (half-gaps)", fontsize=8.5)
    return [Figure(to_svg(figure, "relu-points"), "Samples of the networks: their first two coordinates.")]


def _bias_variance(tables: Tables) -> list[Figure]:
    figure, axes = panels(3, 3.4)
    curves = groups(tables["bias_variance"], "training_points")
    for index, (count, rows) in enumerate(curves.items()):
        h, style = column(rows, "h"), look(index)
        axes[0].plot(h, column(rows, "error"), **style, label=f"M = {count:g}")
        best = min(rows, key=lambda row: row["error"])
        axes[0].plot(best["h"], best["error"], "o", markersize=11, markerfacecolor="none", color=style["color"])
    axes[0].set(yscale="log", xlabel="kernel width h", ylabel="mean squared error of the score")
    plain_ticks(axes[0].yaxis)
    axes[0].set_title("Error against the true score, σ fixed")
    axes[0].legend(frameon=False, fontsize=8)
    count, rows = list(curves.items())[len(curves) // 2]
    for index, name in enumerate(("error", "bias", "variance")):
        axes[1].plot(column(rows, "h"), column(rows, name), **look(index), label=("error", "bias²", "variance")[index])
    axes[1].set(xlabel="kernel width h", ylabel="mean square", ylim=(0, None))
    axes[1].set_title(f"Its two parts, M = {count:g}")
    axes[1].legend(frameon=False, fontsize=8)
    rows = tables["led_density"]
    for index, (name, label) in enumerate((("kde", "plain kernel density"), ("led", "LED-KDE"))):
        style = {**look(index), "marker": None}
        axes[2].plot(column(rows, "x"), column(rows, name), **style, label=label)
    axes[2].set(xlabel="x", ylabel="density", xlim=(-2.5, 2.5), ylim=(0, None))
    axes[2].set_title("Smoothing the log-density")
    axes[2].legend(frameon=False, fontsize=8)
    caption = (
        "Left: the kernel-smoothed score has its least error at an h above 0 (ringed), the smaller the more training "
        "points there are. Middle: variance is traded for bias. Right: 12 points, before and after the logarithm of "
        "their kernel density is averaged over Gaussian shifts."
    )
    return [Figure(to_svg(figure, "bias-variance"), caption)]


def _smoothed_circle(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels(1, 3.2)
    for index, (method, rows) in enumerate(groups(tables["smoothed_circle"], "method").items()):
        axis.plot(column(rows, "share_between"), column(rows, "rms_off"), **look(index), label=method)
    axis.set(xlabel="share of samples between the points, along the circle", ylabel="rms distance off (spacings)")
    axis.set_ylim(0, 0.5)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "Points on a circle: how far samples leave it against how far they spread along it; one marker per width."
    return [Figure(to_svg(figure, "smoothed-circle"), caption)]


def _smoothed_images(tables: Tables) -> list[Figure]:
    figure, axes = panels(4, 3.0)
    methods = groups(tables["smoothed_images"], "method")
    (control,) = methods.pop("held-out images")
    shown = {
        "copies": "share of copies, r₁/r₂ < 0.7",
        "vendi": "Vendi score (pixels)",
        "fd_pixels": "FD-pixels to held-out",
        "median_distance": "median distance to train",
    }
    for axis, (name, label) in zip(axes, shown.items()):
        for index, (method, rows) in enumerate(methods.items()):
            axis.plot(column(rows, "width"), column(rows, name), **look(index), label=method)
        axis.axhline(control[name], color=CONTROL, linewidth=1.4, linestyle="--", label="held-out images")
        axis.set(xlabel="width of the kernel")
        axis.set_title(label, fontsize=8.5)
        if name == "fd_pixels":
            axis.set_yscale("log")
            plain_ticks(axis.yaxis)
        else:
            axis.set_ylim(0, None)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    caption = (
        "Closed-form samples by kind and width of smoothing. Fewer copies by added noise (kernel density) are noisy "
        "images; by smoothing the score they are averages: their diversity falls."
    )
    return [Figure(to_svg(figure, "smoothed-images"), caption)]


def _learned_score(tables: Tables) -> list[Figure]:
    figure, axes = panels(3, 3.5)
    levels = groups(tables["learned_levels"], "variant")
    for index, (name, rows) in enumerate(levels.items()):
        sigma = column(rows, "sigma")
        axes[0].plot(sigma, column(rows, "cosine"), **look(index), label=name)
        some = [row for row in rows if row["expansion"] is not None]
        axes[1].plot(column(some, "sigma"), column(some, "expansion"), **look(index))
    axes[0].set(
        xscale="log", xlabel="noise level σ (pixels in [0, 1])", ylabel="cosine with the empirical score, and angle"
    )
    axes[0].axhline(1, color=CONTROL, linewidth=1.4, linestyle="--")
    _angles(axes[0])
    axes[0].set_title("Direction")
    rows = [row for row in next(iter(levels.values())) if row["expansion_empirical"] is not None]
    axes[1].plot(column(rows, "sigma"), column(rows, "expansion_empirical"), color=CONTROL, linestyle="--",
                 linewidth=1.4, label="empirical score")  # fmt: skip
    axes[1].set(xscale="log", yscale="log", xlabel="noise level σ (pixels in [0, 1])", ylabel="expansion factor γₑₓ")
    axes[1].set_title("How far one step pulls points apart")
    axes[1].legend(frameon=False, fontsize=8)
    plain_ticks(axes[1].xaxis)
    _longest_steps(axes[2], tables)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(levels)),
                  frameon=False, handlelength=3)  # fmt: skip
    caption = (
        "Trained networks beside the empirical score of their training images. Left: mean cosine at noised training "
        "images. Middle: mirrored pairs of points between two training images (none exist at low levels). Right: the "
        "longest of the steps between neighbouring mixtures, after denoising; dashed: a path of even steps."
    )
    return [Figure(to_svg(figure, "learned-score"), caption)]


def _angles(axis) -> None:
    """The cosines of `axis` as angles, on its right side, down to its lowest cosine."""
    lowest, highest = axis.get_ylim()
    largest = math.degrees(math.acos(max(lowest, -1.0)))
    angles = [angle for angle in (0, 5, 10, 15, 20, 30, 45, 60, 90, 120, 150, 180) if angle <= largest]
    right = axis.twinx()
    right.set_ylim(lowest, highest)
    right.set_yticks([math.cos(math.radians(angle)) for angle in angles], [f"{angle}°" for angle in angles])
    right.grid(visible=False)


def _longest_steps(axis, tables: Tables) -> None:
    paths = groups(tables["learned_paths"], "variant")
    for row, own in enumerate(paths.values()):
        for index, (mixture, some) in enumerate(groups(own, "mixture").items()):
            values = column(some, "longest_step")
            place = [row + 0.16 * (2 * index - 1)] * len(values)
            axis.plot(values, place, ("o", "D")[index % 2], color=SERIES[index], markersize=4, alpha=0.8,
                      label=mixture if row == 0 else None)  # fmt: skip
    axis.set_yticks(range(len(paths)), list(paths), fontsize=7.5)
    axis.set_ylim(len(paths) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.grid(axis="x")
    axis.axvline(next(iter(paths.values()))[0]["even_step"], color=CONTROL, linewidth=1.4, linestyle="--")
    axis.set_xlabel("longest step / length of the path")
    axis.set_title("Between two noised images")
    axis.legend(frameon=False, fontsize=8, loc="lower right")


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "line": _line,
    "relu_networks": _relu_networks,
    "bias_variance": _bias_variance,
    "smoothed_circle": _smoothed_circle,
    "smoothed_images": _smoothed_images,
    "learned_score": _learned_score,
}
