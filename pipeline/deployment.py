"""The flows that `prefect deploy` registers (prefect.yaml) and workers start: all of the graph, or one stage of it."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import task_run

from pipeline.params import load_stage
from pipeline.repro import STOP_GRACE, dvc_environment, single_item
from pipeline.signals import code_of
from pipeline.stage_run import address_of
from pipeline.tracking import PARENT


@flow(name="scheduled repro")
def scheduled_repro(jobs: int = 1, targets: list[str] | None = None) -> None:
    """Run `scoresmooth repro` in the working directory, as a child of this flow run. Fails if that fails."""
    _run([sys.executable, "-m", "pipeline.cli", "repro", "--jobs", str(jobs), *(targets or [])])


@flow(name="scheduled stage", flow_run_name="{name} {variant}")
def scheduled_stage(name: str, variant: str | None = None) -> None:
    """Bring one stage up to date in the working directory; what it depends on must be. Fails if that fails.

    A work pool can stand for a kind of machine: `prefect deploy --name stage --pool gpu`.
    """
    load_stage(name, variant)  # wrong names are one line, and no option of a command
    _run(single_item(address_of(name, variant)))


@task(name="scoresmooth", cache_policy=NO_CACHE)
def _run(command: list[str]) -> None:
    environment = {**dvc_environment(), PARENT: str(task_run.id)}
    process = subprocess.Popen(command, env=environment, process_group=0)
    try:
        code = code_of(process)
    except BaseException:  # the worker ends this process when the run is cancelled
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_GRACE + 10)
        raise
    if code:
        raise subprocess.CalledProcessError(code, command)
