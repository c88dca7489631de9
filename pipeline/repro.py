"""The stages of the DVC graph as processes, several at a time: each is a `dvc repro --single-item`.

This is DVC's own way to run stages in parallel: a process holds DVC's lock while it checks the stage and records its
outs, not while the stage's command runs. This module starts, watches and ends those processes; pipeline.repro_flow
decides their order and shows them.
"""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pipeline.locks import locked, name_holder
from pipeline.processes import ending, reap
from pipeline.stage_run import record_path, say
from stages.files.artifacts import read_json
from stages.files.paths import LOCAL

LOGS = LOCAL / "logs"
TAIL = 25
"""Lines of a failed stage's log that are printed."""

SAME_THREADS = ("train",)
"""Stages whose results depend on the number of threads in the last bits: a backward pass sums gradients per thread.
benchmarks/orchestration.py --parts parallel compares all outs. With several threads such a stage runs alone: its
threads busy-wait for each other, inside oneDNN too and despite OMP_WAIT_POLICY, so two trainings with two threads each
on two cores took 20 times as long per step as one (1.7 s instead of 0.08 s)."""

ONE_THREAD = ("verify", "sample")
"""Stages whose measurements depend on the number of threads in the last bits, as those of SAME_THREADS do: their
processes take one, with `dvc repro` as beside other stages, unless OMP_NUM_THREADS is set."""

STOP_GRACE = 35.0
"""Seconds between asking a stage to stop and killing it: a training writes a checkpoint first (CHILD_GRACE)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a stage's run ended.

    Attributes:
        name: the stage ("sample@closed-kernel").
        state: "done", "restored" (DVC had the outs of an equal run), "unchanged", "failed", "stopped" or "not started".
        seconds: wall clock.
        memory: peak of the largest process, in MiB.
        shards, computed: the number of the stage's shards, and how many of them were not in the cache.
    """

    name: str
    state: str
    seconds: float = 0.0
    memory: float = 0.0
    shards: int = 0
    computed: int = 0

    @property
    def good(self) -> bool:
        """Whether what depends on the stage can run."""
        return self.state in ("done", "restored", "unchanged")


class StageFailed(RuntimeError):
    """A stage's process ended with an error, which is in its log."""


class Reproducer:
    """Runs single stages as DVC processes, several at a time from several threads.

    Args:
        jobs: how many may run at once; each gets its share of the processors for its threads.
        known: stages that are known to have changed; the others are checked when their turn comes.
        changed: tells whether a stage must run.
    """

    def __init__(self, jobs: int, known: Collection[str], changed: Callable[[str], bool]) -> None:
        self.jobs, self._known, self._changed = jobs, set(known), changed
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, name: str, variables: Mapping[str, str]) -> Outcome:
        """Bring a stage up to date. Raises StageFailed; a stopped run returns an Outcome.

        variables: environment variables of the process. If a process of an earlier, killed run still works on the
        stage, this waits for it, and then finds the stage unchanged.
        """
        started = time.monotonic()

        def waiting(pid: str) -> None:
            self._known.discard(name)
            say(f"{name}: process {pid} of an earlier run is still working on it: waiting")

        with locked(LOCAL / "locks" / f"dvc-{name}.lock", waiting) as lock:
            if self._stopped:
                return Outcome(name, "not started")
            if name not in self._known and not self._changed(name):
                return Outcome(name, "unchanged", time.monotonic() - started)
            code, memory = self._wait(name, self._start(name, lock, variables))
            seconds = time.monotonic() - started
            if code and self._stopped:
                return Outcome(name, "stopped", seconds, memory)
            if code:
                raise StageFailed(_explain(name, code))
            return _outcome(name, seconds, memory)

    def stop(self) -> None:
        """Start no more stages, interrupt the running ones, and kill them after `STOP_GRACE`. Returns immediately."""
        with self._guard:
            if self._stopped:
                return
            self._stopped = True
            self._signal_all(signal.SIGINT)
        end = threading.Timer(STOP_GRACE, self._kill)
        end.daemon = True
        end.start()

    def _kill(self) -> None:
        with self._guard:
            self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: int) -> None:
        for child in self._children.values():
            if child.returncode is None:
                os.killpg(child.pid, number)

    def _start(self, name: str, lock: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        environment = {**dvc_environment(), **thread_variables(name, self.jobs), **variables}
        LOGS.mkdir(parents=True, exist_ok=True)
        record_path(name).unlink(missing_ok=True)  # written by the stage's command, which DVC may not need to run
        with self._guard, log_path(name).open("wb") as log:
            child = subprocess.Popen(
                single_item(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=(lock,),  # if this process is killed, the stage stays locked until its process ends
                process_group=0,  # Ctrl-C reaches it from here, once, and not from the terminal
            )
            name_holder(lock, child.pid)
            self._children[name] = child
            if self._stopped:
                os.killpg(child.pid, signal.SIGINT)
        return child

    def _wait(self, name: str, child: subprocess.Popen[bytes]) -> tuple[int, float]:
        """See `reap`."""
        found = reap(child)
        with self._guard:
            del self._children[name]
        return found


def single_item(name: str) -> list[str]:
    """The command that brings one stage up to date, if all that it depends on is, and records that."""
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", name]


def dvc_environment() -> dict[str, str]:
    """The environment of DVC's processes: the commands of dvc.yaml call `python`, which is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1"}


def thread_variables(name: str, jobs: int) -> dict[str, str]:
    """Environment variables that share the processors among `jobs` processes; a number set by the user is kept.

    A stage in SAME_THREADS or ONE_THREAD keeps the number that it has alone.
    """
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ or name.split("@")[0] in (*SAME_THREADS, *ONE_THREAD):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // jobs))}


def threads_alone() -> int:
    """How many threads a stage in SAME_THREADS uses on CPUs if its parameters do not set them."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))


def log_path(name: str) -> Path:
    """The file of a stage's output."""
    return LOGS / f"{name}.log"


def _outcome(name: str, seconds: float, memory: float) -> Outcome:
    if not record_path(name).exists():
        return Outcome(name, "restored", seconds, memory)
    found = read_json(record_path(name))
    return Outcome(name, "done", seconds, memory, int(found["shards"]), int(found["computed"]))


def _explain(name: str, code: int) -> str:
    lines = log_path(name).read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    wrong = [line for line in lines if line.startswith("error: ")]  # for wrong input this line suffices
    return "\n  ".join([f"{name} failed ({ending(code)}, {log_path(name)}):", *(wrong or lines[-TAIL:])])
