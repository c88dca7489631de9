"""Checkpoints of a shard that another machine works on: after the loss of a node, the next one resumes from them.

The shared place holds them in URL/scratch/KEY, where KEY is the shard's key: files named by their sha256, and a record
that names the files of the newest state. The record is written last; then files that it no longer names are removed.
"""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from pipeline.locks import locked
from pipeline.shared import SharedPlace
from pipeline.stage_run import say
from stages.protocol import Shard

PERIOD = 0.5
"""Seconds between two checks of a shard's scratch folder."""

Files = dict[str, tuple[int, int]]


class SharedScratch:
    """Copies a shard's scratch folder to a shared place while a node works on the shard.

    Args:
        url: the shared place (execution.shared).
        shard: a placed shard; its scratch folder is below the working directory.
    """

    def __init__(self, url: str, shard: Shard) -> None:
        self._place = SharedPlace(f"{url.rstrip('/')}/scratch/{shard.path.stem}")
        self._folder, self._name = shard.scratch, f"{shard.stage} {shard.name}"

    @contextlib.contextmanager
    def mirrored(self, writes: bool) -> Iterator[None]:
        """Fetch an earlier attempt's checkpoints. With `writes`, store every change until the body ends."""
        with locked(self._folder.with_suffix(".fetch.lock")):  # the other ranks of a training on this node fetch, too
            self._fetch()
        ended, thread = threading.Event(), None
        if writes:
            thread = threading.Thread(target=self._watch, args=(ended, _listed(self._folder)), daemon=True)
            thread.start()
        try:
            yield
        finally:
            ended.set()
            if thread is not None:
                thread.join()

    def forget(self) -> None:
        """Remove the copy: the shard is done."""
        self._place.clear()

    def _fetch(self) -> None:
        tree = self._place.read_record() or {}
        self._place.get_tree(tree, self._folder)
        for path in self._folder.rglob("*"):
            unfinished = path.name.startswith(".")  # another process may be writing it
            if path.is_file() and not unfinished and path.relative_to(self._folder).as_posix() not in tree:
                path.unlink()  # left by an attempt on this node that was never stored
        if tree:
            say(f"{self._name}: resuming from the shared place ({', '.join(sorted(tree))})")

    def _watch(self, ended: threading.Event, stored: Files) -> None:
        last = False
        while not last:
            last = ended.wait(PERIOD)
            found = _listed(self._folder)
            if found != stored and self._store(found):
                stored = found

    def _store(self, found: Files) -> bool:
        """Store the state; return False if a file was replaced meanwhile (the next check finds the newer one)."""
        try:
            tree = {name: self._place.put(self._folder / name) for name in found}
        except FileNotFoundError:
            return False
        self._place.write_record(tree)
        self._place.keep(set(tree.values()))
        return True


def _listed(folder: Path) -> Files:
    """The complete files of a folder: name -> size, time of change. Names of unfinished files begin with a dot."""
    found: Files = {}
    for path in sorted(folder.rglob("*")):
        if not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                if path.is_file():
                    found[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
    return found
