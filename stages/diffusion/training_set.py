"""The training images and their neighbours' pixels, and which of them each step sees."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stages.diffusion import noise
from stages.files.tensors import shared_tensor

GPU_SHARE = 0.25
"""The share of a GPU's memory that the training images may take; larger sets stay memory-mapped on disk."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """The training images and their neighbour lists.

    Attributes:
        images: uint8 (M, C, H, W), on the device that trains, or on the CPU as a view of a memory-mapped file, of which
            only the rows of a batch are read; they travel as uint8.
        neighbors: int64 (M, K) on the device of the images, the image itself first, or None.
        place: the device that trains; None: that of the images.
        labels: int64 (M,) on the device of the images, the place of each one's class, or None.
    """

    images: Tensor
    neighbors: Tensor | None
    place: torch.device | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """The device where `take` puts the pixels."""
        return self.place or self.images.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return images (B, C, H, W) and neighbours (B, K, C, H, W) or None, float32 in [0,1]. rows: int64 (B,)."""
        rows = rows.to(self.images.device)
        return self._pixels(rows), None if self.neighbors is None else self._pixels(self.neighbors[rows])

    def classes(self, rows: Tensor) -> Tensor | None:
        """Return the places of the images' classes, int64 (B,) on the device that trains, or None. rows: int64 (B,)."""
        return None if self.labels is None else self.labels[rows.to(self.labels.device)].to(self.device)

    def _pixels(self, rows: Tensor) -> Tensor:
        pixels = self.images[rows]
        if pixels.device != self.device:
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        # written out: a view of one channel keeps strides that convolutions take for another memory format
        return torch.empty(pixels.shape, device=self.device).copy_(pixels).div_(255)


def open_training_set(
    images: np.ndarray, neighbors: np.ndarray | None, device: torch.device, labels: np.ndarray | None = None
) -> TrainingSet:
    """Return the set for a device: in a GPU's memory where it takes at most GPU_SHARE of it, else memory-mapped.

    images: uint8 (M, H, W, C), memory-mapped; neighbors: int64 (M, K) or None; labels: int64 (M,) or None.
    """
    pixels = shared_tensor(images).movedim(-1, 1)
    lists, places = (None if array is None else torch.from_numpy(array) for array in (neighbors, labels))
    if device.type == "cuda" and images.nbytes < GPU_SHARE * torch.cuda.get_device_properties(device).total_memory:
        pixels = pixels.contiguous().to(device)
        lists, places = (None if tensor is None else tensor.to(device) for tensor in (lists, places))
        return TrainingSet(pixels, lists, labels=places)
    return TrainingSet(pixels, lists, device, places)


class EpochOrder:
    """The image rows of any step: epochs are permutations seeded by (seed, epoch), laid end to end."""

    def __init__(self, count: int, batch: int, seed: int) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self._epochs: dict[int, Tensor] = {}

    def _epoch(self, number: int) -> Tensor:
        if number not in self._epochs:
            generator = torch.Generator().manual_seed(noise.generator_seed(self.seed, number))
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1}
            self._epochs[number] = torch.randperm(self.count, generator=generator)
        return self._epochs[number]

    def rows(self, step: int) -> Tensor:
        """Return the rows of a step, int64 (batch,)."""
        start, stop = step * self.batch, (step + 1) * self.batch
        epochs = range(start // self.count, (stop - 1) // self.count + 1)
        joined = torch.cat([self._epoch(number) for number in epochs])
        offset = start - epochs[0] * self.count
        return joined[offset : offset + self.batch]
