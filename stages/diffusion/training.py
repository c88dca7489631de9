"""Training a score network (METHODS §4): deterministic, resumable to the bit on the CPU.

Everything random is a function of (seed, step, place in the batch): which images, which levels, which noise. A
checkpoint therefore holds weights, EMA and optimizer state, and no generator state; and a batch may be cut into passes
(microbatch) or over processes (World): the weights change by rounding only, where no dropout is drawn.
"""

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stages.device import memory_format, uses_bfloat16
from stages.diffusion import noise
from stages.diffusion.checkpoint import (
    checkpoint_path,
    differing,
    load_optimizer,
    module_tensors,
    newest,
    optimizer_tensors,
    rotate,
)
from stages.diffusion.distributed import World
from stages.diffusion.losses import Target, denoising_loss
from stages.diffusion.optimizer import AdamW
from stages.diffusion.parameters import NoiseParams, OptimizationParams
from stages.diffusion.training_set import EpochOrder, MappedTrainingSet, TrainingSet
from stages.errors import InputError
from stages.files.tensors import load_tensors, save_tensors, select

_LEVEL_DRAW, _NOISE_DRAW, _FLIP_DRAW = 0, 1, 2


class DivergedError(InputError):
    """The loss or the gradient became NaN or infinite; the message names the step, and what to change."""


@dataclasses.dataclass
class State:
    """What a checkpoint holds."""

    network: nn.Module
    average: nn.Module
    optimizer: AdamW
    step: int = 0


@dataclasses.dataclass(frozen=True)
class Progress:
    """One row of the loss curve: mean loss per pixel over the last steps, and by thirds of the levels."""

    step: int
    loss: float
    low: float
    middle: float
    high: float


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Step `step` is done, and `Trainer.state.average` is the network at it."""

    step: int


@dataclasses.dataclass(frozen=True)
class Losses:
    """One step's losses per pixel, float32 (b,), and the indices of their levels, int64 (b,)."""

    step: int
    losses: Tensor
    levels: Tensor


def learning_rate(params: OptimizationParams, step: int) -> float:
    """Linear warm-up, then constant or half a cosine down to zero."""
    rate = params.learning_rate * min(1.0, (step + 1) / max(1, params.warmup))
    if params.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / params.steps))
    return rate


class Trainer:
    """One training run: `run()` yields Progress until the last step and leaves the result in `state.average`.

    Args:
        build: makes a fresh network; called twice under the run's seed (weights and their average).
        conditioned: does sigma enter the network?
        scratch: folder of the checkpoints, from which `resume` goes on.
        identity: JSON values (settings, digests of inputs) that tell which run a checkpoint belongs to.
        world: the processes that share every batch; each works on its own part of it.
    """

    def __init__(
        self,
        params: OptimizationParams,
        levels: NoiseParams,
        build: Callable[[], nn.Module],
        data: TrainingSet | MappedTrainingSet,
        target: Target,
        conditioned: bool,
        scratch: Path,
        identity: dict[str, Any],
        world: World = World(),  # noqa: B008 (frozen)
    ) -> None:
        self.params, self.data, self.target, self.conditioned = params, data, target, conditioned
        self.device, self.world = data.device, world
        self.half = uses_bfloat16(params.precision, self.device)
        self.sigmas = noise.levels(levels, params.levels).float().to(self.device)
        self.scratch, self.identity = Path(scratch), json.loads(json.dumps(identity))
        self.order = EpochOrder(len(data), params.batch, params.seed)
        self.span = world.span(params.batch)
        torch.manual_seed(params.seed)
        network, average = build().to(self.device), build().to(self.device)
        average.load_state_dict(network.state_dict())
        layout = memory_format(self.device)
        network, average = network.to(memory_format=layout), average.to(memory_format=layout)  # averaged in one pass
        optimizer = AdamW(
            network.parameters(),
            lr=params.learning_rate,
            betas=params.betas,
            weight_decay=params.weight_decay,
        )
        self.state = State(network, average.requires_grad_(False).eval(), optimizer)
        self.forward = world.wrap(torch.compile(network, dynamic=False) if params.compile else network, self.device)
        self._window: list[Losses] = []  # the steps since the curve's last row
        self._norms: list[Tensor] = []  # of the gradients since `_check` looked at them
        self._stop = False

    def resume(self) -> int:
        """Load the newest checkpoint if there is one; returns the step reached.

        Raises InputError for a damaged file or one with other tensors, and for one of a run with other parameters,
        naming what differs.
        """
        path = newest(self.scratch)
        if path is not None:
            tensors, metadata = load_tensors(path)
            self._recognise(path, metadata)
            try:
                self.state.network.load_state_dict(select(tensors, "network"))
                self.state.average.load_state_dict(select(tensors, "average"))
                load_optimizer(self.state.optimizer, tensors, "optimizer")
            except (RuntimeError, KeyError, ValueError) as error:
                words = " ".join(str(error).split())
                raise InputError(f"{path} does not hold the tensors of this training ({words}): remove it") from error
            self.state.step, self._window = metadata["step"], self._own_part(select(tensors, "window"))
        return self.state.step

    def _own_part(self, window: dict[str, Tensor]) -> list[Losses]:
        """This process's losses since the curve's last row, of those of all that a checkpoint holds."""
        if not window:
            return []
        losses, levels, steps = (
            window[name].to(self.device).chunk(self.world.size)[self.world.rank]
            for name in ("losses", "levels", "steps")
        )
        return [Losses(int(step), losses[steps == step], levels[steps == step]) for step in steps.unique()]

    def _recognise(self, path: Path, metadata: dict[str, Any]) -> None:
        if "identity" not in metadata or not isinstance(metadata.get("step"), int):
            raise InputError(f"{path} is no checkpoint of a training: remove it")
        if lines := differing(metadata["identity"], self.identity):
            raise InputError(
                f"{path} belongs to a training with other parameters: {'; '.join(lines)}: "
                f"restore them, or remove {self.scratch} to begin anew"
            )

    def save(self) -> None:
        """Write a checkpoint and remove all but the last ones; the first process does it for all.

        Nothing is written where a loss or a gradient was not finite: DivergedError, in every process.
        """
        window = self._check()
        if not self.world.leads:
            return
        state = self.state
        tensors = module_tensors(state.network, "network") | module_tensors(state.average, "average")
        tensors |= optimizer_tensors(state.optimizer, "optimizer")
        tensors |= {f"window.{name}": tensor for name, tensor in window.items()}
        metadata = {"identity": self.identity, "step": state.step}
        save_tensors(checkpoint_path(self.scratch, state.step), tensors, metadata)
        rotate(self.scratch, self.params.keep)

    def run(self, snapshots: Collection[int] = ()) -> Iterator[Progress | Snapshot]:
        """Train to the last step, yielding the loss curve, and a Snapshot when a step of `snapshots` is done.

        SIGTERM saves a checkpoint and raises SystemExit(143); so does every process when one of them gets it.
        At the time limit a checkpoint is saved and the run ends as it ends after the last step.
        """
        started = time.monotonic()
        previous = signal.signal(signal.SIGTERM, self._request_stop) if _in_main_thread() else None
        try:
            while self.state.step < self.params.steps:
                self._window.append(self._step())
                self.state.step += 1
                late = self.params.max_seconds is not None and time.monotonic() - started > self.params.max_seconds
                late = self.world.any(late)
                if self.state.step % self.params.log_every == 0 or self.state.step == self.params.steps or late:
                    row, self._window = self._summary(), []
                    yield row
                if self.state.step in snapshots:
                    yield Snapshot(self.state.step)  # before the checkpoint: what is not measured yet comes again
                stop = self.world.any(self._stop)  # now, for a signal may have come while the caller had the row
                if stop or late or self.state.step % self.params.checkpoint_every == 0:
                    self.save()
                if stop:
                    raise SystemExit(143)
                if late:
                    break
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def _request_stop(self, *_: object) -> None:
        self._stop = True

    def _step(self) -> Losses:
        """One optimizer step, in as many passes as the microbatch asks for."""
        start, stop = self.span
        size = self.params.microbatch or stop - start
        parts = [(first, min(first + size, stop)) for first in range(start, stop, size)]
        found = []
        for part in parts:
            alone = part != parts[-1] and self.world.size > 1
            with self.forward.no_sync() if alone else contextlib.nullcontext():
                found.append(self._pass(*part))
        self._update(self.state.step)
        return Losses(self.state.step, torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found]))

    def _pass(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Add the gradient of images start..stop of the batch: every image's loss per pixel, its level's index.

        Which images, levels and noise are functions of the place in the whole batch; so is dropout for a whole batch
        in one pass, while a cut batch draws other masks for its later parts.
        """
        params, step, device = self.params, self.state.step, self.device
        numbers = torch.arange(start, stop, device=device) + step * params.batch
        x0, near = self.data.take(self.order.rows(step)[start:stop])
        u = noise.uniform(params.seed, numbers, _LEVEL_DRAW, 1)[:, 0]
        level = stratified(u, params.levels, start, params.batch)
        z = noise.normal(params.seed, numbers, _NOISE_DRAW, self.data.shape)
        if params.flip:
            mirror = noise.integers(params.seed, numbers, _FLIP_DRAW, 2).bool()
            x0 = torch.where(mirror[:, None, None, None], x0.flip(-1), x0)
            near = None if near is None else torch.where(mirror[:, None, None, None, None], near.flip(-1), near)
        torch.manual_seed(noise.generator_seed(params.seed, step, start))  # of the dropout masks
        losses = denoising_loss(self._network, self.target, x0, self.sigmas[level], z, near, self.conditioned)
        # On a CPU the backward pass runs in this thread: a thread of autograd's own would bring a second OpenMP pool,
        # whose spinning workers take the cores from the first (1.2 to 1.3 times the throughput on 2 cores).
        with torch.autograd.set_multithreading_enabled(device.type != "cpu"):
            # the sum over passes and the mean over processes make this the mean over the whole batch
            (losses.sum() / (params.batch / self.world.size)).backward()
        return losses.detach() / x0[0].numel(), level

    def _network(self, x: Tensor, sigma: Tensor | None) -> Tensor:
        """F in the run's precision. The target is always computed in float32: only the network is cast."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            return self.forward(x, sigma)

    def _update(self, step: int) -> None:
        params, state = self.params, self.state
        self._norms.append(torch.nn.utils.clip_grad_norm_(state.network.parameters(), params.clip))
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(params, step)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        decay = min(params.ema, (1 + step) / (10 + step))
        pairs = list(state.average.parameters()), [p.detach() for p in state.network.parameters()]
        torch._foreach_lerp_(pairs[0], pairs[1], 1 - decay)

    def _check(self) -> dict[str, Tensor]:
        """All processes' losses since the curve's last row, float32 (n,), their levels and steps, int64 (n,), process
        after process; empty where there are none.

        Raises DivergedError, in every process, for the first loss that is not finite, and for such a gradient: the
        last one would show in no loss.
        """
        if not self._window:
            return {}
        window, advice = self._window, "lower train.optimization.learning_rate, or use precision float32"
        steps = torch.cat([torch.full_like(part.levels, part.step) for part in window])
        mine = torch.stack([torch.cat([part.losses for part in window]).double(),
                            torch.cat([part.levels for part in window]).double(), steps.double()], dim=1)  # fmt: skip
        losses, levels, steps = self.world.together(mine).unbind(1)
        bad = torch.where(torch.isfinite(losses), torch.inf, steps)
        first, norms, self._norms = int(bad.argmin()), [each.reshape(1) for each in self._norms], []
        for back, norm in enumerate(torch.cat(norms).tolist() if norms else [], -len(norms)):
            if not math.isfinite(norm) and self.state.step + back < bad[first]:
                raise DivergedError(f"the gradient is {norm} at step {self.state.step + back}: {advice}")
        if bad[first] < torch.inf:
            sigma = float(self.sigmas[int(levels[first])])
            raise DivergedError(
                f"the loss is {float(losses[first])} at step {int(steps[first])}, sigma {sigma:.4g}: {advice}"
            )
        return {"losses": losses.float(), "levels": levels.long(), "steps": steps.long()}

    def _summary(self) -> Progress:
        found = self._check()
        losses = found["losses"]
        third = found["levels"] * 3 // self.params.levels  # level 0 is sigma_max
        parts = [float(losses[third == n].mean()) if (third == n).any() else math.nan for n in (2, 1, 0)]
        return Progress(self.state.step, float(losses.mean()), *parts)


def stratified(u: Tensor, levels: int, first: int = 0, batch: int | None = None) -> Tensor:
    """Levels of a batch, int64 (B,), from uniform numbers u (B,): image b draws from the b-th of B equal strata.

    u may be a part of a batch of `batch` images, beginning with image `first`. The batch as a whole is uniform over the
    levels, as METHODS §4 asks, and its gradient varies less than with independent draws. Which image falls into which
    stratum is random, since the order of an epoch is.
    """
    strata = (torch.arange(first, first + len(u), device=u.device) + u) / (batch or len(u))
    return (strata * levels).long().clamp_max(levels - 1)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
