"""A shard's work on a node of a cluster: in the project's folder if all nodes see it, else in a copy of its inputs."""

import dataclasses
import importlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType

from pipeline import oom
from pipeline.checkpoints import SharedScratch
from pipeline.locks import locked
from pipeline.processes import Hung, WorkFailed, cause
from pipeline.shared import SharedPlace
from stages.errors import InputError
from stages.files.artifacts import sha256_file
from stages.protocol import Shard

SETTLE = 60.0
"""Seconds that a network file system may take to show on one machine what another has written."""

USED = ".scoresmooth-used"
"""The file whose time says when a node's copy of a project was last used; folders without it are not touched."""

UNUSED_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Task:
    """A shard's work, as it is sent to a node.

    Attributes:
        shard: the shard as JSON.
        root: the project's folder.
        url: the shared place, or None where all nodes see `root`.
        trees: for every input its path -> its tree in the shared place, or None.
        share: the share of its usual working memory that the shard may use.
        cache: the folder of the nodes' copies of inputs, or None for ~/.cache/scoresmooth.
        variables: the environment variables that torchrun would set for this process of a training.
    """

    shard: str
    root: str
    url: str | None
    trees: dict[str, dict[str, str]] | None
    share: float = 1.0
    cache: str | None = None
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


def work(task: Task) -> str:
    """Do the work of a shard on this node; return its result's sha256 ("": another process of a training has it)."""
    found, leads = Shard.from_json(task.shard), task.variables.get("RANK", "0") == "0"
    with ExitStack() as stack:
        stack.enter_context(_environment({**task.variables, oom.SHARE_VARIABLE: str(task.share)}))
        module = importlib.import_module(f"stages.{found.stage}")
        if task.url is None or task.trees is None:
            stack.enter_context(_folder(Path(task.root)))
            _work(module, found)
            return sha256_file(found.path) if leads else ""
        place = SharedPlace(task.url)
        own = node_folder(task.root, task.cache)
        stack.enter_context(_folder(own))
        prune(own)
        for path, tree in task.trees.items():
            place.get_tree(tree, Path(path), kept_files(own))
        with SharedScratch(task.url, found).mirrored(writes=leads):
            found.path.unlink(missing_ok=True)
            _work(module, found)
        if not leads:
            return ""
        digest = place.put(found.path)
        found.path.unlink()
        shutil.rmtree(found.scratch, ignore_errors=True)
        return digest


def _work(module: ModuleType, shard: Shard) -> None:
    """Work on a shard; an error that is neither wrong input nor lack of memory becomes WorkFailed, with its place."""
    try:
        module.work(shard)
    except Exception as error:
        if isinstance(error, InputError) or oom.ran_out(error):
            raise
        hung = isinstance(error, TimeoutError) and error.errno is None  # stages.diffusion.distributed.join
        raise (Hung if hung else WorkFailed)(cause(error)) from error


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the body runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def appear(path: Path, digest: str) -> None:
    """Wait until this machine sees a result that another has written. Raises WorkFailed if it does not.

    NFS shows new files with a delay, or their earlier size; listing the folder makes it look again.
    """
    until = time.monotonic() + SETTLE
    while not (path.name in os.listdir(path.parent) and path.is_file() and sha256_file(path) == digest):
        if time.monotonic() > until:
            remedy = "is the project's folder the same there?"
            raise WorkFailed(f"{path}: the result that a node wrote is not seen here after {SETTLE:g} s: {remedy}")
        time.sleep(0.5)


def node_folder(root: str, cache: str | None = None) -> Path:
    """The folder of a node's copy of a project's inputs, one per project and user."""
    base = Path(cache).expanduser().absolute() if cache else Path.home() / ".cache" / "scoresmooth"
    return base / root.strip("/").replace("/", "-")


def kept_files(own: Path) -> Path:
    """The folder of the files that the copy `own` and those beside it share, by digest: a node fetches each once."""
    return own.parent / ".files"


def prune(own: Path) -> None:
    """Note that the copy `own` is used, and remove the copies beside it that were not used for UNUSED_DAYS days.

    A file of `kept_files` goes when no copy has had it for as long.
    """
    (own / USED).touch()
    limit = time.time() - UNUSED_DAYS * 86400
    for mark in own.parent.glob(f"*/{USED}"):
        if mark.parent != own and mark.stat().st_mtime < limit:
            shutil.rmtree(mark.parent, ignore_errors=True)
    for lock in kept_files(own).glob("*.lock"):
        with suppress(BlockingIOError, FileNotFoundError), locked(lock, wait=False):  # else another process links it
            path = lock.with_suffix("")
            found = path.stat()
            if found.st_nlink == 1 and found.st_ctime < limit:  # this time changes when a copy loses the file
                path.unlink()


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Change to the folder `path` while the body runs. A Ray worker does one task at a time."""
    path.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
