"""What a reproduction ends with: the results table, where report and UI are, and the outs of variants that are gone."""

import os
from collections.abc import Collection
from pathlib import Path

from pipeline import server
from stages.files.paths import CACHE, DATA, LOCAL
from stages.protocol import load_tree
from stages.reporting.terminal import print_results

PER_VARIANT = ("train", "choose", "sample", "filter", "fid")
"""The stages whose outs lie in a folder per variant."""

RESULTS = DATA / "report" / "results.json"


def print_summary(params: Path | str = "params.yaml") -> None:
    """Print it all. Raises InputError when there is no report yet."""
    print_results(RESULTS)
    print(f"\nreport      {_report()}")
    print(f"Prefect UI  {server.where()}")
    for path in stale(load_tree(params).get("variants") or ()):
        print(f"stale       {path}: params.yaml has no variant of this name; to remove it: rm -r {path}")


def print_summary_if_any(params: Path | str = "params.yaml") -> None:
    """The same after a run that need not have made a report."""
    if RESULTS.exists():
        print_summary(params)


def _report() -> str:
    """Where the report is. DVC deletes an experiment's copy of the project (--temp, --queue) at its end."""
    if CACHE != LOCAL:
        return f"dvc exp apply {os.environ.get('DVC_EXP_NAME', 'NAME')} brings it into your working directory"
    return str((DATA / "report" / "report.html").absolute())


def stale(variants: Collection[str]) -> list[Path]:
    """Folders of outs whose variant is none of these; neither DVC nor a stage touches them again."""
    folders = (path for name in PER_VARIANT for path in sorted((DATA / name).glob("*")) if path.is_dir())
    return [path for path in folders if path.name not in variants]
