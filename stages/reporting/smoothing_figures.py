"""Figures of what smoothing the score does: Chen's line, ReLU networks, bias and variance, smoothed samples."""

import math
from collections.abc import Callable
from typing import Any

from stages.reporting import panels
from stages.reporting.figures import CONTROL, DASHES, SERIES
from stages.reporting.panels import Figure, Table, Tables, column


def _line(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(3, 3.3)
    _limit_law(axes[0], tables)
    kappa, own = next(iter(panels.groups(tables["line_order"], "kappa").items()))
    panels.curves(axes[1], own, "method", "step", "error")
    axes[1].set(xscale="log", yscale="log", xlabel="step in ln t", ylabel="largest error of x at the end")
    axes[1].set(title=f"Integrating the flow, κ = {kappa:g}", ylim=(1e-14, None))
    panels.legend(axes[1], loc="lower left")
    rows = tables["line_in_space"]
    panels.curves(axes[2], rows, "score", "t", "distance_to_line")
    first = rows[0]["distance_to_line"] / rows[0]["t"] ** 0.5
    times = sorted({row["t"] for row in rows})
    axes[2].plot(times, [first * t**0.5 for t in times], **panels.DASHED, label="∝ √t")
    axes[2].set(xscale="log", yscale="log", xlabel="time t (runs to the left)", ylabel="distance to the line")
    axes[2].set_title("A line in d dimensions")
    axes[2].legend(frameon=False)
    caption = (
        "Left: where the smoothed flow ends between the data points −1 and 1: samples (steps) and predicted density "
        "(lines); the rest ends on the points themselves. Middle: error of integration by step. Right: smoothing must "
        "not slow the score across the line."
    )
    return panels.drawn(figure, "line", caption)


def _limit_law(axis: Any, tables: Tables) -> None:
    for index, (kappa, rows) in enumerate(panels.groups(tables["line_limit_law"], "kappa").items()):
        color, u = SERIES[index], column(rows, "u")
        axis.step(u, column(rows, "sampled"), where="mid", color=color, linewidth=0.9, alpha=0.6)
        mass = next(row["predicted"] for row in tables["line_atoms"] if row["kappa"] == kappa)
        label = f"κ = {kappa:g}: {100 * mass:.1f} % on each point"
        axis.plot(u, column(rows, "predicted"), color=color, linestyle=DASHES[index], linewidth=1.6, label=label)
    axis.set(xlabel="end point u", ylabel="density", ylim=(0, None), title="Limit law")
    panels.legend(axis, loc="upper center", fontsize=8)


def _relu_networks(tables: Tables) -> list[Figure]:
    return [*(_relu_fit(tables) if "relu_fit" in tables else []), *_relu_points(tables)]


def _relu_fit(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.3)
    rows = tables["relu_fit"]
    styles = {
        "empirical score": {"color": CONTROL, "linewidth": 1.4},
        "no weight decay": {"color": SERIES[0], "linestyle": DASHES[1], "linewidth": 1.4},
        "weight decay": {"color": SERIES[1], "linewidth": 2.6},
        "convex problem": {"color": SERIES[3], "linestyle": DASHES[3], "linewidth": 1.8},
    }
    for score, own in panels.groups(rows, "score").items():
        axes[0].plot(column(own, "x"), column(own, "aim"), **styles[score], label=score)
    axes[0].set(xlabel="x", ylabel="x + σ² · score: where the flow aims at", ylim=(-1.5, 1.5))
    axes[0].set_title(f"Two points, σ = {rows[0]['sigma']:.2g}")
    panels.legend(axes[0], fontsize=8)
    _shares(axes[1], tables)
    caption = (
        "Left: with weight decay a network learns the ramp of the convex problem, without it a steeper one; the "
        "empirical score jumps. Right: samples over 0.2 half-gaps from all data points, ± 2 standard errors."
    )
    return panels.drawn(figure, "relu-fit", caption)


def _shares(axis: Any, tables: Tables) -> None:
    data = panels.groups(tables["relu_samples"], "data")
    for row, own in enumerate(data.values()):
        for entry in own:
            index = 0 if entry["decay"] == 0 else 1
            label = ("no weight decay", "weight decay")[index] if row == 0 else None
            axis.errorbar(100 * entry["share_between"], row, xerr=200 * entry["standard_error"], color=SERIES[index],
                          fmt=("o", "D")[index], markersize=5, label=label)  # fmt: skip
    panels.named_rows(axis, list(data))
    axis.set(xlim=(0, None), xlabel="samples between the data (%)")
    panels.legend(axis, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8)


def _relu_points(tables: Tables) -> list[Figure]:
    data = panels.groups(tables.get("relu_points", []), "data")
    if not data:
        return []
    figure, axes = panels.canvas(2 * len(data), 10 / (2 * len(data)) + 0.5)
    for number, (name, rows) in enumerate(data.items()):
        for index, own in enumerate(panels.groups(rows, "decay").values()):
            axis = axes[2 * number + index]
            axis.plot(column(own, "u"), column(own, "v"), ".", color=SERIES[index], markersize=3, alpha=0.5)
            axis.set_aspect("equal", "datalim")
            axis.set_title(f"{name}\n{('no weight decay', 'weight decay')[index]}", fontsize=8)
            axis.grid(visible=False)
            axis.set_xlabel("u (half-gaps)", fontsize=8.5)
    axes[0].set_ylabel("v (half-gaps)", fontsize=8.5)
    return panels.drawn(figure, "relu-points", "Samples of the networks: their first two coordinates.")


def _bias_variance(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(3, 3.4)
    table = tables["bias_variance"]
    panels.curves(axes[0], table, "training_points", "h", "error", label="M = {:g}")
    for index, rows in enumerate(panels.groups(table, "training_points").values()):
        best = min(rows, key=lambda row: row["error"])
        axes[0].plot(
            best["h"], best["error"], "o", markersize=11, markerfacecolor="none", color=panels.look(index)["color"]
        )
    axes[0].set(yscale="log", xlabel="kernel width h", ylabel="mean squared error of the score")
    panels.plain_ticks(axes[0].yaxis)
    groupings = list(panels.groups(table, "training_points").items())
    count, rows = groupings[len(groupings) // 2]
    for index, (name, label) in enumerate((("error", "error"), ("bias", "bias²"), ("variance", "variance"))):
        axes[1].plot(column(rows, "h"), column(rows, name), **panels.look(index), label=label)
    axes[1].set(xlabel="kernel width h", ylabel="mean square", ylim=(0, None))
    rows = tables["led_density"]
    for index, (name, label) in enumerate((("kde", "plain kernel density"), ("led", "LED-KDE"))):
        axes[2].plot(column(rows, "x"), column(rows, name), **{**panels.look(index), "marker": None}, label=label)
    axes[2].set(xlabel="x", ylabel="density", xlim=(-2.5, 2.5), ylim=(0, None))
    titles = "Error against the true score, σ fixed", f"Its two parts, M = {count:g}", "Smoothing the log-density"
    for axis, title in zip(axes, titles):
        axis.set_title(title)
        panels.legend(axis, fontsize=8)
    caption = (
        "Left: the kernel-smoothed score has its least error at an h above 0 (ringed), the smaller the more training "
        "points there are. Middle: variance is traded for bias. Right: 12 points, before and after the logarithm of "
        "their kernel density is averaged over Gaussian shifts."
    )
    return panels.drawn(figure, "bias-variance", caption)


def _score_noise(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.4)
    rows, t = tables["score_noise"], column(tables["score_noise"], "t")
    smooth = f"smoothed, h = {rows[0]['h']:g}"
    kinds = ("found", "predicted", "empirical score"), ("smoothed", "smoothed_predicted", smooth)
    for index, (found, predicted, label) in enumerate(kinds):
        style = panels.look(index)
        axes[0].plot(t, column(rows, predicted), color=style["color"], linestyle=style["linestyle"])
        axes[0].plot(t, column(rows, found), style["marker"], color=style["color"], markersize=5, label=label)
    axes[0].plot(t, column(rows, "limit"), **panels.DASHED, label="limit ∝ t^{−(d/2+1)}")
    axes[0].set(xscale="log", yscale="log", xlabel="time t = σ²", ylabel="trace of the covariance", title="Variance")
    panels.legend(axes[0], loc="upper right", fontsize=8)
    own = tables["score_noise_correlation"]
    panels.curves(axes[1], own, "t", "separation", "predicted", marker=None, named=False)
    panels.curves(axes[1], own, "t", "separation", "found", linestyle="none", label="t = {:g}")
    panels.expected_line(axes[1], 0.0)
    axes[1].set(xlabel="distance between the points", ylabel="correlation of the noise", title="Correlation in space")
    panels.legend(axes[1], loc="upper right", fontsize=8)
    caption = (
        "The empirical score's noise over training sets, at one place of a known mixture: measured (markers) and to "
        "first order (lines). As the time falls it grows and loses its correlation in space, so that a kernel averages "
        "more of it."
    )
    return panels.drawn(figure, "score-noise", caption)


def _generated_density(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.4)
    rows = tables["generated_density"]
    for axis, name, title in zip(axes, ("divergence", "bound"), ("Divergence", "Its bound from the score's error")):
        panels.curves(axis, rows, "training_points", "h", name, label="M = {:g}", named=axis is axes[0])
        axis.set(yscale="log", xlabel="kernel width h", title=title)
        panels.expected_line(axis, rows[0]["floor"], "true score, same steps" if axis is axes[0] else None)
        panels.plain_ticks(axis.yaxis)
    axes[0].set_ylabel("KL(p ‖ q) in nats")
    axes[1].set_ylim(axes[0].get_ylim())
    panels.legend(axes[0], fontsize=8, loc="lower right")
    caption = (
        "The reverse SDE under the kernel-smoothed score of M points of a known mixture on a line; mean over training "
        "sets. Left: divergence of the density that it generates. Right: ½ ∫ E (ŝ − s)² dt, which bounds it up to the "
        "dashed line."
    )
    return panels.drawn(figure, "generated-density", caption)


def _smoothed_circle(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels.canvas(1, 3.2)
    panels.curves(axis, tables["smoothed_circle"], "method", "share_between", "rms_off")
    axis.set(xlabel="share of samples between the points, along the circle", ylabel="rms distance off (spacings)")
    axis.set_ylim(0, 0.5)
    panels.legend(axis)
    caption = "Points on a circle: how far samples leave it against how far they spread along it; one marker per width."
    return panels.drawn(figure, "smoothed-circle", caption)


def _smoothed_images(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(4, 3.0)
    (control,) = (row for row in tables["smoothed_images"] if row["method"] == "held-out images")
    samples = [row for row in tables["smoothed_images"] if row is not control]
    shown = {
        "copies": "share of copies, r₁/r₂ < 0.7",
        "vendi": "Vendi score (pixels)",
        "fd_pixels": "FD-pixels to held-out",
        "median_distance": "median distance to train",
    }
    for axis, (name, label) in zip(axes, shown.items()):
        panels.curves(axis, samples, "method", "width", name)
        panels.expected_line(axis, control[name], "held-out images")
        axis.set(xlabel="width of the kernel")
        axis.set_title(label, fontsize=8.5)
        if name == "fd_pixels":
            axis.set_yscale("log")
            panels.plain_ticks(axis.yaxis)
        else:
            axis.set_ylim(0, None)
    panels.shared_legend(figure, axes[0], 4)
    caption = (
        "Closed-form samples by kind and width of smoothing. Fewer copies by added noise (kernel density) are noisy "
        "images; by smoothing the score they are averages: their diversity falls."
    )
    return panels.drawn(figure, "smoothed-images", caption)


def _learned_score(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.5)
    table = tables["learned_levels"]
    panels.curves(axes[0], table, "variant", "sigma", "cosine")
    axes[0].set(xscale="log", ylabel="cosine with the empirical score, and angle", title="Direction")
    axes[0].set_xlabel("noise level σ (pixels in [0, 1])")
    panels.expected_line(axes[0], 1)
    _angles(axes[0])
    _longest_steps(axes[1], tables)
    panels.shared_legend(figure, axes[0], min(4, len(panels.groups(table, "variant"))))
    caption = (
        "Trained networks beside the empirical score of their training images. Left: mean cosine at noised training "
        "images. Right: the longest of the steps between neighbouring mixtures, after denoising; dashed: a path of "
        "even steps."
    )
    rest = *_learned_expansion(tables), *_learned_temperatures(tables)
    return [*panels.drawn(figure, "learned-score", caption), *rest]


CLOSED_FACTORS = {  # column of learned_levels -> how its line is named
    "expansion_empirical": "empirical score, all images",
    "expansion_closed_form": "two images, level given",
    **{f"expansion_t_{t}": f"two images, T = {t}" for t in (1, 10, 100, 1000)},
}


def _learned_expansion(tables: Tables) -> list[Figure]:
    """The expansion factors of all networks and of the closed forms, over the same pairs (METHODS §2)."""
    table = [row for row in tables["learned_levels"] if row["expansion"] is not None]
    if not table:
        return []
    figure, (axis,) = panels.canvas(1, 4.2)
    networks = panels.groups(table, "variant")
    panels.curves(axis, table, "variant", "sigma", "expansion", zorder=3)
    first = next(iter(networks.values()))
    for index, (name, label) in enumerate(CLOSED_FACTORS.items()):
        style = {**panels.DASHED, "marker": panels.MARKERS[index % len(panels.MARKERS)], "markersize": 4}
        axis.plot(column(first, "sigma"), column(first, name), **style, markerfacecolor="none", label=label)
    panels.expected_line(axis, 1.0)
    axis.set(xscale="log", yscale="log", xlabel="noise level σ (pixels in [0, 1])", ylabel="expansion factor γₑₓ")
    panels.plain_ticks(axis.xaxis)
    panels.legend(axis, fontsize=8)
    return panels.drawn(figure, "learned-expansion", _expansion_caption(networks))


def _expansion_caption(networks: dict[str, Table]) -> str:
    counts = sorted({int(row["expansion_pairs"]) for rows in networks.values() for row in rows})
    errors = [
        row["expansion_error"] for rows in networks.values() for row in rows if row["expansion_error"] is not None
    ]
    largest = f"; their largest standard error is {max(errors):.2g}" if errors else ""
    span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    return (
        "How far one step x + σ² s(x) pulls a point and its mirror point between two training images apart: mean over "
        f"{span} pairs per level (at low levels few images are near enough to have such points). Lines: trained "
        f"networks{largest}. Dashed: closed forms at the same points, the hotter the lower. Above 1 a step separates "
        "points that were near each other."
    )


def _learned_temperatures(tables: Tables) -> list[Figure]:
    """The thermometer over all training images (METHODS §8b): T by direction, T by error, and what T accounts for."""
    figure, axes = panels.canvas(3, 3.5)
    rows = [row for row in tables["learned_temperatures"] if row["neighbors"] is None]
    for axis, (reading, read) in zip(axes, reversed(panels.groups(rows, "reading").items())):
        for index, own in enumerate(panels.groups(read, "variant").values()):
            ends = [[row["t_eff"] - row["low"] for row in own], [row["high"] - row["t_eff"] for row in own]]
            places = [row["sigma"] * (1 + 0.04 * index) for row in own]
            axis.errorbar(
                places, column(own, "t_eff"), ends, **panels.look(index) | {"linestyle": "none"}, elinewidth=1
            )
        axis.set(xscale="log", yscale="log", ylabel="T_eff", title=f"Temperature by {reading}")
    shares = [{**row, "share": 1 - (row["error"] / row["error_at_1"]) ** 2} for row in rows if row["error_at_1"] > 0]
    panels.curves(axes[2], [row for row in shares if row["reading"] == "direction"], "variant", "sigma", "share")
    axes[2].set(xscale="log", ylabel="share of sin² at T = 1", title="What T removes of the angle")
    for axis in axes:
        axis.set_xlabel("noise level σ (pixels in [0, 1])")
    panels.shared_legend(figure, axes[2], min(4, len(panels.groups(rows, "variant"))))
    return panels.drawn(figure, "learned-temperature", _temperature_caption(rows))


def _temperature_caption(rows: Table) -> str:
    """Say for each network at which levels both readings exclude T = 1, and how hot it is there."""
    told = []
    for name, own in panels.groups(rows, "variant").items():
        levels = panels.groups(own, "sigma")
        hot = [both for both in levels.values() if all(row["identified"] and row["low"] > 1 for row in both)]
        span = sorted(row["t_eff"] for both in hot for row in both)
        reach = f" (T from {span[0]:.2g} to {span[-1]:.2g})" if span else ""
        told.append(f"{name} at {len(hot)} of {len(levels)} levels{reach}")
    return (
        "The temperature at which the closed form over all training images matches a trained network best, with 95 % "
        "intervals over noised images; one that reaches from 1 or up to T = d bounds T on one side only. A score that "
        "is merely too short reads hot by its error, not by its direction. Both readings exclude T = 1 for "
        f"{'; '.join(told)}. Right: where the share is near 0 the network differs from the closed form in another way "
        "than by temperature. One network per variant is read: it takes more to tell variants apart."
    )


def _angles(axis: Any) -> None:
    """The cosines of `axis` as angles, on its right side, down to its lowest cosine."""
    lowest, highest = axis.get_ylim()
    largest = math.degrees(math.acos(max(lowest, -1.0)))
    angles = [angle for angle in (0, 5, 10, 15, 20, 30, 45, 60, 90, 120, 150, 180) if angle <= largest]
    right = axis.twinx()
    right.set_ylim(lowest, highest)
    right.set_yticks([math.cos(math.radians(angle)) for angle in angles], [f"{angle}°" for angle in angles])
    right.grid(visible=False)


def _longest_steps(axis: Any, tables: Tables) -> None:
    paths = tables["learned_paths"]
    for row, own in enumerate(panels.groups(paths, "variant").values()):
        for index, (mixture, some) in enumerate(panels.groups(own, "mixture").items()):
            values, place = column(some, "longest_step"), [row + 0.16 * (2 * index - 1)] * len(some)
            axis.plot(values, place, ("o", "D")[index % 2], color=SERIES[index], markersize=4, alpha=0.8,
                      label=mixture if row == 0 else None)  # fmt: skip
    panels.named_rows(axis, list(panels.groups(paths, "variant")), 7.5)
    axis.axvline(paths[0]["even_step"], **panels.DASHED)
    axis.set(xlim=(0, 1), xlabel="longest step / length of the path", title="Between two noised images")
    panels.legend(axis, fontsize=8, loc="lower right")


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "line": _line,
    "relu_networks": _relu_networks,
    "bias_variance": _bias_variance,
    "score_noise": _score_noise,
    "generated_density": _generated_density,
    "smoothed_circle": _smoothed_circle,
    "smoothed_images": _smoothed_images,
    "learned_score": _learned_score,
}
