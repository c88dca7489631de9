"""The code that a stage's results depend on: the import closure of its module within `stages`."""

import functools
import importlib.metadata
import platform
import sys
from pathlib import Path

import grimp

import stages
from stages.files.artifacts import sha256_file, sha256_json

ROOT = Path(stages.__file__).parent.parent
"""The folder that holds the package `stages`."""

PRESENTATION = frozenset({"pydantic", "rich", "tqdm", "yaml"})
"""Packages that validate, print or parse: a new version of one changes no result, so it makes none stale."""

OTHER = frozenset({".py", ".pyc", ".md", ".yaml"})
"""Suffixes of the files beside a module that are not its templates."""


@functools.cache
def _graph() -> grimp.ImportGraph:
    # imports inside functions count too; grimp reads the source and runs nothing
    return grimp.build_graph("stages", include_external_packages=True, cache_dir=None)


def _closure(stage: str) -> set[str]:
    module = f"stages.{stage}"
    return {module} | _graph().find_upstream_modules(module)


def modules(stage: str) -> list[str]:
    """Names of the modules within `stages` that stage `stage` imports, directly or not, itself included; sorted."""
    return sorted(module for module in _closure(stage) if module.split(".")[0] == "stages")


def code_files(stage: str) -> list[str]:
    """Files that stage `stage` depends on, relative to `ROOT`, sorted.

    These are the modules it imports, directly or not, and the other files (templates) beside those modules. The
    packages' `__init__.py` hold only a docstring (tests/test_architecture.py) and are left out, as are
    documentation (.md) and parameters (.yaml), which reach a shard's key through its settings.
    """
    files, folders = set(), set()
    for module in modules(stage):
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if path.is_file():
            files.add(path)
            folders.add(path.parent)
    for folder in folders - {ROOT / "stages"}:
        files |= {path for path in folder.iterdir() if path.is_file() and path.suffix not in OTHER}
    return sorted(path.relative_to(ROOT).as_posix() for path in files)


def packages(stage: str) -> list[str]:
    """Names of the third-party packages that the stage's closure imports and that can change its results."""
    outside = {module for module in _closure(stage) if "." not in module} - {"stages"}
    return sorted(outside - set(sys.stdlib_module_names) - PRESENTATION)


def versions(names: list[str]) -> dict[str, str]:
    """Installed version of each importable package; "absent" where it is not installed."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # the distribution has another name: PIL is pillow
        distributions = _distributions()
        return importlib.metadata.version(distributions[name][0]) if name in distributions else "absent"


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())


def code_digest(stage: str) -> str:
    """Hex sha256 over the closure's file contents, the versions of the packages it imports, and Python's."""
    files = {name: sha256_file(ROOT / name) for name in code_files(stage)}
    return sha256_json([stage, files, versions(packages(stage)), platform.python_version()])
