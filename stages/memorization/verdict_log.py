"""verdicts.jsonl: what people decided about pairs, one line per act, only ever appended to.

A line is a JSON object with the keys id (unique), time (UTC), reviewer and either
    sample_id, train_id, verdict     a decision: copy, not or unsure; the reviewer's earlier one on the pair is replaced
    undoes                           the id of a decision of the same reviewer that is taken back
A line counts once its newline is there. What a killed process left of a line is kept beside the log (verdicts.torn) by
the next writer and reported by every reader.
"""

import dataclasses
import datetime
import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError
from stages.files.arrow import write_parquet
from stages.files.artifacts import fsync_folder

LOG = "verdicts.jsonl"
TABLE = "verdicts.parquet"
CHOICES = ("copy", "not", "unsure")

Pair = tuple[str, str]
"""(sample_id, train_id)."""


@dataclasses.dataclass(frozen=True)
class Act:
    """One line: a decision (pair and verdict), or the taking back of one (undoes)."""

    id: str
    time: str
    reviewer: str
    pair: Pair | None = None
    verdict: str | None = None
    undoes: str | None = None

    def to_line(self) -> bytes:
        """The line with its newline."""
        head = {"id": self.id, "time": self.time, "reviewer": self.reviewer}
        if self.pair is None:
            tail: dict[str, Any] = {"undoes": self.undoes}
        else:
            tail = {"sample_id": self.pair[0], "train_id": self.pair[1], "verdict": self.verdict}
        return json.dumps({**head, **tail}, ensure_ascii=False).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "Act":
        """The inverse of `to_line`. Raises ValueError where the line is not an act."""
        values = json.loads(line)
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise ValueError("it is not an object of strings")
        head = {"id", "time", "reviewer"}
        if set(values) == {*head, "undoes"}:
            return cls(**values)
        if set(values) != {*head, "sample_id", "train_id", "verdict"}:
            raise ValueError(f"it has the keys {', '.join(sorted(values))}")
        if values["verdict"] not in CHOICES:
            raise ValueError(f"its verdict is {values['verdict']!r}, not one of {', '.join(CHOICES)}")
        pair = (values.pop("sample_id"), values.pop("train_id"))
        return cls(**values, pair=pair)


def now() -> str:
    """The time in UTC, to the millisecond, as the log has it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")


class Decisions:
    """The state that a sequence of acts leads to."""

    def __init__(self) -> None:
        self.acts: dict[str, Act] = {}
        self._standing: dict[str, dict[Pair, list[Act]]] = {}
        self._order: dict[str, list[Act]] = {}

    def apply(self, act: Act) -> None:
        """Add an act; one with a known id was sent twice and changes nothing. Raises ValueError on a wrong undo."""
        if act.id in self.acts:
            return
        if act.pair is not None:
            self._standing.setdefault(act.reviewer, {}).setdefault(act.pair, []).append(act)
            self._order.setdefault(act.reviewer, []).append(act)
        else:
            undone = self.acts.get(act.undoes or "")
            if undone is None or undone.reviewer != act.reviewer or undone not in self._order.get(act.reviewer, []):
                raise ValueError(f"it takes back {act.undoes!r}, which is not a standing decision of {act.reviewer!r}")
            self._order[act.reviewer].remove(undone)
            self._standing[act.reviewer][undone.pair].remove(undone)  # type: ignore[index]
        self.acts[act.id] = act

    def last(self, reviewer: str) -> Act | None:
        """The reviewer's latest decision that stands."""
        order = self._order.get(reviewer)
        return order[-1] if order else None

    @property
    def reviewers(self) -> list[str]:
        """Those with a decision that stands, by name."""
        return sorted(name for name, order in self._order.items() if order)

    def of(self, reviewer: str) -> dict[Pair, Act]:
        """The reviewer's standing decision on each pair."""
        return {pair: acts[-1] for pair, acts in self._standing.get(reviewer, {}).items() if acts}


def agreement(one: dict[Pair, Act], other: dict[Pair, Act]) -> Counter[tuple[str, str]]:
    """How often (verdict of one, verdict of the other) occurs, over the pairs that both decided."""
    both = one.keys() & other.keys()
    return Counter((one[pair].verdict or "", other[pair].verdict or "") for pair in both)


def table(decisions: Decisions) -> pa.Table:
    """All standing decisions: sample_id, train_id, reviewer, verdict, time; by reviewer, then in order of time."""
    rows = [act for name in decisions.reviewers for act in sorted(decisions.of(name).values(), key=lambda a: a.time)]
    columns = {
        "sample_id": [act.pair[0] for act in rows if act.pair],
        "train_id": [act.pair[1] for act in rows if act.pair],
        "reviewer": [act.reviewer for act in rows],
        "verdict": [act.verdict for act in rows],
        "time": [act.time for act in rows],
    }
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def read_decisions(path: Path | str) -> tuple[Decisions, int]:
    """The decisions of a verdicts.jsonl, or of a verdicts.parquet made from one, and the bytes of a torn last line.

    Raises InputError where the file is missing or damaged elsewhere than in its last line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing: make it with scoresmooth review, or correct the path")
    if path.suffix == ".parquet":
        return _from_table(path), 0
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    decisions = Decisions()
    _apply_lines(decisions, content[:end], path, 1)
    return decisions, len(content) - end


def _from_table(path: Path) -> Decisions:
    names = ["sample_id", "train_id", "reviewer", "verdict", "time"]
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a Parquet table ({error}): name the {LOG} instead") from error
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} is not a table of verdicts, it has no column {missing[0]}: name the {LOG} instead")
    rows = table.select(names).to_pylist()
    decisions = Decisions()
    for number, row in enumerate(rows):
        if row["verdict"] not in CHOICES:
            raise InputError(f"{path} row {number}: verdict {row['verdict']!r} is none of {', '.join(CHOICES)}")
        pair = (row["sample_id"], row["train_id"])
        decisions.apply(Act(str(number), row["time"], row["reviewer"], pair, row["verdict"]))
    return decisions


def _apply_lines(decisions: Decisions, content: bytes, path: Path, first: int) -> int:
    """Apply complete lines; return how many."""
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, first):
        try:
            decisions.apply(Act.from_line(line))
        except ValueError as error:
            raise InputError(f"{path} line {number} is damaged ({error}): correct or remove that line") from error
    return len(lines)


class VerdictLog:
    """A verdicts.jsonl open for appending; several processes and threads may hold one each.

    Attributes:
        decisions: as of the last `refresh`, `append` or `undo`.
        said: what went wrong with the file and how it was mended, a sentence each.
    """

    def __init__(self, path: Path | str) -> None:
        """Open `path`, made with its folder if needed. Raises InputError where it cannot be written or read."""
        self.path = Path(path)
        self.decisions = Decisions()
        self.said: list[str] = []
        self._offset = self._lines = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fsync_folder(self.path.parent)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): name a folder with --verdicts"
            ) from error
        self.refresh()

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def refresh(self) -> None:
        """Take in what other processes appended; mend a torn last line."""
        with self._locked():
            pass

    def append(self, act: Act) -> Act:
        """Write a decision so that it survives a crash, before this returns. The same id again changes nothing."""
        with self._locked():
            return self.decisions.acts.get(act.id) or self._write(act)

    def undo(self, id: str, time: str, reviewer: str) -> Act | None:
        """Take back the reviewer's latest standing decision; return that decision, or None if there is none."""
        with self._locked():
            known = self.decisions.acts.get(id)
            if known is None:
                last = self.decisions.last(reviewer)
                if last is None:
                    return None
                known = self._write(Act(id, time, reviewer, undoes=last.id))
            return self.decisions.acts[known.undoes or ""]

    def compact(self) -> Path:
        """Write the standing decisions to verdicts.parquet beside the log."""
        with self._locked():
            return write_parquet(self.path.with_name(TABLE), table(self.decisions))

    def _write(self, act: Act) -> Act:
        line = act.to_line()
        written = os.write(self._file, line)
        if written != len(line):  # the disk is full: the next writer mends the torn line
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written: is the disk full?")
        os.fsync(self._file)
        self.decisions.apply(act)
        self._offset += len(line)
        self._lines += 1
        return act

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock on the log, with all complete lines taken in and no torn one left."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._take_in()
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take_in(self) -> None:
        size = os.fstat(self._file).st_size
        if size < self._offset:
            raise InputError(f"{self.path} was cut while it was in use: restore it, then start again")
        content = b"".join(self._chunks(size))
        end = content.rfind(b"\n") + 1
        self._lines += _apply_lines(self.decisions, content[:end], self.path, self._lines + 1)
        self._offset += end
        if end < len(content):
            self._mend(content[end:])

    def _chunks(self, size: int) -> Iterable[bytes]:
        position = self._offset
        while position < size:
            chunk = os.pread(self._file, size - position, position)
            position += len(chunk)
            yield chunk

    def _mend(self, torn: bytes) -> None:
        """Move a torn last line aside: under the lock, nobody is still writing it."""
        beside = self.path.with_suffix(".torn")
        with beside.open("ab") as file:
            file.write(torn + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.ftruncate(self._file, self._offset)
        os.fsync(self._file)
        self.said.append(
            f"{self.path}: the last line was torn ({len(torn)} bytes): a process died or the disk was full while a "
            f"verdict was being written. It was moved to {beside.name}; all {self._lines} lines before it stand"
        )
