"""The loss curve of a training while it runs, in DVCLive's folder: for `dvc plots`, and for VS Code, which follows it.

Needs the extra `live`; without it nothing is written. The stage itself writes only its own curve (`loss.tsv`), whose
rows this takes: the work must not depend on what shows it.
"""

import csv
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from pipeline.progress import CURVE
from stages.protocol import Shard

FOLDER = Path("dvclive")
"""Git ignores it: the curve of a finished training is an out of its stage."""


class LiveCurve:
    """Hands the new rows of a training's curve to DVCLive."""

    def __init__(self, shard: Shard) -> None:
        self._path, self._rows, self._live = shard.scratch / CURVE, 0, None
        self._folder = FOLDER / "-".join(shard.name.split()).replace("/", "-")

    def look(self) -> None:
        """Log the rows that are new since the last look. A curve that became shorter (a restart) is begun again."""
        rows = self._read()
        if len(rows) < self._rows:
            self._rows, self._live = 0, None
        for row in rows[self._rows :]:
            self._log(row)
        self._rows = len(rows)

    def _read(self) -> list[dict[str, str]]:
        try:
            with self._path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file, delimiter="\t"))
        except FileNotFoundError:
            return []

    def _log(self, row: dict[str, str]) -> None:
        if self._live is None:
            self._live = _open(self._folder)
        self._live.step = int(row.pop("step"))
        for name, value in row.items():
            self._live.log_metric(name, float(value))
        self._live.sync()


def available() -> bool:
    """Whether DVCLive is installed."""
    return importlib.util.find_spec("dvclive") is not None


def _open(folder: Path) -> Any:
    # a file of plots of its own: DVCLive would otherwise write into the project's dvc.yaml, and make an experiment
    live = importlib.import_module("dvclive").Live
    return live(str(folder), dvcyaml=str(folder / "dvc.yaml"), save_dvc_exp=False)
