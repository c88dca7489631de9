"""What the measurements should reach, and whether they do: a row per aim."""

from collections.abc import Iterator
from typing import Any, NamedTuple

MEMORY = {"unconditioning": 16.13 / 16.22, "pixel neighbours": 16.40 / 16.22, "feature neighbours": 16.86 / 16.22}
SECONDS = {
    "unconditioning": 0.3371 / 0.3551,
    "pixel neighbours": 0.3466 / 0.3551,
    "feature neighbours": 0.3540 / 0.3551,
}
"""Peak memory and seconds per batch over those of conditioning, CIFAR-10 (METHODS §9)."""

COPIES = {"conditioning": 128, "unconditioning": 92}
"""#mem of 1,000 samples, Cat-Caracal (METHODS §9): other images, so only the order is an aim."""

ROUNDING = 0.02
"""By how much a ratio of two timings may exceed its aim: they scatter by about this much."""


class Aim(NamedTuple):
    """One aim.

    Attributes:
        part, what: the measurement.
        aim: in words.
        found: what was measured; None where it was not.
        met: whether it was reached; None where it was not measured.
    """

    part: str
    what: str
    aim: str
    found: float | None
    met: bool | None


def aims(results: dict[str, Any]) -> list[Aim]:
    """All aims, in the order of the parts."""
    return [*_cost(results), *_peer(results), *_closed(results), *_search(results), *_copies(results)]


def _rows(results: dict[str, Any], part: str) -> dict[str, Any]:
    return results.get(part, {}).get("rows", {})


def _below(part: str, what: str, limit: float, found: float | None) -> Aim:
    met = None if found is None else found <= limit * (1 + ROUNDING)
    return Aim(part, what, f"at most {limit:.3g}", found, met)


def _above(part: str, what: str, limit: float, found: float | None) -> Aim:
    met = None if found is None else found >= limit * (1 - ROUNDING)
    return Aim(part, what, f"at least {limit:.3g}", found, met)


def _cost(results: dict[str, Any]) -> Iterator[Aim]:
    rows = _rows(results, "cost")
    base = rows.get("conditioning", {}).get("peak_gb")
    for name, limit in SECONDS.items():
        yield _below(
            "cost", f"seconds per step over conditioning, {name}", limit, rows.get(name, {}).get("over_conditioning")
        )
        peak = rows.get(name, {}).get("peak_gb")
        yield _below(
            "cost", f"peak memory over conditioning, {name}", MEMORY[name], peak / base if peak and base else None
        )


def _peer(results: dict[str, Any]) -> Iterator[Aim]:
    ratios = results.get("peer", {}).get("times_as_fast") or {"diffusers' network": None}
    for name, found in ratios.items():
        yield _above("peer", f"times as fast as {name}", 1.0, found)


def _closed(results: dict[str, Any]) -> Iterator[Aim]:
    rows = _rows(results, "closed").values()
    yield _above(
        "closed",
        "times as fast as a softmax over cdist, slowest level",
        1.0,
        min((r["times_as_fast"] for r in rows), default=None),
    )


def _search(results: dict[str, Any]) -> Iterator[Aim]:
    found = _rows(results, "search").get("faiss IndexFlatL2", {}).get("times_as_fast")
    yield _above("search", "times as fast as faiss IndexFlatL2", 1.0, found)


def _copies(results: dict[str, Any]) -> Iterator[Aim]:
    rows = _rows(results, "copies")
    mem = {name: row["mem"] for name, row in rows.items()}
    for name, published in COPIES.items():
        hotter = [n for key, n in mem.items() if key.startswith("temperature")]
        found = mem[name] - max(hotter) if name in mem and hotter else None
        met = None if found is None else found > 0
        yield Aim(
            "copies", f"#mem of {name} ({published} as published) over every temperature's", "more than 0", found, met
        )


def table(results: dict[str, Any]) -> str:
    """The aims as text, a line each."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    rows = [(a.part, a.what, a.aim, "" if a.found is None else f"{a.found:.4g}", words[a.met]) for a in aims(results)]
    rows.insert(0, ("part", "what", "aim", "found", ""))
    widths = [max(len(row[n]) for row in rows) for n in range(5)]
    return "\n".join("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows)
