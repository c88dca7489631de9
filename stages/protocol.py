"""The protocol of a stage: Params, plan, work, gather; and how a stage runs without Prefect and DVC.

Every module `stages/NAME.py` of the DAG offers the same four names:

    Params                          a StageParams: the typed section of params.yaml that the stage reads
    plan(params)   -> list[Shard]   the independent pieces of work (may be empty)
    work(shard)    -> Path          does one piece: deterministic, idempotent, writes `shard.out` atomically
    gather(params, parts)           assembles the stage's outs under data/NAME from {task: results in the plan's order}

Paths are relative to the project's root, which is the working directory.
"""

import argparse
import importlib
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from stages.errors import InputError, missing, one_line
from stages.files.artifacts import sha256_file, sha256_json
from stages.files.paths import CACHE
from stages.files.shard import Shard

Parts = dict[str, list[Path]]
"""Task -> results of its shards in the plan's order; a task without shards has no entry."""


class Section(BaseModel):
    """A typed section of params.yaml, immutable. Unknown keys, NaN, infinity and true for a number are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """pydantic reads true as 1, and YAML reads `yes` and `on` as true."""
        if _holds_boolean(value) and not _takes_boolean(cls.model_fields[info.field_name].annotation):
            raise ValueError('expected a number or text, got true/false: write yes, no, on and off in quotes ("yes")')
        return value


def _holds_boolean(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list) and any(map(_holds_boolean, value)))


def _takes_boolean(annotation: Any) -> bool:
    """Whether a field's annotation contains bool or Any."""
    return annotation in (bool, Any) or any(map(_takes_boolean, get_args(annotation)))


class StageParams(Section):
    """Base of every stage's Params.

    SECTION: the stage's own section of params.yaml.
    SHARED: field -> dotted key elsewhere in params.yaml; "{variant}" stands for the variant's name.
    PER_VARIANT: whether the stage runs once per variant; its Params then have a field `variant`, the name.
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
        values = dict(_lookup(tree, cls.SECTION) or {}) if cls.has_section() else {}
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
    def has_section(cls) -> bool:
        """Whether params.yaml has a section of this stage; none where all that it reads is in other sections."""
        return not cls.SHARED or not set(cls.model_fields) <= {*cls.SHARED, "variant"}

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
    """Describe the first of pydantic's errors in one line that names the dotted key in `file`.

    section: the section that holds the validated fields; "" for the whole file.
    places: field -> dotted key, for the fields that are kept outside `section`.
    values: the validated values.
    """
    errors = error.errors()  # a mistyped key is unknown, and the right one is missing: the first says more
    first = next((entry for entry in errors if entry["type"] == "extra_forbidden"), errors[0])
    location = _keys_only(first["loc"], values, first["type"] == "missing")
    head = [places[location[0]]] if location and location[0] in places else [section, *location[:1]]
    key = ".".join(part for part in [*head, *location[1:]] if part)
    if first["type"] == "extra_forbidden":
        return f"{file}: unknown key {key}: remove it or correct its spelling"
    if first["type"] == "missing":
        return f"{file}: missing key {key}: add it"
    # a section's values would fill the line, and the message already names what is wrong in it
    got = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
    return f"{file}: {key}: {first['msg'].removeprefix('Value error, ')}{got}"


def _keys_only(location: tuple[int | str, ...], values: Any, missing: bool) -> list[str]:
    """The parts of pydantic's location that are keys of the file; the types of a union that it tried follow them.

    missing: the last part is a key that the file lacks; it is kept.
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
    """Read a YAML file of parameters. A missing, malformed or huge file or a repeated key raises InputError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST_YAML + 1)
        if len(content) > LARGEST_YAML:
            raise InputError(f"{path} has more than {LARGEST_YAML} bytes: name the parameter file")
        text = content.decode("utf-8")
        _reject_bombs(path, text)
        loader = _YamlLoader(text)
        root = loader.get_single_node()
        _reject_ambiguous(path, root)
        tree = None if root is None else loader.construct_document(root)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run in the project's root") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name the parameter file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # PyYAML's constructors raise these on a value that its tag does not fit: 2001-13-45, !!int ''
        raise InputError(f"{path} holds a value that YAML cannot read ({one_line(error)}): correct it") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path} must hold a mapping of sections, not {type(tree).__name__}")
    return tree


_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's parser is six times as fast

LARGEST_YAML, DEEPEST_YAML, MOST_NODES = 1 << 20, 32, 50_000
"""A parameter file's bytes, the depth of its values, and the number of its values once aliases are written out."""

AMBIGUOUS = re.compile(r"[-+]?0[0-9_]|[-+]?0b|[-+]?[0-9]\S*[:_]")
"""Numbers that YAML 1.1 and YAML 1.2 (DVC's) read differently: 0100 is 64 or 100, 1:40 is 100 or text."""


def _reject_bombs(path: Path | str, text: str) -> None:
    """Raise InputError for nested or repeated values that would overflow the parser's stack or take it forever."""
    count = 0
    sizes: dict[str, int | None] = {}  # anchor -> its values with aliases written out; None inside it
    open_nodes: list[tuple[str | None, int]] = []
    for event in yaml.parse(text, _YamlLoader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in sizes and sizes[event.anchor] is None:
                raise InputError(f"{path}: *{event.anchor} in line {line} is inside &{event.anchor}: write it out")
            count += sizes.get(event.anchor) or 0
        elif isinstance(event, yaml.NodeEvent):
            open_nodes.append((event.anchor, count))
            sizes[event.anchor] = None
            count += 1
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            sizes[anchor] = count - start
        if len(open_nodes) > DEEPEST_YAML:
            raise InputError(f"{path}: line {line} is nested more than {DEEPEST_YAML} deep: correct it")
        if count > MOST_NODES:
            raise InputError(f"{path} holds more than {MOST_NODES} values (line {line}): remove aliases or values")


def _reject_ambiguous(path: Path | str, node: yaml.Node | None, prefix: str = "") -> None:
    """Raise InputError for a repeated key and for a number that is another one in YAML 1.2.

    YAML's parser silently keeps the last of repeated keys, and an edit may change the first.
    """
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _reject_ambiguous(path, item, f"{prefix}{index}.")
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float")) and AMBIGUOUS.match(node.value):
        remedy = "write it without leading zeros, colons and underscores, or in quotes"
        raise InputError(f"{path}: {prefix[:-1]}: {node.value} is another number in YAML 1.1 than in 1.2: {remedy}")
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            dotted = f"{prefix}{key.value}"
            if dotted in seen:
                raise InputError(f"{path}: key {dotted} is repeated (line {key.start_mark.line + 1}): remove one")
            seen.add(dotted)
            _reject_ambiguous(path, value, f"{dotted}.")


def run_plain(name: str, variant: str | None = None, params_path: str = "params.yaml") -> None:
    """Run stage `name` on params.yaml in this process, without Prefect, DVC or a shard cache."""
    stage = importlib.import_module(f"stages.{name}")
    run_stage(stage, stage.Params.from_tree(load_tree(params_path), variant))


def run_stage(stage: ModuleType, params: StageParams) -> None:
    """Plan, work on one shard after the other, and gather.

    Results and checkpoints lie under .scoresmooth/plain until the stage is finished: an interrupted training resumes
    from them. In a process group of torchrun only the first process gathers.
    """
    shards = stage.plan(params)
    key = sha256_json([[shard.to_json(), [_digest(path) for path in shard.inputs]] for shard in shards])
    folder = CACHE / "plain" / f"{params.SECTION}-{getattr(params, 'variant', 'all')}-{key[:16]}"
    results = [stage.work(shard.at(folder / f"{i:05d}{shard.suffix}")) for i, shard in enumerate(shards)]
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["RANK"] != "0":
        return
    stage.gather(params, by_task(shards, results))
    shutil.rmtree(folder, ignore_errors=True)


def by_task(shards: Sequence[Shard], results: Sequence[Path]) -> Parts:
    """Group the results of a plan's shards by task, as `gather` expects them."""
    parts: Parts = {}
    for shard, result in zip(shards, results, strict=True):
        parts.setdefault(shard.task, []).append(result)
    return parts


def _digest(path: str) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError as error:
        raise missing(path) from error


def main(name: str) -> None:
    """The command line of `python -m stages.NAME [--variant V] [--params FILE]`.

    `--shard FILE` works on one shard only: a runner starts a separate process with it.
    """
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", description=f"Run stage {name}.")
    parser.add_argument("--variant", help="a variant's name in params.yaml")
    parser.add_argument("--params", default="params.yaml", help="the parameter file (params.yaml)")
    parser.add_argument("--shard", help="work only on the shard that this JSON file describes")
    arguments = parser.parse_args()
    try:
        if arguments.shard:
            importlib.import_module(f"stages.{name}").work(Shard.from_json(Path(arguments.shard).read_text()))
        else:
            run_plain(name, arguments.variant, arguments.params)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def spans(count: int, pieces: int, multiple: int = 1) -> list[tuple[int, int]]:
    """Cut [0, count) into at most `pieces` contiguous, nearly equal, non-empty ranges (start, stop).

    multiple: every start is a multiple of it, so that no batch of this size is divided.
    """
    units = -(-count // multiple)
    pieces = max(1, min(pieces, units))
    edges = [min(units * i // pieces * multiple, count) for i in range(pieces + 1)]
    return [(a, b) for a, b in zip(edges, edges[1:]) if b > a]


def span_shards(
    stage: str,
    task: str,
    title: str,
    cuts: Sequence[tuple[int, int]],
    settings: dict[str, Any],
    inputs: Sequence[Path | str],
    suffix: str = ".arrow",
) -> list[Shard]:
    """One shard per range of `cuts`, named "TITLE 1/n", with the range as `start` and `stop` in its settings."""
    paths = tuple(map(str, inputs))
    return [
        Shard(stage, task, f"{title} {n}/{len(cuts)}", {**settings, "start": a, "stop": b}, paths, suffix)
        for n, (a, b) in enumerate(cuts, 1)
    ]
