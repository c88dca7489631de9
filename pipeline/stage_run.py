"""One run of a stage, as the dispatch sees it."""

import dataclasses
import re
import sys
from pathlib import Path

from pipeline.params import Execution, stage_module
from stages.files.paths import DATA, LOCAL
from stages.protocol import Shard, StageParams, by_task

UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}(\.\w+)?")
"""The name of a file that is being written."""


@dataclasses.dataclass(frozen=True)
class StageRun:
    """One run of a stage.

    Attributes:
        name: the stage.
        variant: the variant's name, or None.
        params: its validated Params.
        execution: how the work is carried out.
        shards: its plan, each shard placed in the cache.
        address: the address of the Prefect UI, or None in ephemeral mode.
    """

    name: str
    variant: str | None
    params: StageParams
    execution: Execution
    shards: tuple[Shard, ...]
    address: str | None

    @property
    def title(self) -> str:
        """The name that a person reads: "sample closed-conditioning"."""
        return title(self.name, self.variant)

    @property
    def outs(self) -> Path:
        """The folder of the stage's outs."""
        return DATA / self.name / self.variant if self.variant else DATA / self.name

    def gather(self) -> None:
        """Assemble the outs from the shards' results."""
        remove_unfinished(self.outs)
        stage_module(self.name).gather(self.params, by_task(self.shards, [shard.path for shard in self.shards]))


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed left of files that they were writing (stages.files.artifacts.atomic_path).

    DVC removes a stage's outs before it runs, but nobody does without DVC. The stage's lock must be held.
    """
    for path in folder.rglob(".*"):
        if UNFINISHED.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def title(name: str, variant: str | None) -> str:
    """The stage and its variant."""
    return f"{name} {variant}" if variant else name


def address_of(name: str, variant: str | None) -> str:
    """The stage as DVC calls it: "sample@closed-conditioning"."""
    return f"{name}@{variant}" if variant else name


def split_address(address: str) -> tuple[str, str | None]:
    """The stage and its variant, or None: the reverse of `address_of`.

    From another folder DVC puts the path of dvc.yaml and a colon before it.
    """
    name, _, variant = address.rpartition("dvc.yaml:")[2].partition("@")
    return name, variant or None


def record_path(address: str) -> Path:
    """The record of a stage's last finished run: its shards, how many of them were computed, seconds.

    address: DVC's name of the stage (`address_of`).
    """
    return LOCAL / "records" / f"{address}.json"


def say(text: str) -> None:
    """Write a line for the person at the terminal, in one piece even if other threads write at the same time."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
