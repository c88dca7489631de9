"""Numbers as people read them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

THIN = "\u202f"  # narrow no-break space, as between a number and its unit
RESULTS_VERSION = 3
"""The version of data/report/results.json. It rises when the keys change, so that an older file is recognized."""

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclasses.dataclass(frozen=True)
class Rate:
    """A proportion, flagged of count, with its 95 % Wilson interval; rates in [0, 1]."""

    flagged: int
    count: int
    rate: float
    low: float
    high: float

    @classmethod
    def of(cls, values: dict[str, Any], prefix: str = "") -> Self:
        """Read the entries `{prefix}flagged`, … of one metric in filter.json."""
        return cls(*(values[prefix + name] for name in ("flagged", "count", "rate", "ci_low", "ci_high")))

    def __str__(self) -> str:
        """375 of 512 (73.2 % [69.2, 76.9])."""
        return f"{self.flagged:,} of {self.count:,} ({percent(self.rate)} {interval(self.low, self.high)})"


def limit(value: float) -> str:
    """A threshold of r₁/r₂: ⅓, 0.7."""
    return "⅓" if value == 1 / 3 else f"{value:.3g}"


def percent(rate: float) -> str:
    """0.7321 → 73.2 %; rates below 1 % keep two digits."""
    value = 100 * rate
    digits = 2 if 0 < abs(value) < 1 else 1
    text = f"{value:.{digits}f}"
    return f"{'100' if text == '100.0' else '0' if value == 0 else text}{THIN}%"


def interval(low: float, high: float) -> str:
    """[69.2, 76.9], in percent without the sign."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def number(value: float | int | None, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, powers of ten where they are shorter; – for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.{max(0, digits - 1 - int(exponent))}f}"
    return f"{mantissa}·10{str(int(exponent)).translate(SUPERSCRIPTS)}"


def times(value: float) -> str:
    """A multiple, to two decimals: 0.05 ×, 1.62 ×."""
    return f"{f'{value:.2f}' if value < 100 else number(value)}{THIN}×"


def listing(parts: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def cell(row: dict[str, Any], name: str) -> tuple[float | None, ...]:
    """A number of the table with its interval: over training seeds where there are several, else of the samples.

    An end is None where there is none.
    """
    if f"{name}_mean_low" in row:
        return row[f"{name}_mean"], row[f"{name}_mean_low"], row[f"{name}_mean_high"]
    return row.get(f"{name}_rate", row.get(name)), row.get(f"{name}_low"), row.get(f"{name}_high")
