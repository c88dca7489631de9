"""Copies at equal quality: a smoothed network against the plain one that was stopped earlier (METHODS §6, frontier).

The plain network copies more the longer it trains, and its Fréchet distance (FD) falls meanwhile. So "smoothing copies
less" may mean no more than "a worse model copies less". Here a smoothed network at the end of its training is compared
(and, beside it, at each earlier measured step) with the plain network at the step where that one first has the same FD,
per training seed: the earliest stop that
reaches the quality, which is how early stopping stops (Prechelt 1998, "Early stopping – but when?"). Between two
measured steps FD and shares are interpolated linearly. The curve need not be monotone: what the plain network does
after that step is not used. Outside the FDs that the plain network passes through nothing is extrapolated: it never
reaches the FD, or is better already at its first measured step.

The interval is the t-interval over seeds, and never shorter than sampling alone demands: that of both shares, and of
both FDs times the slope of the plain network's curve (first order).
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.memorization.first_reached import BEFORE, NEVER, Stop, first_reached
from stages.memorization.seeds import DIFFERENCE, SeedMean, over_seeds, rate_variance
from stages.memorization.statistics import Z95
from stages.reporting.changes import Change, basis
from stages.reporting.contrasts import PLAIN, TARGET, ContrastParams, contrast
from stages.reporting.runs import SHARES, Columns, of_seed, rates, seeds

if TYPE_CHECKING:
    from stages.reporting.inputs import Variant

LATE = 0.5  # the last part of the training: steps from this share of the last one on, one doubling


@dataclasses.dataclass(frozen=True)
class AtEqualDistance:
    """A smoothed network beside the plain one that was stopped earlier.

    Attributes:
        of, baseline: the two variants.
        seeds: the training seeds that both have.
        outside: NEVER and BEFORE -> the seeds where the FD lies outside what the plain network passes through.
        change: the change at equal FD; None where a seed lies outside.
        stopped: the steps at which the plain network has the FD, for the seeds inside, in their order.
        late: the shares' slopes per doubling of the steps in the last part of the training, of the smoothed network, of
            the plain one, and their paired difference; None where a seed has fewer than two runs there.
        earlier: measured step -> the change at equal FD where the smoothed network is stopped there, too, None where a
            seed lies outside; of the steps before the last one.
    """

    of: str
    baseline: str
    seeds: tuple[int, ...]
    outside: dict[str, tuple[int, ...]]
    change: Change | None
    stopped: tuple[float, ...]
    late: tuple[Change, Change, Change] | None
    earlier: dict[int, Change | None]


def baselines(variants: Sequence["Variant"]) -> dict[str, str | None]:
    """Return each smoothed network's plain one, which equals it in all but the target; None where there is none.

    They are found by their parameters: the same noise conditioning, sampler, network, training length, seeds and data.
    """
    networks = [variant for variant in variants if variant.runs is not None]
    plain = [variant for variant in networks if variant.form in PLAIN]
    return {v.name: _baseline(v, plain) for v in networks if v.form not in PLAIN}


def _baseline(smoothed: "Variant", plain: Sequence["Variant"]) -> str | None:
    for other in plain:
        entry = ContrastParams(name="frontier", of=smoothed.name, against=other.name)
        if contrast(entry, smoothed.tree, other.tree).factors == (TARGET,):
            return other.name
    return None


def frontier(variants: Sequence["Variant"]) -> list[AtEqualDistance]:
    """Return every smoothed network that has a baseline beside it, in the order of the variants."""
    runs, broken = ({v.name: v.runs for v in variants}, {v.name for v in variants if v.broken})
    pairs = ((of, against) for of, against in baselines(variants).items() if against is not None)
    return [_warned(at_equal_distance(of, against, runs), broken) for of, against in pairs]


def _warned(found: AtEqualDistance, broken: Collection[str]) -> AtEqualDistance:
    """Return the comparison with a warning where the smoothed network's samples look broken."""
    if found.change is None or found.of not in broken:
        return found
    return dataclasses.replace(found, change=dataclasses.replace(found.change, broken=(found.of,)))


def at_equal_distance(of: str, against: str, runs: Mapping[str, Columns]) -> AtEqualDistance:
    """Compare a smoothed network at the end of its training with the plain one, stopped where it first has that FD.

    runs: variant -> its runs. Raises ValueError where the two share no seed.
    """
    one, other = runs[of], runs[against]
    common = tuple(sorted(seeds(one) & seeds(other)))
    if not common:
        raise ValueError(f"{of} and {against} share no training seed")
    curves = [(of_seed(one, seed), of_seed(other, seed)) for seed in common]
    found, change = _at_the_end(curves)
    outside = {why: tuple(seed for seed, stop in zip(common, found) if stop == why) for why in (NEVER, BEFORE)}
    stopped = tuple(stop.value(plain["step"]) for (_, plain), stop in zip(curves, found) if isinstance(stop, Stop))
    return AtEqualDistance(of, against, common, outside, change, stopped, _late_slopes(curves), _earlier(curves))


def _at_the_end(curves: Sequence[tuple[Columns, Columns]]) -> tuple[list[Stop | str], Change | None]:
    """Return where each seed's plain network has the FD of the smoothed one's last run, and the change over seeds."""
    found = [first_reached(plain["fd"], smoothed["fd"][-1]) for smoothed, plain in curves]
    inside = [(*pair, stop) for pair, stop in zip(curves, found) if isinstance(stop, Stop)]
    complete = len(inside) == len(curves)
    return found, Change(*(_difference(inside, name) for name in SHARES), basis(curves)) if complete else None


def _earlier(curves: Sequence[tuple[Columns, Columns]]) -> dict[int, Change | None]:
    """Return the change at every step before the last one that the smoothed network has in all seeds."""
    steps = set.intersection(*(set(smoothed["step"][:-1].tolist()) for smoothed, _ in curves))
    return {int(step): _at_the_end([(_until(own, step), plain) for own, plain in curves])[1] for step in sorted(steps)}


def _until(runs: Columns, step: float) -> Columns:
    return {name: values[runs["step"] <= step] for name, values in runs.items()}


def _difference(inside: Sequence[tuple[Columns, Columns, Stop]], measure: str) -> SeedMean:
    """Return the smoothed network's share at its end minus the plain one's at equal FD, over seeds."""
    values, variances = [], []
    for smoothed, plain, stop in inside:
        share = rates(plain, measure)
        values.append(rates(smoothed, measure)[-1] - stop.value(share))
        sampling = _variance(smoothed, measure)[-1] + stop.value(_variance(plain, measure))
        fd = _fd_variance(smoothed)[-1] + stop.value(_fd_variance(plain))
        variances.append(sampling + stop.slope(share, plain["fd"]) ** 2 * fd)
    return over_seeds(values, variances, DIFFERENCE)


def _variance(runs: Columns, measure: str) -> np.ndarray:
    return rate_variance(runs[measure], runs["count"])


def _fd_variance(runs: Columns) -> np.ndarray:
    return ((runs["fd_high"] - runs["fd_low"]) / (2 * Z95)) ** 2


def _late_slopes(curves: Sequence[tuple[Columns, Columns]]) -> tuple[Change, Change, Change] | None:
    """Return the slopes in the last part of the training of both networks and their paired difference, over seeds."""
    late = [[_late(runs) for runs in pair] for pair in curves]
    if any(len(runs["step"]) < 2 for pair in late for runs in pair):
        return None
    found = [list(zip(*([slope(runs, name) for runs in pair] for pair in late))) for name in SHARES]
    one, other = ([over_seeds(*zip(*fits[side])) for fits in found] for side in (0, 1))
    paired = [over_seeds(*zip(*((a - b, v + w) for (a, v), (b, w) in zip(*fits)))) for fits in found]
    return tuple(Change(*shares, basis(curves)) for shares in (one, other, paired))


def _late(runs: Columns) -> Columns:
    late = runs["step"] >= LATE * runs["step"][-1]
    return {name: values[late] for name, values in runs.items()}


def slope(runs: Columns, measure: str) -> tuple[float, float]:
    """Return a share's slope per doubling of the steps by least squares, and the variance that sampling gives it."""
    steps = np.log2(runs["step"])
    weight = (steps - steps.mean()) / ((steps - steps.mean()) ** 2).sum()
    return float(weight @ rates(runs, measure)), float(weight**2 @ _variance(runs, measure))
