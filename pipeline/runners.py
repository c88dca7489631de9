"""Where the work of shards is done: in threads or processes of this machine."""

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from typing import Protocol, Self

from pipeline import closure, gpus, oom
from pipeline.child import DONE, EXHAUSTED, FAILED, REFUSED
from pipeline.processes import WorkFailed, cause, ending, reap
from pipeline.repro import ONE_THREAD
from pipeline.stage_run import say
from stages.errors import InputError
from stages.protocol import Shard


class Runner(Protocol):
    """Does the work of shards, several at a time.

    Attributes:
        jobs: how many shards it works on at the same time.
        tell: called with a line that a person should read, such as that a shard is tried again.
    """

    jobs: int
    tell: Callable[[str], None]

    def run(self, shard: Shard, lock: int) -> None:
        """Do the work of a placed shard and return when its result is written. Raises InputError and WorkFailed.

        lock: the file descriptor that holds the shard's lock; any process that does the work must keep it open.
        """

    def stop(self) -> None:
        """Start no more work, and end the work that can be ended."""


class Stopped(RuntimeError):
    """The runner was stopped before it could do this shard's work."""


class LocalRunner:
    """Works on this machine: in the calling thread or, for the stages in `processes`, in child processes.

    Use it as a context manager: its processes end when the context ends.
    """

    def __init__(
        self, jobs: int, processes: Collection[str] = (), gpus_each: int = 0, gpu_timeout: float = 0.0
    ) -> None:
        """gpus_each: how many GPUs every child process reserves for itself. gpu_timeout: seconds to wait."""
        self.jobs = jobs
        self.gpus_each, self._gpu_timeout = gpus_each, gpu_timeout
        self.tell: Callable[[str], None] = say
        self._left = 0  # shards that no process has taken
        self._processes = frozenset(processes)
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._stopped = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def prepare(self, stage: str, shards: int) -> None:
        """Start the child processes for `shards` shards of a stage now, so that they import while this process does."""
        if stage in self._processes:
            with self._guard:
                self._left = shards
                while len(self._idle) < min(self.jobs, shards) and (held := gpus.free(self.gpus_each)):
                    self._idle.append(_Child(stage, held, self._variables()))

    def run(self, shard: Shard, lock: int) -> None:
        """See Runner.run."""
        if self._stopped:
            raise Stopped(f"{shard.stage} {shard.name} was not started")
        if shard.stage in self._processes:
            self._run_child(shard, lock)
        else:
            _work_here(shard)

    def stop(self) -> None:
        """See Runner.stop. Work in threads cannot be ended: it continues until its shard is done."""
        with self._guard:
            self._stopped = True
            for child in self._busy:
                child.terminate()

    def _run_child(self, shard: Shard, lock: int) -> None:
        attempts: list[oom.Attempt] = []
        for share in oom.SHARES:
            kills = oom.kills()
            try:
                return self._work(shard, lock, share)
            except ChildEnded as ended:
                if self._stopped:
                    raise Stopped(f"{shard.stage} {shard.name} was stopped") from ended
                attempts.append(_attempt(ended, kills))
                if share == oom.SHARES[-1]:
                    others = f"execution.jobs ({self.jobs})"
                    raise oom.exhausted(shard.stage, shard.name, *attempts, others) from None
                self.tell(f"{shard.stage} {shard.name}: {attempts[0]}: trying once more with half the working memory")

    def _work(self, shard: Shard, lock: int, share: float) -> None:
        child = self._take(shard, share)
        try:
            child.work(shard, lock)
        finally:
            self._give_back(child)

    def _take(self, shard: Shard, share: float) -> "_Child":
        usual = share == oom.SHARES[0]
        with self._guard:
            self._left -= usual
            if self._idle and usual and not self._stopped:
                child = self._idle.pop()
                self._busy.add(child)
                return child
        held = gpus.take(self.gpus_each, self.tell, self._gpu_timeout, lambda: self._stopped)
        with self._guard:
            if self._stopped or held is None:
                if held is not None:
                    held.release()
                raise Stopped(f"{shard.stage} {shard.name} was not started")
            child = _Child(shard.stage, held, self._variables(), share)
            self._busy.add(child)
        return child

    def _variables(self) -> dict[str, str]:
        """Share out the processors among children that wait for GPUs; a number set by the user is kept."""
        if not self.gpus_each or self.jobs == 1 or "OMP_NUM_THREADS" in os.environ:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // self.jobs))}

    def _give_back(self, child: "_Child") -> None:
        with self._guard:
            self._busy.discard(child)
            unused = self.gpus_each and self._left <= 0  # its GPUs are wanted elsewhere
            if child.share != oom.SHARES[0] or unused or child.process.poll() is not None:
                child.close()
            else:
                self._idle.append(child)


def _work_here(shard: Shard) -> None:
    """Work on a shard in this process. As in a child, the traceback of an error is printed here, and only here."""
    try:
        importlib.import_module(f"stages.{shard.stage}").work(shard)
    except InputError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise WorkFailed(f"{shard.stage} {shard.name}: {cause(error)}") from None


class ChildEnded(WorkFailed):
    """The process that worked on a shard ended before the shard was done.

    Attributes:
        code: how it ended (negative: a signal).
        peak: its peak memory in MiB.
        refused: the message of the failed allocation, or "".
    """

    def __init__(self, message: str, code: int, peak: float | None, refused: str = "") -> None:
        super().__init__(message)
        self.code, self.peak, self.refused = code, peak, refused


def _attempt(ended: ChildEnded, kills: int | None) -> oom.Attempt:
    """Describe how an attempt ran out of memory; raise `ended` if it ended otherwise. kills: oom.kills() before it."""
    if ended.refused:
        return oom.Attempt(f"refused memory ({ended.refused})", ended.peak)
    if ended.code != -signal.SIGKILL:
        raise ended
    after = oom.kills()
    if kills is not None and after is not None and after > kills:
        return oom.Attempt("killed by the kernel, out of memory", ended.peak)
    return oom.Attempt("killed (out of memory?)", ended.peak)


class _Child:
    """A process that works on shards of one stage, one at a time: see pipeline.child."""

    def __init__(
        self, stage: str, held: gpus.Reservation, variables: dict[str, str], share: float = oom.SHARES[0]
    ) -> None:
        self.share, self._gpus = share, held
        single = {"OMP_NUM_THREADS": "1"} if stage in ONE_THREAD else {}  # a number set by the user is kept
        self._socket, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-m", "pipeline.child", str(number), str(os.getpid()), *closure.modules(stage)]
            # stdout and stderr pass through: progress bars stay progress bars
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                pass_fds=(number, *held.handles),
                env={**single, **os.environ, oom.SHARE_VARIABLE: str(share), **variables, **held.variables()},
            )

    def work(self, shard: Shard, lock: int) -> None:
        """Send it a shard, whose lock is held, and wait. Raises InputError and ChildEnded."""
        description = shard.scratch / "shard.json"  # where it is removed with the checkpoints, also after a kill
        description.parent.mkdir(parents=True, exist_ok=True)
        description.write_text(shard.to_json(), encoding="utf-8")
        try:
            socket.send_fds(self._socket, [f"{description}\n".encode()], [lock])
            answer = self._socket.recv(len(REFUSED))
        except ConnectionError:
            answer = b""
        said = "" if answer in (DONE, b"") else description.with_suffix(".error").read_text(encoding="utf-8")
        if answer == REFUSED:
            raise InputError(said)
        if answer == FAILED:
            raise WorkFailed(f"{shard.stage} {shard.name}: {said}")
        refused, peak = "", None
        if answer == EXHAUSTED:
            refused, peak = said, oom.peak(self.process.pid)
            self.process.kill()
        if answer != DONE:
            code, highest = reap(self.process)
            message = f"{shard.stage} {shard.name}: its process ended with {ending(code)}"
            raise ChildEnded(message, code, peak or highest, refused)

    def terminate(self) -> None:
        """Ask it to end. Popen.terminate would collect its exit status, which `reap` needs for the peak memory."""
        if self.process.returncode is None:
            os.kill(self.process.pid, signal.SIGTERM)

    def close(self) -> None:
        """End it. Call this only while it has no work."""
        self._socket.close()
        self.process.kill()  # it may still be importing
        self.process.wait()
        self._gpus.release()
