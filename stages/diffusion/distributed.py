"""The processes that train one network together: those that torchrun starts, or this one alone."""

import contextlib
import dataclasses
import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, distributed, nn

from stages.errors import InputError
from stages.files.artifacts import write_text

LIMIT = "SCORESMOOTH_COLLECTIVE_LIMIT"
"""Environment variable: seconds that a process waits for the others before it calls them hung."""

USUAL_LIMIT = 1200.0
"""The first process writes the checkpoints meanwhile; nothing else keeps the others waiting for more than seconds."""


@dataclasses.dataclass(frozen=True)
class World:
    """`size` processes that share every batch, of which this is number `rank`. A process alone communicates nothing."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def span(self, batch: int) -> tuple[int, int]:
        """Return this process's part [start, stop) of a batch. Raises InputError where parts would differ in size."""
        if batch % self.size:
            raise InputError(
                f"train.optimization.batch {batch} cannot be split evenly over {self.size} processes: "
                "change it or train.processes"
            )
        part = batch // self.size
        return self.rank * part, (self.rank + 1) * part

    def any_process(self, flag: bool) -> bool:
        """Return whether any process has the flag set."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag))  # on the CPU: gloo, so that no GPU waits for it
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return bool(raised)

    def all_gather(self, values: Tensor) -> Tensor:
        """Return the values (n, ...) of all processes, all of one shape, in the order of their ranks: (size n, ...)."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network whose backward pass averages the gradients over the processes."""
        if self.size == 1:
            return network
        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch rename the option
            return nn.parallel.DistributedDataParallel(network, devices, broadcast_buffers=False)

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = World()


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def join(processes: int, device: str) -> Iterator[tuple[World, torch.device]]:
    """Join torchrun's process group, or stay alone; yield the world and this process's own device.

    Raises InputError where torchrun started another number of processes than `processes`, and TimeoutError where
    another process did not answer within the limit (`LIMIT`). On GPUs, NCCL ends the process instead.
    """
    size = int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1
    if size != processes:
        raise InputError(f"train.processes is {processes} and torchrun started {size}: make them equal")
    if size == 1:
        yield ALONE, torch.device(device)
        return
    own = torch.device("cpu")
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise InputError(f"train.processes: process {local} on this machine finds {there} GPUs: lower it")
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    limit = float(os.environ.get(LIMIT, USUAL_LIMIT))
    try:
        distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=limit))
        yield World(distributed.get_rank(), size), own
    except RuntimeError as error:
        if not re.search("time[d ]?out|Timed out|TimedOut", str(error)):
            raise
        remedy = f"its node may be lost; a longer wait: {LIMIT}"
        raise TimeoutError(f"another process of the training did not answer for {limit:g} s ({remedy})") from error
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


@contextlib.contextmanager
def on_sigterm(action: Callable[[], None]) -> Iterator[None]:
    """Call `action` when SIGTERM arrives, instead of ending the process. Only the main thread can be told."""
    previous = None
    if threading.current_thread() is threading.main_thread():
        previous = signal.signal(signal.SIGTERM, lambda *_: action())
    try:
        yield
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def reported_error(path: Path, world: World) -> Iterator[None]:
    """Write an InputError of the first of several processes to `path`, from which `torchrun` raises it again."""
    try:
        yield
    except InputError as error:
        if world.size > 1 and world.is_main:
            write_text(path, str(error))
        raise


def torchrun(arguments: list[str], processes: int, error: Path) -> None:
    """Run `python -m ARGUMENTS` as `processes` processes of this machine, and pass SIGTERM on to them.

    Raises InputError with the text that `reported_error` wrote to the path `error`, SystemExit after a SIGTERM, and
    RuntimeError for any other exit code than 0.
    """
    error.unlink(missing_ok=True)
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", *arguments]
    child, asked = subprocess.Popen([sys.executable, *command]), []

    def stop() -> None:
        asked.append(True)
        child.terminate()

    with on_sigterm(stop):
        try:
            code = child.wait()
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if error.exists():
        raise InputError(error.read_text(encoding="utf-8"))
    if asked:
        raise SystemExit(128 + signal.SIGTERM)
    if code:
        raise RuntimeError(f"torchrun ended with exit code {code}")
