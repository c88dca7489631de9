"""The flow that `prefect deploy` registers (prefect.yaml): scoresmooth repro, started by a worker on a schedule."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from pipeline.repro import STOP_GRACE
from pipeline.tracking import PARENT


@flow(name="scheduled repro")
def scheduled_repro(jobs: int = 1, targets: list[str] | None = None) -> None:
    """Run `scoresmooth repro` in the working directory, as a child of this flow run. Fails if that fails."""
    _repro(jobs, targets or [])


@task(name="scoresmooth repro", cache_policy=NO_CACHE)
def _repro(jobs: int, targets: list[str]) -> None:
    command = [sys.executable, "-m", "pipeline.cli", "repro", "--jobs", str(jobs), *targets]
    process = subprocess.Popen(command, env={**os.environ, PARENT: str(task_run.id)}, process_group=0)
    try:
        code = process.wait()
    except BaseException:  # the worker ends this process when the run is cancelled
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE + 10)
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)
