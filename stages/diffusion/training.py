"""Optimizer steps of a score network (METHODS §4): `train_steps` takes them and yields their losses.

Everything random is a function of (seed, step, place in the batch): the images, the levels and the noise. No generator
state has to be saved to resume, and a batch may be divided into passes (microbatch) or over processes (World): the
weights change by rounding only, if there is no dropout.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from stages.device import memory_format, uses_bfloat16
from stages.diffusion import noise
from stages.diffusion.distributed import ALONE, World
from stages.diffusion.network import build_network
from stages.diffusion.noise import Stream
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, ScoreSpec
from stages.diffusion.targets import Target, build_target, denoising_loss
from stages.diffusion.training_set import EpochOrder, TrainingSet, open_training_set


@dataclasses.dataclass(frozen=True)
class Losses:
    """One step's losses per pixel, float32 (b,), the indices of their levels, int64 (b,), and the gradient's norm
    before it was clipped, or None where that is known to be finite."""

    step: int
    losses: Tensor
    levels: Tensor
    norm: Tensor | None = None


@dataclasses.dataclass
class Training:
    """A network while it is trained.

    Attributes:
        sigmas: float32, the discrete levels in descending order, on the device.
        conditioned: whether sigma enters the network.
        forward: the network as it is evaluated, possibly compiled and distributed.
        bfloat16: whether the network's products run in it.
        seed: of weights, order, levels, noise and dropout; below 2³².
        world: the processes that share every batch; each works on its own part of it.
        step: the number of steps taken.
    """

    params: OptimizationParams
    sigmas: Tensor
    data: TrainingSet
    target: Target
    conditioned: bool
    network: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    order: EpochOrder
    bfloat16: bool
    seed: int
    world: World = ALONE
    step: int = 0


def start_training(
    params: OptimizationParams,
    levels: NoiseParams,
    build: Callable[[], nn.Module],
    data: TrainingSet,
    target: Target,
    conditioned: bool,
    seed: int,
    world: World = ALONE,
) -> Training:
    """Return a training before its first step; build makes the network under the seed."""
    device = data.device
    torch.manual_seed(seed)
    half = uses_bfloat16(params.precision, device)
    network = build().to(device, memory_format=memory_format(device, half))
    optimizer = torch.optim.AdamW(
        network.parameters(), params.learning_rate, params.betas, weight_decay=params.weight_decay, fused=True
    )
    forward = world.wrap(torch.compile(network, dynamic=False) if params.compile else network, device)
    sigmas = noise.levels(levels, params.levels).float().to(device)
    order = EpochOrder(len(data), params.batch, seed)
    return Training(params, sigmas, data, target, conditioned, network, forward, optimizer, order, half, seed, world)


def build_training(
    spec: ScoreSpec,
    levels: NoiseParams,
    network: NetworkParams,
    params: OptimizationParams,
    images: np.ndarray,
    neighbors: np.ndarray | None,
    device: torch.device,
    seed: int,
    world: World = ALONE,
    labels: np.ndarray | None = None,
) -> Training:
    """Return the training of the network that a specification describes.

    images: uint8 (M, H, W, C). neighbors: int64 (M, K), the image itself first, or None. labels: int64 (M,), the place
    of each image's class, for a class-conditional network.
    """
    data, target = open_training_set(images, neighbors, device, labels), build_target(spec, images[0].size)
    classes = 0 if labels is None else int(labels.max()) + 1
    build = functools.partial(build_network, network, spec, levels, data.shape, classes)
    return start_training(params, levels, build, data, target, spec.conditioned, seed, world)


def train_steps(training: Training) -> Iterator[Losses]:
    """Take the optimizer steps that are left, and yield the losses of each."""
    while training.step < training.params.steps:
        losses, levels = _batch_gradient(training)
        norm = _update(training)
        training.step += 1
        yield Losses(training.step - 1, losses, levels, norm)


def _batch_gradient(training: Training) -> tuple[Tensor, Tensor]:
    """Add the gradient of this process's part of the batch, in passes of `microbatch` images."""
    start, stop = training.world.span(training.params.batch)
    size = training.params.microbatch or stop - start
    found = []
    for first in range(start, stop, size):
        last = min(first + size, stop)
        alone = last < stop and training.world.size > 1  # gradients are averaged over processes in the last pass
        with training.forward.no_sync() if alone else contextlib.nullcontext():
            found.append(add_gradient(training, first, last))
    losses, levels = zip(*found)
    return torch.cat(losses), torch.cat(levels)


def add_gradient(training: Training, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Add the gradient of images start..stop of the batch; return their losses per pixel and their levels' indices.

    Dropout masks depend on (seed, step, start): a batch in several passes draws other masks for its later parts.
    """
    params = training.params
    x0, near, level, z = draw_batch(training, start, stop)
    torch.manual_seed(noise.generator_seed(training.seed, training.step, start))
    forward = functools.partial(
        _evaluate, training, training.data.classes(training.order.rows(training.step)[start:stop])
    )
    losses = denoising_loss(forward, training.target, x0, training.sigmas[level], z, near, training.conditioned)
    # On a CPU the backward pass runs in this thread: a thread of autograd's own would bring a second OpenMP pool,
    # whose spinning workers take the cores from the first (1.2 to 1.3 times the throughput on 2 cores).
    with torch.autograd.set_multithreading_enabled(x0.device.type != "cpu"):
        # the sum over passes and the mean over processes make this the mean over the whole batch
        (losses.sum() / (params.batch / training.world.size)).backward()
    return losses.detach() / x0[0].numel(), level


def draw_batch(training: Training, start: int, stop: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Return images start..stop of the step's batch, their neighbours, the indices of their levels, and their noise."""
    params, seed = training.params, training.seed
    numbers = torch.arange(start, stop, device=training.sigmas.device) + training.step * params.batch
    x0, near = training.data.take(training.order.rows(training.step)[start:stop])
    u = noise.uniform(seed, numbers, Stream.TRAINING_LEVEL.draw(), 1)[:, 0]
    z = noise.normal(seed, numbers, Stream.TRAINING_NOISE.draw(), training.data.shape)
    if params.flip:
        mirror = noise.integers(seed, numbers, Stream.TRAINING_FLIP.draw(), 2).bool()[:, None, None, None]
        x0 = torch.where(mirror, x0.flip(-1), x0)
        near = None if near is None else torch.where(mirror[:, None], near.flip(-1), near)
    return x0, near, stratified(u, params.levels, start, params.batch), z


def _evaluate(training: Training, label: Tensor | None, x: Tensor, sigma: Tensor | None) -> Tensor:
    """Return F in the run's precision; the target is always computed in float32."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=training.bfloat16):
        return training.forward(x, sigma) if label is None else training.forward(x, sigma, label)


def _update(training: Training) -> Tensor:
    """Take one step of the optimizer; return the gradient's norm before it was clipped."""
    norm = torch.nn.utils.clip_grad_norm_(training.network.parameters(), training.params.clip)
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.params, training.step)
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    return norm


def learning_rate(params: OptimizationParams, step: int) -> float:
    """Return the rate after linear warm-up, constant or decaying to zero as half a cosine."""
    rate = params.learning_rate * min(1.0, (step + 1) / max(1, params.warmup))
    if params.decay == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * step / params.steps))
    return rate


def stratified(u: Tensor, levels: int, first: int = 0, batch: int | None = None) -> Tensor:
    """Return levels of a batch, int64 (B,), from uniform numbers u (B,): image b draws from the b-th of B equal strata.

    u may be a part of a batch of `batch` images, beginning with image `first`. The batch as a whole is uniform over the
    levels, as METHODS §4 asks, and its gradient varies less than with independent draws. Which image falls into which
    stratum is random, since the order of an epoch is.
    """
    strata = (torch.arange(first, first + len(u), device=u.device) + u) / (batch or len(u))
    return (strata * levels).long().clamp_max(levels - 1)
