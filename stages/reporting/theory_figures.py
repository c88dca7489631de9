"""Figures of the theory's claims, drawn from the tables of stage verify, as SVG in the page's colours.

To add one: a function from a block's tables (name -> rows) to a list of `Figure`, entered in FIGURES under the
block's name. Labels carry units, axes are logarithmic where the paper's are, and the expected value is a line.
"""

from collections.abc import Callable

from stages.reporting import smoothing_figures
from stages.reporting.figures import DASHES, INK, MUTED, SERIES, STYLE, to_svg
from stages.reporting.panels import Figure, Tables, column, expected_line, groups, look, panels


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
        style = look(index)
        axis.plot(
            column(rows, "reach"), column(rows, "closed_form"), color=style["color"], linestyle=style["linestyle"]
        )
        axis.plot(column(rows, "reach"), column(rows, "exact_step"), **{**style, "linestyle": "none"}, label=score)
    expected_line(axis, 1.0)
    axis.set(xscale="log", yscale="log", xlabel="r₁/L: noise level in units of L/√d", ylabel="expansion factor γ_ex")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    caption = "How far one step pulls a point and its mirror point apart: exact step (markers), closed form (lines)."
    return [Figure(to_svg(figure, "expansion"), f"{caption} Above the dashed line a step separates them.")]


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
    axis.text(4, axis.get_ylim()[1], " overshoot", color=INK, va="top", fontsize=8.5)
    axis.set(xlabel="β = (σₙ² − σₙ₊₁²)/R²", ylabel="R′/R after one step")
    axis.legend(frameon=False)
    caption = "The actual noise level after one schedule step of size β: measured (markers), formula (lines)."
    return [Figure(to_svg(figure, "mismatch"), caption)]


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "shell_mass": _shell_mass,
    "sigma_domination": _sigma_domination,
    "expansion": _expansion,
    "mismatch": _mismatch,
    **smoothing_figures.FIGURES,
}
