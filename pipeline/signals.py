"""Signals and the main thread, in which Python calls their handlers.

Linux hands a signal to any thread of a process that looks for one first, such as a thread that has just started a
process or a thread. Python calls the handler once the main thread runs Python code again, so it must not wait for long.
"""

import os
import signal
import subprocess
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, TypeVar

Item = TypeVar("Item")

PERIOD = 0.5
"""Seconds that the main thread waits at once, at most."""


def next_of(queue: SimpleQueue[Item]) -> Item:
    """Wait for the next item of a queue; a handler's exception ends the wait."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=PERIOD)


def code_of(process: subprocess.Popen[Any]) -> int:
    """Wait for a process and return its exit code; a handler's exception ends the wait."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(PERIOD)


def hang_up_as_terminate() -> None:
    """Let SIGHUP, the end of the terminal, end the work as SIGTERM does, unless it is ignored (nohup)."""
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, _terminate)


def _terminate(_: int, __: FrameType | None) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
