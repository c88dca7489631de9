"""A network's runs: the weights of its trainings at the steps that are kept, each of which is sampled and measured.

They are listed seed by seed, each seed's by ascending steps, so that a seed's last run is the end of its training. The
first seed's last run is the reference: its samples are those that the report shows.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import InputError
from stages.files.artifacts import read_json

if TYPE_CHECKING:
    from stages.files.images import ImageTable


@dataclasses.dataclass(frozen=True)
class Run:
    """Weights after `step` steps of the training with `seed`."""

    seed: int
    step: int
    weights: Path

    @property
    def key(self) -> dict[str, int]:
        """What names the run in tables."""
        return {"seed": self.seed, "step": self.step}


def read_runs(path: Path) -> list[Run]:
    """Read runs.json; its paths are relative to its folder. Raises InputError where it does not list runs."""
    try:
        return [
            Run(int(run["seed"]), int(run["step"]), path.parent / run["weights"]) for run in read_json(path)["runs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not list runs ({error!r}): rerun its train stage") from error


def reference(runs: Sequence[Run]) -> Run:
    """Return the end of the first seed's training."""
    return [run for run in runs if run.seed == runs[0].seed][-1]


def rows_of_runs(table: "ImageTable", path: Path) -> list[tuple[dict[str, Any], range]]:
    """Return each run's key with the rows of its samples in the table read from `path`: as many for each run."""
    keys = table.metadata.get("runs")
    if not keys or len(table) % len(keys):
        raise InputError(f"{path} does not say which runs its {len(table)} samples are of: rerun its sample stage")
    count = len(table) // len(keys)
    return [(key, range(place * count, (place + 1) * count)) for place, key in enumerate(keys)]
