"""A clock of a small project's own, to set forwards and backwards."""

from small_project import SmallProject

CLOCK = """
import time
from pathlib import Path
clock, real, real_ns = Path("clock"), time.time, time.time_ns
ahead = lambda: int(clock.read_text()) if clock.exists() else 0
time.time, time.time_ns = lambda: real() + ahead(), lambda: real_ns() + ahead() * 10**9
"""
"""Code that a process runs first, so that its time is ahead by the number in the file `clock`."""


def set_clock(project: SmallProject, seconds: int) -> None:
    """Set how many seconds time.time() is ahead in the project's processes."""
    (project.folder / "clock.new").write_text(str(seconds))
    (project.folder / "clock.new").rename(project.folder / "clock")
