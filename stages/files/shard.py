"""A shard: one independent piece of a stage's work, and where its result lies."""

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Shard:
    """One independent piece of a stage's work. JSON all through, so that any runner can carry it.

    Attributes:
        stage: module name under `stages` ("sample").
        task: which kind of work of the stage it is ("samples"); `work` and `gather` tell shards apart by it.
        name: what a person reads in logs and in the UI ("closed-conditioning 3/8").
        settings: everything besides `inputs` that determines the result; JSON values only.
        inputs: files whose bytes determine the result, relative to the project's root.
        suffix: the result's file extension.
        out: where `work` writes; set by the runner. Scratch files (checkpoints) live in `scratch`.
    """

    stage: str
    task: str
    name: str
    settings: dict[str, Any]
    inputs: tuple[str, ...] = ()
    suffix: str = ".arrow"
    out: str | None = None

    def at(self, path: Path | str) -> "Shard":
        """This shard with its result's path."""
        return dataclasses.replace(self, out=str(path))

    @property
    def path(self) -> Path:
        """Where `work` writes its result."""
        if self.out is None:
            raise ValueError(f"shard {self.stage} {self.name} has no path yet: a runner sets it with Shard.at")
        return Path(self.out)

    @property
    def scratch(self) -> Path:
        """A folder beside the result for state that survives an interruption (checkpoints)."""
        return self.path.with_suffix(".scratch")

    def to_json(self) -> str:
        """The shard as JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Shard":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        return cls(**{**fields, "inputs": tuple(fields["inputs"])})
