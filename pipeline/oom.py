"""Shards that run out of memory: how to recognise it, and the error after a second attempt with half the memory."""

import contextlib
import dataclasses
from pathlib import Path

from stages.errors import InputError

SHARE_VARIABLE = "SCORESMOOTH_MEMORY_SHARE"
"""Environment variable: the share of its usual working memory that a shard may use (stages.engine.products)."""

SHARES = (1.0, 0.5)
"""The shares of a shard's attempts; the second attempt follows only if the first ran out of memory."""

CGROUP = Path("/sys/fs/cgroup")
REMEDIES = {
    "train": "set train.optimization.microbatch to a part of the batch (this changes the weights' last bits)",
    "sample": "lower sample.batch (this changes the samples' last bits)",
    "report": "use fewer images (ingest.train, ingest.holdout)",
}
"""Remedies other than more memory. A network's batch is never halved automatically: it decides how sums are rounded."""


class OutOfMemory(InputError):
    """The machine has too little memory for the parameters, even with half the working memory."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt that ran out of memory.

    Attributes:
        how: "killed by the kernel, out of memory", "killed (out of memory?)" or "refused memory (...)".
        peak: the peak memory of its process in MiB, or None if unknown.
    """

    how: str
    peak: float | None

    def __str__(self) -> str:
        return self.how if self.peak is None else f"{self.how}, at {self.peak:,.0f} MiB"


def exhausted(stage: str, shard: str, first: Attempt, second: Attempt, where: str) -> OutOfMemory:
    """Make the error after the last attempt. where: the setting that shares out the memory ("execution.jobs (2)")."""
    remedy = REMEDIES.get(stage, f"raise {stage}.shards (this changes no result)")
    return OutOfMemory(
        f"{stage} {shard}: out of memory twice: {first}; with half the working memory: {second}. "
        f"Give it more memory, lower {where}, or {remedy}"
    )


def ran_out(error: BaseException) -> bool:
    """Whether the error is a failed allocation of Python, NumPy, Arrow (MemoryError) or PyTorch (CPU: RuntimeError)."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError, on a GPU
    return isinstance(error, MemoryError) or named or "DefaultCPUAllocator: can't allocate memory" in str(error)


def said(error: BaseException) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def kills() -> int | None:
    """How many processes of this process's control group the kernel has killed for lack of memory; None if unknown.

    Reads both versions of control groups; a container may see its own group as the root.
    """
    for name, file in (("memory", "memory.oom_control"), ("", "memory.events")):
        group = _group(name)
        for place in () if group is None else (CGROUP / name / group, CGROUP / name):
            with contextlib.suppress(OSError):
                for line in (place / file).read_text(encoding="ascii").splitlines():
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
    return None


def _group(controller: str) -> str | None:
    """The path of this process's control group of a controller ("": version 2); None without one."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return None


def peak(process: int) -> float | None:
    """The peak memory of a living process in MiB; None if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
