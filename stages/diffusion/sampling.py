"""From a model to images: sample i is a function of (seed, i) and the model alone."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from stages.diffusion import noise, samplers
from stages.diffusion.model import Model
from stages.diffusion.variants import Batch


@torch.inference_mode()
def trajectory(model: Model, seed: int, indices: Tensor) -> Iterator[Tensor]:
    """Yield the states of the samples `indices` (int64 (B,)) after every step, float32 (B, C, H, W)."""
    indices = indices.to(model.device)

    def draw(n: int) -> Tensor:
        return noise.normal(seed, indices, n, model.shape)

    score = model.score(Batch(seed, indices, model.shape))
    yield from samplers.sample(model.variant.sampler, model.sigmas, model.level(indices), score, draw)


def last_states(model: Model, seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the samples `indices` end, float32 (B, C, H, W), and the step of each one's last move, int64 (B,).

    A sample that is not finite raises FloatingPointError.
    """
    x, steps = None, torch.zeros(len(indices), dtype=torch.int64, device=model.device)
    for step, state in enumerate(trajectory(model, seed, indices), 1):
        moved = torch.ones_like(steps, dtype=torch.bool) if x is None else (state != x).flatten(1).any(1)
        x, steps = state, torch.where(moved, step, steps)
    if not torch.isfinite(x).all():
        wrong = indices[~torch.isfinite(x).flatten(1).all(1).cpu()][:5].tolist()
        raise FloatingPointError(f"samples {wrong} of variant form {model.variant.form} are not finite")
    return x, steps


def to_uint8(x: Tensor) -> np.ndarray:
    """Return x (B, C, H, W) in [0,1] units, clipped and rounded, as uint8 (B, H, W, C)."""
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def sample_batch(model: Model, seed: int, indices: Tensor) -> np.ndarray:
    """Return the samples `indices` as uint8 (B, H, W, C). A sample that is not finite raises FloatingPointError."""
    return to_uint8(last_states(model, seed, indices)[0])


def batches(start: int, stop: int, batch: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (indices, number to keep) that cover start..stop: always `batch` indices, so that rounding is the same."""
    for first in range(start, stop, batch):
        yield torch.arange(first, first + batch), min(batch, stop - first)


def draw_samples(model: Model, seed: int, count: int, batch: int, start: int = 0) -> np.ndarray:
    """Return samples start..start+count-1 as uint8 (count, H, W, C), drawn `batch` at a time."""
    spans = batches(start, start + count, batch)
    return np.concatenate([sample_batch(model, seed, indices)[:keep] for indices, keep in spans])
