"""Atomic writing of text, JSON and TSV files, and digests. Every command imports this, so it does not import Arrow."""

import csv
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.errors import InputError, missing


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the target's folder; on success fsync it and rename it to `path`.

    When the body raises, the temporary file is removed and `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    temporary.open("xb").close()  # with the mode that the user's umask gives
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that new and renamed files survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path | str, text: str) -> Path:
    """Write `text` (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` as indented JSON with sorted keys; NaN and infinity raise ValueError."""
    return write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Read JSON; a missing or malformed file raises InputError naming it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise missing(path) from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not valid JSON ({error}): delete it and rerun its stage") from error


def write_tsv(path: Path | str, rows: list[dict[str, Any]]) -> Path:
    """Write rows with equal keys as a tab-separated table with a header (for `dvc plots`), atomically."""
    if not rows:
        raise ValueError(f"{path}: a table needs at least one row")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return Path(path)


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hex sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def differing(saved: Any, wanted: Any, prefix: str = "") -> list[str]:
    """Return the differences of two trees of JSON values: "KEY SAVED there, WANTED here" for every dotted key."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        keys = [*wanted, *(key for key in saved if key not in wanted)]
        absent = "nothing"
        return [
            line
            for key in keys
            for line in differing(saved.get(key, absent), wanted.get(key, absent), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if saved == wanted else [f"{prefix} {json.dumps(saved)} there, {json.dumps(wanted)} here"]
