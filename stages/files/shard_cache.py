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
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.errors import InputError
from stages.files.artifacts import read_json, sha256_file, sha256_json, write_json
from stages.files.locks import locked
from stages.files.paths import CACHE, STATE
from stages.files.shard import Shard

SHARDS = CACHE / "shards"
FRESH = 2 * 10**9
"""Nanoseconds: a file younger than this may change again without a new time stamp, so its digest is not kept."""

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


def place(shard: Shard, code: str, root: Path = SHARDS) -> Shard:
    """Return the shard with its result's path in the cache at `root`.

    code: a digest of everything besides the shard that determines the result, such as the stage's code.
    """
    inputs = [input_digest(path, root) for path in shard.inputs]
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
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.rglob("*") if file.is_file())
        return sha256_json([[file.relative_to(place).as_posix(), _file_digest(file, root)] for file in files])
    return _file_digest(place, root)


def _file_digest(path: Path, root: Path) -> str:
    """sha256 of a file, remembered by path, size, times and inode."""
    try:
        stat = path.stat()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that writes it (dvc repro)") from error
    except OSError as error:
        return _unreadable(error)
    identity = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    name = os.fsencode(path.absolute()).decode("utf-8", "backslashreplace")  # a name on disk can be any bytes
    row = _ask_digests(root, "SELECT identity, sha256 FROM digests WHERE path = ?", (name,))
    if row and row[0] == identity:
        return row[1]
    try:
        digest = sha256_file(path)
    except OSError as error:
        return _unreadable(error)
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > FRESH:
        _ask_digests(root, "INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (name, identity, digest))
    return digest


def _unreadable(error: OSError) -> str:
    """Stands for the digest of a file that cannot be read: the work that reads it says why, or lists it as rejected.

    It is never remembered, and once the file can be read its digest is another.
    """
    return f"unreadable: {error.strerror}"


def _ask_digests(root: Path, statement: str, values: tuple[str, ...]) -> tuple[str, ...] | None:
    """The first row that a statement finds in the remembered digests. A damaged file of them is begun anew."""
    try:
        with _digests(root) as database:
            return database.execute(statement, values).fetchone()
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode & 0xFF not in DAMAGED:
            raise
        file = _digests_file(root)
        print(f"{file} is damaged ({error}): its digests are computed again", file=sys.stderr, flush=True)
        for suffix in ("", "-journal", "-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
    with _digests(root) as database:
        return database.execute(statement, values).fetchone()


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
