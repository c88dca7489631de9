"""A reviewer's view of a table of candidates and a log of verdicts."""

import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stages.errors import InputError
from stages.files.arrow import read_metadata
from stages.files.artifacts import sha256_file
from stages.memorization.candidates import NAME, read_candidates
from stages.memorization.verdict_log import Act, Pair, VerdictLog, agreement, now
from stages.memorization.verified import agreement_numbers


class Session:
    """The pairs of one table and one reviewer's work on them.

    Attributes:
        reviewer: the person who gives the verdicts.
        log: the log that they are written to.
        version: digest of the table, which is part of the pictures' addresses.
        pairs: the table's rows, where rows of the same two images form one pair.
        stale: how many valid verdicts concern no pair of the table.
    """

    def __init__(self, folder: Path, log: VerdictLog, reviewer: str) -> None:
        """Read folder/candidates.parquet. Raises InputError where it is missing, damaged or without pairs."""
        table = read_candidates(folder / NAME)
        if table.num_rows == 0:
            raise InputError(f"{folder / NAME} holds no pairs: no sample is suspected, there is nothing to review")
        self.reviewer, self.log = reviewer, log
        self._lock = threading.RLock()  # requests are served by several threads
        self.version = sha256_file(folder / NAME)[:16]
        self._metadata = read_metadata(table.schema)
        self._table = table
        self._rows: list[int] = []  # the table's row with the pictures of each pair
        self.pairs: list[dict[str, Any]] = []
        self._number: dict[Pair, int] = {}
        self._collapse()
        with Image.open(io.BytesIO(table["sample_png"][0].as_py())) as picture:
            self._size = picture.size
        decided = {pair for name in log.decisions.reviewers for pair in log.decisions.of(name)}
        self.stale = len(decided - self._number.keys())

    def _collapse(self) -> None:
        scalars = self._table.drop_columns(["sample_png", "train_png", "next_pngs"]).to_pylist()
        following = [len(pngs) for pngs in self._table["next_pngs"]]
        for row, values in enumerate(scalars):
            pair = (values["sample_id"], values["train_id"])
            if pair in self._number:
                self.pairs[self._number[pair]]["samples"].append(values["sample_index"])
                continue
            self._number[pair] = len(self.pairs)
            self._rows.append(row)
            known = ("sample_id", "train_id", "train_index", "distance", "ratio", "verdict", "reason")
            own = {name: values[name] for name in known}
            own |= {"samples": [values["sample_index"]], "next": following[row], "spacing": values.get("train_spacing")}
            self.pairs.append(own)

    def overview(self) -> dict[str, Any]:
        """Return what does not change while the server runs. Of the log it names the file, not the folder."""
        width, height = self._size
        return {
            "reviewer": self.reviewer,
            "version": self.version,
            "title": self._metadata.get("variant", "candidates"),
            "suspected": self._metadata.get("suspected"),
            "offered": self._table.num_rows,
            "width": width,
            "height": height,
            "log": self.log.path.name,
            "pairs": self.pairs,
        }

    def current(self) -> dict[str, Any]:
        """Return `verdicts`, including those that other processes have written meanwhile."""
        with self._lock:
            self.log.refresh()
            return self.verdicts()

    def verdicts(self) -> dict[str, Any]:
        """Return all verdicts; those of other reviewers only on pairs that this reviewer has decided."""
        decisions = self.log.decisions
        mine = decisions.of(self.reviewer)
        others = [name for name in decisions.reviewers if name != self.reviewer]
        shown: dict[int, dict[str, str | None]] = {}
        agreements = []
        for name in others:
            theirs = decisions.of(name)
            counts = agreement(mine, {pair: act for pair, act in theirs.items() if pair in self._number})
            agreements.append({"reviewer": name, **agreement_numbers(counts)})
            for pair in mine.keys() & theirs.keys() & self._number.keys():
                shown.setdefault(self._number[pair], {})[name] = theirs[pair].verdict
        return {
            "revision": len(decisions.acts),
            "mine": {self._number[pair]: act.verdict for pair, act in mine.items() if pair in self._number},
            "others": shown,
            "agreement": agreements,
        }

    def knows(self, pair: Pair) -> bool:
        """Whether the table has this pair."""
        return pair in self._number

    def decide(self, id: str, pair: Pair, verdict: str) -> dict[str, Any]:
        """Write a verdict; return the verdicts after it."""
        with self._lock:
            self.log.append(Act(id, now(), self.reviewer, pair, verdict))
            return self.verdicts()

    def undo(self, id: str) -> dict[str, Any]:
        """Take back the reviewer's latest valid verdict; return the verdicts then, and `undone`, the pair's number."""
        with self._lock:
            act = self.log.undo(id, now(), self.reviewer)
            undone = None if act is None or act.pair is None else self._number.get(act.pair)
            return {**self.verdicts(), "undone": undone}

    def picture(self, number: int, kind: str, gain: int) -> bytes | None:
        """Return a picture of a pair as PNG, or None if there is no such picture.

        kind: sample, train, next-0 … next-3, or difference: |sample − train| times `gain`.
        """
        if not 0 <= number < len(self.pairs):
            return None
        row = self._rows[number]
        if kind in ("sample", "train"):
            return self._table[f"{kind}_png"][row].as_py()
        if kind == "difference":
            return amplified(self._table["sample_png"][row].as_py(), self._table["train_png"][row].as_py(), gain)
        pictures = self._table["next_pngs"][row].as_py()
        place = int(kind.removeprefix("next-"))
        return pictures[place] if place < len(pictures) else None


def amplified(one: bytes, other: bytes, gain: int) -> bytes:
    """|one − other| · gain, clipped at white, of two PNGs of one size."""
    pixels = []
    for content in (one, other):
        with Image.open(io.BytesIO(content)) as picture:
            pixels.append(np.asarray(picture).astype(np.int32))
    buffer = io.BytesIO()
    Image.fromarray(np.minimum(abs(pixels[0] - pixels[1]) * gain, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
