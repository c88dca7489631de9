"""The shard cache: results outside DVC's outs, found by the content that determines them, checked before every use.

A result's key is the sha256 of the code's digest, the shard's task and settings and its inputs' digests. In
ROOT/STAGE/ lie KEY.SUFFIX (the result), KEY.manifest (its size and sha256, written last), KEY.lock and, while the work
is under way, KEY.scratch/ (checkpoints). Beside ROOT, or in STATE, lies digests.sqlite, the digests of the inputs. The
pipeline's ROOT is .scoresmooth/shards, an audit's OUT/.work/shards.

DVC's run cache holds whole stages only; Prefect's and joblib's results are not checked when they are read, and a killed
process leaves neither a lock that others wait for nor checkpoints to continue from.
"""

import contextlib
import dataclasses
import enum
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from stages.errors import InputError
from stages.files.artifacts import read_json, sha256_file, sha256_json, write_json
from stages.files.locks import locked
from stages.files.paths import CACHE, STATE
from stages.files.shard import Shard

SHARDS = CACHE / "shards"
FRESH = 2 * 10**9
"""Nanoseconds: a file younger than this may change again without a new time stamp, so its digest is not kept."""

TOGETHER = 10_000
"""Files whose digests are remembered in one transaction; an interruption loses the digests of no more."""

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)
"""SQLite's codes for a file that is no database, a damaged one, or one with another table."""


class State(enum.Enum):
    """What the cache holds for a shard."""

    READY = "cached"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclasses.dataclass(frozen=True)
class Check:
    """The outcome of looking a shard up.

    Attributes:
        state: whether the result can be used.
        reason: for a damaged result, what is wrong with it.
    """

    state: State
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether the result was found intact."""
        return self.state is State.READY


def place(shard: Shard, code: str, root: Path = SHARDS, known: dict[Path, str] | None = None) -> Shard:
    """Return the shard with its result's path in the cache at `root`.

    code: a digest of everything besides the shard that determines the result, such as the stage's code.
    known: digests of files that stay as they are while a stage's shards are placed, so that none is read twice; see
    `input_digests`.
    """
    inputs = input_digests(shard.inputs, root, {} if known is None else known)
    key = sha256_json(
        {"code": code, "task": shard.task, "settings": shard.settings, "inputs": inputs, "suffix": shard.suffix}
    )
    return shard.at(root / shard.stage / f"{key}{shard.suffix}")


def manifest_path(shard: Shard) -> Path:
    """Where the record of a finished result lies."""
    return shard.path.with_suffix(".manifest")


def check(shard: Shard) -> Check:
    """Look a placed shard up; the result is READY only if it exists with the recorded size and sha256."""
    manifest = manifest_path(shard)
    if not manifest.exists():
        return Check(State.MISSING)
    try:
        record = read_json(manifest)
        size, digest = int(record["size"]), str(record["sha256"])
    except (InputError, KeyError, TypeError, ValueError):
        return Check(State.DAMAGED, "its manifest is not readable")
    if not shard.path.is_file():
        return Check(State.DAMAGED, "the file is gone")
    found = shard.path.stat().st_size
    if found != size:
        return Check(State.DAMAGED, f"it has {found} bytes instead of {size}")
    if sha256_file(shard.path) != digest:
        return Check(State.DAMAGED, "its sha256 differs")
    os.utime(manifest)  # prune keeps what was used lately
    return Check(State.READY)


def obtain(shard: Shard, run: Callable[[Shard, int], None], say: Callable[[str], None]) -> dict[str, object]:
    """The record {path, size, sha256} of a placed shard's result, computed by `run(shard, lock)` unless it is intact.

    Holds the shard's lock, so that one process at a time works on it; `lock` is the lock's file descriptor, for a
    child process to inherit. Scratch files are removed after success only.
    """
    lock = shard.path.with_suffix(".lock")
    with locked(lock, lambda pid: say(f"{shard.stage} {shard.name}: process {pid} works on it, waiting")) as handle:
        found = check(shard)
        if found.state is State.DAMAGED:
            say(f"{shard.stage} {shard.name}: the cached result is damaged ({found.reason}): computing it again")
        if not found.ready:
            _forget(shard)
            run(shard, handle)
            record = {"size": shard.path.stat().st_size, "sha256": sha256_file(shard.path)}
            write_json(manifest_path(shard), {**record, "stage": shard.stage, "name": shard.name})
            shutil.rmtree(shard.scratch, ignore_errors=True)
        record = read_json(manifest_path(shard))
        return {"path": str(shard.path), "size": record["size"], "sha256": record["sha256"]}


def _forget(shard: Shard) -> None:
    manifest_path(shard).unlink(missing_ok=True)  # first: without it the result counts as missing
    shard.path.unlink(missing_ok=True)
    for unfinished in shard.path.parent.glob(f".{shard.path.stem}.*"):  # of a process that was killed
        unfinished.unlink()


def input_digest(path: str, root: Path = SHARDS) -> str:
    """Hex sha256 of a file, or of a folder's files with their relative paths. A missing one raises InputError."""
    return input_digests([path], root, {})[0]


def input_digests(paths: Sequence[str], root: Path, known: dict[Path, str]) -> list[str]:
    """Return `input_digest` of every path.

    known: file -> digest; what it holds is taken from there, and the others are added.
    """
    inside = {path: _files(Path(path)) for path in paths}
    wanted = list(dict.fromkeys(file for files in inside.values() for file in files if file not in known))
    for start in range(0, len(wanted), TOGETHER):
        known.update(_file_digests(wanted[start : start + TOGETHER], root))
    return [_whole(Path(path), inside[path], known) for path in paths]


def _files(place: Path) -> list[Path]:
    return sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]


def _whole(place: Path, files: list[Path], known: dict[Path, str]) -> str:
    if files == [place]:
        return known[place]
    return sha256_json([[file.relative_to(place).as_posix(), known[file]] for file in files])


def _file_digests(files: list[Path], root: Path) -> dict[Path, str]:
    """sha256 of files, remembered by path, size, times and inode: a question to the database, and an answer to it."""
    names = {os.fsencode(file.absolute()).decode("utf-8", "backslashreplace"): file for file in files}  # any bytes
    found, new = {}, []
    remembered = _ask_digests(root, lambda database: _remembered(database, list(names)))
    for name, file in names.items():
        try:
            stat = file.stat()
            identity = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            known, digest = remembered.get(name, ("", ""))
            found[file] = digest if known == identity else sha256_file(file)
        except FileNotFoundError as error:
            raise InputError(f"{file} is missing: run the stage that writes it (dvc repro)") from error
        except OSError as error:
            found[file] = _unreadable(error)
            continue
        if known != identity and time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > FRESH:
            new.append((name, identity, found[file]))
    if new:
        _ask_digests(
            root, lambda database: database.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", new)
        )
    return found


def _remembered(database: sqlite3.Connection, names: list[str]) -> dict[str, tuple[str, str]]:
    """Return name -> (identity, digest) of the files that the database knows."""
    found = {}
    for name in names:
        row = database.execute("SELECT identity, sha256 FROM digests WHERE path = ?", (name,)).fetchone()
        if row:
            found[name] = row
    return found


def _unreadable(error: OSError) -> str:
    """Stands for the digest of a file that cannot be read: the work that reads it says why, or lists it as rejected.

    It is never remembered, and once the file can be read its digest is another.
    """
    return f"unreadable: {error.strerror}"


def _ask_digests(root: Path, question: Callable[[sqlite3.Connection], Any]) -> Any:
    """The answer of the remembered digests, in one transaction. A damaged file of them is begun anew."""
    try:
        with _digests(root) as database:
            return question(database)
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in DAMAGED:
            raise
        file = _digests_file(root)
        print(f"{file} is damaged ({error}): its digests are computed again", file=sys.stderr, flush=True)
        for suffix in ("", "-journal", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
    with _digests(root) as database:
        return question(database)


def _digests_file(root: Path) -> Path:
    return (STATE if root == SHARDS else root.parent) / "digests.sqlite"


@contextlib.contextmanager
def _digests(root: Path) -> Iterator[sqlite3.Connection]:
    file = _digests_file(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(file, timeout=60)
    try:
        database.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, identity TEXT, sha256 TEXT)")
        with database:
            yield database
    finally:
        database.close()


def size(root: Path = SHARDS) -> dict[str, tuple[int, int]]:
    """Files and bytes in the cache, by stage."""
    totals: dict[str, tuple[int, int]] = {}
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
        totals[folder.name] = (len(files), sum(file.stat().st_size for file in files))
    return totals


def prune(days: float, root: Path = SHARDS) -> int:
    """Remove results and scratch folders that were not used for `days` days; return how many bytes that freed.

    What a process works on now stays.
    """
    limit, freed = time.time() - days * 86400, 0
    for lock in root.glob("*/*.lock"):
        with contextlib.suppress(BlockingIOError), locked(lock, wait=False):
            kept = (lock.with_suffix(suffix) for suffix in (".manifest", ".scratch"))
            newest = max((path.stat().st_mtime for path in kept if path.exists()), default=0.0)
            if newest < limit:
                found = (*lock.parent.glob(f"{lock.stem}.*"), *lock.parent.glob(f".{lock.stem}.*"))
                rest = [path for path in found if path != lock]
                freed += sum(_remove(path) for path in rest)
    return freed


def _remove(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    freed = sum(file.stat().st_size for file in files)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    return freed
