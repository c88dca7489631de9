"""How a child process ended, and the memory it took."""

import os
import subprocess
from typing import Any


def reap(process: subprocess.Popen[Any]) -> tuple[int, float]:
    """Wait for a child's end: its exit code (negative: a signal), and the peak memory in MiB of the largest process
    among it and its descendants."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


def ending(code: int) -> str:
    """An exit code in words: "signal 9" or "exit code 1"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
