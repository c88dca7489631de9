"""Presets: the keys that turn params.yaml into the published set-up of a data set, a file each in pipeline/presets.

A preset holds only the keys that differ, so it stays in step with params.yaml: applying it gives a valid file. Its key
`extends` names a preset that it changes in turn.
"""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.params import load_params
from pipeline.toy import shrink
from stages.errors import InputError
from stages.files.artifacts import atomic_path
from stages.protocol import load_tree

FOLDER = Path(__file__).parent / "presets"
WHOLE = ("variants", "report.published")
"""What a preset replaces instead of merging: it lists all its variants."""

EXTENDS = "extends"


def names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def about(name: str) -> str:
    """A preset's first line, without the comment sign."""
    return _file(name).read_text(encoding="utf-8").splitlines()[0].lstrip("# ")


def changes(name: str, path: Path | str = "params.yaml", toy: bool = False) -> list[str]:
    """Return what the preset would change in a parameter file: "KEY: OLD -> NEW", a line each."""
    before, after = load_tree(path), _plain(_applied(name, path, toy))
    return list(_differences(before, after, ""))


def parameters(name: str, path: Path | str = "params.yaml") -> dict[str, Any]:
    """Return a parameter file's tree with the preset's keys."""
    return _plain(_applied(name, path, toy=False))


def removed(name: str, path: Path | str = "params.yaml") -> list[str]:
    """Return the variants of a parameter file that the preset does not have; the file is read before `apply`."""
    kept = _applied(name, path, toy=False)["variants"]
    return [variant for variant in load_tree(path)["variants"] if variant not in kept]


def gpu_hours(name: str) -> str | None:
    """Return what the preset, or the nearest one that it extends, says of GPU hours; None where they say nothing."""
    for part, _ in reversed(_chain(name)):
        if found := re.search(r"^# (GPU hours .*\n(?:# .+\n)*)", _file(part).read_text(encoding="utf-8"), re.M):
            return found[1].replace("\n# ", " ").strip()
    return None


def apply(name: str, path: Path | str = "params.yaml", toy: bool = False) -> None:
    """Write the preset into a parameter file, with its comments. The result is validated before it replaces the file.

    toy: at the size of pipeline.toy. Raises InputError if the file has uncommitted changes: they would be lost.
    """
    _require_committed(Path(path))
    with atomic_path(path) as temporary:
        with temporary.open("w", encoding="utf-8") as file:
            _yaml().dump(_applied(name, path, toy), file)
        load_params(temporary)


def _file(name: str) -> Path:
    if name not in names():
        raise InputError(f"unknown preset {name}: choose one of {', '.join(names())}")
    return FOLDER / f"{name}.yaml"


def _yaml() -> YAML:
    yaml = YAML()
    yaml.width = 4096
    return yaml


def _plain(document: Any) -> Any:
    if isinstance(document, dict):
        return {str(key): _plain(value) for key, value in document.items()}
    return [_plain(value) for value in document] if isinstance(document, list) else document


def _applied(name: str, path: Path | str, toy: bool) -> Any:
    """Return the parameter file with the preset's keys, as a round-trip document. Unknown keys raise InputError."""
    load_tree(path)  # one clear line where it is missing or malformed
    document = _yaml().load(Path(path).read_text(encoding="utf-8"))
    for part, keys in _chain(name):
        _merge(document, keys, part, "")
    if toy:
        shrink(document)
    return document


def _chain(name: str) -> list[tuple[str, Any]]:
    """Return the preset's keys after those of the presets that it extends, each with its name."""
    keys = _yaml().load(_file(name).read_text(encoding="utf-8"))
    base = keys.pop(EXTENDS, None)
    return [*(_chain(base) if base else []), (name, keys)]


def _merge(document: Any, preset: Any, name: str, prefix: str) -> None:
    for key, value in preset.items():
        dotted = f"{prefix}{key}"
        if key not in document:
            raise InputError(f"preset {name}: params.yaml has no key {dotted}: restore it, or correct the preset")
        if dotted in WHOLE or not (isinstance(value, dict) and isinstance(document[key], dict)):
            document[key] = copy.deepcopy(value)
        else:
            _merge(document[key], value, name, f"{dotted}.")


def _differences(before: Any, after: Any, prefix: str) -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [*after, *(key for key in before if key not in after)]
        parts = (
            _differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
            for key in keys
            if before.get(key) != after.get(key)
        )
        return [line for part in parts for line in part]
    return [f"{prefix}: {before} -> {after}"]


def _require_committed(path: Path) -> None:
    remedy = "commit it (git commit), or move it away and restore the committed one, and run this again"
    if shutil.which("git") is None:
        raise InputError(f"cannot check {path} for uncommitted changes, which would be lost: install git")
    listed = subprocess.run(["git", "ls-files", "--error-unmatch", str(path)], capture_output=True)
    if listed.returncode:
        raise InputError(f"{path} is not in git, so its content would be lost: {remedy}")
    if subprocess.run(["git", "diff", "--quiet", "HEAD", "--", str(path)], capture_output=True).returncode:
        raise InputError(f"{path} has uncommitted changes, which would be lost: {remedy}")
