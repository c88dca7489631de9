"""What moves between two machines: the same run's numbers beside the spread from one training seed to another.

    python -m benchmarks.processors THERE [HERE]

THERE, HERE: data/report of two finished runs, by default HERE is this project's. Of THERE its metrics.json suffices,
which git keeps (git show REVISION:data/report/metrics.json > THERE/metrics.json). Prints what its numbers are there and
here, and for networks the standard deviation over training seeds here. Where both have plots/runs.tsv, the ends of all
trainings are compared seed by seed, with a t-interval of the mean difference.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.paths import DATA
from stages.memorization.seeds import paired_difference
from stages.reporting.runs import BLEND, DISTANCE, RATIO

MEASURES = {"copies_rate": RATIO, "calibrated_distance_rate": DISTANCE, "blends_rate": BLEND, "fd_test": "fd"}
"""A key of metrics.json -> the column of runs.tsv that measures the same."""

Ends = dict[str, dict[int, dict[str, float]]]


def ends(report: Path) -> Ends:
    """Return the measures at the end of every training, by network and seed; {} where the report has no runs."""
    path = report / "plots" / "runs.tsv"
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: float(row["step"]))
    found: Ends = {}
    for row in rows:
        count = {column: 1 if column == "fd" else float(row["count"]) for column in MEASURES.values()}
        values = {key: float(row[column]) / count[column] for key, column in MEASURES.items()}
        found.setdefault(row["variant"], {})[int(float(row["seed"]))] = values
    return found


def compared(there: Path, here: Path) -> Iterator[tuple[str, str, float, float, float | None]]:
    """Yield variant, key, its value there and here, and the standard deviation over seeds here; None: a closed form."""
    one, other = (read_json(report / "metrics.json")["variants"] for report in (there, here))
    if missing := sorted(one.keys() ^ other.keys()):
        raise InputError(f"{there} and {here} have different variants ({', '.join(missing)}): compare equal runs")
    spread = ends(here)
    for variant, values in other.items():
        for key in MEASURES:
            seeds = [value[key] for value in spread.get(variant, {}).values()]
            yield variant, key, one[variant][key], values[key], float(np.std(seeds, ddof=1)) if len(seeds) > 1 else None


def paired(there: Path, here: Path) -> Iterator[tuple[str, str, str]]:
    """Yield variant, key, and the mean difference here − there over the seeds that both have, with its t-interval."""
    one, other = ends(there), ends(here)
    for variant in [name for name in other if name in one]:
        common = sorted(one[variant].keys() & other[variant].keys())
        for key in MEASURES if common else ():
            found = paired_difference(*([side[variant][seed][key] for seed in common] for side in (other, one)))
            interval = "" if found.low is None else f" [{found.low:+.4g}, {found.high:+.4g}]"
            yield variant, key, f"{found.mean:+.4g}{interval}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("there", type=Path)
    parser.add_argument("here", type=Path, nargs="?", default=DATA / "report")
    options = parser.parse_args()
    try:
        print("| variant | number | there | here | difference | over seeds ± |\n|---|---|---|---|---|---|")
        for variant, key, one, other, spread in compared(options.there, options.here):
            beside = "–" if spread is None else f"{spread:.3g}"
            print(f"| {variant} | {key} | {one:.4g} | {other:.4g} | {other - one:+.3g} | {beside} |")
        differences = list(paired(options.there, options.here))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
    if differences:
        print("\n| variant | number | here − there, mean over seeds |\n|---|---|---|")
    for variant, key, text in differences:
        print(f"| {variant} | {key} | {text} |")


if __name__ == "__main__":
    main()
