"""Work that ran out of memory: how that is recognised, and what is said when it happens again with half the memory."""

import contextlib
import dataclasses
from pathlib import Path

from stages.errors import InputError

SHARE_VARIABLE = "SCORESMOOTH_MEMORY_SHARE"
"""Environment variable of the share of its working memory that a shard is to do with (stages.engine.products)."""

SHARES = (1.0, 0.5)
"""The shares of a shard's attempts: the second one is made only where the first ran out of memory."""

CGROUP = Path("/sys/fs/cgroup")
REMEDIES = {
    "train": "set train.optimization.microbatch to a part of the batch (this changes the weights' last bits)",
    "sample": "lower sample.batch (this changes the samples' last bits)",
    "report": "use fewer images (ingest.train, ingest.holdout)",
}
"""What helps beside more memory. The batch of a network is not halved unasked: it decides how sums are rounded."""


class OutOfMemory(InputError):
    """The machine has too little memory for the parameters: nothing that changes no result is left to try."""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt that ran out of memory.

    Attributes:
        how: "killed by the kernel because memory ran out", "killed (out of memory?)", "refused memory: ...".
        peak: the most memory that its process had, in MiB, or None where that is not known.
    """

    how: str
    peak: float | None

    def __str__(self) -> str:
        return self.how if self.peak is None else f"{self.how}, at {self.peak:,.0f} MiB"


def exhausted(stage: str, shard: str, first: Attempt, second: Attempt, where: str) -> OutOfMemory:
    """The error after the last attempt. where: what else uses the memory there ("execution.jobs (2)")."""
    remedy = REMEDIES.get(stage, f"raise {stage}.shards (this changes no result)")
    return OutOfMemory(
        f"{stage} {shard}: out of memory twice: {first}; with half the working memory: {second}. "
        f"Give it more memory, lower {where}, or {remedy}"
    )


def ran_out(error: BaseException) -> bool:
    """Whether Python, NumPy, Arrow (MemoryError) or PyTorch (on a CPU: RuntimeError) was refused memory."""
    named = type(error).__name__ == "OutOfMemoryError"  # torch.OutOfMemoryError: of a GPU
    return isinstance(error, MemoryError) or named or "DefaultCPUAllocator: can't allocate memory" in str(error)


def said(error: BaseException) -> str:
    """The error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def kills() -> int | None:
    """How many processes of this process's control group the kernel killed for want of memory; None: it does not say.

    Both versions of control groups; a container may see its own group as the root.
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
    """This process's control group below a controller ("": version 2), from /proc."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return None


def peak(process: int) -> float | None:
    """The most memory that a living process has had, in MiB."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None
