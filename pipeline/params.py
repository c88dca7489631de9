"""params.yaml as one typed tree built from the stages' Params: an unknown, missing or wrong key is an error."""

import dataclasses
import importlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, ValidationError

import stages
from stages.errors import InputError
from stages.files.artifacts import sha256_file, sha256_json, write_text
from stages.files.paths import CACHE
from stages.protocol import Section, StageParams, explain, load_tree

STAGES = ("ingest", "deduplicate", "embed", "index", "train", "choose", "sample", "filter", "fid", "verify", "report")
"""The stage modules, in the order of the DAG. The only list of them in the code."""

RUNNER = "SCORESMOOTH_RUNNER"
"""Environment variable that overrides execution.runner. The option --runner sets it, also for stages started by dvc."""

ALLOWED = "SCORESMOOTH_PATHS"
"""Environment variable: folders, separated by colons, that absolute paths of params.yaml must lie in. Unset: any."""

LONGEST_NAME = 100
"""Letters of a variant's name."""

VALID = CACHE / "params.valid"
"""Holds the digest of the params.yaml and the code that were last found valid."""


class Slurm(Section):
    """What every job asks Slurm for, besides execution.cpus_per_job and gpus_per_job."""

    minutes: int = Field(ge=5)
    """Limit of a job's time; a training that takes longer is queued again and continues."""
    memory: float | None = Field(gt=0)
    """GiB per job; null: the partition's default."""
    options: dict[str, str | int | bool]
    """Further options of sbatch: {partition: gpu, account: NAME, constraint: a100}."""


class Execution(Section):
    """How the work is carried out. This section changes no result, so no DVC stage depends on it."""

    jobs: int | None = Field(ge=1, le=1024)
    """Shards worked on at the same time; null: one per reservation of GPUs, one without GPUs."""
    processes: list[str]
    """Stages whose shards run in processes of their own; others run theirs in threads of the stage's process."""
    server_timeout: float = Field(gt=0)
    """Seconds to wait for the local Prefect server to start."""
    gpus_per_job: int = Field(ge=0, le=64)
    """GPUs that each shard reserves where there are any; a training reserves them for each of train.processes. On Ray,
    what a shard, or each process of a training, asks for: a cluster without them is an error. 0: compute on CPUs."""
    gpu_timeout: float = Field(ge=0)
    """Seconds to wait for GPUs of this machine that other processes hold."""
    node_timeout: float = Field(ge=0)
    """Seconds to wait for a node of the Ray cluster that has what a shard asks for: lost, or still starting."""
    cpus_per_job: float = Field(gt=0, le=1024)
    """CPUs of each shard on Ray."""
    runner: Literal["local", "ray", "slurm"]
    """Where shards are worked on: on this machine, on a Ray cluster (extra `ray`) or by Slurm (extra `slurm`)."""
    address: str | None
    """The Ray cluster: HOST:PORT, ray://HOST:PORT or auto; null starts one on this machine. On Slurm null; submitit's
    executors `local` and `debug` rehearse on this machine."""
    shared: str | None
    """fsspec URL that all nodes see, for inputs and results; null: all nodes see the project's folder itself."""
    node_cache: str | None
    """Folder on the nodes for copies of inputs, with `shared`; null: ~/.cache/scoresmooth."""
    slurm: Slurm


@dataclasses.dataclass(frozen=True)
class Parameters:
    """All of params.yaml, validated.

    Attributes:
        execution: the section `execution`.
        variants: the variants' names, in the file's order.
        stages: (stage, variant or None) -> the stage's Params.
    """

    execution: Execution
    variants: tuple[str, ...]
    stages: dict[tuple[str, str | None], StageParams]


def stage_module(name: str) -> ModuleType:
    """The module of a stage of the DAG."""
    return importlib.import_module(f"stages.{name}")


def load_params(path: Path | str = "params.yaml") -> Parameters:
    """Read and validate all of params.yaml. Raises InputError: one line, naming the dotted key."""
    tree = load_tree(path)
    _reject_unknown_sections(tree)
    _reject_outside_paths(tree, path)
    for part in filter(Path.is_file, _named_files(tree)):
        _reject_outside_paths(load_tree(part), part)
    variants = _variant_names(tree)
    execution = _execution(tree)
    found: dict[tuple[str, str | None], StageParams] = {}
    for name in STAGES:
        params = stage_module(name).Params
        for variant in variants if params.PER_VARIANT else (None,):
            found[name, variant] = params.from_tree(tree, variant)
            _reject_unknown_variants(f"{name}.verdicts", getattr(found[name, variant], "verdicts", {}), variants)
    _check_together(found)
    return Parameters(execution, variants, found)


def _check_together(found: dict[tuple[str, str | None], StageParams]) -> None:
    """Reject values of two sections that contradict each other now, before any stage has run."""
    ingest, index = found["ingest", None], found["index", None]
    images, listed = getattr(ingest, "train", None), getattr(index, "neighbors", None)
    wanted = [("index.neighbors", (listed or 0) + 1)] if listed else []
    for (name, variant), params in found.items():
        spec = getattr(params, "spec", None)
        if name == "filter" and hasattr(params, "carlini"):
            wanted += [("filter.neighbors", params.neighbors), ("filter.carlini.n", params.carlini.n + 1)]
        if name != "train" or getattr(spec, "score", None) != "network":
            continue
        params.network.check_resolution(ingest.resolution)
        if spec.neighbors is not None and spec.neighbors.k - 1 > listed:
            raise InputError(
                f"params.yaml: variants.{variant}.neighbors.k: {spec.neighbors.k} needs {spec.neighbors.k - 1} "
                f"neighbours besides the image itself, index.neighbors lists {listed}: raise that or lower k"
            )
    for key, needed in wanted:
        if images is not None and needed > images:
            raise InputError(f"params.yaml: {key} needs {needed} training images, ingest.train is {images}: lower it")


def load_stage(name: str, variant: str | None, path: Path | str = "params.yaml") -> tuple[StageParams, Execution]:
    """Params of one stage and the execution section, once all of params.yaml is known to be valid."""
    if name not in STAGES:
        raise InputError(f"unknown stage {name}: choose one of {', '.join(STAGES)}")
    tree = check_params(path)
    params = stage_module(name).Params
    if params.PER_VARIANT and variant not in (None, *_variant_names(tree)):
        choice = ", ".join(_variant_names(tree))
        raise InputError(f"params.yaml: missing key variants.{variant}: add it, or choose one of {choice}")
    return params.from_tree(tree, variant), _execution(tree)


def check_params(path: Path | str = "params.yaml") -> dict[str, Any]:
    """Return params.yaml as a tree once all of it is known to be valid. Raises InputError as `load_params` does.

    Validating it imports every stage, so it is done once per version of file and code.
    """
    tree = load_tree(path)
    version = _version(path, tree)
    if not _found_valid(version):
        load_params(path)
        write_text(VALID, version)
    return tree


def _found_valid(version: str) -> bool:
    """Whether this version was found valid before; False where the record is missing or damaged: it is written anew."""
    try:
        return VALID.read_bytes() == version.encode()
    except OSError:
        return False


def _version(path: Path | str, tree: dict[str, Any]) -> str:
    """Digest of a parameter file, of the files that it names, and of all code that decides whether it is valid."""
    code = sorted(Path(stages.__file__).parent.rglob("*.py"))
    files = (path, *filter(Path.is_file, _named_files(tree)), __file__, *code)
    return sha256_json([os.environ.get(ALLOWED), *(sha256_file(file) for file in files)])


def _named_files(node: Any) -> Iterator[Path]:
    """The YAML files that hold a part of the parameters (verify.blocks)."""
    if isinstance(node, str) and node.endswith(".yaml"):
        yield Path(node)
    for value in node.values() if isinstance(node, dict) else ():
        yield from _named_files(value)


def _reject_outside_paths(node: Any, file: Path | str, key: str = "") -> None:
    """Reject a path that leaves the project by "..", and an absolute one outside the allowed folders, if these are set.

    Values are paths, or KIND:PATH?option=PATH. Links inside the project are followed: they were made on purpose.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            _reject_outside_paths(value, file, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _reject_outside_paths(value, file, f"{key}.{index}")
    elif isinstance(node, str) and "://" not in node:
        allowed = [Path(folder).resolve() for folder in os.environ.get(ALLOWED, "").split(":") if folder]
        for part in re.split(r"^[a-z0-9]+:|\?\w+=|&\w+=", node):
            path = Path(part).expanduser()
            if ".." in path.parts:
                raise InputError(f"{file}: {key}: {node} leaves the project by '..': write an absolute path")
            if path.is_absolute() and allowed and not any(path.resolve().is_relative_to(root) for root in allowed):
                raise InputError(f"{file}: {key}: {path} is outside {ALLOWED}={os.environ[ALLOWED]}: add its folder")


def _reject_unknown_sections(tree: dict[str, Any]) -> None:
    shared = (key for name in STAGES for key in stage_module(name).Params.SHARED.values())
    own = (name for name in STAGES if stage_module(name).Params.has_section())
    known = {*own, "execution", "variants", *(key.split(".")[0] for key in shared)}
    for section, values in tree.items():
        if section not in known:
            raise InputError(f"params.yaml: unknown key {section}: remove it or correct its spelling")
        if section in STAGES and not (values is None or isinstance(values, dict)):
            raise InputError(f"params.yaml: {section} must be a mapping of keys to values (got {values!r})")
        for key in values if isinstance(values, dict) else ():
            if not isinstance(key, str):
                raise InputError(f"params.yaml: unknown key {section}.{key}: remove it or correct its spelling")


def _variant_names(tree: dict[str, Any]) -> tuple[str, ...]:
    variants = tree.get("variants")
    if variants is None:
        raise InputError("params.yaml: missing key variants: add it")
    if not isinstance(variants, dict) or not variants:
        raise InputError("params.yaml: variants must be a mapping of at least one name to its settings")
    for name in variants:
        # the name becomes a folder, a part of a DVC stage's name and of a key in the UI
        if not isinstance(name, str) or len(name) > LONGEST_NAME or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
            shown = "".join(char if char.isprintable() else "?" for char in str(name)[:LONGEST_NAME])
            raise InputError(
                f"params.yaml: variants.{shown}: use at most {LONGEST_NAME} lowercase letters, digits and single "
                "dashes in the name"
            )
    return tuple(variants)


def _reject_unknown_variants(key: str, values: dict[str, str], variants: tuple[str, ...]) -> None:
    for name in values:
        if name not in variants:
            raise InputError(f"params.yaml: {key}.{name}: unknown variant: choose one of {', '.join(variants)}")


def _execution(tree: dict[str, Any]) -> Execution:
    if "execution" not in tree:
        raise InputError("params.yaml: missing key execution: add it")
    if not isinstance(tree["execution"], dict):
        raise InputError("params.yaml: execution must be a mapping")
    chosen = {"runner": os.environ[RUNNER]} if RUNNER in os.environ else {}
    try:
        execution = Execution(**{**tree["execution"], **chosen})
    except ValidationError as error:
        raise InputError(explain(error, "execution", {}, {**tree["execution"], **chosen})) from error
    for index, name in enumerate(execution.processes):
        if name not in STAGES:
            raise InputError(
                f"params.yaml: execution.processes.{index}: unknown stage {name!r}: choose one of {', '.join(STAGES)}"
            )
    return execution
