"""Waiting for what others hold, or for what is lost: aloud, and with a limit."""

import dataclasses
import threading
import time
from collections.abc import Callable

from stages.errors import InputError

AGAIN = 600.0
"""Seconds between two lines of one wait."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """How long something is waited for. key: the setting that holds the number of seconds."""

    key: str
    seconds: float


class Patience:
    """One wait, or several one after the other, also of several threads together.

    Args:
        what: what is waited for, after "no" and "waiting for".
        limit: after which it is an error.
        remedy: what a person can do.
        say: called with a line for that person.
    """

    def __init__(self, what: str, limit: Limit, remedy: str, say: Callable[[str], None]) -> None:
        self._what, self._limit, self._remedy, self._say = what, limit, remedy, say
        self._guard = threading.Lock()
        self._since: float | None = None
        self._told = 0.0

    def check(self) -> None:
        """Call this again and again while it lacks. Raises InputError once the limit is over."""
        with self._guard:
            now = time.monotonic()
            if self._since is None:
                self._since = self._told = now
                most = f"for at most {spoken(self._limit.seconds)} ({self._limit.key})"
                self._say(f"waiting for {self._what}, {most}: {self._remedy}")
            waited = now - self._since
            if now - self._told >= AGAIN:
                self._told = now
                self._say(f"still waiting for {self._what}, for {spoken(waited)}")
        if waited > self._limit.seconds:
            within = spoken(self._limit.seconds)
            raise InputError(f"{self._limit.key}: no {self._what.removeprefix('a ')} within {within}: {self._remedy}")

    def reset(self) -> None:
        """It is there: a later wait begins anew."""
        self._since = None


def spoken(seconds: float) -> str:
    """A duration in the unit that a person would choose."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
