"""Figures of the theory's claims, drawn from the tables of stage verify, as SVG in the page's colours.

To add one: a function from a block's tables (name -> rows) to a list of `Figure`, entered in FIGURES under the
block's name. Labels carry units, axes are logarithmic where the paper's are, and the expected value is a line.
"""

from collections.abc import Callable
from typing import Any

from stages.reporting import smoothing_figures
from stages.reporting.figures import CONTROL, DASHES, INK, MUTED, SERIES, STYLE, to_svg
from stages.reporting.panels import Figure, Tables, column, expected_line, groups, look, panels, plain_ticks


def theory_figures(block: str, tables: Tables) -> list[Figure]:
    """The figures of one block; none where it has none."""
    import matplotlib

    draw = FIGURES.get(block)
    if draw is None:
        return []
    with matplotlib.rc_context(STYLE):
        return draw(tables)


def _shell_mass(tables: Tables) -> list[Figure]:
    rows = tables["shell_mass"]
    figure, (axis,) = panels(1, 2.8)
    dimensions, errors = column(rows, "d"), [4 * row["standard_error"] for row in rows]
    axis.errorbar(dimensions, column(rows, "monte_carlo"), errors, color=SERIES[0], fmt="o", markersize=4, capsize=3,
                  label="Monte Carlo, ± 4 standard errors")  # fmt: skip
    axis.plot(dimensions, column(rows, "exact"), color=SERIES[1], label="chi-square, exact")
    expected_line(axis, rows[0]["limit"], "limit 0.9973")
    axis.set(xscale="log", xlabel="dimension d", ylabel="mass within √d ± 3/√2")
    axis.legend(frameon=False)
    return [Figure(to_svg(figure, "shell-mass"), "The share of noise vectors whose norm lies within √d ± 3/√2.")]


def _sigma_domination(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels(1)
    for index, (alpha, rows) in enumerate(groups(tables["sigma_domination"], "alpha").items()):
        axis.plot(column(rows, "d"), column(rows, "ln_ratio"), **look(index), label=f"α = {alpha:.3g}")
        expected_line(axis, rows[0]["ln_limit"], "limit 18(1 − 2α)" if index == 0 else None)
    axis.set(xscale="log", xlabel="dimension d", ylabel="ln of the weight ratio wⱼ/wⱼ₊₁")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        "Weight of level σ_j over that of σ_{j+1} at radius ((1−α)σ_j + ασ_{j+1})√d, and its limit as d → ∞ (dashed)."
    )
    return [Figure(to_svg(figure, "sigma-domination"), caption)]


def _expansion(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels(1)
    for index, (score, rows) in enumerate(groups(tables["expansion"], "score").items()):
        style, sigmas = look(index), column(rows, "sigma")
        axis.plot(sigmas, column(rows, "closed_form"), color=style["color"], linestyle=style["linestyle"])
        axis.plot(sigmas, column(rows, "exact_step"), **{**style, "linestyle": "none"}, label=score)
        axis.fill_between(
            sigmas, column(rows, "low"), column(rows, "high"), color=style["color"], alpha=0.12, linewidth=0
        )
    expected_line(axis, 1.0)
    axis.set(xscale="log", yscale="log", xlabel="noise level σ (pixel units)", ylabel="expansion factor γₑₓ")
    levels = sorted(set(column(tables["expansion"], "sigma")))
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.xaxis.minorticks_off()
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = (
        "How far one step pulls a point and its mirror point apart, around pairs of training images: mean of the exact "
        "step (markers) and of the closed form (lines); band: 10 to 90 %. Above 1 (dashed) it separates them."
    )
    return [Figure(to_svg(figure, "expansion"), caption)]


def _mismatch(tables: Tables) -> list[Figure]:
    rows = tables["mismatch"]
    figure, (axis,) = panels(1)
    beta = column(rows, "beta")
    axis.plot(beta, column(rows, "ode_formula"), color=SERIES[0], linestyle=DASHES[0])
    axis.plot(beta, column(rows, "ode"), color=SERIES[0], linestyle="none", marker="o", markersize=4, label="ODE step")
    axis.plot(beta, column(rows, "sde_formula"), color=SERIES[1], linestyle=DASHES[1])
    axis.plot(
        beta, column(rows, "sde_rms"), color=SERIES[1], linestyle="none", marker="s", markersize=4, label="SDE step"
    )
    expected_line(axis, 1.0)
    axis.axvline(4, color=MUTED, linewidth=0.8, linestyle=":")
    axis.annotate("ODE overshoots", (4, 1), (6, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  color=INK, va="top", fontsize=8.5)  # fmt: skip
    axis.set(xlabel="β = (σₙ² − σₙ₊₁²)/R²", ylabel="R′/R after one step")
    axis.legend(frameon=False)
    caption = "The actual noise level after one schedule step of size β: measured (markers), formula (lines)."
    return [Figure(to_svg(figure, "mismatch"), caption)]


def _mismatch_trajectory(tables: Tables) -> list[Figure]:
    figure, axes = panels(2, 3.4)
    for index, (start, rows) in enumerate(groups(tables["mismatch_trajectory"], "start").items()):
        style = {**look(index), "marker": "none"}
        levels = column(rows, "sigma")
        axes[0].plot(levels, column(rows, "ode"), **style)
        axes[1].plot(levels, column(rows, "sde"), **style, label=f"{start:g}")
        axes[1].fill_between(
            levels, column(rows, "sde_low"), column(rows, "sde_high"), color=style["color"], alpha=0.18, linewidth=0
        )
        if index == 0:
            axes[1].axhline(rows[0]["sde_expected"], color=CONTROL, linewidth=1.4, linestyle="--")
    for axis, name in zip(axes, ("ODE", "SDE (median; band: all trajectories)")):
        axis.axhline(1, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="scheduled level σ", title=name, ylim=(0.02, 300))
        axis.invert_xaxis()
    axes[0].set_ylabel("actual over scheduled noise, R/σ")
    axes[1].legend(frameon=False, title="R/σ at the start", loc="upper left", ncols=2)
    caption = (
        "Near one training image, time runs to the right. With too little noise the ODE overshoots and is thrown far "
        "above the schedule, where it stays; the SDE settles at its stable fixed point (dashed). Neither removes "
        "noise in excess of the schedule. Started at R/σ = 1 the SDE is left to chance."
    )
    return [Figure(to_svg(figure, "mismatch-trajectory"), caption)]


def _jacobian(tables: Tables) -> list[Figure]:
    frozen = [row for row in tables["jacobian"] if row["sigma_star"] == "frozen"]
    figure, axes = panels(2, 3.4)
    boxes(axes[0], groups(frozen, "score"), "rho")
    _tenfold_line(axes[0], groups(frozen, "score"))
    boxes(axes[1], groups(frozen, "score"), "lambda_bar")
    for axis, text in zip(axes, ("spectral radius ρ(J)", "λ̄ = Σ w p, mean inverse squared level")):
        axis.set(yscale="log", ylabel=text)
    plain_ticks(axes[1].yaxis)
    _published(axes[1], groups(frozen, "score"), tables.get("jacobian_published", []))
    positive = [
        f"{name} {100 * sum(row['dominant'] > 0 for row in rows) / len(rows):.0f} %"
        for name, rows in groups(frozen, "score").items()
    ]
    caption = (
        "At midpoints of random pairs of training images, σ_i* held fixed. Box: quartiles and median; whiskers: 5 to "
        "95 %; points: means. Dashed: a fall as 1/T from the mean at the lowest T. "
        f"{'Grey: where the mean of CIFAR-10 is expected. ' if 'jacobian_published' in tables else ''}"
        f"Dominant eigenvalue positive (expanding): {', '.join(positive)}."
    )
    return [Figure(to_svg(figure, "jacobian"), caption), *_differentiated(tables)]


def boxes(axis: Any, named: dict[Any, list[dict[str, Any]]], value: str) -> None:
    """One box per group of rows: quartiles, median, 5 to 95 % whiskers, mean."""
    drawn = axis.boxplot(
        [column(rows, value) for rows in named.values()], whis=(5, 95), showfliers=False, showmeans=True, widths=0.55,
        meanprops={"marker": "o", "markerfacecolor": SERIES[1], "markeredgecolor": SERIES[1], "markersize": 4},
    )  # fmt: skip
    for part in ("boxes", "whiskers", "caps"):
        for line in drawn[part]:
            line.set(color=SERIES[0], linewidth=1.2)
    for line in drawn["medians"]:
        line.set(color=INK, linewidth=1.4)
    names = [str(name).replace("conditioning", "condi-\ntioning") for name in named]
    axis.set_xticks(range(1, len(named) + 1), names)


def _published(axis: Any, named: dict[Any, list[dict[str, Any]]], rows: list[dict[str, Any]]) -> None:
    """The range expected of a score's mean, across its box."""
    places = {name: place for place, name in enumerate(named, 1)}
    for row in rows:
        place = places[row["score"]]
        axis.fill_between([place - 0.45, place + 0.45], row["low"], row["high"], color=CONTROL, alpha=0.35, linewidth=0)


def _tenfold_line(axis: Any, named: dict[Any, list[dict[str, Any]]]) -> None:
    """ρ ∝ 1/T through the mean at the lowest temperature."""
    places = [(place, rows) for place, rows in enumerate(named.values(), 1) if rows[0]["score"] != "conditioning"]
    finite = [(place, rows) for place, rows in places if rows[0]["steepness"] > 0]
    if len(finite) < 2:
        return
    mean = sum(column(finite[0][1], "rho")) / len(finite[0][1])
    first = finite[0][1][0]["steepness"]
    line = [(place, mean * rows[0]["steepness"] / first) for place, rows in finite]
    axis.plot(*zip(*line), color=CONTROL, linewidth=1.4, linestyle="--")


def _differentiated(tables: Tables) -> list[Figure]:
    """Dominant eigenvalue with σ_i* held fixed beside differentiated, point by point."""
    kinds = groups(tables["jacobian"], "sigma_star")
    if "differentiated" not in kinds:
        return []
    frozen, other = (groups(kinds[kind], "score") for kind in ("frozen", "differentiated"))
    figure, (axis,) = panels(1)
    for index, (name, rows) in enumerate(other.items()):
        axis.plot(
            column(frozen[name], "rho"),
            column(rows, "rho"),
            **{**look(index), "linestyle": "none"},
            alpha=0.7,
            label=name,
        )
    low, high = axis.get_xlim()
    low = max(low, min(row["rho"] for row in kinds["frozen"]))
    axis.plot([low, high], [low, high], color=CONTROL, linewidth=1.4, linestyle="--")
    axis.set(xscale="log", yscale="log", xlabel="ρ(J), σᵢ* held fixed", ylabel="ρ(J), σᵢ* differentiated")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "Differentiating σ_i* as well adds (2/(d−2)) Σ w g gᵀ. On the dashed line it changes nothing."
    return [Figure(to_svg(figure, "jacobian-differentiated"), caption)]


def _collapse(tables: Tables) -> list[Figure]:
    figure, axes = panels(2, 3.4)
    for index, (score, rows) in enumerate(groups(tables["collapse"], "score").items()):
        style = {**look(index), "marker": "none"}
        steps = column(rows, "step")
        axes[0].plot(steps, column(rows, "weight"), **style, label=score)
        axes[0].fill_between(
            steps, column(rows, "low"), column(rows, "high"), color=style["color"], alpha=0.15, linewidth=0
        )
        axes[1].plot(steps, column(rows, "actual"), **style)
    some = next(iter(groups(tables["collapse"], "score").values()))
    axes[1].plot(column(some, "step"), column(some, "sigma"), color=CONTROL, linewidth=1.4, linestyle="--")
    for cut in sorted({row["cut"] for row in tables["collapse_steps"]}):
        axes[0].axhline(cut, color=MUTED, linewidth=0.8, linestyle=":")
    axes[0].set(xlabel="step n", ylabel="largest weight, median", title="Max weight (band: 10 to 90 %)")
    axes[1].set(xlabel="step n", ylabel="σ̂ = min r/√d, median", yscale="log", title="Actual noise (dashed: schedule)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False,
                  handlelength=3)  # fmt: skip
    caption = "A trajectory has collapsed onto one training image where the largest weight passes a cut (dotted)."
    return [Figure(to_svg(figure, "collapse"), caption)]


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "shell_mass": _shell_mass,
    "sigma_domination": _sigma_domination,
    "expansion": _expansion,
    "mismatch": _mismatch,
    "mismatch_trajectory": _mismatch_trajectory,
    "jacobian": _jacobian,
    "collapse": _collapse,
    **smoothing_figures.FIGURES,
}
