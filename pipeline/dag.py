"""dvc.yaml kept in step with the code: DVC does not follow imports, so every stage lists its import closure."""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import closure
from pipeline.params import STAGES, stage_module
from stages.artifacts import atomic_path
from stages.errors import InputError

FILE = Path("dvc.yaml")


def code_deps(name: str) -> list[str]:
    """The code that stage `name` must list in dvc.yaml. Dispatching changes no result, so pipeline/ is not in it."""
    return closure.code_files(name)


def param_keys(name: str) -> list[str]:
    """The keys of params.yaml that stage `name` must list."""
    return stage_module(name).Params.keys("${key}")


def listed(stage: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
    """What a stage of dvc.yaml lists: code deps, the other deps, params."""
    body = stage.get("do", stage)
    deps = list(body.get("deps", []))
    code = [dep for dep in deps if dep.startswith("stages/")]
    return code, [dep for dep in deps if dep not in code], list(body.get("params", []))


def update(write: bool, path: Path = FILE) -> list[str]:
    """The differences between dvc.yaml and the code, a line each; with `write`, dvc.yaml is corrected.

    Raises InputError if a stage is missing in dvc.yaml.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    changes: list[str] = []
    for name in STAGES:
        if name not in document["stages"]:
            raise InputError(f"{path} has no stage {name}: add it")
        changes += _update_stage(name, document["stages"][name])
    if changes and write:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
    return changes


def _update_stage(name: str, stage: dict[str, Any]) -> list[str]:
    code, data, params = listed(stage)
    body = stage.get("do", stage)
    changes = []
    for kind, have, want in (("deps", code, code_deps(name)), ("params", params, param_keys(name))):
        changes += [f"{name}: {kind} + {item}" for item in want if item not in have]
        changes += [f"{name}: {kind} - {item}" for item in have if item not in want]
    if changes:
        body["deps"] = code_deps(name) + data
        if param_keys(name):
            body["params"] = param_keys(name)
        else:
            body.pop("params", None)
    return changes
