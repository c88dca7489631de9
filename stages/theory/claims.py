"""A claim of the theory as one measured row, and the tables behind the plots."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of data/verify/verify.json.

    Attributes:
        claim: the statement in words.
        formula: what is compared, in symbols.
        source: METHODS section and where it comes from.
        computed: what was computed, with sizes and dtype.
        expected: the value that the statement gives.
        tolerance: largest |measured − expected| (or, where `deviation` is given, largest deviation) that still passes.
        reason: why the tolerance is what it is.
        measured: the value found.
        uncertainty: one standard error of `measured`; None where it is not random.
        deviation: where a row summarizes many cases, the largest |measured − expected| over them.
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

    @property
    def passed(self) -> bool:
        """Whether the deviation stays within the tolerance; a NaN never passes."""
        deviation = abs(self.measured - self.expected) if self.deviation is None else self.deviation
        return bool(deviation <= self.tolerance)

    def row(self) -> dict[str, Any]:
        """The claim as JSON values, with `passed`."""
        return {**dataclasses.asdict(self), "passed": self.passed}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one topic hands back: its claims, and tables (name -> rows of named values) for plots."""

    claims: list[Claim]
    tables: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
