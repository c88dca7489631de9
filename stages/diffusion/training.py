"""Training a score network (METHODS §4): deterministic, resumable to the bit on the CPU.

Everything random is a function of (seed, step): which images, which levels, which noise. A checkpoint therefore holds
weights, EMA and optimizer state, and no generator state.
"""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.device import memory_format, uses_bfloat16
from stages.diffusion import noise
from stages.diffusion.checkpoint import (
    load_optimizer,
    load_tensors,
    module_tensors,
    optimizer_tensors,
    save_tensors,
    select,
)
from stages.diffusion.losses import Target, denoising_loss
from stages.diffusion.optimizer import AdamW
from stages.diffusion.parameters import NoiseParams, OptimizationParams

_LEVEL_DRAW, _NOISE_DRAW, _FLIP_DRAW = 0, 1, 2


class DivergedError(RuntimeError):
    """The loss became NaN or infinite; the message names the step and sigma."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Images and their neighbour lists on the device that trains.

    Attributes:
        images: uint8 (M, C, H, W).
        neighbors: int64 (M, K), the image itself first, or None.
    """

    images: Tensor
    neighbors: Tensor | None

    def pixels(self, rows: Tensor) -> Tensor:
        """float32 in [0,1], shape rows.shape + (C, H, W)."""
        return self.images[rows].float() / 255


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


class EpochOrder:
    """Image rows of any step: epochs are permutations seeded by (seed, epoch), laid end to end."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epochs: dict[int, Tensor] = {}

    def _epoch(self, number: int) -> Tensor:
        if number not in self._epochs:
            generator = torch.Generator().manual_seed((self.seed << 32) + number)
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1}
            self._epochs[number] = torch.randperm(self.count, generator=generator)
        return self._epochs[number]

    def rows(self, step: int) -> Tensor:
        """int64 (batch,) rows of step `step`."""
        start, stop = step * self.batch, (step + 1) * self.batch
        epochs = range(start // self.count, (stop - 1) // self.count + 1)
        joined = torch.cat([self._epoch(number) for number in epochs])
        offset = start - epochs[0] * self.count
        return joined[offset : offset + self.batch]


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
        scratch: folder of the checkpoints; a matching one is resumed. `key` tells which run a checkpoint belongs to.
    """

    def __init__(
        self,
        params: OptimizationParams,
        levels: NoiseParams,
        build: Callable[[], nn.Module],
        data: TrainingSet,
        target: Target,
        conditioned: bool,
        scratch: Path,
        key: str,
    ) -> None:
        self.params, self.data, self.target, self.conditioned = params, data, target, conditioned
        self.device = data.images.device
        self.half = uses_bfloat16(params.precision, self.device)
        self.sigmas = noise.levels(levels, params.levels).float().to(self.device)
        self.path, self.key = Path(scratch) / "checkpoint.safetensors", key
        self.order = EpochOrder(len(data.images), params.batch, params.seed)
        torch.manual_seed(params.seed)
        network, average = build().to(self.device), build().to(self.device)
        average.load_state_dict(network.state_dict())
        network = network.to(memory_format=memory_format(self.device))
        optimizer = AdamW(
            network.parameters(),
            lr=params.learning_rate,
            betas=params.betas,
            weight_decay=params.weight_decay,
        )
        self.state = State(network, average.requires_grad_(False).eval(), optimizer)
        self.forward = torch.compile(network) if params.compile else network
        self._stop = False

    def resume(self) -> int:
        """Load this run's checkpoint if there is one; returns the step reached."""
        if self.path.exists():
            tensors, metadata = load_tensors(self.path)
            if metadata.get("key") == self.key:
                self.state.network.load_state_dict(select(tensors, "network"))
                self.state.average.load_state_dict(select(tensors, "average"))
                load_optimizer(self.state.optimizer, tensors, "optimizer")
                self.state.step = metadata["step"]
        return self.state.step

    def save(self) -> None:
        """Write a checkpoint."""
        state = self.state
        tensors = module_tensors(state.network, "network") | module_tensors(state.average, "average")
        tensors |= optimizer_tensors(state.optimizer, "optimizer")
        save_tensors(self.path, tensors, {"key": self.key, "step": state.step})

    def run(self) -> Iterator[Progress]:
        """Train to the last step, yielding the loss curve. SIGTERM saves a checkpoint and raises SystemExit(143)."""
        started, window = time.monotonic(), []
        previous = signal.signal(signal.SIGTERM, self._request_stop) if _in_main_thread() else None
        try:
            while self.state.step < self.params.steps:
                window.append(self._step())
                self.state.step += 1
                if self.state.step % self.params.log_every == 0 or self.state.step == self.params.steps:
                    yield self._summary(window)
                    window = []
                if self._stop:
                    self._check(window)
                    self.save()
                    raise SystemExit(143)
                if self.state.step % self.params.checkpoint_every == 0:
                    self._check(window)
                    self.save()
                if self.params.max_seconds and time.monotonic() - started > self.params.max_seconds:
                    break
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def _request_stop(self, *_: object) -> None:
        self._stop = True

    def _step(self) -> tuple[Tensor, Tensor, int]:
        """One optimizer step; returns every image's loss per pixel, its level's index, and the step."""
        params, step = self.params, self.state.step
        rows = self.order.rows(step).to(self.device)
        numbers = torch.arange(len(rows), device=self.device) + step * params.batch
        x0 = self.data.pixels(rows)
        level = stratified(noise.uniform(params.seed, numbers, _LEVEL_DRAW, 1)[:, 0], params.levels)
        z = noise.normal(params.seed, numbers, _NOISE_DRAW, tuple(x0.shape[1:]))
        near = self.data.pixels(self.data.neighbors[rows]) if self.data.neighbors is not None else None
        if params.flip:
            mirror = noise.integers(params.seed, numbers, _FLIP_DRAW, 2).bool()
            x0 = torch.where(mirror[:, None, None, None], x0.flip(-1), x0)
            near = None if near is None else torch.where(mirror[:, None, None, None, None], near.flip(-1), near)
        torch.manual_seed((params.seed << 32) + step)  # dropout's draws are a function of the step, too
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            losses = denoising_loss(self.forward, self.target, x0, self.sigmas[level], z, near, self.conditioned)
        # On a CPU the backward pass runs in this thread: a thread of autograd's own would bring a second OpenMP pool,
        # whose spinning workers take the cores from the first (1.2 to 1.3 times the throughput on 2 cores).
        with torch.autograd.set_multithreading_enabled(self.device.type != "cpu"):
            losses.mean().backward()
        self._update(step)
        return losses.detach() / x0[0].numel(), level, step

    def _update(self, step: int) -> None:
        params, state = self.params, self.state
        torch.nn.utils.clip_grad_norm_(state.network.parameters(), params.clip)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate(params, step)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        decay = min(params.ema, (1 + step) / (10 + step))
        pairs = list(state.average.parameters()), [p.detach() for p in state.network.parameters()]
        torch._foreach_lerp_(pairs[0], pairs[1], 1 - decay)

    def _check(self, window: list[tuple[Tensor, Tensor, int]]) -> None:
        """Raise DivergedError for the first loss that is not finite; nothing is saved after it."""
        for losses, level, step in window:
            wrong = ~torch.isfinite(losses)
            if wrong.any():
                sigma = float(self.sigmas[level[wrong][0]])
                raise DivergedError(
                    f"the loss is {float(losses[wrong][0])} at step {step}, sigma {sigma:.4g}: "
                    "lower train.optimization.learning_rate, or use precision float32"
                )

    def _summary(self, window: list[tuple[Tensor, Tensor, int]]) -> Progress:
        self._check(window)
        losses, level = torch.cat([entry[0] for entry in window]), torch.cat([entry[1] for entry in window])
        third = level * 3 // self.params.levels  # level 0 is sigma_max
        parts = [float(losses[third == n].mean()) if (third == n).any() else math.nan for n in (2, 1, 0)]
        return Progress(self.state.step, float(losses.mean()), *parts)


def stratified(u: Tensor, levels: int) -> Tensor:
    """Levels of a batch, int64 (B,), from uniform numbers u (B,): image b draws from the b-th of B equal strata.

    The batch as a whole is uniform over the levels, as METHODS §4 asks, and its gradient varies less than with
    independent draws. Which image falls into which stratum is random, since the order of an epoch is.
    """
    strata = (torch.arange(len(u), device=u.device) + u) / len(u)
    return (strata * levels).long().clamp_max(levels - 1)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
