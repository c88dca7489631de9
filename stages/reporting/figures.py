"""The report's figures, as deterministic SVG whose colours follow the page (light and dark).

matplotlib draws with placeholder colours; `_themed` replaces each by a CSS variable of report.css. The fonts are those
of the page.
"""

import io
import re
from collections.abc import Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from stages.reporting.inputs import Variant
from stages.reporting.runs import RATIO, over_seeds_by_step, rates
from stages.reporting.words import limit, number, percent

INK, MUTED, GRID, CONTROL = "#010203", "#020304", "#030405", "#040506"
CLOSED, NETWORK = "#060708", "#070809"
SERIES = ("#08090a", "#090a0b", "#0a0b0c", "#0b0c0d", "#0c0d0e", "#0d0e0f")
VARIABLES = {
    **dict(zip((INK, MUTED, GRID, CONTROL), ("ink", "muted", "grid", "control"))),
    CLOSED: "closed",
    NETWORK: "network",
    **{color: f"series-{i}" for i, color in enumerate(SERIES)},
}
Curve = tuple[Any, ...]  # a variant with the x and y of its line, float64 (points,), and the ends of its band, if any
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
STYLE = {
    "svg.fonttype": "none",  # text stays text: smaller, selectable, in the page's font
    "svg.hashsalt": "scoresmooth",
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.linewidth", "xtick.major.width", "ytick.major.width", "grid.linewidth"), 0.6),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "figure.facecolor": "none",
}


def color(variant: Variant) -> str:
    """The placeholder colour of a variant's kind."""
    return NETWORK if variant.network else CLOSED


def marker(variant: Variant) -> str:
    """Diamonds for networks, circles for closed forms: colour is never the only sign."""
    return "D" if variant.network else "o"


def copy_figure(variants: Sequence[Variant]) -> str:
    """Copy rate with Wilson interval and control, FD with its floor, median multiple; one row per variant. SVG text."""
    with matplotlib.rc_context(STYLE):
        figure, axes = _rows_figure(variants, widths=(3.1, 1.75, 1.6))
        _copy_panel(axes[0], variants)
        _distance_panel(axes[1], variants)
        _median_panel(axes[2], variants)
        return to_svg(figure, "copies")


def _rows_figure(variants: Sequence[Variant], widths: Sequence[float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(10, 1.25 + 0.36 * len(variants)))
    height = figure.get_figheight()
    grid = {"left": 0.185, "right": 0.985, "bottom": 0.62 / height, "top": 1 - 0.42 / height, "wspace": 0.1}
    axes = figure.subplots(1, len(widths), sharey=True, gridspec_kw={"width_ratios": widths, **grid})
    axes[0].set_yticks(range(len(variants)), [variant.name for variant in variants])
    axes[0].set_ylim(len(variants) - 0.5, -0.5)
    for axis in axes:
        axis.grid(axis="x")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
    return figure, axes


def _reference(axis: Any, row: int, value: float) -> None:
    """A grey mark across one row: what real images reach."""
    axis.plot([value, value], [row - 0.5, row + 0.5], color=CONTROL, linewidth=1.6)


def _point(axis: Any, row: int, variant: Variant, value: float, size: float = 5.5) -> None:
    axis.plot(value, row, marker(variant), color=color(variant), markersize=size)


def _copy_panel(axis: Any, variants: Sequence[Variant]) -> None:
    for row, variant in enumerate(variants):
        copies, control, span = variant.copies, variant.control, [row - 0.5, row + 0.5]
        axis.fill_betweenx(span, 100 * control.low, 100 * control.high, color=CONTROL, alpha=0.3, linewidth=0)
        _reference(axis, row, 100 * control.rate)
        axis.plot([100 * copies.low, 100 * copies.high], [row, row], color=color(variant), linewidth=2.2)
        _point(axis, row, variant, 100 * copies.rate, 6.5)
        text = f"{percent(copies.rate)}  {copies.flagged:,}/{copies.count:,}"
        axis.text(1.0, row, text, ha="right", va="center", fontsize=8.5, transform=axis.get_yaxis_transform())
    axis.set(xlim=(-2, 143), xticks=range(0, 101, 20))  # the numbers stand right of 100 %
    axis.set_xlabel("samples that copy a training image (%)", loc="left")
    axis.set_title("Copy rate, 95 % interval")


def _distance_panel(axis: Any, variants: Sequence[Variant]) -> None:
    values = [variant.fid["test"]["distance"] for variant in variants]
    floors = [variant.fid["floor"]["distance"] for variant in variants]
    for row, (variant, value, floor) in enumerate(zip(variants, values, floors)):
        _reference(axis, row, floor)
        _point(axis, row, variant, value)
    _scale(axis, [*values, *floors], "x", span=8, margin=1.1)
    axis.set_xlabel(variants[0].fid["name"], loc="left")
    axis.set_title("Distance to test images")


def _scale(axis: Any, values: Sequence[float] | np.ndarray, along: str, span: float, margin: float) -> None:
    """Scale an axis (along x or y): logarithmic where the values span more than that factor, else linear from zero."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    if low > 0 and high > span * low:
        _log_ticks(axis, low, high, along)
    else:
        axis.set(**{f"{along}lim": (min(0.0, low), margin * high or 1.0)})


def _log_ticks(axis: Any, low: float, high: float, along: str) -> None:
    """A logarithmic axis with ticks at 1, 2 and 5, written as plain numbers."""
    low, high = low / 1.3, high * 1.3
    ticks = [m * 10.0**e for e in range(-9, 10) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    ticks = ticks if len(ticks) <= 6 else [tick for tick in ticks if f"{tick:e}".startswith("1")]
    axis.set(**{f"{along}scale": "log", f"{along}lim": (low, high)})
    axis.minorticks_off()
    (axis.xaxis if along == "x" else axis.yaxis).set_ticks(ticks, [number(tick, 1) for tick in ticks])


def _median_panel(axis: Any, variants: Sequence[Variant]) -> None:
    axis.axvline(1, color=CONTROL, linewidth=1.6)
    for row, variant in enumerate(variants):
        _point(axis, row, variant, variant.median_multiple)
    axis.set_xlim(-0.06, max(1.5, 1.1 * max(variant.median_multiple for variant in variants)))
    axis.set_xlabel("× held-out images", loc="left")
    axis.set_title("To nearest training image")


def ratio_figure(variants: Sequence[Variant], held_out: np.ndarray, columns: int = 3) -> str:
    """Cumulative distribution of r_1/r_2 per variant, beside that of the held-out images, float64 (N,). SVG text."""
    rows = -(-len(variants) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 0.55 + 1.75 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis in axes[len(variants) :]:
            axis.set_visible(False)
        for axis, variant in zip(axes, variants):
            _ratio_panel(axis, variant, held_out)
        for axis in axes[max(0, len(variants) - columns) : len(variants)]:
            axis.tick_params(labelbottom=True)
        figure.supxlabel("r₁/r₂: distance to the nearest over the second nearest training image", fontsize=9)
        figure.supylabel("images below (%)", fontsize=9)
        return to_svg(figure, "ratios")


def _ratio_panel(axis: Any, variant: Variant, held_out: np.ndarray) -> None:
    limits = variant.limits
    for threshold in limits:
        axis.axvline(threshold, color=MUTED, linewidth=0.8, linestyle=":")
    axis.plot(*cumulative(held_out), color=CONTROL, linewidth=1.8)
    axis.plot(*cumulative(variant.pairs.column("ratio").to_numpy()), color=color(variant), linewidth=1.8)
    axis.set(title=variant.name, xlim=(0, 1), ylim=(0, 100), yticks=[0, 50, 100])
    axis.set_xticks([0, *limits, 1], ["0", *map(limit, limits), "1"])


def cumulative(values: np.ndarray, points: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution of values (N,) in percent, as (x, share), at no more than `points` quantiles."""
    ordered = np.sort(values)
    share = 100 * np.arange(1, len(ordered) + 1) / len(ordered)
    if len(ordered) > points:
        picked = np.unique(np.linspace(0, len(ordered) - 1, points).round().astype(int))
        ordered, share = ordered[picked], share[picked]
    return np.concatenate([[0], ordered, [1]]), np.concatenate([[0], share, [100]])


LOSS_PANELS = {
    "loss": "all noise levels",
    "loss_low_sigma": "lowest third of the levels",
    "loss_middle_sigma": "middle third",
    "loss_high_sigma": "highest third",
}


def loss_figure(variants: Sequence[Variant]) -> str | None:
    """Loss curves of the networks, over all levels and by thirds; None where no variant is a network. SVG text."""
    networks = [variant for variant in variants if variant.loss is not None]
    curves = {title: [(v, v.loss["step"], v.loss[name]) for v in networks] for name, title in LOSS_PANELS.items()}
    return _curves_figure(curves, "training loss per pixel", "loss") if networks else None


COPIES = "copied, % of the samples"


def copy_curve_figure(variants: Sequence[Variant]) -> str | None:
    """Copied share and FD over training, mean over seeds; None where no network has two measured steps. SVG text."""
    networks = [v for v in variants if v.runs is not None and len(set(v.runs["step"])) > 1]
    if not networks:
        return None
    shares = {v.name: over_seeds_by_step(v.runs, 100 * rates(v.runs, RATIO)) for v in networks}
    distances = {v.name: over_seeds_by_step(v.runs, v.runs["fd"]) for v in networks}
    curves = {
        COPIES: [(v, *shares[v.name]) for v in networks],
        f"{networks[0].fid['name']} to test": [(v, *distances[v.name]) for v in networks],
    }
    return _curves_figure(curves, "", "curve", marker=".")


def _curves_figure(panels: dict[str, list[Curve]], label: str, name: str, **style: Any) -> str:
    """Panels beside each other, each with one line per variant over the training step. SVG text."""
    with matplotlib.rc_context(STYLE):
        rows = 1 + (len(next(iter(panels.values()))) - 1) // 4
        figure = Figure(figsize=(10, 2.7 + 0.25 * rows), layout="constrained")
        axes = figure.subplots(1, len(panels))
        for axis, (title, curves) in zip(axes, panels.items()):
            _curves_panel(axis, title, curves, **style)
        axes[0].set_ylabel(label)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, loc="outside lower center", ncols=4, handlelength=3)
        return to_svg(figure, name)


def _curves_panel(axis: Any, title: str, curves: list[Curve], **style: Any) -> None:
    for i, (variant, x, y, *band) in enumerate(curves):
        look = {"color": SERIES[i % len(SERIES)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.5}
        axis.plot(x, y, label=variant.name, **look, **style)
        if band:
            axis.fill_between(x, *band, linewidth=0, color=look["color"], alpha=0.15)
    if title == COPIES:
        axis.set_ylim(0, 102)
    else:
        values = np.concatenate([y for _, _, y, *_ in curves])  # a third of the levels that no logged step drew is NaN
        _scale(axis, values[np.isfinite(values)], "y", span=5, margin=1.05)
    axis.grid(axis="y")
    axis.set(title=title, xlabel="training step")


def to_svg(figure: Any, name: str) -> str:
    """The figure as inline SVG without a date, its ids prefixed by `name`, its colours those of the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    named = f'<svg role="img" aria-label="{escape(f"{name}: {spoken(figure)}")}"'
    return _themed(_inlined(buffer.getvalue(), name)).replace("<svg", named, 1)


def spoken(figure: Any) -> str:
    """What each panel shows, for those who hear the page: its title and what its axes are."""
    return "; ".join(filter(None, map(_spoken_panel, figure.axes)))


def _spoken_panel(axis: Any) -> str:
    titles = [axis.get_title(loc) for loc in ("left", "center", "right")]
    axes = " against ".join(filter(None, (axis.get_ylabel(), axis.get_xlabel())))
    return " ".join(", ".join(filter(None, (*titles, axes))).split())


def _inlined(svg: str, name: str) -> str:
    """Remove prolog, metadata and fixed size; prefix ids and references, so that figures do not clash."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # its rules would apply to the whole page
    for size in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {size}="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)


def _themed(svg: str) -> str:
    """Replace placeholder colours by CSS variables, and remove the fonts in favour of the page's."""
    for placeholder, variable in VARIABLES.items():
        svg = svg.replace(placeholder, f"var(--{variable})")
    return re.sub(r"font-family: [^;\"]*;? ?", "", svg)
