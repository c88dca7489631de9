"""Training-free scores that others compare with, in closed form (METHODS §8b).

Each is s(x) = (m(x) - x)/sigma^2 with another estimate m of the clean image's posterior mean: linear (Wiener), from
patches at the same place (local), from the pixels that a linear denoiser would look at (PCA-locality), or from a
softmax that is normalised inside batches of the training set. Tikhonov's shortens the empirical score instead.
"""

import torch
from torch import Tensor
from torch.nn import functional

from stages.diffusion.samplers import Score
from stages.diffusion.scores import Centres, conditioning, unit
from stages.diffusion.temperature import conditioning_log_weights

BUDGET = 1 << 20  # values of the largest array: 8 MB, which caches hold, take a third of the time of 512
CONSTANT = 1e-9  # entry of a Wiener matrix below which the pixel counts as constant


def wiener(centres: Centres) -> Score:
    """The exact score of a Gaussian with the training set's mean mu and covariance S: -(S + sigma^2 I)^-1 (x - mu).

    Returns score(x, sigma) for x float64 (B, d), sigma float64 (B,).
    """
    mean, variances, axes = _principal(unit(centres.pixels))

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma[:, None].square()
        along = (x - mean) @ axes.T
        return ((along * (variances / (variances + variance))) @ axes - (x - mean)) / variance

    return score


def _principal(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean (d,), variances (r,) and axes (r, d) of the principal components of float64 (M, d), r = min(M, d)."""
    mean = images.mean(0)
    _, singular, axes = torch.linalg.svd(images - mean, full_matrices=False)
    return mean, singular.square() / len(images), axes


def tikhonov(centres: Centres, level: float) -> Score:
    """The empirical score times sigma^2 / (sigma^2 + level^2), of least sigma^2 E|s - s_i|^2 + level^2 E|s|^2.

    s_i = -(x - x_i)/sigma^2 are the targets of denoising score matching, and both means are over the noised training
    images. Regularization of Baptista et al. 2025, arXiv 2501.15785; the constant weight of the penalty under the loss
    weight sigma^2 is [ours]. Near a single image the flow ends at level / sqrt(sigma_max^2 + level^2) of its first
    distance: it leaves noise of about `level` on the images. Returns score(x, sigma) for x float64 (B, d), sigma (B,).
    """

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        variance = sigma[:, None].square()
        return variance / (variance + level**2) * conditioning(centres, x, sigma)

    return score


def pca_locality(centres: Centres, threshold: float, loader_batch: int | None = None) -> Score:
    """The posterior mean of every pixel given the pixels that the Wiener denoiser there depends on.

    Lukoianov et al. 2025, arXiv 2509.09672. The Wiener matrix S (S + sigma^2 I)^-1 is divided row by row by its
    diagonal; pixel m sees the pixels n whose entry (n, m) is at least `threshold` of the largest, as in the released
    code, and has the weights softmax over i of -sum_n (x_n - x_in)^2 / 2 sigma^2. The softmax runs over the whole
    training set, or inside batches of `loader_batch` images, whose means are averaged, as the released code does
    (`loader_batches`). Returns score(x, sigma) for x float64 (B, d), sigma float64 (B,).
    """
    images = unit(centres.pixels)
    _, variances, axes = _principal(images)
    batches = images.split(loader_batch or len(images))

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        out, rows = torch.empty_like(x), max(1, BUDGET // images.numel())
        for level in sigma.unique():
            sees = _seen(variances, axes, float(level), threshold)
            for part in torch.nonzero(sigma == level)[:, 0].split(rows):
                means = [_masked_mean(x[part], batch, sees, level.square()) for batch in batches]
                out[part] = sum(means) / len(means)
        return (out - x) / sigma[:, None].square()

    return score


def _masked_mean(x: Tensor, images: Tensor, sees: Tensor, variance: Tensor) -> Tensor:
    """x: (B, d); images: (M, d); sees: (d, d), by (seen, pixel). Returns the posterior mean of every pixel, (B, d)."""
    squared = (x[:, None] - images).square() @ sees
    weights = torch.softmax(conditioning_log_weights(squared, variance), dim=1)
    return torch.einsum("bmd,md->bd", weights, images)


def _seen(variances: Tensor, axes: Tensor, sigma: float, threshold: float) -> Tensor:
    """Return 1 where pixel m sees pixel n, else 0, float64 (d, d) by (n, m); a pixel that never varies sees none."""
    matrix = (axes.T * (variances / (variances + sigma**2))) @ axes
    diagonal = matrix.diagonal()[:, None]
    relative = torch.where(diagonal > CONSTANT, matrix / diagonal.clamp_min(CONSTANT), 0.0).abs()
    return (relative >= threshold * relative.max()).double()


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
