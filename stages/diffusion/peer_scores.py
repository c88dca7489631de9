"""Training-free scores that others compare with, in closed form (METHODS §8b).

Each is s(x) = (m(x) - x)/sigma^2 with another estimate m of the clean image's posterior mean: linear (Wiener), from
patches at the same place (local), or from a softmax that is normalised inside batches of the training set.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stages.diffusion.samplers import Score
from stages.diffusion.scores import Centres, unit
from stages.diffusion.temperature import conditioning_log_weights

BUDGET = 1 << 26  # values of the largest array


def wiener(centres: Centres) -> Score:
    """The exact score of a Gaussian with the training set's mean mu and covariance S: -(S + sigma^2 I)^-1 (x - mu).

    Returns score(x, sigma) for x float64 (B, d), sigma float64 (B,).
    """
    images = unit(centres.pixels)
    mean = images.mean(0)
    _, singular, axes = torch.linalg.svd(images - mean, full_matrices=False)
    variances = singular.square() / len(images)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma[:, None].square()
        along = (x - mean) @ axes.T
        return ((along * (variances / (variances + variance))) @ axes - (x - mean)) / variance

    return score


def loader_batches(centres: Centres, size: int) -> Score:
    """The mean over batches of `size` training images of the posterior mean inside each batch.

    It is exact for a single batch alone: a softmax that is normalised per batch gives every batch the same say. Batches
    are in the training set's order, and a last smaller one counts as much as the others. Returns score(x, sigma) for x
    float64 (B, d), sigma float64 (B,).
    """
    batches = [unit(part) for part in centres.pixels.split(size)]

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance, total = sigma[:, None].square(), torch.zeros_like(x)
        for images in batches:
            r2 = torch.cdist(x, images, compute_mode="donot_use_mm_for_euclid_dist").square()
            total += torch.softmax(conditioning_log_weights(r2, variance), dim=1) @ images
        return (total / len(batches) - x) / variance

    return score


def local(centres: Centres, shape: tuple[int, int, int], side: int) -> Score:
    """The posterior mean of every pixel given the patch of x around it, over the patches of the training images there.

    Kamb & Ganguli 2024, arXiv 2412.20292, the local score machine: w_i(p) = softmax over i of
    -|patch_p(x) - patch_p(x_i)|^2 / 2 sigma^2. Patches of `side` x `side` pixels, all channels, end at the border.
    shape: (C, H, W) of the images. Returns score(x, sigma) for x float64 (B, d), sigma float64 (B,).
    """
    channels, height, width = shape
    images = unit(centres.pixels).reshape(-1, height, width, channels)

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        rows = max(1, BUDGET // images.numel())
        parts = zip(x.reshape(-1, *images.shape[1:]).split(rows), sigma.split(rows))
        means = [_local_mean(part, level, images, side) for part, level in parts]
        return (torch.cat(means).reshape(x.shape) - x) / sigma[:, None].square()

    return score


def _local_mean(x: Tensor, sigma: Tensor, images: Tensor, side: int) -> Tensor:
    """x: (B, H, W, C); images: (M, H, W, C). Returns (B, H, W, C)."""
    squared = (x[:, None] - images).square().sum(-1)
    patches = functional.avg_pool2d(squared, side, stride=1, padding=side // 2, divisor_override=1)
    weights = torch.softmax(conditioning_log_weights(patches, sigma[:, None, None, None].square()), dim=1)
    return torch.einsum("bmhw,mhwc->bhwc", weights, images)
