"""Models of a few small images: closed forms, and networks that are trained in this process; their samples."""

import copy
from collections.abc import Collection, Iterator

import numpy as np
import torch

from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.diffusion.sampling import draw_samples
from stages.diffusion.trainer import update_average
from stages.diffusion.training import Training, build_training, train_steps
from stages.search.nearest import nearest

CPU = torch.device("cpu")
TOGETHER = 50  # samples drawn at the same time


def closed_form(spec: Variant, noise: NoiseParams, train: np.ndarray) -> Model:
    """A closed form over training images uint8 (M, H, W, C)."""
    return make_model(spec, noise, train, None, CPU)


def samples(
    spec: Variant,
    noise: NoiseParams,
    train: np.ndarray,
    count: int,
    seed: int,
    network: torch.nn.Module | None = None,
    device: torch.device = CPU,
) -> np.ndarray:
    """Samples 0..count-1 of a closed form or a network, uint8 (count, H, W, C); `seed` draws the noise alone."""
    with torch.inference_mode():
        return draw_samples(make_model(spec, noise, train, network, device), seed, count, min(TOGETHER, count))


def neighbors(train: np.ndarray, k: int) -> np.ndarray:
    """Rows of each image's k nearest in pixels, itself first, int64 (M, k)."""
    rows, flat = np.arange(len(train)), train.reshape(len(train), -1)
    return np.concatenate([rows[:, None], nearest(flat, flat, k - 1, exclude=rows)[0]], axis=1)


def new_training(
    spec: Variant,
    noise: NoiseParams,
    network: NetworkParams,
    params: OptimizationParams,
    train: np.ndarray,
    seed: int,
    device: torch.device = CPU,
) -> Training:
    """The training of a network on images uint8 (M, H, W, C), before its first step."""
    near = None if spec.neighbors is None else neighbors(train, spec.neighbors.k)
    return build_training(spec, noise, network, params, train, near, device, seed)


def trained(training: Training, snapshots: Collection[int]) -> Iterator[tuple[int, torch.nn.Module]]:
    """Yield (step, averaged network) after each of the snapshots; the training's seed determines all that is random."""
    average = copy.deepcopy(training.network).requires_grad_(False).eval()
    for losses in train_steps(training):
        update_average(average, training.network, losses.step, training.params.ema)
        if training.step in snapshots:
            yield training.step, average
