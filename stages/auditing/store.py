"""Finished pieces of an audit on disk, so that an interrupted one goes on where it stopped; and how far it is."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import InputError
from stages.files.artifacts import atomic_path, sha256_file, sha256_json, write_text
from stages.files.images import ImageTable, read_images

Arrays = dict[str, np.ndarray]


class Progress:
    """A bar over the whole audit with the time left, in estimated seconds of work; lines where there is no terminal."""

    def __init__(self, quiet: bool = False):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self.console = Console(stderr=True, quiet=quiet)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self.bar = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self.task = self.bar.add_task("reading", total=1.0)
        self.known = self.done = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the bar within."""
        with self.bar:
            yield

    def expect(self, seconds: float) -> None:
        """Work of so many estimated seconds lies ahead."""
        self.known += seconds
        self.bar.update(self.task, total=self.known)

    def step(self, words: str) -> None:
        """What is done now."""
        self.bar.update(self.task, description=words)
        if not self.console.is_terminal:
            self.console.print(words, highlight=False)

    def advance(self, seconds: float) -> None:
        """So much of the work is done; what nobody expected is expected now, so that the bar never runs over."""
        self.done += seconds
        self.expect(max(0.0, self.done - self.known))
        self.bar.update(self.task, completed=self.done)

    def finish(self) -> None:
        """Everything is done, whatever was expected."""
        self.known = self.done
        self.bar.update(self.task, total=self.done)

    def say(self, words: str) -> None:
        """A line that stays."""
        self.console.print(words, highlight=False)


class Store:
    """Results of finished pieces in one folder, each under the digest of what determines it.

    A result is used only if its bytes have the digest that was written with them; otherwise it is computed again.
    """

    def __init__(self, folder: Path, progress: Progress):
        self.folder, self.progress = folder, progress

    def arrays(self, name: str, key: Any, cost: float, compute: Callable[[], Arrays]) -> Arrays:
        """The named arrays that `compute` returns, from the store where they are there.

        key: JSON value of everything that determines the result; cost: estimated seconds, for the progress bar.
        """
        path = self.folder / f"{name}-{sha256_json(key)[:24]}.arrays"
        found = _read_arrays(path)
        if found is None:
            found = compute()
            _write_arrays(path, found)
        self.progress.advance(cost)
        return found

    def images(self, name: str, key: Any, cost: float, write: Callable[[Path], Any]) -> ImageTable:
        """The image table that `write(path)` writes, from the store where it is there."""
        path = self.folder / f"{name}-{sha256_json(key)[:24]}.arrow"
        seal = path.with_suffix(".sha256")
        if not (path.exists() and seal.exists() and seal.read_text() == sha256_file(path)):
            write(path)
            write_text(seal, sha256_file(path))
        self.progress.advance(cost)
        return read_images(path)


def _write_arrays(path: Path, arrays: Arrays) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # numbers and booleans only: reading allows nothing else
    content = buffer.getvalue()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(content).digest())
        file.write(content)


def _read_arrays(path: Path) -> Arrays | None:
    """What `_write_arrays` wrote; None where there is no such file or its digest is wrong."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        return None
    with np.load(io.BytesIO(content[32:]), allow_pickle=False) as archive:
        return dict(archive)


def prepare_folder(out: Path) -> Path:
    """Make `out`/.work and return it. InputError where nothing can be written there, before any work is done."""
    work = out / ".work"
    try:
        work.mkdir(parents=True, exist_ok=True)
        with atomic_path(work / "writable") as temporary:
            temporary.write_text("yes\n")
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): choose a folder that you may write to"
        ) from error
    return work
