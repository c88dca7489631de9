"""The processes that train one network together: torchrun's, or this one alone."""

import contextlib
import dataclasses
import datetime
import os
import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, distributed, nn

from stages.errors import InputError

PATIENCE = datetime.timedelta(hours=4)
"""How long the others wait for the first process while it draws the samples of the copy curve."""


@dataclasses.dataclass(frozen=True)
class World:
    """`size` processes that share every batch; this is number `rank`. Nothing is sent when it is alone."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def span(self, batch: int) -> tuple[int, int]:
        """This process's part [start, stop) of a batch. Raises InputError where the parts would differ in size."""
        if batch % self.size:
            raise InputError(
                f"train.optimization.batch {batch} cannot be split evenly over {self.size} processes: "
                "change it or train.processes"
            )
        part = batch // self.size
        return self.rank * part, (self.rank + 1) * part

    def any(self, flag: bool) -> bool:
        """Whether any process raised the flag."""
        if self.size == 1:
            return flag
        raised = torch.tensor(int(flag))  # on the CPU: gloo, so that no GPU waits for it
        distributed.all_reduce(raised, distributed.ReduceOp.MAX)
        return bool(raised)

    def together(self, values: Tensor) -> Tensor:
        """The processes' values (n, ...), all of one shape, side by side in the order of their parts: (size n, ...)."""
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        distributed.all_gather(parts, values.contiguous())
        return torch.cat(parts)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network whose backward pass averages the gradients over the processes."""
        if self.size == 1:
            return network
        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch call the option otherwise
            return nn.parallel.DistributedDataParallel(network, devices, broadcast_buffers=False)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier()


def started_by_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def join(processes: int, device: str) -> Iterator[tuple[World, torch.device]]:
    """Join torchrun's process group, or stay alone; yields the world and this process's own device.

    Raises InputError where torchrun started another number of processes than `processes`.
    """
    size = int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else 1
    if size != processes:
        raise InputError(f"train.processes is {processes} and torchrun started {size}: make them equal")
    if size == 1:
        yield World(), torch.device(device)
        return
    own = torch.device("cpu")
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise InputError(f"train.processes: process {local} on this machine finds {there} GPUs: lower it")
        own = torch.device("cuda", local)
        torch.cuda.set_device(own)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size), own
    finally:
        distributed.destroy_process_group()
