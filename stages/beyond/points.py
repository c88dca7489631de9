"""Scores of models at noised images that they have not seen."""

import numpy as np
import torch
from torch import Tensor, nn

from stages.beyond.small_models import CPU
from stages.diffusion.model import make_model
from stages.diffusion.parameters import NoiseParams, Variant
from stages.diffusion.variants import Batch, pixel_rows


def noised(images: np.ndarray, sigma: float, seed: int) -> Tensor:
    """Images uint8 (N, H, W, C) with noise of level sigma, float32 (N, C, H, W); each level draws noise of its own."""
    clean = torch.from_numpy(images).movedim(-1, 1).float() / 255
    noise = np.random.default_rng([seed, round(1e6 * sigma)]).standard_normal(clean.shape)
    return clean + sigma * torch.from_numpy(noise).float()


def rows(x: Tensor) -> np.ndarray:
    """Images (N, C, H, W) as rows, float64 (N, d)."""
    return pixel_rows(x).double().numpy()


def score(
    spec: Variant, noise: NoiseParams, train: np.ndarray, x: Tensor, sigma: float, network: nn.Module | None = None
) -> np.ndarray:
    """The score at one level of a closed form over training images uint8 (M, H, W, C), or of a network; (N, d)."""
    model = make_model(spec, noise, train, network, CPU)
    at = model.score(Batch(0, torch.arange(len(x)), model.shape))
    with torch.inference_mode():
        return rows(at(x, torch.full((len(x),), sigma, dtype=torch.float64)))


def denoised(spec: Variant, noise: NoiseParams, train: np.ndarray, x: Tensor, sigma: float) -> np.ndarray:
    """The clean image x + sigma^2 s(x) that a closed form estimates, (N, d)."""
    return rows(x) + sigma**2 * score(spec, noise, train, x, sigma)
