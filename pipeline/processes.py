"""How a child process or its work ended, and the memory it took.

Processes are started where they are needed, for each passes on other things: a shard's child its socket and locks
(runners), DVC its stage's lock and log (repro), the server its own session (server), a deployment its parent's run.
"""

import os
import subprocess
import traceback
from pathlib import Path
from typing import Any

import stages

CODE = Path(stages.__file__).parent
"""The folder of the project's work."""


def reap(process: subprocess.Popen[Any]) -> tuple[int, float]:
    """Wait for a child's end: its exit code (negative: a signal), and the peak memory in MiB of the largest process
    among it and its descendants."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


class WorkFailed(RuntimeError):
    """The work of a shard raised an error. The message names it with file and line; its traceback was printed."""


class Hung(WorkFailed):
    """Another process of a training did not answer: all of them must start again."""


def cause(error: BaseException) -> str:
    """An error in one line, with the place in this project's code, or else in any code, that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(CODE)]
    message = " ".join(str(error).split())
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if not frames:
        return said
    frame = (own or frames)[-1]
    file = Path(frame.filename).relative_to(CODE.parent) if own else frame.filename
    return f"{said} ({file}, line {frame.lineno})"


def ending(code: int) -> str:
    """An exit code in words: "signal 9" or "exit code 1"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
