"""Where a page was made: the commit of the code and the processor."""

import platform
import subprocess
from pathlib import Path


def provenance() -> dict[str, str]:
    """Return the commit of the code and the name of the processor, both in words."""
    return {"commit": _commit(), "processor": _processor()}


def _commit() -> str:
    """Return the commit of the repository that this code lies in, and whether its files were changed since."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "code outside a git repository"
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "params.yaml")
    return f"commit {head}{' with uncommitted changes' if changed else ''}"


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


def _processor() -> str:
    """Return the processor's model, which decides how products are rounded; else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
