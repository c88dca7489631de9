"""Where a curve first comes down to a value: the point of a plain model at which it has another one's Fréchet distance.

Between two measured points all columns are interpolated linearly; outside the curve nothing is extrapolated.
"""

import dataclasses

import numpy as np

NEVER, BEFORE = "never", "before"  # the curve never reaches the value; it lies below it at its first point


@dataclasses.dataclass(frozen=True)
class Stop:
    """Between the points i−1 and i of a curve, at `weight` of the way to i."""

    i: int
    weight: float

    def value(self, column: np.ndarray) -> float:
        """Return a column's interpolated value there."""
        return float((1 - self.weight) * column[self.i - 1] + self.weight * column[self.i])

    def slope(self, column: np.ndarray, over: np.ndarray) -> float:
        """Return the change of a column per unit of another one along the segment; 0 where only one run exists."""
        i = max(self.i, 1)
        return float((column[i] - column[i - 1]) / (over[i] - over[i - 1])) if len(column) > 1 else 0.0


def first_reached(curve: np.ndarray, target: float) -> Stop | str:
    """Return where a curve first is at or below the target; BEFORE or NEVER where the target lies outside the curve.

    curve: float64 (runs,), the FD in the order in which it is followed.
    """
    if curve[0] < target:
        return BEFORE
    reached = np.flatnonzero(curve <= target)
    if not len(reached):
        return NEVER
    i = int(reached[0])
    return Stop(i, 1.0 if i == 0 else float((curve[i - 1] - target) / (curve[i - 1] - curve[i])))
