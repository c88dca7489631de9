"""Tags that the runs of one reproduction share: the experiment, the commit, and the `dvc repro` that started them."""

import hashlib
import os
import subprocess
from pathlib import Path

RUN = "SCORESMOOTH_RUN"
"""Environment variable: the tag of the run that a process belongs to. `scoresmooth repro` sets it for its stages."""


def shared_labels() -> set[str]:
    """`commit-...` in a git repository, `run-...` below DVC or `scoresmooth repro`, and an experiment's name."""
    return set(filter(None, (os.environ.get("DVC_EXP_NAME"), _commit(), os.environ.get(RUN) or _dvc_run())))


def new_run() -> str:
    """A tag for this process and those that it starts."""
    return _tag(os.getpid())


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # the tag is a convenience: without git there is none
        return None
    return f"commit-{found.stdout.strip()}" if found.returncode == 0 else None


def _dvc_run() -> str | None:
    """The tag of the nearest DVC process that this one descends from: it starts all stages of one `dvc repro`."""
    process = os.getppid()
    while process > 1:
        try:
            command = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
            parent = int(_fields(process)[1])
        except OSError:  # it has ended, or belongs to another user
            return None
        if b"dvc" in (part.rpartition(b"/")[2] for part in command[:3]):
            return _tag(process)
        process = parent
    return None


def _tag(process: int) -> str:
    """A process is identified by its number and its start, which is field 22 of /proc/PID/stat."""
    return f"run-{hashlib.sha256(f'{process} {_fields(process)[19]}'.encode()).hexdigest()[:8]}"


def _fields(process: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold spaces: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
