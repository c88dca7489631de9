"""Figures of what the papers leave open (stages/beyond): one per question, with its control."""

from collections.abc import Callable
from typing import Any

import numpy as np

from stages.memorization.seeds import over_seeds
from stages.reporting import panels
from stages.reporting.figures import SERIES
from stages.reporting.panels import Figure, Table, Tables, column

ORDERS = {"model": "start, mode and blend", "duplicates": "number of duplicates", "low_coverage": "low coverage"}


def _means(rows: Table, by: str, *names: str) -> dict[Any, list[float]]:
    """The means of some columns over the seeds, by the values of the column `by`, in their order."""
    return {key: [float(np.mean(column(own, name))) for name in names] for key, own in panels.groups(rows, by).items()}


def _two_halves(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels.canvas(1, 3.3)
    rows = tables["two_halves"]
    for index, (name, own) in enumerate(panels.groups(rows, "form").items()):
        look = panels.look(index)
        axis.plot([100 * row["copies"] for row in own], column(own, "alikeness"), look["marker"], color=look["color"],
                  markersize=6, label=name)  # fmt: skip
    axis.axvline(100 * np.mean(column(rows, "control")), **panels.DOTTED)
    axis.set(xlabel="copies, r₁/r₂ < 0.7 (%); dotted: held-out images", ylabel="alikeness of both halves' samples")
    axis.set(ylim=(0, 1.02))
    panels.legend(axis)
    caption = (
        "Models of disjoint halves from the same noise, a marker per seed: 1 is equal samples, 0 unrelated ones. A "
        "form at the lower left copies little by r₁/r₂ and is still unlike: its samples follow its own half. If "
        "alikeness told nothing, all would have the same height."
    )
    return panels.drawn(figure, "two-halves", caption)


def _copying_onset(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(2, 3.4)
    rows = tables["copying_onset"]
    control = 100 * sum(column(rows, "control")) / max(1, sum(row["held_out"] for row in rows))
    for index, ((name, size), own) in enumerate(_by_training(rows).items()):
        steps = panels.groups(own, "step")
        every = [step for step, found in steps.items() if len(found) == len({row["seed"] for row in own})]
        share = [100 * float(np.mean([row["copies"] / row["samples"] for row in steps[step]])) for step in every]
        axes[0].plot(every, share, **panels.look(index), label=f"{name}, {size:g} images")
    panels.expected_line(axes[0], control, "held-out images")
    axes[0].set(xscale="log", xlabel="optimizer step", ylabel="copies (%), mean over seeds", title="Along the training")
    panels.plain_ticks(axes[0].xaxis)
    panels.legend(axes[0], fontsize=8, loc="upper left")
    steps = [row for row in tables["copying_onset_steps"] if row["crossed"] > 0]
    for index, (name, own) in enumerate(panels.groups(steps, "variant").items()):
        look = panels.look(index)
        axes[1].plot(column(own, "images"), column(own, "crossed"), look["marker"], color=look["color"], label=name)
        sizes = sorted({row["images"] for row in own})
        mean = [float(np.exp(np.mean([np.log(row["crossed"]) for row in own if row["images"] == n]))) for n in sizes]
        axes[1].plot(sizes, mean, color=look["color"], linestyle=look["linestyle"])
    _proportional(axes[1], steps)
    axes[1].set(xscale="log", yscale="log", xlabel="training images", ylabel="step at which copies cross the share")
    axes[1].set_title("The step of the onset")
    axes[1].set_xticks(sorted({row["images"] for row in steps}), minor=False)
    axes[1].xaxis.set_major_formatter("{x:g}")
    axes[1].xaxis.minorticks_off()
    panels.plain_ticks(axes[1].yaxis)
    if steps:
        panels.legend(axes[1], fontsize=8)
    return panels.drawn(figure, "copying-onset", _onset_caption(tables["copying_onset_steps"], steps))


def _by_training(rows: Table) -> dict[tuple[str, float], list[dict[str, Any]]]:
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["variant"], row["images"]), []).append(row)
    return found


def _proportional(axis: Any, steps: Table) -> None:
    """A step in proportion to the images, through the plain network's mean at the fewest."""
    plain = [row for row in steps if row["variant"] == "plain"]
    if plain:
        sizes = sorted({row["images"] for row in plain})
        first = float(np.exp(np.mean([np.log(row["crossed"]) for row in plain if row["images"] == sizes[0]])))
        axis.plot(sizes, [first * n / sizes[0] for n in sizes], **panels.DASHED, label="in proportion")


def _onset_caption(every: Table, steps: Table) -> str:
    """every: all trainings; steps: those whose copies cross the share."""
    found = {key: [f"{row['last_safe']:g}" for row in own] for key, own in _by_training(every).items()}
    safe = "; ".join(f"{name}, {size:g} images: {', '.join(steps)}" for (name, size), steps in found.items())
    return (
        "Small networks on nested training sets. Right: where the share of copies crosses the one that ends a "
        f"training, {len(steps)} trainings; dashed: a step in proportion to the number of images (Bonnaire et al.). If "
        "the number did not matter the line would be level; if smoothing did not delay, both lines would be one. Last "
        f"safe steps by seed: {safe}."
    )


def _adaptive_targets(tables: Tables) -> list[Figure]:
    figure, axes = panels.canvas(3, 3.2)
    rows = tables["adaptive_targets"]
    constant = [row for row in rows if row["rule"] == "constant"]
    rules = panels.groups([row for row in rows if row["rule"] != "constant"], "rule")
    for axis, (name, label) in zip(
        axes, (("copies", "copied"), ("nearer", "nearer than held-out"), ("blends", "blends"))
    ):
        line = list(_means(constant, "temperature", "fd", name).values())
        axis.plot(*zip(*[(fd, 100 * share) for fd, share in line]), **panels.look(0), label="constant T")
        for index, (rule, own) in enumerate(rules.items(), 1):
            look = panels.look(index)
            axis.plot(column(own, "fd"), [100 * row[name] for row in own], look["marker"], color=look["color"],
                      markersize=6, label=rule)  # fmt: skip
        axis.set(xlabel="FD-pixels to held-out images", ylabel=f"{label} (%)", ylim=(-3, 103))
    panels.expected_line(axes[0], 100 * np.mean(column(rows, "control")))
    panels.shared_legend(figure, axes[0], 4)
    caption = (
        "Closed forms at constant temperatures (line: mean over seeds, the hottest at the right) and at temperatures "
        "that depend on the point or the level (a marker per seed). Dashed: held-out images. A rule that copies less "
        "at equal distance lies below the line; one that changes nothing lies on it."
    )
    return panels.drawn(figure, "adaptive-targets", caption)


def _copied_images(tables: Tables) -> list[Figure]:
    figure, (axis,) = panels.canvas(1, 3.0)
    forms = [(name, rows) for name, rows in panels.groups(tables["copied_images"], "form").items() if len(rows) > 1]
    for index, (order, label) in enumerate(ORDERS.items()):
        means = [over_seeds(column(rows, order)) for _, rows in forms]
        at = [place + 0.2 * (index - 1) for place in range(len(forms))]
        ends = [[mean.mean - mean.low for mean in means], [mean.high - mean.mean for mean in means]]
        style = {"color": SERIES[index], "fmt": panels.MARKERS[index], "markersize": 5, "capsize": 3}
        axis.errorbar(at, [mean.mean for mean in means], ends, **style, label=label)
    panels.expected_line(axis, 0.5, "chance")
    axis.set_xticks(range(len(forms)), [f"{name}\n{_share(rows)} % copied" for name, rows in forms])
    axis.set(ylabel="AUC of the copied images", ylim=(0.2, 1))
    panels.legend(axis)
    caption = (
        "How well three orders of the training images tell those that a closed form copies from the others: mean over "
        "training sets with its 95 % interval. If an order told nothing, its marks would lie on the dashed line."
    )
    return panels.drawn(figure, "copied-images", caption)


def _share(rows: Table) -> str:
    return f"{100 * sum(column(rows, 'copied')) / len(rows):.0f}"


FIGURES: dict[str, Callable[[Tables], list[Figure]]] = {
    "adaptive_targets": _adaptive_targets,
    "copying_onset": _copying_onset,
    "two_halves": _two_halves,
    "copied_images": _copied_images,
}
