"""Flow runs that end on the server however their process dies, and that are shown below their parent.

Every flow run holds a lock named after it, which the kernel releases with the process. A recorded run whose lock is
free was killed: the next start marks it as crashed; otherwise the UI would show it as running forever. Prefect's
heartbeats (pipeline.heartbeats) need an automation and minutes for that, and do not tell whether the process has ended.
"""

import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from pipeline import server
from pipeline.locks import locked
from pipeline.stage_run import say

PARENT = "SCORESMOOTH_PARENT_TASK"
"""Environment variable: the task run, in another process, that a flow run belongs to."""

PARENT_WAIT = 20.0
"""Seconds to wait for the parent's task run: the server records task runs with a delay."""


@contextmanager
def tracked(
    flow: Flow[..., Any],
    title: str,
    tags: Collection[str],
    lasting: bool = True,
    parameters: dict[str, Any] | None = None,
) -> Iterator[FlowRun]:
    """Create a run of `flow`, below the parent that the environment names, and hold its lock while the body runs.

    lasting: whether the server outlives this process; only then can it hold runs of killed processes.
    parameters: what the run is shown and found with, as JSON.
    """
    folder = runs_folder()
    with ExitStack() as held:
        with get_client(sync_client=True) as client:
            parent = _parent(client)
            with locked(folder / "guard.lock"):
                if lasting:
                    mark_lost(client, folder)
                run = client.create_flow_run(flow, title, parameters, tags=sorted(tags), parent_task_run_id=parent)
                run.parameters = {}  # they are for those who read; Prefect would pass them to the flow's function
                path = folder / f"{run.id}.run"
                held.enter_context(locked(path))
        try:
            yield run
        except BaseException:
            # Prefect has told the server, unless the server itself failed: then the next start marks the run
            if not lasting or _is_final(run.id):
                path.unlink(missing_ok=True)
            raise
        path.unlink(missing_ok=True)


def runs_folder() -> Path:
    """The folder of the runs' locks."""
    return server.HOME / "runs"


def sweep() -> int:
    """Call `mark_lost` on the project's own server."""
    with get_client(sync_client=True) as client, locked(runs_folder() / "guard.lock"):
        return mark_lost(client, runs_folder())


def prune(days: float) -> int:
    """Delete flow runs that ended more than `days` days ago; return how many."""
    limit = datetime.now(UTC) - timedelta(days=days)
    old, count = FlowRunFilter(end_time={"before_": limit}), 0
    with get_client(sync_client=True) as client:
        while runs := client.read_flow_runs(flow_run_filter=old, limit=200):
            for run in runs:
                client.delete_flow_run(run.id)
            count += len(runs)
    return count


def mark_lost(client: SyncPrefectClient, folder: Path) -> int:
    """Mark runs whose process was killed, and their unfinished tasks, as crashed; return how many runs.

    The caller holds guard.lock.
    """
    marked = 0
    for path in sorted(folder.glob("*.run")):
        with suppress(BlockingIOError), locked(path, wait=False):
            marked += _mark_crashed(client, UUID(path.stem))
            path.unlink()
    return marked


def _mark_crashed(client: SyncPrefectClient, run: UUID) -> bool:
    try:
        found = client.read_flow_run(run)
    except ObjectNotFound:  # the database was replaced or pruned
        return False
    crashed = Crashed(message="Its process was killed.")
    unfinished = TaskRunFilter(state={"type": {"any_": [StateType.PENDING, StateType.RUNNING]}})
    while tasks := client.read_task_runs(
        flow_run_filter=FlowRunFilter(id={"any_": [run]}), task_run_filter=unfinished, limit=200
    ):
        for task in tasks:
            client.set_task_run_state(task.id, crashed, force=True)
    if found.state is not None and found.state.is_final():
        return False
    client.set_flow_run_state(run, crashed, force=True)
    say(f"{found.name}: an earlier run was killed; it is marked crashed in the UI")
    return True


def _is_final(run: UUID) -> bool:
    with get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(run).state
        except (ObjectNotFound, httpx.HTTPError):
            return False
    return state is not None and state.is_final()


def _parent(client: SyncPrefectClient) -> UUID | None:
    """Return the parent's task run as soon as the server has it; None without a parent."""
    named = os.environ.get(PARENT)
    if not named:
        return None
    deadline = time.monotonic() + PARENT_WAIT
    while time.monotonic() < deadline:
        try:
            return client.read_task_run(UUID(named)).id
        except ObjectNotFound:
            time.sleep(0.1)
    say(f"warning: the server does not know task run {named}: this run is shown without its parent")
    return None
