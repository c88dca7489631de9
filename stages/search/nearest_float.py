"""The exact distance of float points to a set of uint8 images: the sampler's actual noise level."""

import numpy as np
import torch


def min_distance(x: torch.Tensor, reference: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each row of x the nearest image and its distance.

    Args:
        x: float32 (B, d), [0, 1] units.
        reference: uint8 (M, d); pixel values are reference / 255.

    Returns:
        index int64 (B,) and distance float64 (B,), ‖x − reference/255‖, on x's device; ties by index.
    """
    images = torch.as_tensor(reference).to(x.device)
    best = torch.full((len(x),), float("inf"), dtype=torch.float64, device=x.device)
    index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for row, image in enumerate(images):
        distance = (x.double() - image.double() / 255).square().sum(1)
        index = torch.where(distance < best, row, index)
        best = torch.minimum(distance, best)
    return index, best.sqrt()
