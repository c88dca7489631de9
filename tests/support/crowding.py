"""Limits of waits for processes, in seconds of an idle machine."""

import os
import subprocess
from typing import Any

SHARE = 3
"""What tests with a lower priority (nice) get is about this part of what others get."""


def limit(seconds: float) -> float:
    """`seconds` of an idle machine: proportionally longer where more processes want to run than it has processors.

    It tells a hang from a wait for the processor. A time that a test measures does not pass through it.
    """
    crowd = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    return seconds * (1 if crowd <= 1 else SHARE * crowd)


class Process(subprocess.Popen[str]):
    """A command of a test, whose timeouts are seconds of an idle machine."""

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        return super().communicate(input, None if timeout is None else limit(timeout))

    def wait(self, timeout: float | None = None) -> int:
        return super().wait(None if timeout is None else limit(timeout))
