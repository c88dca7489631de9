"""GPUs, each reserved for one job at a time by a lock that the kernel releases when its holder dies.

Limits of Prefect or Ray hold within one server or cluster, and Prefect's stay taken when their holder is killed. These
locks hold for all projects of a user on a machine.
"""

import dataclasses
import functools
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from pipeline.locks import locked
from pipeline.waiting import Limit, Patience
from stages.errors import InputError

PERIOD = 0.2
"""Seconds between two attempts to take the locks."""


@functools.cache
def visible() -> tuple[str, ...]:
    """GPUs that this process may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists. Empty without a GPU."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip() not in ("", "-1"))
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return tuple(done.stdout.split()) if done.returncode == 0 else ()


def folder() -> Path:
    """The folder of the locks: one per user and machine, since several projects may share the GPUs.

    Everyone can write to the folder around it. So it must be this user's own and no link, and only this user can write
    to it; otherwise InputError: another user could let a lock lead to any file.
    """
    path = Path(tempfile.gettempdir()) / f"scoresmooth-gpus-{os.getuid()}"
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(f"{path} is not a folder of your own: remove it, or set TMPDIR to a folder that is yours")
    if stat.S_IMODE(found.st_mode) != 0o700:
        path.chmod(0o700)
    return path


@dataclasses.dataclass(frozen=True)
class Reservation:
    """GPUs that are held until `release`.

    Attributes:
        names: as CUDA_VISIBLE_DEVICES takes them.
        handles: the locks' file descriptors; a child that inherits them holds the GPUs as well.
    """

    names: tuple[str, ...] = ()
    handles: tuple[int, ...] = ()
    _locks: ExitStack = dataclasses.field(default_factory=ExitStack)

    def release(self) -> None:
        """Give the GPUs back, once every child that inherited the locks has ended."""
        self._locks.close()

    def variables(self) -> dict[str, str]:
        """The environment variable that shows only these GPUs to a process; none where no GPU is held."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.names)} if self.names else {}


def free(count: int) -> Reservation | None:
    """Reserve `count` of the visible GPUs now, or None: all or none, so that two jobs that need two cannot deadlock.

    Raises InputError if fewer GPUs are visible.
    """
    if count > len(visible()):
        raise InputError(f"execution.gpus_per_job is {count} but {len(visible())} GPUs are visible: lower it")
    held: dict[str, int] = {}
    with ExitStack() as attempt:
        for name in visible():
            if len(held) < count:
                with suppress(BlockingIOError):
                    lock = folder() / f"{name.replace('/', '-')}.lock"
                    held[name] = attempt.enter_context(locked(lock, wait=False))
        if len(held) == count:
            return Reservation(tuple(held), tuple(held.values()), attempt.pop_all())
    return None


def take(
    count: int, say: Callable[[str], None], limit: float, stopped: Callable[[], bool] = lambda: False
) -> Reservation | None:
    """Reserve `count` of the visible GPUs, and wait until they are free; None once `stopped()`.

    limit: seconds, after which it raises InputError.
    """
    what = "a free GPU" if count == 1 else f"{count} free GPUs"
    remedy = f"other processes of yours hold them ({folder()})" if count else ""
    patience = Patience(f"{what} (of {len(visible())})", Limit("execution.gpu_timeout", limit), remedy, say)
    while (found := free(count)) is None and not stopped():
        patience.check()
        time.sleep(PERIOD)
    return found


@contextmanager
def reserved(count: int, say: Callable[[str], None], limit: float) -> Iterator[None]:
    """Hold `count` of the visible GPUs and show only them to this process, which must not have used CUDA before.

    limit: see `take`.
    """
    held = take(count, say, limit) or Reservation()
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ.update(held.variables())
    try:
        yield
    finally:
        held.release()
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
