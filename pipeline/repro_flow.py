"""The whole graph as one Prefect flow: a task per stage, whose own flow run is shown below it.

Import it after pipeline.server.connect: Prefect reads its settings when it is imported.
"""

import os
from collections.abc import Callable, Collection
from queue import SimpleQueue
from typing import Any

from prefect import Flow, task
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait
from prefect.runtime import task_run
from prefect.states import Completed, State
from prefect.task_runners import ThreadPoolTaskRunner

from pipeline.flows import GRACE, briefly, interruptible, run_flow_as
from pipeline.graph import StageGraph
from pipeline.labels import RUN, new_run
from pipeline.repro import STOP_GRACE, Outcome, Reproducer, StageFailed
from pipeline.signals import next_of
from pipeline.stage_run import say
from pipeline.tracking import PARENT


def run(
    graph: StageGraph, stages: Collection[str], reproducer: Reproducer, limit: Callable[[str], int],
    alone: Collection[str], lasting: bool,
) -> list[Outcome]:  # fmt: skip
    """Bring `stages` up to date; return their outcomes in the graph's order. Raises StageFailed after a failure.

    Args:
        stages: names in `graph`; all that they depend on is among them or up to date.
        limit: for a stage, how many like it may run at once (there may be fewer GPUs than jobs).
        alone: stages beside which nothing else may run.
        lasting: see pipeline.tracking.tracked.
    """
    order = [name for name in graph.names if name in stages]
    outcomes = {name: Outcome(name, "not started") for name in order}

    def body() -> None:
        # first the children have STOP_GRACE to end (schedule.stop), then this process
        with interruptible(reproducer.stop, GRACE):
            schedule = _Schedule(graph, order, reproducer, limit, alone, outcomes)

            def publish() -> None:
                table = overview(outcomes.values())
                create_table_artifact(key="overview", table=table, description="scoresmooth repro")

            try:
                schedule.run()
            except BaseException:
                schedule.stop()
                briefly(publish)
                raise
            publish()

    flow = Flow(body, name="repro", task_runner=ThreadPoolTaskRunner(max_workers=reproducer.jobs))
    os.environ[RUN] = new_run()
    run_flow_as(flow, "repro", {"repro"}, lasting, {"stages": order, "jobs": reproducer.jobs})
    return list(outcomes.values())


def overview(outcomes: Collection[Outcome]) -> list[dict[str, Any]]:
    """The rows of the overview: stage, state, time, cached and computed shards, peak memory."""
    return [
        {
            "stage": outcome.name,
            "state": outcome.state,
            "seconds": f"{outcome.seconds:.1f}",
            "shards cached": outcome.shards - outcome.computed,
            "shards computed": outcome.computed,
            "peak memory, MiB": f"{outcome.memory:.0f}",
        }
        for outcome in outcomes
    ]


class _Schedule:
    """Starts every stage as soon as all that it depends on is up to date, those with the longest path ahead first.

    Prefect starts tasks in the order of submission, and its concurrency limits are rows in the server's database, whose
    slots stay taken when their holder is killed. They cannot express an order by depth, or a stage that runs alone.
    """

    def __init__(
        self,
        graph: StageGraph,
        order: list[str],
        reproducer: Reproducer,
        limit: Callable[[str], int],
        alone: Collection[str],
        outcomes: dict[str, Outcome],
    ) -> None:
        self._graph, self._reproducer, self._limit, self._outcomes = graph, reproducer, limit, outcomes
        self._alone = frozenset(alone)
        self._waiting = sorted(order, key=lambda name: (-graph.depth(name), order.index(name)))
        self._running: dict[str, PrefectFuture[Any]] = {}
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._ended: SimpleQueue[str] = SimpleQueue()

    def run(self) -> None:
        """Run all stages. After a failure start no more, wait for those that run, and raise it."""
        total, failure = len(self._waiting), None
        progress = create_progress_artifact(0.0, key="repro-progress")
        while self._running or self._waiting:
            while failure is None and (name := self._next()):
                self._start(name)
            if not self._running:
                break
            name = next_of(self._ended)
            future = self._running.pop(name)
            try:
                future.result()
            except StageFailed as error:
                say(str(error))
                failure = failure or error
            done = sum(outcome.state != "not started" for outcome in self._outcomes.values())
            update_progress_artifact(progress, progress=100 * done / total)
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """End the running stages, and wait until they have ended."""
        if self._running:
            self._reproducer.stop()
            wait(list(self._running.values()), timeout=STOP_GRACE)

    def _next(self) -> str | None:
        """Return a stage that may start now, or None."""
        if len(self._running) >= self._reproducer.jobs or self._alone & self._running.keys():
            return None
        for name in self._waiting:
            ready = all(self._outcomes[below].good for below in self._graph.upstream[name] if below in self._outcomes)
            alike = sum(self._limit(other) == self._limit(name) for other in self._running)
            room = not self._running if name in self._alone else alike < self._limit(name)
            if ready and room:
                self._waiting.remove(name)
                return name
        return None

    def _start(self, name: str) -> None:
        # `wait_for` only draws the arrows in the UI: the stages that it names are done
        after = [self._futures[below] for below in self._graph.upstream[name] if below in self._futures]
        work = task(self._reproduce, name=name.split("@")[0], task_run_name=name, cache_policy=NO_CACHE)
        future = work.submit(name, wait_for=after)
        self._running[name] = self._futures[name] = future
        future.add_done_callback(lambda _: self._ended.put(name))

    def _reproduce(self, stage: str) -> State[Any]:
        try:
            outcome = self._reproducer.run(stage, {PARENT: str(task_run.id)})
        except StageFailed:
            self._outcomes[stage] = Outcome(stage, "failed")
            raise
        self._outcomes[stage] = outcome
        say(f"{stage}: {outcome.state} in {outcome.seconds:.1f} s")
        return Completed(name=outcome.state.capitalize())
