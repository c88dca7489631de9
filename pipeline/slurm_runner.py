"""Shards as Slurm jobs, through submitit. Needs `pip install '.[pipeline,slurm]'`.

Imported only when execution.runner is slurm.

The flow, the shard cache and Prefect stay on the machine that runs the stage (a login node); every shard is one job on
one node, which must see the project's folder. In a job the shard has a process of its own, as on this machine. When
Slurm preempts the job, or its time is up, that process is asked to end, a training writes a checkpoint, and the job is
queued again under the same number. A job whose submitter was killed continues: the next run waits for it.
"""

import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from pipeline.locks import locked
from pipeline.node import appear
from pipeline.params import Execution
from pipeline.processes import WorkFailed
from pipeline.runners import ChildEnded, LocalRunner, Stopped
from pipeline.stage_run import say
from stages.errors import InputError, one_line
from stages.files.artifacts import sha256_file, write_text
from stages.files.paths import CACHE
from stages.protocol import Shard

JOBS = CACHE / "slurm"
"""submitit's folder: the scripts, outputs and results of the jobs."""

MOST = 100
"""Jobs of one stage that are queued at the same time."""

PERIOD = 1.0
"""Seconds between two looks at a job. submitit itself asks Slurm more rarely."""

WARNING = 120
"""Seconds before the end of its time at which a job is told, so that it can write a checkpoint."""

RESTARTS = 1000
"""How often a job whose time is up is queued again: a training may take weeks of short jobs."""

LAST_WORDS = 100.0
"""Seconds that a shard's process has to end when its job is preempted."""

ASKED = (-signal.SIGTERM, 128 + signal.SIGTERM, -signal.SIGUSR2)
"""How a process ends that Slurm itself asked to end: it signals every process of a job."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """How a job's work ended: `done` (said: the result's sha256), `refused` (wrong input) or `failed`."""

    kind: str
    said: str


class Work:
    """The work of one job, which submitit carries to the node. shard: as JSON. root: the project's folder."""

    def __init__(self, shard: str, root: str) -> None:
        self.shard, self.root = shard, root

    def __call__(self) -> Answer:
        """Work on the shard in a process of its own. A thread waits for it, so that this one can hear Slurm."""
        os.chdir(self.root)
        shard, answers = Shard.from_json(self.shard), []
        with LocalRunner(1, [shard.stage]) as self._runner:
            self._waiting = threading.Thread(target=lambda: answers.append(_answer(shard, self._runner)), daemon=True)
            self._waiting.start()
            while self._waiting.is_alive():
                self._waiting.join(PERIOD)
        return answers[0]

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Called when Slurm is about to end the job: end the work; return what continues it."""
        self._runner.stop()
        until = time.monotonic() + LAST_WORDS
        while self._waiting.is_alive() and time.monotonic() < until:
            time.sleep(0.05)
        return submitit.helpers.DelayedSubmission(Work(self.shard, self.root))


def _answer(shard: Shard, runner: LocalRunner) -> Answer:
    try:
        # a job that was taken for lost may still be at work
        with locked(shard.path.with_suffix(".node.lock"), say) as lock:
            runner.run(shard, lock)
        return Answer("done", sha256_file(shard.path))
    except InputError as error:
        return Answer("refused", str(error))
    except ChildEnded as error:
        if error.code in ASKED:
            time.sleep(LAST_WORDS)  # Slurm ends this process, too, and queues the job again
        return Answer("failed", str(error))
    except WorkFailed as error:
        return Answer("failed", str(error))
    except Exception as error:
        return Answer("failed", f"{shard.stage} {shard.name}: {type(error).__name__}: {one_line(error)}")


class SlurmRunner:
    """A runner (pipeline.runners.Runner) whose shards are jobs.

    Args:
        execution: its section `slurm` says what a job asks for; `address` may name submitit's executors `local` and
            `debug`, which rehearse on this machine.
        gpus: what each process of a shard needs.
        shards: the number of shards.
    """

    def __init__(self, execution: Execution, gpus: int, shards: int) -> None:
        if execution.shared is not None:
            raise InputError("execution.shared is for Ray: all nodes of Slurm must see the project's folder: set null")
        self.jobs = max(1, min(shards, MOST))
        self.tell: Callable[[str], None] = say
        self._execution, self._gpus = execution, gpus
        self._cluster = execution.address or "slurm"
        self._queued: set[submitit.Job[Answer]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, shard: Shard, lock: int) -> None:
        """See Runner.run. The job holds a lock of its own, beside the shard's."""
        record = shard.path.with_suffix(".job")
        with self._guard:
            if self._stopped:
                raise Stopped(f"{shard.stage} {shard.name} was not started")
            job = self._earlier(record) or self._submit(shard)
            self._queued.add(job)
        write_text(record, job.job_id)
        self.tell(f"{shard.stage} {shard.name}: job {job.job_id}, {job.paths.stderr}")
        try:
            answer = self._wait(shard, job)
        finally:
            with self._guard:
                self._queued.discard(job)
        record.unlink()
        if answer.kind == "refused":
            raise InputError(answer.said)
        if answer.kind == "failed":
            raise WorkFailed(f"{answer.said} (job {job.job_id}, {job.paths.stderr})")
        appear(shard.path, answer.said)

    def stop(self) -> None:
        """See Runner.stop. Slurm asks the processes of its jobs to end, which gives trainings time for a checkpoint."""
        with self._guard:
            self._stopped = True
            for job in self._queued:
                job.cancel(check=False)

    def _earlier(self, record: Path) -> submitit.Job[Answer] | None:
        """The shard's job of an earlier run, which was killed, if it is still queued or at work."""
        if self._cluster != "slurm" or not record.exists():
            return None
        job: submitit.Job[Answer] = submitit.SlurmJob(JOBS.absolute(), record.read_text(encoding="utf-8"))
        return None if job.done(force_check=True) else job

    def _submit(self, shard: Shard) -> submitit.Job[Answer]:
        try:
            executor = submitit.AutoExecutor(JOBS.absolute(), self._cluster, slurm_max_num_timeout=RESTARTS)
            executor.update_parameters(**self._options(shard))
            return executor.submit(Work(shard.to_json(), str(Path.cwd())))
        except (FailedJobError, RuntimeError, ValueError, OSError) as error:
            raise InputError(f"execution.slurm: {self._cluster} refuses a job: {one_line(error)}") from error

    def _options(self, shard: Shard) -> dict[str, Any]:
        """What sbatch is asked for; a training gets CPUs and GPUs for each of its processes, on one node."""
        slurm, processes = self._execution.slurm, shard.settings.get("processes", 1)
        return {
            "name": f"scoresmooth-{shard.stage}",
            "timeout_min": slurm.minutes,
            "mem_gb": slurm.memory,
            "cpus_per_task": math.ceil(processes * self._execution.cpus_per_job),
            "gpus_per_node": processes * self._gpus or None,
            "slurm_signal_delay_s": WARNING,
            "slurm_additional_parameters": {"requeue": True, **slurm.options},
        }

    def _wait(self, shard: Shard, job: submitit.Job[Answer]) -> Answer:
        while True:
            with self._guard:
                if self._stopped:
                    raise Stopped(f"{shard.stage} {shard.name} was stopped")
                if job.done():
                    break
            time.sleep(PERIOD)
        try:
            return job.result()
        except UncompletedJobError:
            how = f"job {job.job_id} ended as {job.state} without a result"
        except FailedJobError as error:
            how = f"job {job.job_id}: {one_line(error)}"
        raise WorkFailed(f"{shard.stage} {shard.name}: {how} ({job.paths.stderr})")
