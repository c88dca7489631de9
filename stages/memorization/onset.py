"""When a network begins to copy: the last safe step of a training, and how the onset moves with the training set.

A run is safe while its copies are not more than held-out images show under the same rule, within sampling. Between two
measured steps shares are interpolated linearly in ln(step); nothing is extrapolated, so an onset may be unknown.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import hypergeom

from stages.memorization.seeds import SeedMean, over_seeds

TAIL = 0.025  # one-sided level, as of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Onset:
    """Where the copies of one training begin.

    Attributes:
        last_safe: the last measured step before copies exceed the control; None where the first one does already.
        first_copying: the first measured step at which they do, None where none does.
    """

    last_safe: int | None
    first_copying: int | None


def onset(
    steps: Sequence[float], flagged: Sequence[float], count: Sequence[float], control: int, control_count: int
) -> Onset:
    """Return the onset of one training.

    A step copies where Fisher's exact one-sided test calls its samples' share larger than the control's, at 2.5 % for
    all steps together (Bonferroni): a network that copies no more than the control does is called copying in at most
    2.5 % of trainings, however many steps are measured. Newcombe's interval in its place would do so in 6 % of them at
    four steps of 100 samples, since Wilson's lower end is too high for small rates.

    Args:
        steps: ascending; flagged, count: copies and samples at each.
        control, control_count: copies among held-out images, and their number.

    Raises ValueError unless the steps ascend, each with its samples.
    """
    if not 0 < len(steps) == len(flagged) == len(count) or list(steps) != sorted(set(steps)):
        raise ValueError(f"an onset needs ascending steps with copies and counts, got {list(steps)}")
    clear = [_exceeds(round(k), round(n), control, control_count) < TAIL / len(steps) for k, n in zip(flagged, count)]
    first = clear.index(True) if True in clear else None
    last = len(steps) if first is None else first
    return Onset(int(steps[last - 1]) if last else None, None if first is None else int(steps[first]))


def _exceeds(flagged: int, count: int, control: int, control_count: int) -> float:
    """Return Fisher's one-sided p: the chance of at least `flagged` copies among `count`, if all are alike."""
    return float(hypergeom.sf(flagged - 1, count + control_count, flagged + control, count))


def crossing(steps: Sequence[float], rates: Sequence[float], share: float) -> float | None:
    """Return the step at which the rate first reaches `share`, interpolated linearly in ln(step).

    None where it never does, or does already at the first step.
    """
    for (before, low), (after, high) in zip(zip(steps, rates), zip(steps[1:], rates[1:])):
        if low < share <= high:
            weight = (share - low) / (high - low)
            return float(math.exp((1 - weight) * math.log(before) + weight * math.log(after)))
    return None


def exponent(sizes: Sequence[Sequence[float]], steps: Sequence[Sequence[float]]) -> SeedMean:
    """Return the slope of ln(step) against ln(size) over seeds: 1 where the onset is proportional to the size.

    sizes, steps: for each seed the sizes of its training sets, at least two distinct ones, and the onsets there.
    """
    slopes = []
    for own, found in zip(sizes, steps, strict=True):
        x, y = np.log(np.asarray(own, float)), np.log(np.asarray(found, float))
        if len(np.unique(x)) < 2:
            raise ValueError(f"a slope needs two sizes, got {list(own)}")
        slopes.append(float(np.polyfit(x, y, 1)[0]))
    return over_seeds(slopes)
