"""A training run: optimizer steps with averaged weights, a loss curve, snapshots, checkpoints, and orderly ends."""

import copy
import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stages.diffusion.checkpoint import (
    discard_unusable,
    load_checkpoint,
    load_optimizer,
    newest,
    optimizer_tensors,
    save_checkpoint,
)
from stages.diffusion.distributed import on_sigterm
from stages.diffusion.loss_curve import LossCurve, Progress
from stages.diffusion.training import Losses, Training, train_steps
from stages.errors import InputError
from stages.files.tensors import prefixed, select


class Trainer:
    """A training with its average: `run()` takes it to the last step and leaves the result in `average` and `rows`.

    Args:
        training: the network and what it is trained on.
        scratch: folder of the checkpoints.
        identity: JSON values (settings, digests of inputs) that tell which training a checkpoint belongs to.
    """

    def __init__(self, training: Training, scratch: Path, identity: dict[str, Any]) -> None:
        self.training, self.scratch, self.identity = training, Path(scratch), identity
        self.average = copy.deepcopy(training.network).requires_grad_(False).eval()
        self.curve = LossCurve(training.sigmas, training.world)
        self.rows: list[Progress] = []

    def resume(self, snapshots: Collection[int] = ()) -> int:
        """Load the newest usable checkpoint if there is one; return the step reached.

        snapshots: steps whose averages lie in `scratch` (snapshot_path); a damaged or missing one is computed again.
        Raises InputError for a checkpoint with other tensors, and for one of a run with other parameters, naming what
        differs.
        """
        for rank in range(self.training.world.size):  # in turn: processes share the folder, or have one on each node
            if rank == self.training.world.rank:
                discard_unusable(self.scratch, snapshots)
            self.training.world.barrier()
        path, training = newest(self.scratch), self.training
        if path is None:
            return 0
        tensors, step = load_checkpoint(path, self.identity)
        try:
            training.network.load_state_dict(select(tensors, "network"))
            self.average.load_state_dict(select(tensors, "average"))
            load_optimizer(training.optimizer, select(tensors, "optimizer"))
            self.rows = [Progress(int(last), *losses) for last, *losses in tensors["rows"].tolist()]
        except (RuntimeError, KeyError, ValueError) as error:
            words = " ".join(str(error).split())
            raise InputError(f"{path} does not hold the tensors of this training ({words}): remove it") from error
        self.curve.restore(select(tensors, "window"))
        training.step = step
        return step

    def save(self) -> None:
        """Write a checkpoint and remove all but the last ones; the first process does it for all.

        Nothing is written where a loss or a gradient was not finite: DivergedError, in every process.
        """
        window, training = self.curve.gather(), self.training
        if not training.world.is_main:
            return
        state = {
            "network": training.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": optimizer_tensors(training.optimizer),
            "window": window,
        }
        tensors = {name: tensor for part in state for name, tensor in prefixed(part, state[part]).items()}
        tensors["rows"] = torch.tensor([dataclasses.astuple(row) for row in self.rows], dtype=torch.float64)
        save_checkpoint(self.scratch, training.step, tensors, self.identity, training.params.keep)

    def steps(self) -> Iterator[Losses]:
        """Take the optimizer steps that are left, each with its update of the average, and yield their losses."""
        for losses in train_steps(self.training):
            update_average(self.average, self.training.network, losses.step, self.training.params.ema)
            yield losses

    def run(self, snapshots: Collection[int] = (), keep: Callable[[int], None] | None = None) -> Iterator[Progress]:
        """Train to the last step, yielding the loss curve; after each step of `snapshots` call keep(step).

        SIGTERM to any process saves a checkpoint and raises SystemExit(143) in all. At the time limit a checkpoint is
        saved and the run ends as it does after the last step.
        """
        params, world, started, asked = self.training.params, self.training.world, time.monotonic(), []
        with on_sigterm(lambda: asked.append(True)):
            for losses in self.steps():
                self.curve.add(losses)
                step, seconds = self.training.step, time.monotonic() - started
                late = world.any_process(params.max_seconds is not None and seconds > params.max_seconds)
                if late or step % params.log_every == 0 or step == params.steps:
                    self.rows.append(self.curve.row(step))
                    yield self.rows[-1]
                if step in snapshots:
                    keep(step)  # before the checkpoint, so that one that was not kept comes again
                stop = world.any_process(bool(asked))  # now, since the signal may have come meanwhile
                if stop or late or step % params.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise SystemExit(143)
                if late:
                    return


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """average <- d average + (1 - d) network after step number `step`, d = min(decay, (1 + step) / (10 + step))."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], weight)
