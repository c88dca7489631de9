"""Locks that the kernel releases when their holder dies, however it dies.

The library filelock is no substitute: a child must inherit the lock, so that what it works on stays locked when its
parent is killed.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""How a file system without flock answers."""


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on `path` (created if needed, never removed, no link); yield its file descriptor.

    Waits for another holder, or raises BlockingIOError without `wait`; `waiting` is called once before waiting, with
    what the holder wrote about itself (its process id). A process that inherits the descriptor holds the lock too.
    Raises InputError on a file system that has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise
            if waiting:
                waiting(os.pread(handle, 64, 0).decode(errors="replace").strip() or "unknown")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno in NO_LOCKS:
                remedy = "mount it with -o flock (Lustre), or move the project to another one"
                raise InputError(f"{path}: this file system has no locks ({error.strerror}): {remedy}") from error
            raise
        name_holder(handle, os.getpid())
        yield handle
    finally:
        os.close(handle)


def name_holder(handle: int, pid: int) -> None:
    """Write into a held lock which process those who wait are to be told."""
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{pid}\n".encode(), 0)


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock on `path`."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
