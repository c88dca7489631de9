"""Where a shard's work is done."""

import importlib
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from stages.errors import InputError
from stages.protocol import Shard


class Runner(Protocol):
    """Carries out the work of shards, several at a time.

    Attributes:
        jobs: how many shards may be given to it at the same time.
    """

    jobs: int

    def run(self, shard: Shard, lock: int) -> None:
        """Do the work of a placed shard and return when its result is written; raise what the work raises.

        lock: file descriptor that any other process doing the work must keep open: it holds the shard's lock.
        """

    def stop(self) -> None:
        """Start no more work and end what can be ended."""


class Stopped(RuntimeError):
    """The runner was stopped before it could do this shard's work."""


class LocalRunner:
    """This machine: work in the calling thread or, for the stages in `processes`, in a process of its own."""

    def __init__(self, jobs: int, processes: Collection[str] = ()) -> None:
        self.jobs = jobs
        self._processes = frozenset(processes)
        self._children: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, shard: Shard, lock: int) -> None:
        """See Runner.run."""
        if self._stopped:
            raise Stopped(f"{shard.stage} {shard.name} was not started")
        if shard.stage in self._processes:
            self._run_child(shard, lock)
        else:
            importlib.import_module(f"stages.{shard.stage}").work(shard)

    def stop(self) -> None:
        """See Runner.stop. Work in threads cannot be ended: it goes on until its shard is done."""
        with self._guard:
            self._stopped = True
            for child in self._children:
                child.terminate()

    def _run_child(self, shard: Shard, lock: int) -> None:
        with tempfile.TemporaryDirectory(prefix="scoresmooth-") as folder:
            description = Path(folder) / "shard.json"
            description.write_text(shard.to_json(), encoding="utf-8")
            code = self._wait_for(self._start(description, lock))
            error = description.with_suffix(".error")
            if error.exists():
                raise InputError(error.read_text(encoding="utf-8"))
        if self._stopped and code:
            raise Stopped(f"{shard.stage} {shard.name} was stopped")
        if code:
            ending = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise RuntimeError(f"{shard.stage} {shard.name}: its process ended with {ending}")

    def _start(self, description: Path, lock: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "pipeline.child", str(description), str(os.getpid())]
        with self._guard:
            if self._stopped:
                raise Stopped("stopped before the process could start")
            # stdout and stderr pass through: progress bars stay progress bars
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(lock,))
            self._children.add(child)
        return child

    def _wait_for(self, child: subprocess.Popen[bytes]) -> int:
        try:
            return child.wait()
        finally:
            with self._guard:
                self._children.discard(child)
