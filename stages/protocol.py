"""The protocol of a stage: Params, plan, work, gather; and running one without Prefect or DVC.

Every module `stages/NAME.py` of the DAG offers the same four names:

    Params                   a StageParams: the typed section of params.yaml that the stage reads
    plan(params)   -> list[Shard]   the independent pieces of work (may be empty)
    work(shard)    -> Path          one piece: deterministic, idempotent, writes `shard.out` atomically
    gather(params, parts)           assembles the stage's outs under data/NAME from {task: results in the plan's order}

Paths are relative to the project's root, which is the working directory.
"""

import argparse
import dataclasses
import importlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stages.errors import InputError
from stages.files.artifacts import sha256_file, sha256_json
from stages.files.paths import CACHE

Parts = dict[str, list[Path]]
"""Results of a plan's shards by task, in the plan's order; a task without shards is absent."""


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


class Section(BaseModel):
    """A typed piece of params.yaml: immutable; an unknown key, NaN, infinity and true for a number are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true as 1, and YAML reads `yes` and `on` as true."""
        if isinstance(value, bool) and not _takes_boolean(cls.model_fields[info.field_name].annotation):
            raise ValueError("this is no yes-or-no key")
        return value


def _takes_boolean(annotation: Any) -> bool:
    """Is bool, or Any, among the types of a field?"""
    return annotation in (bool, Any) or any(map(_takes_boolean, get_args(annotation)))


class StageParams(Section):
    """Base of every stage's Params.

    SECTION: the stage's own section of params.yaml.
    SHARED: field -> dotted key elsewhere in params.yaml; "{variant}" stands for the variant's name.
    PER_VARIANT: True for stages that run once per variant; they have a field `variant` (its name).
    """

    SECTION: ClassVar[str]
    SHARED: ClassVar[dict[str, str]] = {}
    PER_VARIANT: ClassVar[bool] = False

    @classmethod
    def from_tree(cls, tree: dict[str, Any], variant: str | None = None) -> "StageParams":
        """Build from the whole params.yaml. Raises InputError naming the dotted key that is wrong."""
        if cls.PER_VARIANT and variant is None:
            raise InputError(f"stage {cls.SECTION} runs per variant: add --variant NAME")
        if not cls.PER_VARIANT and variant is not None:
            raise InputError(f"stage {cls.SECTION} does not run per variant: drop --variant {variant}")
        values = dict(_lookup(tree, cls.SECTION) or {})
        places = {field: key.format(variant=variant) for field, key in cls.SHARED.items()}
        for field in (*places, *(("variant",) if cls.PER_VARIANT else ())):
            if field in values:
                raise InputError(f"params.yaml: unknown key {cls.SECTION}.{field}: remove it")
        values |= {field: _lookup(tree, key) for field, key in places.items()}
        if cls.PER_VARIANT:
            values["variant"] = variant
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError(explain(error, cls.SECTION, places, values)) from error

    @classmethod
    def keys(cls, variant: str = "{variant}") -> list[str]:
        """The dotted keys of params.yaml that this stage depends on: its `params` in dvc.yaml."""
        own = [] if set(cls.model_fields) <= {*cls.SHARED, "variant"} else [cls.SECTION]
        return own + [key.format(variant=variant) for key in cls.SHARED.values()]


def _lookup(tree: dict[str, Any], dotted: str) -> Any:
    node: Any = tree
    for part in dotted.split("."):
        if not isinstance(node, dict) or part not in node:
            raise InputError(f"params.yaml: missing key {dotted}: add it")
        node = node[part]
    return node


def explain(
    error: ValidationError, section: str, places: dict[str, str], values: dict[str, Any], file: str = "params.yaml"
) -> str:
    """One line for the first of pydantic's errors, with the dotted key as it stands in `file`.

    section: where the validated fields stand; "" for the whole file.
    places: field -> dotted key, for the fields that stand elsewhere than in `section`.
    values: what was validated.
    """
    first = error.errors()[0]
    location = _keys_only(first["loc"], values, first["type"] == "missing")
    head = [places[location[0]]] if location and location[0] in places else [section, *location[:1]]
    key = ".".join(part for part in [*head, *location[1:]] if part)
    if first["type"] == "extra_forbidden":
        return f"{file}: unknown key {key}: remove it or correct its spelling"
    if first["type"] == "missing":
        return f"{file}: missing key {key}: add it"
    # a whole section is not repeated: the message says what in it is wrong
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}{got}"


def _keys_only(location: tuple[int | str, ...], values: Any, missing: bool) -> list[str]:
    """The part of pydantic's location that stands in the file: it goes on with the types of a union that were tried.

    missing: the last part is a key that does not stand there, and belongs to it.
    """
    keys = []
    for part in location:
        inside = part in values if isinstance(values, dict) else isinstance(values, list) and part in range(len(values))
        if not inside and not missing:
            break
        keys.append(str(part))
        values = values[part] if inside else None
    return keys


def load_tree(path: Path | str = "params.yaml") -> dict[str, Any]:
    """A YAML file of parameters as plain values. A missing or malformed file or a repeated key raises InputError."""
    try:
        loader = _YamlLoader(Path(path).read_text(encoding="utf-8"))
        root = loader.get_single_node()
        _reject_repeated_keys(path, root)
        tree = None if root is None else loader.construct_document(root)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run in the project's root") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name the parameter file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold a mapping of sections, not {type(tree).__name__}")
    return tree


_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser, six times as fast, where there is one


def _reject_repeated_keys(path: Path | str, node: yaml.Node | None, prefix: str = "") -> None:
    """YAML's parser keeps the last of two equal keys without a word; an ablation would change the wrong one."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _reject_repeated_keys(path, item, prefix)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            if dotted in seen:
                raise InputError(f"{path}: key {dotted} stands twice (line {key.start_mark.line + 1}): remove one")
            seen.add(dotted)
            _reject_repeated_keys(path, value, f"{dotted}.")


def run_plain(name: str, variant: str | None = None, params_path: str = "params.yaml") -> None:
    """Run stage `name` in this process, shard after shard, without Prefect, DVC or a shard cache.

    Scratch state (training checkpoints) is kept under .scoresmooth/plain until the stage is done,
    so an interrupted training goes on where it stopped.
    """
    stage = importlib.import_module(f"stages.{name}")
    params = stage.Params.from_tree(load_tree(params_path), variant)
    shards = stage.plan(params)
    key = sha256_json([[shard.to_json(), [_digest(path) for path in shard.inputs]] for shard in shards])
    folder = CACHE / "plain" / f"{name}-{variant or 'all'}-{key[:16]}"
    parts = [stage.work(shard.at(folder / f"{i:05d}{shard.suffix}")) for i, shard in enumerate(shards)]
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        return  # one of torchrun's processes: the first one gathers
    stage.gather(params, by_task(shards, parts))
    shutil.rmtree(folder, ignore_errors=True)


def by_task(shards: Sequence[Shard], results: Sequence[Path]) -> Parts:
    """The results of a plan's shards as `gather` takes them."""
    parts: Parts = {}
    for shard, result in zip(shards, results, strict=True):
        parts.setdefault(shard.task, []).append(result)
    return parts


def _digest(path: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that writes it (dvc repro)") from error


def main(name: str) -> None:
    """The command line of `python -m stages.NAME [--variant V] [--params FILE]`, and of one shard
    (`--shard FILE`), which is how a runner starts work in a process of its own."""
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=f"Run stage {name}.")
    parser.add_argument("--variant", help="which variant of params.yaml")
    parser.add_argument("--params", default="params.yaml", help="the parameter file (params.yaml)")
    parser.add_argument("--shard", help="work on the one shard described in this JSON file, then stop")
    arguments = parser.parse_args()
    try:
        if arguments.shard:
            importlib.import_module(f"stages.{name}").work(Shard.from_json(Path(arguments.shard).read_text()))
        else:
            run_plain(name, arguments.variant, arguments.params)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def spans(count: int, shards: int) -> list[tuple[int, int]]:
    """[0, count) cut into at most `shards` contiguous, nearly equal, non-empty ranges (start, stop)."""
    shards = max(1, min(shards, count))
    edges = [count * i // shards for i in range(shards + 1)]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
