"""The Prefect flow of one stage: its tasks are the shards and the gathering.

Import it after pipeline.server.connect: Prefect reads its settings when it is imported.
"""

import contextvars
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from queue import SimpleQueue
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, Task, get_client, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.flow_engine import run_flow
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, State
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline import cache, live
from pipeline.cancelling import cancellable, is_cancelled, mark_cancelled
from pipeline.heartbeats import beating
from pipeline.labels import shared_labels
from pipeline.progress import is_measured, share_done
from pipeline.runners import Runner
from pipeline.showcase import publish_outs, publish_params
from pipeline.signals import next_of
from pipeline.stage_run import StageRun, say
from pipeline.tracking import tracked
from stages.errors import one_line
from stages.protocol import Shard

GRACE = 10.0
"""Seconds between an interruption and the end of the process, for shards in threads, which cannot be stopped."""

CHILD_GRACE = 25.0
"""The same for shards in processes, which write a checkpoint first. Schedulers usually kill after 30."""

PATIENCE = 5.0
"""Seconds that an interrupted process waits for the server, which may be dead."""

PROGRESS_PERIOD = 2.0
"""Seconds between two updates of the progress artifact."""

# Run logs go to the UI. At the terminal an error is one line or one traceback, not three.
for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).propagate = False


def run(stage: StageRun, runner: Runner) -> int:
    """Run a stage as a flow; return how many shards were computed. Errors of shards and of `gather` propagate."""
    grace = CHILD_GRACE if stage.name in stage.execution.processes else GRACE

    def body() -> int:
        runner.tell = _tell
        with interruptible(runner.stop, grace):
            publish_params(stage.title, stage.params.model_dump(mode="json"))
            computed = _compute_all(stage, runner)
            task(stage.gather, name="gather", task_run_name="gather", cache_policy=NO_CACHE)()
            publish_outs(stage.title, stage.outs)
        return computed

    flow = Flow(
        body,
        name=stage.name,
        task_runner=ThreadPoolTaskRunner(max_workers=runner.jobs),
    )
    labels = {stage.name, *filter(None, [stage.variant])}
    parameters = {"stage": stage.name, **stage.params.model_dump(mode="json")}
    return run_flow_as(flow, stage.title, labels, stage.address is not None, parameters)


def run_flow_as(flow: Flow[[], Any], title: str, labels: set[str], lasting: bool, parameters: dict[str, Any]) -> Any:
    """Run a flow under a title and tags; return its result. lasting: see pipeline.tracking.tracked.

    parameters: shown as the run's. They are not the function's: Prefect would import FastAPI for them (half a second).
    The tasks have no tags: Prefect asks the server about limits of each tag before a task starts. SQLite, which other
    requests write to at that moment, mostly refuses that at once, and Prefect's client tries again after two seconds.
    """
    labels = labels | shared_labels()
    with ExitStack() as stack:
        found = stack.enter_context(tracked(flow, title, labels, lasting, parameters))
        stack.enter_context(cancellable(found, lasting))
        stack.enter_context(beating(flow, found))
        return run_flow(flow, flow_run=found)


def _compute_all(stage: StageRun, runner: Runner) -> int:
    checks = [cache.check(shard) for shard in stage.shards]
    missing = sum(not found.ready for found in checks)
    _tell(f"{stage.title}: {len(checks)} shards, {len(checks) - missing} cached, {missing} to compute")
    compute = _shard_task(stage, runner, checks)
    futures = [compute.submit(shard=shard.name, index=index) for index, shard in enumerate(stage.shards)]
    _await(stage, futures, missing)
    return missing


def _shard_task(stage: StageRun, runner: Runner, checks: Sequence[cache.Check]) -> Task[..., State[Any]]:
    """The task of a shard. Prefect stores no result: the shard cache has it, and checks it.

    After a failure a worker's thread may take the next task before the main thread stops the runner: it is skipped.
    """
    failed = threading.Event()

    def work(shard: str, index: int) -> State[Any]:
        if checks[index].ready:
            return Completed(name="Cached", message=f"{stage.shards[index].path}")
        if failed.is_set():
            return Completed(name="Skipped", message="another shard failed")
        try:
            record = cache.obtain(stage.shards[index], runner.run, _tell)
        except Exception:
            failed.set()
            raise
        return Completed(message=f"{record['path']}: {record['size']} bytes, sha256 {record['sha256']}")

    return task(work, name=f"{stage.name} shard", task_run_name="{shard}", cache_policy=NO_CACHE)


def _await(stage: StageRun, futures: list[PrefectFuture[Any]], missing: int) -> None:
    """Wait for the shards and show progress; the first failure is raised and the remaining shards are not started."""
    total, updated, ended = len(futures), time.monotonic(), SimpleQueue[PrefectFuture[Any]]()
    for future in futures:
        future.add_done_callback(ended.put)
    measured = total == 1 and is_measured(stage.shards[0])
    shown = missing > 0 and (total > 1 or measured)
    artifact = create_progress_artifact(0.0, key=f"{stage.title.replace(' ', '-')}-progress") if shown else None
    with _watched(stage.shards[0], artifact) if artifact and measured else nullcontext():
        for done in range(1, total + 1):
            next_of(ended).result()
            if artifact and not measured and (done == total or time.monotonic() - updated > PROGRESS_PERIOD):
                update_progress_artifact(artifact, progress=100 * done / total)
                _tell(f"{stage.title}: {done} of {total} shards")
                updated = time.monotonic()
    if artifact and measured:
        update_progress_artifact(artifact, progress=100.0)


@contextmanager
def _watched(shard: Shard, artifact: UUID) -> Iterator[None]:
    """Show the progress of a single long shard, from a thread of its own, until the body ends."""
    ended = threading.Event()

    curve = live.LiveCurve(shard) if live.available() else None

    def watch() -> None:
        shown = 0.0
        while not ended.wait(PROGRESS_PERIOD):
            if curve:
                curve.look()
            share = share_done(shard)
            if share != shown:
                try:
                    update_progress_artifact(artifact, progress=100 * share)
                except httpx.HTTPError:  # the server has ended: the flow itself notices and reports that
                    return
                shown = share

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=1.0)  # without a server the thread may retry for minutes


def _tell(text: str) -> None:
    """Print a line at the terminal and add it to the run's log."""
    say(text)
    get_run_logger().info(text)


@contextmanager
def interruptible(stop: Callable[[], None], grace: float) -> Iterator[None]:
    """Call `stop` after any failure: it starts no more work and ends children.

    After Ctrl-C or SIGTERM this process itself also ends within `grace` seconds.
    """
    try:
        yield
    except Exception:
        stop()
        raise
    except BaseException as interruption:
        reason = type(interruption).__name__
        end = threading.Timer(grace, os._exit, [130 if isinstance(interruption, KeyboardInterrupt) else 143])
        end.daemon = True
        end.start()  # first: what follows may wait for a server that is dead
        stop()
        cancelled = briefly(lambda: _mark_ended(reason))
        why = "error: cancelled in Prefect" if cancelled else "interrupted"
        say(f"{why}: ending the work; finished shards stay cached")
        raise


def briefly(tell: Callable[[], Any]) -> Any:
    """Tell the server something, and wait for that a few seconds only: Prefect asks a dead server for minutes.

    Returns what `tell` returns, or None where the server does not answer in time.
    """
    answers = []

    def try_it() -> None:
        try:
            answers.append(tell())
        except httpx.HTTPError as error:
            say(f"the Prefect server does not answer ({one_line(error)}): the UI lacks the end of this run")

    thread = threading.Thread(target=contextvars.copy_context().run, args=(try_it,), daemon=True)
    thread.start()
    thread.join(timeout=PATIENCE)
    return answers[0] if answers else None


def _mark_ended(reason: str) -> bool:
    """Mark the run as cancelled or crashed now: Prefect would do so only after the last thread has ended.

    Returns whether it was cancelled.
    """
    run = UUID(flow_run.id)
    with get_client(sync_client=True) as client:
        if cancelled := is_cancelled(client, [run]):
            mark_cancelled(client, run)
        else:
            client.set_flow_run_state(run, Crashed(message=f"Interrupted ({reason})."), force=True)
    return cancelled
