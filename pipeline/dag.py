"""The DVC stages' dependencies, derived from the code: digests of a stage's import closure, and the keys it reads.

DVC does not follow imports. Whenever a file below stages/ has changed, its stage `code` writes one list of files and
digests per stage, and each stage depends on its own list. So an edit reaches exactly the stages that import the edited
file, and dvc.yaml and dvc.lock need not repeat some thirty files for each stage of each variant.
"""

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline import closure
from pipeline.params import STAGES, stage_module
from stages.errors import InputError
from stages.files.artifacts import atomic_path, sha256_file, write_text
from stages.files.paths import DATA, VERDICTS

FILE = Path("dvc.yaml")
CODE = DATA / "code"
CODE_STAGE = "code"


def code_list(name: str) -> Path:
    """The file that stage `name` depends on for its code."""
    return CODE / f"{name}.txt"


def code_lists() -> dict[Path, str]:
    """Every stage's code list and its text: a line per file, sha256 and path.

    Files of pipeline/ are left out: the dispatch changes no result.
    """
    return {code_list(name): "".join(map(_line, closure.code_files(name))) for name in STAGES}


def _line(file: str) -> str:
    return f"{sha256_file(closure.ROOT / file)}  {file}\n"


def write_code_lists() -> None:
    """Write every stage's code list: what the stage `code` does. Make the folder of verdicts where a copy lacks it."""
    VERDICTS.mkdir(parents=True, exist_ok=True)  # the stage `filter` depends on it
    for path, text in code_lists().items():
        write_text(path, text)


def update(write: bool, path: Path = FILE) -> list[str]:
    """Return the differences between dvc.yaml and the code, a line each; with `write`, correct dvc.yaml.

    Raises InputError if a stage is missing in dvc.yaml.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(path.read_text(encoding="utf-8"))
    changes: list[str] = []
    for name in (CODE_STAGE, *STAGES):
        if name not in document["stages"]:
            raise InputError(f"{path} has no stage {name}: add it")
    changes += _differences(
        CODE_STAGE, "outs", document["stages"][CODE_STAGE], [str(code_list(name)) for name in STAGES]
    )
    for name in STAGES:
        body = document["stages"][name].get("do", document["stages"][name])
        data = [dep for dep in body.get("deps") or [] if Path(dep).parent != CODE]
        changes += _differences(name, "deps", body, [str(code_list(name)), *data])
        changes += _differences(name, "params", body, stage_module(name).Params.keys("${key}"))
    if changes and write:
        with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
            yaml.dump(document, file)
    return changes


def _differences(stage: str, kind: str, body: dict[str, Any], want: list[str]) -> list[str]:
    """Set `body[kind]` to `want`; return the differences from what it was, a line each."""
    have = list(body.get(kind) or [])
    if want:
        body[kind] = want
    else:
        body.pop(kind, None)
    return [f"{stage}: {kind} + {item}" for item in want if item not in have] + [
        f"{stage}: {kind} - {item}" for item in have if item not in want
    ]
