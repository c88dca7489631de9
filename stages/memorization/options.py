"""The options of the commands audit, copybench and risk: a wrong one is an InputError of one line that names it."""

import os
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ValidationError

from stages.errors import InputError
from stages.files.artifacts import atomic_path
from stages.protocol import Section

Options = TypeVar("Options", bound=Section)

LONGEST_NAME = 255
"""Bytes of a file's name that file systems take."""


def named_place(out: str | Path) -> Path:
    """The place that results are written to. Raises ValueError where `out` names none.

    pathlib reads "" as the working directory, and a longer name than file systems take fails only after the work.
    """
    if not str(out).strip():
        raise ValueError("name the place that the results are written to")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in Path(out).parts):
        raise ValueError(f"a part of this path is longer than the {LONGEST_NAME} bytes that file systems take")
    return Path(out)


Out = Annotated[Path, BeforeValidator(named_place)]
"""The type of an option --out."""


def checked(kind: type[Options], values: dict[str, Any]) -> Options:
    """The options, validated. Raises InputError that names the first wrong one."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = f"--{str(first['loc'][0]).replace('_', '-')}"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{option}: {message} (got {first['input']!r})") from error


def make_writable(option: str, named: Path, folder: Path) -> None:
    """Make `folder`, which the value `named` of an option asks for. Raises InputError where it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "writable") as temporary:
            temporary.write_text("yes\n")
        (folder / "writable").unlink()
    except OSError as error:
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror
        remedy = "choose a folder that you may write to"
        raise InputError(f"--{option} {named} cannot be written ({reason}): {remedy}") from error
