"""GPUs, each reserved for one job at a time by a lock that the kernel releases when its holder dies."""

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


@contextmanager
def reserved(count: int, say: Callable[[str], None]) -> Iterator[tuple[int, ...]]:
    """Hold `count` of the visible GPUs and show only them to this process and its children (CUDA_VISIBLE_DEVICES).

    Waits until enough are free. Yields the locks' file descriptors: a child that inherits them holds the GPUs as well.
    Raises InputError if fewer GPUs are visible. Call it before CUDA is used.
    """
    names = visible()
    if count > len(names):
        raise InputError(f"execution.gpus_per_job is {count} but {len(names)} GPUs are visible: lower it")
    with ExitStack() as stack:
        held = _take(names, count, stack, say)
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(name for name, _ in held)
        try:
            yield tuple(handle for _, handle in held)
        finally:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _take(names: tuple[str, ...], count: int, stack: ExitStack, say: Callable[[str], None]) -> list[tuple[str, int]]:
    """Take all `count` locks or none, so that two jobs that need two GPUs each cannot wait for each other."""
    told, place = False, folder()
    while True:
        held: list[tuple[str, int]] = []
        attempt = ExitStack()
        for name in names:
            if len(held) < count:
                try:
                    lock = place / f"{name.replace('/', '-')}.lock"
                    held.append((name, attempt.enter_context(locked(lock, wait=False))))
                except BlockingIOError:
                    continue
        if len(held) == count:
            stack.push(attempt.pop_all())
            return held
        attempt.close()
        if not told:
            say(f"waiting for a free GPU ({count} of {len(names)})")
            told = True
        time.sleep(PERIOD)
