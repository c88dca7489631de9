"""Shards on a Ray cluster. Needs `pip install '.[ray]'`; imported only when execution.runner is ray.

The flow, the shard cache and its locks stay on the machine that runs the stage; a shard's work goes to a node as one
Ray task. Prefect's API is therefore asked from here only and can stay on loopback, which a task runner that carries
Prefect tasks to the nodes (prefect-ray) would not allow.

Without `execution.shared` all nodes see the project's folder under the same path. With it, inputs and results travel
through that place by content (pipeline.shared), and nodes need nothing but Python and the packages.
"""

import dataclasses
import importlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayTaskError, TaskCancelledError, WorkerCrashedError

import pipeline
import stages
from pipeline.runners import Stopped
from pipeline.shared import SharedPlace
from stages.errors import InputError
from stages.protocol import Shard

RETRIES = 3
"""Times that Ray starts a shard again on another node when its node or process is lost. Errors of the work are not
retried: they would come again."""

REACH = 10.0
"""Seconds to wait for the cluster's port."""


@dataclasses.dataclass(frozen=True)
class RayResources:
    """What a shard needs of a node."""

    cpus: float
    gpus: float


class RayRunner:
    """A runner (pipeline.runners.Runner) whose shards are Ray tasks.

    Args:
        address: of the cluster: HOST:PORT, ray://HOST:PORT, "auto", or None for a cluster on this machine alone.
        resources: per shard.
        shared: fsspec URL for inputs and results, or None if all nodes see the project's folder.
        shards: how many shards there are; no more threads wait for results than that.
    """

    def __init__(self, address: str | None, resources: RayResources, shared: str | None, shards: int) -> None:
        connect(address)
        total = ray.cluster_resources()
        if not total.get("GPU"):  # device auto; a stage that insists on a GPU says so itself
            resources = RayResources(resources.cpus, 0)
        slots = total.get("CPU", 0.0) // resources.cpus
        if resources.gpus:
            slots = min(slots, total.get("GPU", 0.0) // resources.gpus)
        if slots < 1:
            wanted = f"{resources.cpus:g} CPUs and {resources.gpus:g} GPUs"
            raise InputError(f"execution: no node of the Ray cluster at {address} has {wanted}: lower *_per_job")
        self.jobs = int(min(slots, max(1, shards)))
        self._place = SharedPlace(shared) if shared else None
        self._work = ray.remote(_work_remotely).options(
            num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=RETRIES, retry_exceptions=False
        )
        self._references: set[Any] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def run(self, shard: Shard, lock: int) -> None:
        """See Runner.run. The lock stays with this process: Ray ends a job's tasks when its driver dies."""
        trees = None
        if self._place is not None:
            trees = {path: self._place.put_tree(Path(path)) for path in shard.inputs}
        with self._guard:
            if self._stopped:
                raise Stopped(f"{shard.stage} {shard.name} was not started")
            url = self._place.url if self._place else None
            reference = self._work.remote(shard.to_json(), str(Path.cwd()), url, trees)
            self._references.add(reference)
        try:
            digest = self._wait(shard, reference)
        finally:
            with self._guard:
                self._references.discard(reference)
        if self._place is not None:
            self._place.get(digest, shard.path)

    def _wait(self, shard: Shard, reference: Any) -> str:
        try:
            return ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise
        except TaskCancelledError as error:
            raise Stopped(f"{shard.stage} {shard.name} was stopped") from error
        except OutOfMemoryError as error:
            raise MemoryError(f"{shard.stage} {shard.name}: out of memory on its node, {RETRIES} times over") from error
        except WorkerCrashedError as error:
            if self._stopped:
                raise Stopped(f"{shard.stage} {shard.name} was stopped") from error
            raise RuntimeError(f"{shard.stage} {shard.name}: its process was lost {RETRIES + 1} times") from error

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
    # by value: the nodes run this project's code, whatever is installed there
    modules = [str(Path(module.__file__ or "").parent) for module in (pipeline, stages)]
    options: dict[str, Any] = {"runtime_env": {"py_modules": modules}, "log_to_driver": True, "logging_level": "ERROR"}
    if address is None:
        options["include_dashboard"] = False
    try:
        ray.init(address=address or "local", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"execution.address: no Ray cluster at {address} ({reason}): start one") from error


def _reach(address: str | None) -> None:
    """Ray itself tries for a minute, then may end the process."""
    named = re.fullmatch(r"(?:ray://)?([^/]+):(\d+)", address or "")
    if named:
        try:
            socket.create_connection((named[1], int(named[2])), timeout=REACH).close()
        except OSError as error:
            raise InputError(f"execution.address: no Ray cluster at {address} ({error}): start one") from error


def _work_remotely(shard: str, root: str, url: str | None, trees: dict[str, dict[str, str]] | None) -> str:
    """On a node: do the work of a shard in the project's folder, or in a copy of its inputs; the result's sha256."""
    found = Shard.from_json(shard)
    module = importlib.import_module(f"stages.{found.stage}")
    if url is None or trees is None:
        with _folder(Path(root)):
            module.work(found)
        return ""
    place, own = SharedPlace(url), node_folder(root)
    for path, tree in trees.items():
        place.get_tree(tree, own / path)
    with _folder(own):
        if found.path.exists():
            found.path.unlink()
        module.work(found)
        digest = place.put(found.path)
        found.path.unlink()
        return digest


def node_folder(root: str) -> Path:
    """Where a node keeps its copy of a project's inputs, one per project and user."""
    return Path.home() / ".cache" / "scoresmooth" / root.strip("/").replace("/", "-")


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Work in `path`, then go back. A Ray worker does one task at a time."""
    path.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
