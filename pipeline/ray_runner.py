"""Shards on a Ray cluster. Needs `pip install '.[pipeline,ray]'`; imported only when execution.runner is ray.

The flow, the shard cache and its locks stay on the machine that runs the stage; a shard's work goes to a node as one
Ray task. So only this machine uses Prefect's API, which can stay on loopback. A task runner that runs Prefect tasks on
the nodes (prefect-ray) would not allow that.

Without `execution.shared` all nodes see the project's folder under the same path. With it, inputs and results travel
through that place by content (pipeline.shared), and nodes need nothing but Python and the packages.

A training by several processes (train.processes) is a Ray task per process, on as many nodes as it takes, with the
variables that torchrun would set: the processes find each other at the first one's address.
"""

import dataclasses
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import pipeline
import stages
from pipeline import oom
from pipeline.checkpoints import SharedScratch
from pipeline.node import Task, appear, work
from pipeline.processes import Hung, WorkFailed
from pipeline.runners import Stopped
from pipeline.shared import SharedPlace
from pipeline.stage_run import say
from pipeline.waiting import Limit, Patience
from stages.errors import InputError
from stages.protocol import Shard

RETRIES = 3
"""How often Ray restarts a shard on another node after its node or process was lost. Errors of the work are not
retried: they would recur."""

LOOK = 1.0
"""Seconds between two looks at the cluster while a task waits for a node."""

REACH = 10.0
"""Seconds to wait for the cluster's port to answer."""

SETTLE = 60.0
"""Seconds that the processes of a training have to end after one of them failed: this tells the loss of a node from the
error that it causes in the other processes."""

LOST = (WorkerCrashedError, LocalRayletDiedError, NodeDiedError)


@dataclasses.dataclass(frozen=True)
class RayResources:
    """The CPUs and GPUs that a shard needs on its node, and for how many seconds such a node is waited for."""

    cpus: float
    gpus: float
    timeout: float = 0.0


class RayRunner:
    """A runner (pipeline.runners.Runner) whose shards are Ray tasks.

    Args:
        address: the cluster: HOST:PORT, ray://HOST:PORT, "auto", or None for a cluster on this machine alone.
        resources: what each shard needs.
        shared: fsspec URL for inputs and results, or None if all nodes see the project's folder.
        cache: where nodes keep copies of inputs; None: see pipeline.node.
        shards: the number of shards, which limits the number of threads that wait for results.
    """

    def __init__(
        self, address: str | None, resources: RayResources, shared: str | None, shards: int, cache: str | None = None
    ) -> None:
        connect(address)
        self.tell: Callable[[str], None] = say
        self._resources, self._cache = resources, cache
        self._place = SharedPlace(shared) if shared else None
        self._trees: dict[str, dict[str, str]] = {}
        self._storing = threading.Lock()
        self._references: set[Any] = set()
        self._guard = threading.Lock()
        self._stopped = False
        self._node = self._patience("a node with", "of the Ray cluster")
        self._until_room(1, self._node)
        self.jobs = min(_slots(resources), max(1, shards))

    def run(self, shard: Shard, lock: int) -> None:
        """See Runner.run. The lock stays with this process: Ray ends a job's tasks when its driver dies."""
        trees = None
        if self._place is not None:
            trees = {path: self._stored(path) for path in shard.inputs}
        url = self._place.url if self._place else None
        hidden = {} if self._resources.gpus else {"CUDA_VISIBLE_DEVICES": ""}  # Ray leaves all to who asks for none
        task = Task(shard.to_json(), str(Path.cwd()), url, trees, cache=self._cache, variables=hidden)
        digest = self._attempts(shard, task)
        if self._place is None:
            appear(shard.path, digest)
        else:
            self._place.get(digest, shard.path)
            SharedScratch(self._place.url, shard).forget()

    def _patience(self, what: str, where: str) -> Patience:
        """To wait for nodes that are not there: a line at once, and an error after `timeout` seconds."""
        needs, resources = f"{self._resources.cpus:g} CPUs and {self._resources.gpus:g} GPUs", self._resources
        hint = " (0: compute on CPUs)" if resources.gpus else ""
        remedy = f"start one, or lower execution.cpus_per_job or gpus_per_job{hint}"
        limit = Limit("execution.node_timeout", resources.timeout)
        return Patience(f"{what} {needs} {where}", limit, remedy, lambda text: self.tell(text))

    def _until_room(self, processes: int, patience: Patience) -> None:
        """Wait until the cluster's nodes have room for so many processes, even if others work there now."""
        while _slots(self._resources) < processes:
            if self._stopped:
                raise Stopped("it was not started")
            patience.check()
            time.sleep(LOOK)
        patience.reset()

    def _watch_nodes(self, processes: int, patience: Patience) -> None:
        """Look once whether nodes are lost that the work needs: Ray would wait for others silently and for ever."""
        if _slots(self._resources) < processes:
            patience.check()
        else:
            patience.reset()

    def _stored(self, path: str) -> dict[str, str]:
        """Store an input, once for all shards of the stage; return its tree."""
        with self._storing:
            if path not in self._trees:
                self._trees[path] = self._place.put_tree(Path(path))
            return self._trees[path]

    def _attempts(self, shard: Shard, task: Task) -> str:
        """Return the result's digest; after an attempt that ran out of memory, try once more with half of it."""
        attempts: list[oom.Attempt] = []
        for share in oom.SHARES:
            task = dataclasses.replace(task, share=share)
            try:
                if shard.stage == "train" and (processes := shard.settings.get("processes", 1)) > 1:
                    return self._together(shard, task, processes)
                return self._wait(shard, self._submit(task))
            except _RanOut as error:
                attempts.append(oom.Attempt(str(error), None))
                if share != oom.SHARES[-1]:
                    self.tell(f"{shard.stage} {shard.name}: {error}: trying once more with half the working memory")
        raise oom.exhausted(shard.stage, shard.name, *attempts, "how many shards a node takes (execution.cpus_per_job)")

    def _submit(self, task: Task, retries: int = RETRIES, **options: Any) -> Any:
        resources = {"num_cpus": self._resources.cpus, "num_gpus": self._resources.gpus}
        remote = ray.remote(work).options(max_retries=retries, retry_exceptions=False, **resources, **options)
        with self._guard:
            if self._stopped:
                raise Stopped("it was not started")
            reference = remote.remote(task)
            self._references.add(reference)
        return reference

    def _wait(self, shard: Shard, reference: Any) -> str:
        """Wait for a task and return its result; its errors are raised as this project's."""
        try:
            while not ray.wait([reference], timeout=LOOK)[0]:
                self._watch_nodes(1, self._node)
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            if isinstance(error.cause, Hung):
                raise _Lost(f"{shard.stage} {shard.name}: {error.cause}") from None
            if isinstance(error.cause, WorkFailed):
                say(str(error))  # with the traceback on the node
                raise WorkFailed(f"{shard.stage} {shard.name}: {error.cause}") from None
            if isinstance(error.cause, Exception) and oom.ran_out(error.cause):
                raise _RanOut(f"refused memory ({oom.said(error.cause)})") from error
            raise
        except InputError:  # no node came
            ray.cancel(reference, force=True)
            raise
        except TaskCancelledError as error:
            raise Stopped(f"{shard.stage} {shard.name} was stopped") from error
        except OutOfMemoryError as error:
            raise _RanOut("killed by Ray, out of memory on its node") from error
        except LOST as error:
            if self._stopped:
                raise Stopped(f"{shard.stage} {shard.name} was stopped") from error
            raise _Lost(f"{shard.stage} {shard.name}: its process or node was lost") from error
        finally:
            with self._guard:
                self._references.discard(reference)

    def _together(self, shard: Shard, task: Task, processes: int) -> str:
        """Train with several processes; when one is lost, all of them start again from the last checkpoint.

        Ray Train's FailureConfig would do this, but restarts after every error, wrong input too, wants checkpoints
        reported in its own form, and forms the process group itself, as neither torchrun nor Slurm does.
        """
        room = self._patience(f"room for the {processes} processes of train.processes with", "each")
        self._until_room(processes, room)
        for left in reversed(range(RETRIES + 1)):
            try:
                return self._group(shard, task, processes, room)
            except _Lost as lost:
                if not left:
                    raise
                self.tell(f"{shard.stage} {shard.name}: a process was lost: all {processes} start again ({lost})")
        raise AssertionError

    def _group(self, shard: Shard, task: Task, processes: int, room: Patience) -> str:
        bundle = {"CPU": self._resources.cpus, **({"GPU": self._resources.gpus} if self._resources.gpus else {})}
        group = placement_group([bundle] * processes, strategy="PACK")
        try:
            while not group.wait(LOOK):
                if self._stopped:
                    raise Stopped(f"{shard.stage} {shard.name} was not started")
                self._watch_nodes(processes, room)
            meeting = ray.remote(_Meeting).options(num_cpus=0, scheduling_strategy=_at(group, 0)).remote()
            address, port = ray.get(meeting.place.remote())
            members = [
                dataclasses.replace(
                    task, variables={**task.variables, **_torchrun_variables(rank, processes, address, port)}
                )
                for rank in range(processes)
            ]
            references = [
                self._submit(member, retries=0, scheduling_strategy=_at(group, rank))
                for rank, member in enumerate(members)
            ]
            return self._gather(shard, references)
        finally:
            remove_placement_group(group)

    def _gather(self, shard: Shard, references: list[Any]) -> str:
        """Return the first process's result. Of several errors the most telling is raised: wrong input first."""
        waiting, errors, results = list(references), [], {}
        while waiting and not any(isinstance(error, (InputError, _Lost)) for error in errors):
            ready, waiting = ray.wait(waiting, timeout=SETTLE if errors else None)
            if not ready:
                break
            try:
                results[ready[0]] = self._wait(shard, ready[0])
            except KINDS as error:
                errors.append(error)
        for reference in waiting:
            ray.cancel(reference, force=True)
            with self._guard:
                self._references.discard(reference)
        for kind in KINDS:
            for error in errors:
                if isinstance(error, kind):
                    raise error
        return results[references[0]]

    def stop(self) -> None:
        """See Runner.stop."""
        with self._guard:
            self._stopped = True
            for reference in self._references:
                ray.cancel(reference, force=True)


def connect(address: str | None) -> None:
    """Make this process a driver of the cluster. Raises InputError if there is none at `address`."""
    if ray.is_initialized():
        return
    _reach(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # the code is sent by value: the nodes run this project's version, not one that is installed there
    modules = [str(Path(module.__file__ or "").parent) for module in (pipeline, stages)]
    options: dict[str, Any] = {"runtime_env": {"py_modules": modules}, "log_to_driver": True, "logging_level": "ERROR"}
    if address is None:
        options["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"execution.address: no Ray cluster at {address} ({reason}): start one") from error


def _slots(resources: RayResources) -> int:
    """How many shards the nodes hold at once; Ray would wait forever for a node that can take a too large one."""
    total = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            room = has.get("CPU", 0.0) // resources.cpus
            total += int(min(room, has.get("GPU", 0.0) // resources.gpus) if resources.gpus else room)
    return total


def _reach(address: str | None) -> None:
    """Raise InputError if nothing answers at the address. Ray itself retries for a minute, then may end the process."""
    named = re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address or "")
    if named:
        try:
            socket.create_connection((named[1], int(named[2])), timeout=REACH).close()
        except OSError as error:
            raise InputError(f"execution.address: no Ray cluster at {address} ({error}): start one") from error


class _RanOut(RuntimeError):
    """A task ran out of memory; the message says how."""


class _Lost(WorkFailed):
    """A task's process or node was lost."""


KINDS = (InputError, Stopped, _RanOut, _Lost, WorkFailed, RayError)
"""The errors of a training's processes, the most telling first."""


class _Meeting:
    """The store through which a training's processes find each other, as torchrun's agent has one.

    An actor holds it, and its port, until the training ends: a port that is chosen, freed and bound again can be taken
    meanwhile.
    """

    def __init__(self) -> None:
        from torch.distributed import TCPStore  # on the node: this module's process does not need torch

        self._address = ray.util.get_node_ip_address()
        self._store = TCPStore(self._address, 0, is_master=True, wait_for_workers=False)

    def place(self) -> tuple[str, int]:
        """The store's address and port."""
        return self._address, self._store.port


def _at(group: PlacementGroup, bundle: int) -> PlacementGroupSchedulingStrategy:
    return PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=bundle)


def _torchrun_variables(rank: int, processes: int, address: str, port: int) -> dict[str, str]:
    """The variables that torchrun sets. LOCAL_RANK is 0 everywhere: Ray shows each process only its own GPU."""
    return {
        "TORCHELASTIC_RUN_ID": "ray",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first process makes no store: `_Meeting` holds it
        "TORCHELASTIC_RESTART_COUNT": "0",
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": "0",
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
