"""The results as tables: for the page, for the terminal, for `dvc metrics` and for `dvc plots`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages.files.artifacts import read_json
from stages.reporting.checks import Check
from stages.reporting.inputs import CURVE, LOSS, Inputs, Rate, Variant
from stages.reporting.learned import NAME as LEARNED
from stages.reporting.words import interval, number, rate_words

THIRD = "nn_ratio_1_3"  # r_1/r_2 < 1/3, the literature's usual rule, shown beside the headline


def kind(variant: Variant) -> str:
    """What the samples come from, in words."""
    return "network" if variant.network else "closed form"


def result_row(variant: Variant) -> dict[str, Any]:
    """One variant's numbers, rates in [0, 1]: a row of results.json."""
    third = Rate.of(variant.filter["metrics"][THIRD]) if THIRD in variant.filter["metrics"] else None
    ratio, fid = variant.filter["ratio"], variant.fid
    return {
        "variant": variant.name,
        "score": kind(variant),
        "form": variant.form,
        **_rate("copies", variant.copies),
        **(_rate("ratio_below_third", third) if third else {}),
        **_rate("control", variant.control),
        "fd_name": fid["name"],
        "fd_test": fid["test"]["distance"],
        "fd_train": fid["train"]["distance"],
        "fd_floor": fid["floor"]["distance"],
        "median_multiple": variant.median_multiple,
        "ratio_mean": ratio["mean"],
        "ratio_min": ratio["min"],
        **(_rate("verified", variant.verified) if variant.verified else {}),
        **(_rate("verified_without_repeated", variant.verified_without_repeated) if variant.verified else {}),
    }


def _rate(name: str, rate: Rate) -> dict[str, Any]:
    return {
        name: rate.flagged,
        f"{name}_count": rate.count,
        f"{name}_rate": rate.rate,
        f"{name}_low": rate.low,
        f"{name}_high": rate.high,
    }


def results(inputs: Inputs, sentence: str, found: Sequence[Check]) -> dict[str, Any]:
    """data/report/results.json: what `scoresmooth results` prints."""
    metric = inputs.variants[0].filter["metrics"][inputs.metric]
    return {
        "answer": sentence,
        "metric": {"name": inputs.metric, "definition": metric["definition"], "threshold": metric["threshold"]},
        "rows": [result_row(variant) for variant in inputs.variants],
        "checks": [dataclasses.asdict(check) for check in found],
        "theory": {
            "claims": len(inputs.claims),
            "passed": sum(claim["passed"] for claim in inputs.claims),
            "failed": [_in_words(claim) for claim in inputs.claims if not claim["passed"]],
            "beside_verify": [
                {"name": block.name, "title": block.title, "claims": block.claims}
                for block in inputs.theory
                if block.name == LEARNED
            ],
        },
    }


def metrics(inputs: Inputs, found: Sequence[Check]) -> dict[str, Any]:
    """metrics.json for `dvc metrics diff`: numbers only, per variant and in total."""
    variants = {}
    for variant in inputs.variants:
        row = result_row(variant)
        variants[variant.name] = {key: value for key, value in row.items() if isinstance(value, int | float)}
        variants[variant.name] |= {
            f"rate_{name}": values["rate"] for name, values in sorted(variant.filter["metrics"].items())
        }
        variants[variant.name]["unique_training_images"] = variant.filter["unique_training_images"]
    claims = sum(claim["passed"] for claim in inputs.claims)
    return {
        "variants": variants,
        "checks": {"passed": sum(check.passed for check in found), "failed": sum(not check.passed for check in found)},
        "theory": {"passed": claims, "failed": len(inputs.claims) - claims},
    }


def loss_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Loss curves of all networks, one row per variant and logged step; NaN where a third of the levels had no loss."""
    return _curve_rows([(variant.name, variant.loss) for variant in variants], LOSS)


def curve_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Copies and Fréchet distance while the networks learnt, one row per variant and snapshot."""
    return _curve_rows([(variant.name, variant.curve) for variant in variants], CURVE)


def _curve_rows(curves: Sequence[tuple[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"variant": variant, **{name: float(value) for name, value in zip(names, values)}, "step": int(values[0])}
        for variant, columns in curves
        if columns is not None
        for values in zip(*(columns[name] for name in names))
    ]


def copy_rows(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """Copy rate by variant, in percent."""
    return [
        {
            "variant": variant.name,
            "score": kind(variant),
            "copy_rate_percent": 100 * variant.copies.rate,
            "low": 100 * variant.copies.low,
            "high": 100 * variant.copies.high,
            "control": 100 * variant.control.rate,
        }
        for variant in variants
    ]


def print_results(path: Path | str = "data/report/results.json") -> None:
    """Print the results table and the checks to the terminal. Raises InputError when there is no report yet."""
    content = read_json(path)
    table = _terminal_table(content)
    console = _console(table)
    console.print(table)
    console.print(_legend(content), style="dim", markup=False)
    for row in content["rows"]:
        if "verified" in row:
            console.print(_verified_line(row), markup=False, soft_wrap=True)
    _print_checks(console, content["checks"])
    theory = content["theory"]
    console.print(f"{theory['passed']} of {theory['claims']} claims of the theory hold")
    for failed in theory["failed"]:
        console.print(f"  fails: {failed}", markup=False)
    console.print()
    console.print(content["answer"], style="bold", markup=False)


def _console(table: Any) -> Any:
    """A console wide enough for the table: in a pipe or a narrow window one with its ends cut off says nothing."""
    from rich.console import Console

    console = Console(highlight=False)
    needed = Console(width=1000).measure(table).maximum
    return Console(highlight=False, width=needed) if console.width < needed else console


def _in_words(claim: dict[str, Any]) -> str:
    return (
        f"{claim['claim']}: {number(claim['measured'], 5)} instead of {number(claim['expected'], 5)} "
        f"± {number(claim['tolerance'])}"
    )


def print_theory(data: Path | str = "data") -> None:
    """Print every claim of the theory to the terminal: of stage verify, and of the trained scores where stage report
    has made them. Raises InputError when stage verify has not run."""
    verified, scope = _verified_blocks(Path(data) / "verify")
    report = Path(data) / "report" / "results.json"
    trained = read_json(report)["theory"].get("beside_verify", []) if report.is_file() else []
    console = _console(table := _claims_table([*verified, *trained]))
    console.print(table)
    rows = [claim for block in (*verified, *trained) for claim in block["claims"]]
    passed = sum(claim["passed"] for claim in rows)
    console.print(f"{passed} of {len(rows)} claims hold; {scope['mode']} mode, images: {scope['dataset']}")
    if not trained:
        console.print("of trained scores nothing is known yet: scoresmooth repro report", markup=False)


def _verified_blocks(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The blocks of stage verify with their claims, and the mode and the images of the first."""
    claims = read_json(folder / "verify.json")["claims"]
    blocks = read_json(folder / "blocks.json")["blocks"]
    own = [{**block, "claims": [row for row in claims if row["topic"] == block["name"]]} for block in blocks]
    return own, blocks[0]


def _claims_table(blocks: Sequence[dict[str, Any]]) -> Any:
    """One section per block: its title, then a row per claim."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("claim", no_wrap=True)
    for heading in ("expected", "measured", "± error", "tolerance"):
        table.add_column(heading, justify="right", no_wrap=True)
    for block in blocks:
        table.add_section()
        table.add_row("", f"[bold]{block['title']}[/]")
        for claim in block["claims"]:
            table.add_row(*_theory_row(claim))
    return table


def _theory_row(claim: dict[str, Any]) -> list[str]:
    off = abs(claim["measured"] - claim["expected"]) if claim["deviation"] is None else claim["deviation"]
    return [
        "[green]holds[/]" if claim["passed"] else "[bold red]FAILS[/]",
        claim["claim"].replace("[", "\\["),
        number(claim["expected"], 5),
        number(claim["measured"], 5),
        "" if claim["uncertainty"] is None else number(claim["uncertainty"]),
        f"{number(off)} ≤ {number(claim['tolerance'])}"
        if claim["passed"]
        else f"{number(off)} > {number(claim['tolerance'])}",
    ]


def _print_checks(console: Any, found: Sequence[dict[str, Any]]) -> None:
    quiet = [check for check in found if check["sanity"] and check["passed"]]
    for check in found:
        if check not in quiet:
            mark = "[green]pass[/]" if check["passed"] else "[bold red]FAIL[/]"
            console.print(f"{mark}  [bold]{check['title']}[/]: {check['sentence'].replace('[', chr(92) + '[')}")
    if quiet:
        sound = sum(check["sanity"] for check in found)
        console.print(f"[green]pass[/]  [bold]{len(quiet)} of {sound} variants draw sound samples[/]")


def _terminal_table(content: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    rows = content["rows"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("variant", no_wrap=True)
    for heading in ("copies", "% [95 %]", "held-out %", "FD", "median ×", "r1/r2 mean"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(row["score"] for row in rows):
        table.add_section()
        table.add_row(f"[dim]{name}[/]")
        for row in rows:
            if row["score"] == name:
                table.add_row(*_terminal_row(row))
    return table


def _legend(content: dict[str, Any]) -> str:
    floors = sorted(row["fd_floor"] for row in content["rows"])
    reach = " to ".join(dict.fromkeys((number(floors[0]), number(floors[-1]))))
    return (
        f"copies by {content['metric']['name']}: {content['metric']['definition']}\n"
        f"FD: {content['rows'][0]['fd_name']} to test images; held-out images reach {reach}\n"
        "median ×: distance to the nearest training image, over that of held-out images\n"
    )


def _verified_line(row: dict[str, Any]) -> str:
    found, without = (_rate_of(row, name) for name in ("verified", "verified_without_repeated"))
    words = f"{rate_words(found)}; without repeated training images {rate_words(without)}"
    return f"verified by eye  {row['variant']}: {words}"


def _rate_of(row: dict[str, Any], name: str) -> Rate:
    """The inverse of `_rate`."""
    return Rate(*(row[name + end] for end in ("", "_count", "_rate", "_low", "_high")))


def _terminal_row(row: dict[str, Any]) -> list[str]:
    return [
        row["variant"],
        f"{row['copies']}/{row['copies_count']}",
        f"{100 * row['copies_rate']:.1f} {interval(row['copies_low'], row['copies_high'])}".replace("[", "\\["),
        f"{100 * row['control_rate']:.2f}",
        number(row["fd_test"]),
        f"{row['median_multiple']:.2f}",
        f"{row['ratio_mean']:.2f}",
    ]
