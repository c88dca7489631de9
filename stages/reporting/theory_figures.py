"""Figures of the theory's claims, drawn from the tables of stage verify, as SVG in the page's colours.

To add one: a function from a block's tables (name -> rows) to a list of `Figure`, entered in FIGURES under the
block's name. Labels carry units, axes are logarithmic where the paper's are, and the expected value is a line.
"""

from collections.abc import Callable
from typing import Any

from stages.reporting import league_figures, panels, question_figures, smoothing_figures
from stages.reporting.figures import CONTROL, DASHES, INK, SERIES, STYLE
from stages.reporting.panels import Figure, Table, Tables, column


def theory_figures(block: str, tables: Tables) -> list[Figure]:
    """Return the figures of one block; none where it has none."""
    import matplotlib

    draw = FIGURES.get(block)
    if draw is None:
        return []
    with matplotlib.rc_context(STYLE):
        return draw(tables)


def _shell_mass(tables: Tables) -> list[Figure]:
    rows = tables["shell_mass"]
    figure, (axis,) = panels.canvas(1, 2.8)
    dimensions, errors = column(rows, "d"), [4 * row["standard_error"] for row in rows]
    axis.errorbar(dimensions, column(rows, "monte_carlo"), errors, color=SERIES[0], fmt="o", markersize=4, capsize=3,
                  label="Monte Carlo, ± 4 standard errors")  # fmt: skip
    axis.plot(dimensions, column(rows, "exact"), color=SERIES[1], label="chi-square, exact")
    panels.expected_line(axis, rows[0]["limit"], "limit 0.9973")
    axis.set(xscale="log", xlabel="dimension d", ylabel="mass within √d ± 3/√2")
    axis.legend(frameon=False)
    return panels.drawn(figure, "shell-mass", "The share of noise vectors whose norm lies within √d ± 3/√2.")


def _sigma_domination(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels.canvas(1)
    table = tables["sigma_domination"]
    panels.curves(axis, table, "alpha", "d", "ln_ratio", label="α = {:.3g}")
    for index, rows in enumerate(panels.groups(table, "alpha").values()):
        panels.expected_line(axis, rows[0]["ln_limit"], "limit 18(1 − 2α)" if index == 0 else None)
    axis.set(xscale="log", xlabel="dimension d", ylabel="ln of the weight ratio wⱼ/wⱼ₊₁")
    panels.legend(axis)
    caption = (
        "Weight of level σ_j over that of σ_{j+1} at radius ((1−α)σ_j + ασ_{j+1})√d, and its limit as d → ∞ (dashed)."
    )
    return panels.drawn(figure, "sigma-domination", caption)


def _expansion(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels.canvas(1)
    table = tables["expansion"]
    panels.curves(axis, table, "score", "sigma", "closed_form", marker=None, named=False, band=("low", "high"))
    panels.curves(axis, table, "score", "sigma", "exact_step", linestyle="none")
    panels.expected_line(axis, 1.0)
    axis.set(xscale="log", yscale="log", xlabel="noise level σ (pixel units)", ylabel="expansion factor γₑₓ")
    levels = sorted(set(column(table, "sigma")))
    axis.set_xticks(levels, [f"{level:g}" for level in levels])
    axis.xaxis.minorticks_off()
    panels.legend(axis)
    caption = (
        "How far one step pulls a point and its mirror point apart, around pairs of training images: mean of the exact "
        "step (markers) and of the closed form (lines); band: 10 to 90 %. Above 1 (dashed) it separates them."
    )
    return panels.drawn(figure, "expansion", caption)


def _mismatch(tables: Tables) -> list[Figure]:
    rows = tables["mismatch"]
    figure, (axis,) = panels.canvas(1)
    beta = column(rows, "beta")
    kinds = (("ode_formula", "ode", "o", "ODE step"), ("sde_formula", "sde_rms", "s", "SDE step"))
    for index, (formula, measured, marker, label) in enumerate(kinds):
        axis.plot(beta, column(rows, formula), color=SERIES[index], linestyle=DASHES[index])
        axis.plot(beta, column(rows, measured), marker, color=SERIES[index], markersize=4, label=label)
    panels.expected_line(axis, 1.0)
    axis.axvline(4, **panels.DOTTED)
    axis.annotate("ODE overshoots", (4, 1), (6, 0), xycoords=("data", "axes fraction"), textcoords="offset points",
                  color=INK, va="top", fontsize=8.5)  # fmt: skip
    axis.set(xlabel="β = (σₙ² − σₙ₊₁²)/R²", ylabel="R′/R after one step")
    axis.legend(frameon=False)
    caption = "The actual noise level after one schedule step of size β: measured (markers), formula (lines)."
    return panels.drawn(figure, "mismatch", caption)


def _mismatch_trajectory(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.4)
    table = tables["mismatch_trajectory"]
    panels.curves(axes[0], table, "start", "sigma", "ode", marker="none")
    panels.curves(axes[1], table, "start", "sigma", "sde", marker="none", label="{:g}", band=("sde_low", "sde_high"))
    panels.expected_line(axes[1], table[0]["sde_expected"])
    for axis, name in zip(axes, ("ODE", "SDE (median; band: all trajectories)")):
        axis.axhline(1, **panels.DOTTED)
        axis.set(xscale="log", yscale="log", xlabel="scheduled level σ", title=name, ylim=(0.02, 300))
        axis.invert_xaxis()
    axes[0].set_ylabel("actual over scheduled noise, R/σ")
    axes[1].legend(frameon=False, title="R/σ at the start", loc="upper left", ncols=2)
    caption = (
        "Near one training image, time runs to the right. With too little noise the ODE overshoots and is thrown far "
        "above the schedule, where it stays; the SDE settles at its stable fixed point (dashed). Neither removes "
        "noise in excess of the schedule. Started at R/σ = 1 the SDE is left to chance."
    )
    return panels.drawn(figure, "mismatch-trajectory", caption)


def _jacobian(tables: Tables) -> list[Figure]:
    frozen = panels.groups([row for row in tables["jacobian"] if row["sigma_star"] == "frozen"], "score")
    figure, axes = panels.canvas(2, 3.4)
    boxes(axes[0], frozen, "rho")
    _tenfold_line(axes[0], frozen)
    boxes(axes[1], frozen, "lambda_bar")
    for axis, text in zip(axes, ("spectral radius ρ(J)", "λ̄ = Σ w p, mean inverse squared level")):
        axis.set(yscale="log", ylabel=text)
    panels.plain_ticks(axes[1].yaxis)
    _published(axes[1], list(frozen), tables.get("jacobian_published", []))
    positive = [
        f"{name} {100 * sum(row['dominant'] > 0 for row in rows) / len(rows):.0f} %" for name, rows in frozen.items()
    ]
    caption = (
        "At midpoints of random pairs of training images, σ_i* held fixed. Box: quartiles and median; whiskers: 5 to "
        "95 %; points: means. Dashed: a fall as 1/T from the mean at the lowest T. "
        f"{'Grey: where the mean of CIFAR-10 is expected. ' if 'jacobian_published' in tables else ''}"
        f"Dominant eigenvalue positive (expanding): {', '.join(positive)}."
    )
    return [*panels.drawn(figure, "jacobian", caption), *_differentiated(tables)]


def boxes(axis: Any, named: dict[Any, list[dict[str, Any]]], value: str) -> None:
    """Draw one box per group of rows: quartiles, median, 5 to 95 % whiskers, mean."""
    found = axis.boxplot(
        [column(rows, value) for rows in named.values()], whis=(5, 95), showfliers=False, showmeans=True, widths=0.55,
        meanprops={"marker": "o", "markerfacecolor": SERIES[1], "markeredgecolor": SERIES[1], "markersize": 4},
    )  # fmt: skip
    for line in (*found["boxes"], *found["whiskers"], *found["caps"]):
        line.set(color=SERIES[0], linewidth=1.2)
    for line in found["medians"]:
        line.set(color=INK, linewidth=1.4)
    names = [str(name).replace("conditioning", "condi-\ntioning") for name in named]
    axis.set_xticks(range(1, len(named) + 1), names)


def _published(axis: Any, names: list[str], rows: Table) -> None:
    """The range expected of a score's mean, across its box."""
    for row in rows:
        place = names.index(row["score"]) + 1
        axis.fill_between([place - 0.45, place + 0.45], row["low"], row["high"], color=CONTROL, alpha=0.35, linewidth=0)


def _tenfold_line(axis: Any, named: dict[Any, list[dict[str, Any]]]) -> None:
    """ρ ∝ 1/T through the mean at the lowest temperature."""
    finite = [
        (place, rows)
        for place, (name, rows) in enumerate(named.items(), 1)
        if name != "conditioning" and rows[0]["steepness"] > 0
    ]
    if len(finite) >= 2:
        coldest = finite[0][1]
        mean, first = sum(column(coldest, "rho")) / len(coldest), coldest[0]["steepness"]
        axis.plot(*zip(*[(place, mean * rows[0]["steepness"] / first) for place, rows in finite]), **panels.DASHED)


def _differentiated(tables: Tables) -> list[Figure]:
    """Dominant eigenvalue with σ_i* held fixed beside differentiated, point by point."""
    kinds = panels.groups(tables["jacobian"], "sigma_star")
    if "differentiated" not in kinds:
        return []
    frozen = {(row["score"], row["point"]): row["rho"] for row in kinds["frozen"]}
    both = [{**row, "frozen": frozen[row["score"], row["point"]]} for row in kinds["differentiated"]]
    figure, (axis,) = panels.canvas(1)
    panels.curves(axis, both, "score", "frozen", "rho", linestyle="none", alpha=0.7)
    low, high = axis.get_xlim()
    low = max(low, min(frozen.values()))
    axis.plot([low, high], [low, high], **panels.DASHED)
    axis.set(xscale="log", yscale="log", xlabel="ρ(J), σᵢ* held fixed", ylabel="ρ(J), σᵢ* differentiated")
    panels.legend(axis)
    caption = "Differentiating σ_i* as well adds (2/(d−2)) Σ w g gᵀ. On the dashed line it changes nothing."
    return panels.drawn(figure, "jacobian-differentiated", caption)


def _collapse(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.4)
    table = tables["collapse"]
    panels.curves(axes[0], table, "score", "step", "weight", marker="none", band=("low", "high"))
    panels.curves(axes[1], table, "score", "step", "actual", marker="none")
    some = next(iter(panels.groups(table, "score").values()))
    axes[1].plot(column(some, "step"), column(some, "sigma"), **panels.DASHED)
    for cut in sorted({row["cut"] for row in tables["collapse_steps"]}):
        axes[0].axhline(cut, **panels.DOTTED)
    axes[0].set(xlabel="step n", ylabel="largest weight, median", title="Max weight (band: 10 to 90 %)")
    axes[1].set(xlabel="step n", ylabel="σ̂ = min r/√d, median", yscale="log", title="Actual noise (dashed: schedule)")
    panels.shared_legend(figure, axes[0], 5)
    caption = "A trajectory has collapsed onto one training image where the largest weight passes a cut (dotted)."
    return panels.drawn(figure, "collapse", caption)


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "shell_mass": _shell_mass,
    "sigma_domination": _sigma_domination,
    "expansion": _expansion,
    "mismatch": _mismatch,
    "mismatch_trajectory": _mismatch_trajectory,
    "jacobian": _jacobian,
    "collapse": _collapse,
    **smoothing_figures.FIGURES,
    **question_figures.FIGURES,
    **league_figures.FIGURES,
}
