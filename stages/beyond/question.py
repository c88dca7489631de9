"""A block of stage verify about a question that the papers leave open.

Such a block draws several training sets from one pool of images, one per seed, and judges over these: a claim holds
where the whole 95 % interval over the seeds lies on its side of the bound. QUESTION says what is asked, and what the
numbers would be if the answer were no.
"""

from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from stages.diffusion.parameters import NoiseParams
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, paired_rates, rate_variance
from stages.theory.claims import ImageBlock, Table


class Question(ImageBlock):
    """The images and seeds of an open question."""

    QUESTION: ClassVar[str]
    CUT: ClassVar[str | None] = "seeds"

    dataset: str = Field(min_length=1, description="a source of images; `images` is the size of the pool drawn from")
    resolution: int = Field(ge=1, le=4096, description="side that they are resized to")
    held_out: int = Field(ge=10, description="images of the pool that no model of a seed sees, the control")
    samples: int = Field(ge=10, description="samples of every model")
    noise: NoiseParams = Field(description="levels of all samplers")
    seeds: list[int] = Field(min_length=1, description="each draws images and noise of its own")

    def source(self, default: str | None) -> str | None:
        """See ImageBlock.source: the block's own data set."""
        return self.dataset

    def side(self, default: int | None) -> int | None:
        """See ImageBlock.side: the block's own."""
        return self.resolution

    def drawn(self, images: np.ndarray, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return `count` training and the held-out images of a seed; smaller training sets lie within larger ones."""
        if self.held_out + count > len(images):
            raise ValueError(f"{count} training and {self.held_out} held-out images are more than the {len(images)}")
        order = np.random.default_rng(seed).permutation(len(images))
        return images[order[self.held_out : self.held_out + count]], images[order[: self.held_out]]


COUNTS = {"control": "controls"}
"""Share of a row: the column of how many images it is of; of all others it is `samples`."""


def by_seed(rows: Table, value: str, **wanted: Any) -> list[float]:
    """Return a column's values over the seeds, in their order, of the rows that have the wanted values."""
    own = [row for row in rows if wanted.items() <= row.items()]
    return [row[value] for row in sorted(own, key=lambda row: row["seed"])]


def summary(rows: Table, value: str, **wanted: Any) -> SeedMean:
    """Return the mean of `by_seed` with its interval."""
    return over_seeds(by_seed(rows, value, **wanted))


def words(found: SeedMean, scale: float = 1.0, digits: int = 2) -> str:
    """Return MEAN [LOW, HIGH]."""
    ends = "" if found.low is None else f" [{scale * found.low:.{digits}f}, {scale * found.high:.{digits}f}]"
    return f"{scale * found.mean:.{digits}f}{ends}"


def percent(rows: Table, value: str, **wanted: Any) -> str:
    """Return the mean share of `by_seed` in percent with its interval, no shorter than sampling demands."""
    shares, counts = (np.array(by_seed(rows, name, **wanted)) for name in (value, COUNTS.get(value, "samples")))
    return words(over_seeds(shares, rate_variance(shares * counts, counts), SHARE), 100, 1)


def share_difference(rows: Table, value: str, of: dict[str, Any], against: dict[str, Any]) -> SeedMean:
    """Return the mean difference of a share over seeds, rows `of` minus rows `against`, all of as many samples."""
    one, other = (np.array(by_seed(rows, value, **wanted)) for wanted in (of, against))
    count = rows[0][COUNTS.get(value, "samples")]
    return paired_rates(one * count, other * count, count)
