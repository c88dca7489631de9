"""The training images and their neighbours' pixels, and which of them each step sees."""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from stages.diffusion import noise

SHARE = 0.25
"""Share of a GPU's memory that the training images may take; larger sets stay memory-mapped on disk."""


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """Images and neighbour lists on the device that trains, where the neighbours' pixels are gathered.

    Attributes:
        images: uint8 (M, C, H, W).
        neighbors: int64 (M, K), the image itself first, or None.
    """

    images: Tensor
    neighbors: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        """Where `take` puts the pixels."""
        return self.images.device

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.images.shape[1:])

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (B, C, H, W) and their neighbours (B, K, C, H, W) or None, float32 in [0,1]. rows: int64 (B,)."""
        rows = rows.to(self.device)
        near = None if self.neighbors is None else self.images[self.neighbors[rows]].float() / 255
        return self.images[rows].float() / 255, near


@dataclasses.dataclass(frozen=True)
class MappedTrainingSet:
    """The same from a memory-mapped table: only the rows of a batch are read, and travel as uint8.

    Attributes:
        images: uint8 (M, H, W, C).
        neighbors: int64 (M, K), the image itself first, or None.
        device: where `take` puts the pixels.
    """

    images: np.ndarray
    neighbors: np.ndarray | None
    device: torch.device

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        height, width, channels = self.images.shape[1:]
        return channels, height, width

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """See TrainingSet.take."""
        index = rows.numpy()
        return self._pixels(index), None if self.neighbors is None else self._pixels(self.neighbors[index])

    def _pixels(self, rows: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(self.images[rows])
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        pixels = pixels.movedim(-1, -3)
        # written out: a view of one channel keeps strides that convolutions take for another memory format
        return torch.empty(pixels.shape, device=self.device).copy_(pixels).div_(255)


def open_training_set(
    images: np.ndarray, neighbors: np.ndarray | None, device: torch.device
) -> TrainingSet | MappedTrainingSet:
    """The set for a device: on a GPU with room for it in its memory, otherwise memory-mapped. Same pixels either way.

    images: uint8 (M, H, W, C), memory-mapped; neighbors: int64 (M, K) or None.
    """
    if device.type == "cuda" and images.nbytes < SHARE * torch.cuda.get_device_properties(device).total_memory:
        pixels = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C")).to(device)
        return TrainingSet(pixels, None if neighbors is None else torch.from_numpy(neighbors).to(device))
    return MappedTrainingSet(images, neighbors, device)


class EpochOrder:
    """Image rows of any step: epochs are permutations seeded by (seed, epoch), laid end to end."""

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
        """int64 (batch,) rows of step `step`."""
        start, stop = step * self.batch, (step + 1) * self.batch
        epochs = range(start // self.count, (stop - 1) // self.count + 1)
        joined = torch.cat([self._epoch(number) for number in epochs])
        offset = start - epochs[0] * self.count
        return joined[offset : offset + self.batch]
