"""The results on the terminal: what `scoresmooth results` prints."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.reporting.words import RESULTS_VERSION, Rate, cell, interval, listing, number

HOLDS, FAILS = "[green]{}[/]", "[bold red]{}[/]"


def print_results(path: Path | str = "data/report/results.json") -> None:
    """Print the results table and the checks. Raises InputError when there is no report yet."""
    content = _read_results(path)
    table = _results_table(content["rows"])
    console = _console(table)
    console.print(table)
    console.print(_legend(content), style="dim", markup=False)
    for row in content["rows"]:
        if "verified" in row:
            console.print(_verified_line(row), markup=False, soft_wrap=True)
    for contrast in content["contrasts"]:
        console.print(f"{contrast['name']}: {contrast['sentence']}", markup=False, soft_wrap=True)
    _print_checks(console, content["checks"])
    theory = content["theory"]
    console.print(f"{theory['passed']} of {theory['claims']} claims of the theory hold")
    for failed in theory["failed"]:
        console.print(f"  fails: {failed}", markup=False)
    for row in content["onsets"]:
        console.print(f"{row['variant']}: {row['words']}", markup=False, soft_wrap=True)
    for row in content["frontier"]:
        console.print(f"{row['of']}, {row['at_equal_distance']} {row['late']}", markup=False, soft_wrap=True)
    console.print()
    console.print("\n".join(content["rates"]), markup=False, soft_wrap=True)
    console.print(content["answer"], style="bold", markup=False, soft_wrap=True)


def _read_results(path: Path | str) -> dict[str, Any]:
    content = read_json(path)
    if content.get("version") != RESULTS_VERSION:
        raise InputError(f"{path} is of another version of scoresmooth: make it anew (scoresmooth repro report)")
    return content


def print_theory(data: Path | str = "data") -> None:
    """Print every claim of the theory: those of stage verify, and those on trained scores once stage report has run.

    Raises InputError when stage verify has not run.
    """
    verify, report = Path(data) / "verify", Path(data) / "report" / "results.json"
    claims, own = read_json(verify / "verify.json")["claims"], read_json(verify / "blocks.json")["blocks"]
    blocks = [{**block, "claims": [row for row in claims if row["topic"] == block["name"]]} for block in own]
    trained = read_json(report)["theory"].get("beside_verify", []) if report.is_file() else []
    console = _console(table := _claims_table([*blocks, *trained]))
    console.print(table)
    theory = [claim for block in (*blocks, *trained) if not block.get("question") for claim in block["claims"]]
    asked = [claim for block in blocks if block["question"] for claim in block["claims"]]
    holding, shown = (sum(claim["passed"] for claim in rows) for rows in (theory, asked))
    console.print(f"{holding} of {len(theory)} claims hold; {own[0]['mode']} mode, images: {own[0]['dataset']}")
    if asked:
        console.print(f"{shown} of {len(asked)} statements on what the papers leave open are shown")
    if not trained:
        console.print("the claims on trained scores are missing: run scoresmooth repro report", markup=False)


def _table(first: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table: columns of text, then columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in first:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _console(table: Table) -> Console:
    """A console at least as wide as the table, since a pipe or a narrow window would cut its columns off."""
    width, needed = Console().width, Console(width=1000).measure(table).maximum
    return Console(highlight=False, width=needed if width < needed else None)


def _results_table(rows: Sequence[dict[str, Any]]) -> Table:
    """One section per kind of score: a heading, then a row per variant."""
    table = _table(("variant",), tuple(COLUMNS))
    for kind in dict.fromkeys(row["score"] for row in rows):
        table.add_section()
        table.add_row(f"[dim]{kind}[/]")
        for row in rows:
            if row["score"] == kind:
                table.add_row(*_results_row(row))
    return table


COLUMNS = {
    "copied %": lambda row: _percent(*cell(row, "copies")),
    "held-out %": lambda row: f"{100 * row['control_rate']:.1f}",
    "nearer %": lambda row: _percent(*cell(row, "calibrated_distance")),
    "blends %": lambda row: _percent(*cell(row, "blends")),
    "FD": lambda row: _numbers(*cell(row, "fd_test")),
    "coverage": lambda row: f"{cell(row, 'coverage')[0]:.2f}",
    "median ×": lambda row: f"{row['median_multiple']:.2f}",
}
"""Heading -> the cell of a row, in the table at the terminal and in Markdown."""


def _percent(value: float, low: float | None, high: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if low is None else f" {interval(low, high)}")


def _numbers(value: float, low: float | None, high: float | None) -> str:
    return number(value) + ("" if low is None else f" [{number(low)}, {number(high)}]")


def _results_row(row: dict[str, Any]) -> list[str]:
    return [row["variant"], *(escape(show(row)) for show in COLUMNS.values())]


def print_markdown(path: Path | str = "data/report/results.json") -> None:
    """Print the results table in Markdown, as the README has it. Raises InputError when there is no report yet."""
    print("| variant | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    for row in _read_results(path)["rows"]:
        print("| " + " | ".join([row["variant"], *(show(row) for show in COLUMNS.values())]) + " |")


def _legend(content: dict[str, Any]) -> str:
    own = ("fd_holdout_of_first" if "fd_test_mean_low" in row else "fd_floor" for row in content["rows"])
    floors = sorted(row[name] for row, name in zip(content["rows"], own))
    reach = " to ".join(dict.fromkeys((number(floors[0]), number(floors[-1]))))
    return (
        f"copied by {content['metric']['name']}: {content['metric']['definition']}\n"
        "nearer: nearer to a training image than 99 % of held-out images\n"
        f"FD: {content['rows'][0]['fd_name']} to test images; held-out images reach {reach}{_counts(content['rows'])}\n"
        "coverage: share of test images that have a sample in their neighbourhood\n"
        f"blends: {content['metric']['blend']}\n"
        "median ×: median distance to the nearest training image ÷ that of held-out images\n"
    )


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    """Name the number of samples behind distance and coverage where it is not that of all samples."""
    counts = {row.get("first_count", row.get("seeds_count")) for row in rows if "fd_test_mean_low" in row}
    return f"; FD and coverage are of {listing([f'{n:,}' for n in sorted(counts)])} samples" if counts else ""


def _verified_line(row: dict[str, Any]) -> str:
    names = ("verified", "verified_without_repeated")
    if left := row.get("verified_open"):
        low, without = (f"{row[name]:,}" for name in names)
        return (
            f"verified by eye  {row['variant']}: at least {low} of {row['verified_count']:,}; without repeated "
            f"training images at least {without}; {left:,} suspected pairs are open"
        )
    found, without = (Rate(*(row[name + end] for end in ("", "_count", "_rate", "_low", "_high"))) for name in names)
    return f"verified by eye  {row['variant']}: {found}; without repeated training images {without}"


def _print_checks(console: Console, found: Sequence[dict[str, Any]]) -> None:
    sanity = [check for check in found if check["sanity"]]
    quiet = [check for check in sanity if check["passed"]]
    for check in found:
        if check not in quiet:
            mark = HOLDS.format("pass") if check["passed"] else FAILS.format("FAIL")
            console.print(f"{mark}  [bold]{check['title']}[/]: {escape(check['sentence'])}")
    if quiet:
        console.print(f"{HOLDS.format('pass')}  [bold]{len(quiet)} of {len(sanity)} variants draw sound samples[/]")


def _claims_table(blocks: Sequence[dict[str, Any]]) -> Table:
    """One section per block: its title, then a row per claim."""
    table = _table(("", "claim"), ("expected", "measured", "± error", "tolerance"))
    for block in blocks:
        table.add_section()
        table.add_row("", f"[bold]{block['title']}[/]")
        marks = ("shown", "not shown") if block.get("question") else ("holds", "FAILS")
        for claim in block["claims"]:
            table.add_row(*_claim_row(claim, *marks))
    return table


def _claim_row(claim: dict[str, Any], holds: str, fails: str) -> list[str]:
    off = abs(claim["measured"] - claim["expected"]) if claim["deviation"] is None else claim["deviation"]
    return [
        HOLDS.format(holds) if claim["passed"] else FAILS.format(fails),
        escape(claim["claim"]),
        number(claim["expected"], 5),
        number(claim["measured"], 5),
        "" if claim["uncertainty"] is None else number(claim["uncertainty"]),
        f"{number(off)} {'≤' if claim['passed'] else '>'} {number(claim['tolerance'])}",
    ]
