"""A claim of the theory as one measured row, and what a block of claims returns. README.md says how to add a block."""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from stages.memorization.seeds import SeedMean
from stages.protocol import Section

Table = list[dict[str, Any]]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of data/verify/verify.json.

    Attributes:
        claim: the statement in words.
        formula: what is compared, in symbols.
        source: METHODS section and where it comes from.
        computed: what was computed, with sizes.
        expected: the value that the statement gives.
        tolerance: largest |measured − expected| (or, where `deviation` is given, largest deviation) that still passes.
        reason: why the tolerance is what it is.
        measured: the value found.
        uncertainty: one standard error of `measured`; None where it is not random.
        deviation: where a row summarizes many cases, the largest |measured − expected| over them; where an interval is
            judged, how far it reaches beyond `expected`.
        dtype: number format of the computation.
        low, high: the 95 % interval of `measured` over seeds; None where it has none.
    """

    claim: str
    formula: str
    source: str
    computed: str
    expected: float
    tolerance: float
    reason: str
    measured: float
    uncertainty: float | None = None
    deviation: float | None = None
    dtype: str = "float64"
    low: float | None = None
    high: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the deviation stays within the tolerance; a NaN never passes."""
        deviation = abs(self.measured - self.expected) if self.deviation is None else self.deviation
        return bool(deviation <= self.tolerance)

    def row(self) -> dict[str, Any]:
        """Return the claim as JSON values, with `passed`."""
        return {**dataclasses.asdict(self), "passed": self.passed}


@dataclasses.dataclass(frozen=True)
class Statement:
    """What a claim says, before it is measured; Claim explains the fields. Each method makes the row of the report."""

    claim: str
    formula: str
    source: str
    computed: str
    dtype: str = "float64"

    def equals(
        self, measured: Any, expected: Any, tolerance: float, reason: str = "float64 rounding", *,
        relative_to: Any = 1.0, error: float | None = None,
    ) -> Claim:  # fmt: skip
        """Two numbers agree, or two arrays in every entry: then the row holds their mean absolute values and the
        largest deviation over `relative_to` (a number, or one per entry). error: standard error of `measured`."""
        if np.ndim(measured) == 0:
            return self._row(measured, expected, tolerance, reason, uncertainty=error)
        deviation = float((np.abs(measured - expected) / relative_to).max())
        means = np.abs(measured).mean(), np.abs(expected).mean()
        return self._row(*means, tolerance, reason, uncertainty=error, deviation=deviation)

    def near(self, measured: float, expected: float, error: float, reason: str, extra: float = 0.0) -> Claim:
        """A random number lies within four standard errors: a true claim fails once in 16,000 runs. extra: a systematic
        part of the tolerance, which `reason` names."""
        return self._row(measured, expected, 4 * error + extra, reason, uncertainty=error)

    def mean(self, values: np.ndarray, expected: float, extra: float = 0.0, reason: str = "") -> Claim:
        """The mean of independent values (N,) lies within four standard errors of `expected`; extra: as in `near`."""
        reason = reason or "four standard errors of the mean"
        return self.near(values.mean(), expected, mean_error(values), reason, extra)

    def holds(self, violations: float, counted: str = "counts 1 where it does not hold") -> Claim:
        """An order or a yes-or-no statement: the row holds how often it is violated. counted: what a violation is."""
        return self._row(violations, 0.0, 0.0, counted)

    def above(self, found: SeedMean, bound: float, untrue: str) -> Claim:
        """The whole 95 % interval over seeds lies above `bound`. untrue: what it would read if the claim were false."""
        return self._clear(found, bound, -1, "above", untrue)

    def below(self, found: SeedMean, bound: float, untrue: str) -> Claim:
        """The whole 95 % interval over seeds lies below `bound`; untrue: as in `above`."""
        return self._clear(found, bound, 1, "below", untrue)

    def within(self, found: SeedMean, expected: float, tolerance: float) -> Claim:
        """The whole 95 % interval over seeds lies within `tolerance` of `expected`: few seeds show no equality."""
        if found.low is None:
            return self.holds(1, ONE_SEED)
        reason = f"the whole 95 % interval over {len(found.points)} seeds lies within it"
        farthest = max(abs(found.low - expected), abs(found.high - expected))
        return self._row(found.mean, expected, tolerance, reason, deviation=farthest, low=found.low, high=found.high)

    def _clear(self, found: SeedMean, bound: float, sign: int, side: str, untrue: str) -> Claim:
        """sign: 1 where the interval must lie below the bound, −1 above."""
        if found.low is None:
            return self.holds(1, ONE_SEED)
        beyond = sign * ((found.high if sign > 0 else found.low) - bound)
        if beyond >= 0:
            beyond = beyond or math.ulp(0.0)  # an interval that ends at the bound does not lie beside it
        elif beyond < 0:
            beyond = 0.0  # a NaN stays one, and never passes
        reason = f"the 95 % interval over {len(found.points)} seeds lies {side} {bound:g}; if untrue: {untrue}"
        return self._row(found.mean, bound, 0.0, reason, deviation=beyond, low=found.low, high=found.high)

    def _row(self, measured: float, expected: float, tolerance: float, reason: str, **others: float | None) -> Claim:
        numbers = {"expected": float(expected), "tolerance": float(tolerance), "measured": float(measured)}
        return Claim(**vars(self), **numbers, reason=reason, **others)


def binomial_error(probability: float, count: int) -> float:
    """The standard error of a share of `count` draws."""
    return math.sqrt(probability * (1 - probability) / count)


def mean_error(values: np.ndarray) -> float:
    """The standard error of the mean of values (N,)."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))


ONE_SEED = "counts 1 where a single seed has no interval"
ORDER = "an order holds or does not; the number counts its violations"


@dataclasses.dataclass(frozen=True)
class Picture:
    """Small images side by side, for the report.

    Attributes:
        caption: what the rows and columns are.
        pixels: uint8 (rows, columns, H, W, C).
    """

    caption: str
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a block (or one piece of it) returns.

    Attributes:
        claims: its measured rows.
        tables: name -> rows of named values, for plots and figures; rows of one name from several pieces are joined.
        pictures: name -> picture.
    """

    claims: list[Claim]
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Picture] = dataclasses.field(default_factory=dict)


class Block(Section):
    """Parameters of one block of claims, and its work.

    TITLE: its heading in the report. CUT: the list among its parameters whose entries are independent pieces of work.
    QUESTION: what the papers leave open and it measures; None where it measures a claim of theirs.
    """

    TITLE: ClassVar[str]
    QUESTION: ClassVar[str | None] = None
    CUT: ClassVar[str | None] = None

    def pieces(self) -> list[Self]:
        """Return the block cut into independent pieces, one shard each."""
        if self.CUT is None:
            return [self]
        return [self.model_copy(update={self.CUT: [entry]}) for entry in getattr(self, self.CUT)]

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Compute (a piece of) the block: deterministic in its parameters, `seed` and `images`.

        images: None, or for an ImageBlock uint8 (M, H, W, C).
        """
        raise NotImplementedError

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """Return claims about all pieces together, from their joined tables."""
        return []


class ImageBlock(Block):
    """A block that receives training images: the first `images` of a seeded order of the data set."""

    images: int = Field(ge=2, description="training images used; all of them where there are fewer")

    def source(self, default: str | None) -> str | None:
        """Return the source of its images. default: what verify.dataset names; None: what the pipeline ingested."""
        return default

    def side(self, default: int | None) -> int | None:
        """Return the side that its images are resized to; None: as they are. default: what verify names."""
        return default


class Schedule(Block):
    """A block with a geometric schedule of noise levels."""

    largest: float = Field(gt=0, description="first and highest noise level, in pixel units of [0,1]")
    smallest: float = Field(gt=0, description="last and lowest noise level")

    @model_validator(mode="after")
    def _falling(self) -> Self:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest {self.smallest} must be below largest {self.largest}")
        return self
