"""What removing or shifting the riskiest images does to copies and to the distance from real images; part of risk.

Of a training set 5 % of the images are removed, or their four shifts by one pixel take their place: the riskiest by the
weights of benchmarks.risk, or some at random. A closed form smooths every one of these sets as much as the whole set.
"Halved" compares at equal distance: a closed form of the whole set that smooths more copies less, too, so a changed set
has to be set beside the fewest copies with which such a form (STRENGTHS) is as near to the held-out images.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks import risk_runs, small_models
from benchmarks.samplers import cell
from stages.beyond.copied_images import CLOSED, copied_groups, form
from stages.diffusion.model import Model
from stages.features.frechet import frechet_from_features
from stages.memorization.risk import features
from stages.memorization.seeds import over_seeds, paired_difference

REMOVED = 0.05
IMAGES = 100  # of the sets that are changed
SEEDS = range(10, 18)
OF_NETWORKS = range(10, 15)
STRENGTHS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0, 2.5, 3.0)
SAMPLES = 10  # per image
WHOLE = "all images"
PAIRED = ("removed", "shifted")
Measured = dict[str, tuple[float, float]]
"""Training set, or strength of the smoothing: the share of copies, and the Fréchet distance of the pixels (FD)."""


def shifts(images: np.ndarray) -> np.ndarray:
    """The four shifts by one pixel of images (N, H, W, C), edges repeated, (4N, H, W, C)."""
    wide = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = images.shape[1:3]
    return np.concatenate([wide[:, y : y + height, x : x + width] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))])


def changed(train: np.ndarray, weights: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """The training set as it is, without 5 % of its images, and with their shifts instead: the riskiest or random."""
    out, sets = round(REMOVED * len(train)), {WHOLE: train}
    chance = np.random.default_rng(seed).permutation(len(train))
    for name, order in (("riskiest", np.argsort(features(train) @ weights)), ("random", chance)):
        kept = train[np.sort(order[:-out])]
        sets |= {f"{name} removed": kept, f"{name} shifted": np.concatenate([kept, shifts(train[order[-out:]])])}
    return sets


def measured(name: str, weights: np.ndarray, seed: int, keep: Path | None) -> tuple[Measured, Measured]:
    """Copies (of any image of the whole set) and FD of the changed sets, and of the whole one under STRENGTHS."""
    images = small_models.digits("mnist5k", risk_runs.SIDE)
    train = risk_runs.repeated(images, IMAGES, seed)
    real = small_models.flat(small_models.drawn(IMAGES, risk_runs.HELD_OUT, seed, images)[1]) / 255
    group = risk_runs.groups(train)

    def values(made: Model) -> tuple[float, float]:
        samples = risk_runs.drawn(made, seed, SAMPLES * IMAGES)
        copies = len(copied_groups(samples, train, group)) / len(samples)
        return copies, frechet_from_features(small_models.flat(samples) / 255, real)

    def model(some: np.ndarray) -> Model:
        if name in CLOSED:
            return risk_runs.closed(form(name, train), some)
        return risk_runs.model(name, some, seed, risk_runs.STEPS * IMAGES, keep)

    sets = {kind: values(model(some)) for kind, some in changed(train, weights, seed).items()}
    strengths = STRENGTHS if name in CLOSED else ()
    more = {str(f): values(risk_runs.closed(form(name, train, f), train)) for f in strengths}
    return sets, more


def fewest(curve: Measured, distance: float) -> float | None:
    """The fewest copies with which a form of a curve has at most this FD, linear between its strengths; None: none."""
    points, found = list(curve.values()), []
    for (copies, fd), (others, beyond) in zip(points, [*points[1:], points[-1]]):
        if fd <= distance:
            found.append(copies)
        if min(fd, beyond) < distance < max(fd, beyond):
            found.append(copies + (distance - fd) / (beyond - fd) * (others - copies))
    return min(found, default=None)


def table(weights: np.ndarray, names: list[str], keep: Path | None) -> Iterator[str]:
    """Markdown tables: the changed sets with paired differences over seeds; riskiest less random; at equal distance."""
    seeds = {name: SEEDS if name in CLOSED else OF_NETWORKS for name in names}
    found = {name: [measured(name, weights, seed, keep) for seed in seeds[name]] for name in names}
    yield "\n| model | training set | copies % | change, points | FD-pixels | change |"
    yield "|---" * 6 + "|"
    for name, runs in found.items():
        for kind in runs[0][0]:
            yield f"| {name} | {kind} | {_cells(runs, lambda own, kind=kind: own[kind], WHOLE)} |"
    yield "\n| model | riskiest less random | copies, points | FD-pixels |"
    yield "|---" * 4 + "|"
    for name, runs in found.items():
        for kind in PAIRED:
            yield f"| {name} | {kind} | {' | '.join(_changes(runs, f'riskiest {kind}', f'random {kind}'))} |"
    yield "\n| model | training set | copies % | whole set, at most that FD | change, points | less half of it |"
    yield "|---" * 6 + "|"
    for name, runs in found.items():
        for kind in list(runs[0][0])[1:] if runs[0][1] else ():
            yield f"| {name} | {kind} | {_equal(runs, kind)} |"


def _cells(runs: list[tuple[Measured, Measured]], of: Callable[[Measured], tuple[float, float]], whole: str) -> str:
    """Mean and change of copies and FD."""
    cells = []
    for place, (scale, digits) in enumerate(((100, 1), (1, 3))):
        values = [of(own)[place] for own, _ in runs]
        change = paired_difference(values, [own[whole][place] for own, _ in runs])
        cells += [cell(over_seeds(values), scale, digits), cell(change, scale, digits)]
    return " | ".join(cells)


def _changes(runs: list[tuple[Measured, Measured]], one: str, other: str) -> list[str]:
    """Paired differences in copies and FD."""
    pairs = [[(own[one][place], own[other][place]) for own, _ in runs] for place in (0, 1)]
    return [cell(paired_difference(*zip(*pair)), *how) for pair, how in zip(pairs, ((100, 1), (1, 3)))]


def _equal(runs: list[tuple[Measured, Measured]], kind: str) -> str:
    """Copies of a changed set beside the fewest of the whole set at its distance, over the seeds that have such."""
    pairs = [(own[kind][0], fewest(more, own[kind][1])) for own, more in runs]
    inside = [(copies, least) for copies, least in pairs if least is not None]
    if len(inside) < 2:
        return f"– | – | as near in {len(inside)} of {len(runs)} seeds | –"
    copies, least = map(np.array, zip(*inside))
    means = [over_seeds(copies), over_seeds(least), paired_difference(copies, least)]
    means.append(paired_difference(copies, least / 2))
    note = "" if len(inside) == len(runs) else f" ({len(inside)} of {len(runs)} seeds)"
    return " | ".join(cell(mean, 100, 1) for mean in means) + note
