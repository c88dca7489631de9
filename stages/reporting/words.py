"""Numbers as people read them."""

from collections.abc import Sequence
from typing import Protocol

THIN = "\u202f"  # narrow no-break space, as between a number and its unit


class Proportion(Protocol):
    """Flagged of count with an interval; rates in [0, 1]."""

    flagged: int
    count: int
    rate: float
    low: float
    high: float


def percent(rate: float) -> str:
    """0.7321 → 73.2 %; small rates keep two digits."""
    value = 100 * rate
    digits = 2 if 0 < abs(value) < 1 else 1
    text = f"{value:.{digits}f}"
    return f"{'100' if text == '100.0' else '0' if value == 0 else text}{THIN}%"


def interval(low: float, high: float) -> str:
    """[69.2, 76.9], in percent without the sign."""
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def rate_words(rate: Proportion) -> str:
    """375 of 512 (73.2 % [69.2, 76.9])."""
    return f"{rate.flagged:,} of {rate.count:,} ({percent(rate.rate)} {interval(rate.low, rate.high)})"


def number(value: float | int | None, digits: int = 3) -> str:
    """Three significant digits, thousands grouped, powers of ten where they are shorter; – for None."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return f"{mantissa}·10{power}"
    places = max(0, digits - 1 - _magnitude(size, digits))
    return f"{value:,.{places}f}"


def times(value: float) -> str:
    """A multiple, to two decimals: 0.05 ×, 1.62 ×."""
    return f"{value:.2f}{THIN}×" if value < 100 else f"{number(value)}{THIN}×"


def _magnitude(size: float, digits: int) -> int:
    """The power of ten of a positive number's leading digit, once rounded to `digits`."""
    return int(f"{size:.{digits - 1}e}".split("e")[1])


def listing(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
