"""The two-point expansion factor: how far one step of a score moves a point and its mirror point apart (METHODS §2).

Two centres x_0, x_1 at distance L; a point x at r_1 from x_1 and r_0 = C r_1 from x_0; x' its mirror image in the
perpendicular bisector. One step x⁺ = x + η σ*² s(x); γ_ex = ‖x'⁺ − x⁺‖ / ‖x' − x‖. float64 numpy.
"""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two centres float64 (2, d) and a mirrored pair of points (d,); `radius` is r_1, `ratio` is C."""

    centres: np.ndarray
    point: np.ndarray
    mirror: np.ndarray
    radius: float
    ratio: float

    @property
    def gap(self) -> float:
        """L = ‖x_0 − x_1‖."""
        return float(np.linalg.norm(self.centres[0] - self.centres[1]))

    @property
    def stretch(self) -> float:
        """L/‖x'−x‖, with ‖x'−x‖ = (C²−1) r_1²/L."""
        return self.gap**2 / ((self.ratio**2 - 1) * self.radius**2)


def place(centres: np.ndarray, reach: float, ratio: float, direction: np.ndarray) -> Pair:
    """Return the pair of points for two centres (2, d). Raises ValueError where no such point exists.

    reach: r_1/L, at least about 1/2. ratio: C > 1. direction: (d,), not along the line of the centres; the point lies
    off that line in the direction of its perpendicular part.
    """
    if not point_exists(reach, ratio):
        raise ValueError(f"no point at r_1 = {reach} L and r_0 = {ratio} r_1: raise reach")
    gap = float(np.linalg.norm(centres[1] - centres[0]))
    axis = (centres[1] - centres[0]) / gap
    across = direction - (direction @ axis) * axis
    across /= np.linalg.norm(across)
    radius = reach * gap
    height = (ratio**2 - 1) * radius**2 / (2 * gap)  # from the bisector towards x_1
    middle = centres.mean(axis=0) + math.sqrt(radius**2 - (gap / 2 - height) ** 2) * across
    return Pair(centres, middle + height * axis, middle - height * axis, radius, ratio)


def point_exists(reach: float, ratio: float) -> bool:
    """Return whether a point has r_1 = reach · L and r_0 = ratio · r_1, by the triangle inequality."""
    return (ratio - 1) * reach <= 1 <= (ratio + 1) * reach


def factor_conditioning(dimension: int, ratio: float, eta: float, stretch: float) -> float:
    """γ_ex = |(1−η) + η (a−1)/(a+1) · L/‖x'−x‖|, a = exp(d(C²−1)/2), at σ = r_1/√d. stretch: L/‖x'−x‖."""
    share = math.tanh(dimension * (ratio**2 - 1) / 4)  # (a−1)/(a+1) without overflow
    return abs((1 - eta) + eta * share * stretch)


def factor_unconditioning(dimension: int, ratio: float, eta: float, stretch: float, temperature: float) -> float:
    """γ_ex = |1 − η(a+C⁻²)/(a+1) + η (a−C⁻²)/(a+1) · L/‖x'−x‖|, a = C^{(d−2)/T}; temperature may be infinite."""
    power = (dimension - 2) * math.log(ratio) / temperature
    near = 1 / (1 + math.exp(-power))  # a/(a+1), and the far centre's share times C⁻²
    far = math.exp(-power) * near / ratio**2
    return abs(1 - eta * (near + far) + eta * (near - far) * stretch)
