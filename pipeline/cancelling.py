"""Cancelling a run in Prefect (`prefect flow-run cancel`, the UI) reaches its work, which then ends as after Ctrl-C.

Prefect itself ends only what one of its workers started, and of that only the process it knows. So every run asks the
server for its own state, and for the state of the run that it belongs to, from a thread.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from uuid import UUID

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled

PERIOD = 2.0
"""Seconds between two requests for the state."""

MESSAGE = "Cancelled; finished shards stay cached, and the next run resumes."


def is_cancelled(client: SyncPrefectClient, runs: list[UUID]) -> bool:
    """Whether somebody asked to cancel one of these flow runs."""
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id={"any_": runs}))
    return any(run.state_type in (StateType.CANCELLING, StateType.CANCELLED) for run in found)


def mark_cancelled(client: SyncPrefectClient, run: UUID) -> None:
    """Set a flow run's final state."""
    client.set_flow_run_state(run, Cancelled(message=MESSAGE), force=True)


@contextmanager
def cancellable(run: FlowRun, lasting: bool = True) -> Iterator[None]:
    """Interrupt this process (KeyboardInterrupt in the main thread) when `run` or its parent is cancelled.

    The run's last state is then Cancelled. Enter it in the main thread, and end the work on KeyboardInterrupt.
    lasting: whether others can reach the server at all (see pipeline.tracking.tracked); if not, nothing is watched.
    """
    if not lasting:
        yield
        return
    ended, found, guard = threading.Event(), threading.Event(), threading.Lock()

    def interrupt(_: int, __: FrameType | None) -> None:
        if found.is_set():
            raise KeyboardInterrupt

    def watch() -> None:
        with get_client(sync_client=True) as client:
            while not ended.wait(PERIOD):
                with suppress(httpx.HTTPError):  # the flow reports a lost server
                    if is_cancelled(client, _with_parent(client, run)):
                        with guard:
                            if not ended.is_set():
                                found.set()
                                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                        return

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script
        signal.signal(signal.SIGINT, interrupt)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except Exception:
        raise
    except BaseException:  # Prefect has called the interruption a crash
        with suppress(httpx.HTTPError), get_client(sync_client=True) as client:
            if found.is_set() or is_cancelled(client, _with_parent(client, run)):
                mark_cancelled(client, run.id)
        raise
    finally:
        with guard:
            ended.set()


def _with_parent(client: SyncPrefectClient, run: FlowRun) -> list[UUID]:
    """The run, and the flow run whose task it is."""
    if run.parent_task_run_id is None:
        return [run.id]
    parent = client.read_task_run(run.parent_task_run_id).flow_run_id
    return [run.id] if parent is None else [run.id, parent]
