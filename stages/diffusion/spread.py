"""How far the training images spread, and the largest noise level that this asks for (METHODS §4).

A sampler starts from N(0, σ_max² I). There the log-weights of two training images differ by
x·(x_i − x_j)/σ_max² − (‖x_i‖² − ‖x_j‖²)/(2σ_max²): the second term is a lead in nats that the darker image has in every
sample, and the first one varies with standard deviation ‖x_i − x_j‖/σ_max. Where either is far above 1, samples fall to
the images near the origin, whatever the score. Song & Ermon 2020 (arXiv 2006.09011, technique 1) take the largest
pairwise distance as σ_max.
"""

import dataclasses
import math

from stages.diffusion.parameters import NoiseChoice, NoiseParams
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.paths import SPREAD


@dataclasses.dataclass(frozen=True)
class Spread:
    """Of the training images, pixels in [0, 1].

    Attributes:
        least_norm, largest_norm: min ‖x‖² and max ‖x‖².
        largest_distance: max ‖x_i − x_j‖.
    """

    least_norm: float
    largest_norm: float
    largest_distance: float

    def lead(self, sigma_max: float) -> float:
        """Return (max‖x‖² − min‖x‖²)/(2σ_max²), the darkest image's lead over the brightest at the start, in nats."""
        return (self.largest_norm - self.least_norm) / (2 * sigma_max**2)

    @property
    def sigma_max(self) -> float:
        """The least level, rounded up to 3 digits, that reaches the largest distance and leaves a lead of 1 nat."""
        level = max(self.largest_distance, math.sqrt((self.largest_norm - self.least_norm) / 2))
        unit = 10.0 ** (math.floor(math.log10(level)) - 2) if level else 1.0
        return round(math.ceil(level / unit) * unit, 9)


def read_spread() -> Spread:
    """Return the spread that stage deduplicate measured."""
    try:
        return Spread(**read_json(SPREAD))
    except TypeError as error:
        raise InputError(f"{SPREAD} does not describe how the training images spread: rerun deduplicate") from error


def resolve(noise: NoiseChoice, spread: Spread) -> NoiseParams:
    """Return the levels with `auto` replaced by the spread's sigma_max. Raises InputError where that is too low."""
    largest = spread.sigma_max if noise.sigma_max == "auto" else noise.sigma_max
    if largest <= noise.sigma_min:
        raise InputError(
            f"train.noise.sigma_max: auto gives {largest:g}, since the training images lie within "
            f"{spread.largest_distance:g} of each other, and sigma_min is {noise.sigma_min:g}: give a number above it"
        )
    return NoiseParams(sigma_min=noise.sigma_min, sigma_max=largest)
