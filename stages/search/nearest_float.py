"""The exact distance of float points to a set of uint8 images: the sampler's actual noise level.

A float32 matrix product finds every image that could be the nearest, given a bound of the product's rounding error.
Those few are measured again by differences in float64, so that no copy is missed where ‖a‖² + ‖b‖² − 2ab cancels.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from stages.engine.products import affordable

BLOCK_BYTES = 1 << 28  # of the float reference and of candidates held in memory at once
SUM_TERMS = 4096  # squares summed at once: no sum is long enough for torch to split it among threads


@dataclasses.dataclass(frozen=True)
class Reference:
    """Images prepared for many calls of `min_distance`: 4 more bytes per pixel (8 at lowered matmul precision).

    Attributes:
        images: uint8 (M, d).
        centred: images − 128, float32 or float64 (M, d).
        half: ‖images − 128‖²/2, float64 (M,).
    """

    images: torch.Tensor
    centred: torch.Tensor
    half: torch.Tensor


def prepare(images: np.ndarray | torch.Tensor, device: torch.device | str = "cpu") -> Reference:
    """`images`, uint8 (M, d), as a `Reference` on `device`."""
    if isinstance(images, np.ndarray):  # a memory map is copied: it is read-only
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    images = images.to(device)
    if images.dtype != torch.uint8 or images.ndim != 2 or images.numel() == 0:
        raise ValueError(f"reference must be uint8 (M, d) and not empty, it is {images.dtype} {tuple(images.shape)}")
    centred = images.to(_working_type()) - 128
    rows = max(1, affordable(BLOCK_BYTES) // (8 * images.shape[1]))
    half = torch.cat([part.double().square().sum(1) / 2 for part in centred.split(rows)])
    return Reference(images, centred, half)


def _working_type() -> torch.dtype:
    """float32, unless its products may be rounded more coarsely than float32 (TF32, bfloat16): then float64."""
    exact = torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    return torch.float32 if exact else torch.float64


def min_distance(
    x: torch.Tensor, reference: np.ndarray | torch.Tensor | Reference
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the nearest image of each row of x and its distance. The result of a row does not depend on the others.

    Args:
        x: float32 (B, d), [0, 1] units, finite.
        reference: uint8 (M, d); pixel values are reference / 255. For many calls `prepare` it on x's device.

    Returns:
        index int64 (B,) and distance float64 (B,), ‖x − reference/255‖, on x's device; ties by index.

    Raises:
        ValueError: x holds NaN or infinity, or the shapes do not fit.
    """
    images = reference.images if isinstance(reference, Reference) else reference
    if x.ndim != 2 or images.ndim != 2 or x.shape[1] != images.shape[1]:
        raise ValueError(f"x {tuple(x.shape)} and reference {tuple(images.shape)} must be (B, d) and (M, d)")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinity: it has no nearest image")
    best = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for start, block in _blocks(reference, x) if len(x) else ():
        query, image = _candidates(x, block)
        squared, first = _nearest_of(x, block.images, query, image)
        index = torch.where(squared < best, first + start, index)
        best = torch.minimum(best, squared)
    return index, best.sqrt()


def _blocks(reference: np.ndarray | torch.Tensor | Reference, x: torch.Tensor) -> Iterator[tuple[int, Reference]]:
    """(first row, prepared images): all of them at once, or as many as BLOCK_BYTES holds."""
    if isinstance(reference, Reference) and reference.centred.dtype == _working_type():
        yield 0, reference
        return
    images = reference.images if isinstance(reference, Reference) else reference
    rows = max(1, affordable(BLOCK_BYTES) // (4 * images.shape[1]))
    for start in range(0, len(images), rows):
        yield start, prepare(images[start : start + rows], x.device)


def _candidates(x: torch.Tensor, reference: Reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs (row of x, row of images) that certainly include each row's nearest image.

    With X = 255 x − m and Y = images − m about the middle grey m = 128, h = ‖Y‖²/2 − X·Y orders the images. A rounded
    sum of d products has an error of at most n u/(1−n u) ‖X‖‖Y‖, where n = d + 4 includes the rounding of X and of
    ‖Y‖²/2. Every image whose h is within twice that of the smallest stays.
    """
    points = (x.double() * 255 - 128).to(reference.centred.dtype)
    h = reference.half - (points @ reference.centred.T).double()
    unit = 2.0**-24 if reference.centred.dtype == torch.float32 else 2.0**-53
    n = x.shape[1] + 4
    longest = reference.half.max().mul(2).sqrt()
    off = n * unit / (1 - n * unit) * (points.double().norm(dim=1) * longest + longest.square()) + 2.0**-40
    return torch.nonzero(h <= (h.min(1).values + 2 * off)[:, None], as_tuple=True)


def _nearest_of(
    x: torch.Tensor, images: torch.Tensor, query: torch.Tensor, image: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least ‖x − image/255‖² of each row's candidates, float64 (B,), and the first image that has it, (B,)."""
    step = max(1, affordable(BLOCK_BYTES) // (64 * x.shape[1]))
    parts = [_squared(x[query[s : s + step]], images[image[s : s + step]]) for s in range(0, len(query), step)]
    squared = torch.cat(parts)
    best = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    best = best.scatter_reduce(0, query, squared, "amin")
    at_best = torch.where(squared == best[query], image, len(images))
    first = torch.full((len(x),), len(images), dtype=torch.int64, device=x.device)
    return best, first.scatter_reduce(0, query, at_best, "amin")


def _squared(points: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """‖point − image/255‖² of matching rows, float64 (N,): the same bits in every batch (see SUM_TERMS)."""
    difference = points.double() - images.double() / 255
    return torch.stack([part.square().sum(1) for part in difference.split(SUM_TERMS, dim=1)]).sum(0)
