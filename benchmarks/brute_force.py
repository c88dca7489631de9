"""The closed forms of the league once more, float64 NumPy, point by point and pixel by pixel, from their formulas.

What a form's own error is measured against. Nothing is shared with stages.diffusion but the draws of the kernels, which
are data. Points x: float64 (B, d), pixels in [0, 1] in the order (H, W, C); training images: float64 (M, d).
"""

from collections.abc import Callable

import numpy as np

from stages.diffusion.parameters import ScoreSpec

Shape = tuple[int, int, int]  # (H, W, C)
CONSTANT = 1e-9  # entry of a Wiener matrix below which a pixel counts as constant


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    weights = np.exp(logits - logits.max(axis=0))
    return weights / weights.sum(axis=0)


def posterior_mean(x: np.ndarray, images: np.ndarray, sigma: float) -> np.ndarray:
    """E[x_0 | x] of one point (d,) over images (M, d)."""
    return softmax(-np.square(x - images).sum(1) / (2 * sigma**2)) @ images


def batch_mean(x: np.ndarray, images: np.ndarray, sigma: float, size: int) -> np.ndarray:
    """The mean over batches of `size` images of the posterior mean inside each."""
    starts = range(0, len(images), size)
    return np.mean([posterior_mean(x, images[start : start + size], sigma) for start in starts], axis=0)


def wiener_matrix(images: np.ndarray, sigma: float) -> np.ndarray:
    """S (S + sigma^2 I)^-1 of the covariance S."""
    covariance = np.cov(images.T, bias=True)
    return covariance @ np.linalg.inv(covariance + sigma**2 * np.eye(len(covariance)))


def wiener_mean(x: np.ndarray, images: np.ndarray, sigma: float) -> np.ndarray:
    """The posterior mean of one point under a Gaussian with the images' mean and covariance."""
    mean = images.mean(0)
    return mean + wiener_matrix(images, sigma) @ (x - mean)


def local_mean(x: np.ndarray, images: np.ndarray, sigma: float, shape: Shape, side: int) -> np.ndarray:
    """The posterior mean of every pixel given the patch of x around it."""
    point, near, half = x.reshape(shape), images.reshape(-1, *shape), side // 2
    out = np.empty(shape)
    for row, column in np.ndindex(shape[:2]):
        window = np.s_[max(0, row - half) : row + half + 1, max(0, column - half) : column + half + 1]
        squared = np.square(point[window] - near[(slice(None), *window)]).sum((1, 2, 3))
        out[row, column] = softmax(-squared / (2 * sigma**2)) @ near[:, row, column]
    return out.ravel()


def masks(images: np.ndarray, sigma: float, threshold: float) -> np.ndarray:
    """Whether pixel n is seen by pixel m, bool (d, d) by (n, m), of form pca-locality."""
    matrix = wiener_matrix(images, sigma)
    diagonal = np.diag(matrix)[:, None]
    relative = np.abs(np.divide(matrix, diagonal, out=np.zeros_like(matrix), where=diagonal > CONSTANT))
    return relative >= threshold * relative.max()


def masked_mean(x: np.ndarray, images: np.ndarray, sigma: float, sees: np.ndarray, size: int) -> np.ndarray:
    """The posterior mean of every pixel given those that it sees, inside batches of `size` images."""
    out, squares = np.empty_like(x), np.square(x - images)
    for pixel in range(len(x)):
        squared, means = squares[:, sees[:, pixel]].sum(1), []
        for start in range(0, len(images), size):
            own = np.s_[start : start + size]
            means.append(softmax(-squared[own] / (2 * sigma**2)) @ images[own, pixel])
        out[pixel] = np.mean(means)
    return out


def shells(x: np.ndarray, images: np.ndarray, temperature: float, nearest: int | None) -> np.ndarray:
    """The score of optimal shells of one point, over all images or the nearest."""
    squared, power = np.square(x - images).sum(1), len(x) - 2
    rows = np.argsort(squared, kind="stable")[:nearest]
    weights = softmax(-power / (2 * temperature) * np.log(squared[rows])) * power / squared[rows]
    return weights @ (images[rows] - x)


def shifted_means(spec: ScoreSpec, x: np.ndarray, images: np.ndarray, sigma: float, draws: np.ndarray) -> np.ndarray:
    """What a kernel's form averages over the draws (m, d) of one point: m estimates of its score, (m, d)."""
    if spec.form == "kernel-smoothed":
        moved = x + spec.kernel.h * draws
        return np.stack([(posterior_mean(point, images, sigma) - point) / sigma**2 for point in moved])
    moved = x + spec.kernel.h * (1 + sigma) * draws  # the shift is of z = x / (1 + sigma)
    return np.stack([(posterior_mean(point, images, sigma) - x) / sigma**2 for point in moved])


def point_score(spec: ScoreSpec, images: np.ndarray, sigma: float, shape: Shape) -> Callable[[np.ndarray], np.ndarray]:
    """Return the score of one point (d,) of a form without draws."""
    if spec.form in ("unconditioning", "temperature"):
        hot = spec.form == "temperature" and sigma < spec.smooth_below
        temperature, nearest = (float(images.shape[1]), spec.neighbors.k) if hot else (1.0, None)
        return lambda x: shells(x, images, temperature, nearest)
    if spec.form == "pca-locality":
        sees = masks(images, sigma, spec.mask_threshold)
    means = {
        "conditioning": lambda x: posterior_mean(x, images, sigma),
        "tikhonov": lambda x: posterior_mean(x, images, sigma),
        "wiener": lambda x: wiener_mean(x, images, sigma),
        "local": lambda x: local_mean(x, images, sigma, shape, spec.patch),
        "loader-batches": lambda x: batch_mean(x, images, sigma, spec.loader_batch),
        "pca-locality": lambda x: masked_mean(x, images, sigma, sees, spec.loader_batch or len(images)),
    }
    variance = sigma**2 + (spec.penalty**2 if spec.form == "tikhonov" else 0)
    return lambda x: (means[spec.form](x) - x) / variance


def error(
    spec: ScoreSpec, own: np.ndarray, x: np.ndarray, images: np.ndarray, sigma: float, shape: Shape, draws: np.ndarray
) -> float:
    """The largest deviation of a score `own` (B, d) at points x, over the largest entry of its formula's value.

    Of forms that average draws (B, m, d), the largest standard error over the pairs of draws is added: their formula
    is the mean over all draws that there could be.
    """
    if spec.kernel is None:
        wanted, noise = np.stack(list(map(point_score(spec, images, sigma, shape), x))), 0.0
    else:
        each = np.stack([shifted_means(spec, point, images, sigma, some) for point, some in zip(x, draws)])
        pairs = (each[:, : each.shape[1] // 2] + each[:, each.shape[1] // 2 :]) / 2
        wanted, noise = pairs.mean(1), (pairs.std(1, ddof=1) / pairs.shape[1] ** 0.5).max()
    return float((np.abs(own - wanted).max() + noise) / np.abs(wanted).max())
