"""The noise levels of the VE-SDE, and random numbers that depend on (seed, index, draw) alone.

The generator is counter-based (Philox 4x32-10, Salmon et al. 2011): the bits of draw n of sample i are a function of
(seed, i, n). A sample is therefore the same in every batch, shard and device, and an interrupted run has no generator
state to save. `Stream` names every draw of the project. Torch's and numpy's own generators take the rest: initial
weights and dropout masks, the order of an epoch (`generator_seed`) and the directions of alignment's pairs.
"""

import enum
import hashlib
import math

import torch
from torch import Tensor

from stages.diffusion.parameters import NoiseParams

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


class Stream(enum.Enum):
    """The random streams. Each value is (what the index counts, first draw number, distance of its draw numbers).

    Streams whose index counts different things never meet, as long as their seeds are different parameters.
    """

    INITIAL_STATE = "sample", 0, 0
    PREDICTOR = "sample", 1, 2
    CORRECTOR = "sample", 2, 2
    KERNEL = "sample", 1 << 30, 1

    ALIGNED_IMAGE = "alignment", 1 << 29, 0
    ALIGNED_NOISE = "alignment", (1 << 29) + 1, 0
    PAIR_IMAGE = "alignment", (1 << 29) + 2, 0
    PATH_IMAGE = "alignment", (1 << 29) + 3, 0
    PATH_NOISE = "alignment", (1 << 29) + 4, 0

    TRAINING_LEVEL = "training image", 0, 0
    TRAINING_NOISE = "training image", 1, 0
    TRAINING_FLIP = "training image", 2, 0

    def draw(self, n: int = 0) -> int:
        """Return the number of the stream's n-th draw."""
        _, first, distance = self.value
        return first + n * distance


def levels(noise: NoiseParams, count: int) -> Tensor:
    """Return `count` levels, log-uniform from sigma_max down to sigma_min, float64 (count,)."""
    if count < 2:
        return torch.tensor([noise.sigma_max], dtype=torch.float64)
    return torch.logspace(math.log10(noise.sigma_max), math.log10(noise.sigma_min), count, dtype=torch.float64)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return Philox 4x32-10 of a counter, four int64 tensors of one shape holding 32-bit words.

    counter: four such tensors; key: two 32-bit words. The published test vectors are in tests/diffusion/test_noise.py.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # int64 wraps: its 64 bits are the full product
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(seed: int, indices: Tensor, draw: int, count: int) -> Tensor:
    """Return 32-bit words as int64 (B, count); word n of sample i is a function of (seed, i, draw, n)."""
    blocks = torch.arange(-(-count // 4), device=indices.device)
    low, high = indices & _MASK, (indices >> 32) & _MASK
    shape = (len(indices), len(blocks))
    counter = (
        blocks.expand(shape),
        torch.full(shape, draw & _MASK, dtype=torch.int64, device=indices.device),
        low[:, None].expand(shape),
        high[:, None].expand(shape),
    )
    words = torch.stack(philox(counter, (seed & _MASK, (seed >> 32) & _MASK)), dim=2)
    return words.reshape(len(indices), -1)[:, :count]


def generator_seed(*numbers: int) -> int:
    """Return a 64-bit seed for torch's own generators, by sha256 of several numbers.

    On a CPU torch keeps the low 32 bits of a seed (MT19937), so that (a << 32) + b would not depend on a.
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8], "little")


def uniform(seed: int, indices: Tensor, draw: int, count: int) -> Tensor:
    """Return uniform numbers in (0, 1), float64 (B, count), a function of (seed, indices[b], draw) only.

    indices: int64 (B,), on the device where the numbers are wanted.
    """
    return (_words(seed, indices, draw, count).double() + 0.5) / 2.0**32


def normal(seed: int, indices: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal numbers, float32 (B, *shape), a function of (seed, indices[b], draw) only.

    Box-Muller in float64 on 32-bit uniforms: |z| reaches 6.7, and CPU and CUDA agree to float32 rounding.
    """
    size = math.prod(shape)
    u = uniform(seed, indices, draw, size + size % 2).reshape(len(indices), -1, 2)
    radius, angle = torch.sqrt(-2 * torch.log(u[..., 0])), 2 * math.pi * u[..., 1]
    z = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2).reshape(len(indices), -1)
    return z[:, :size].float().reshape(len(indices), *shape)


def integers(seed: int, indices: Tensor, draw: int, high: int) -> Tensor:
    """Return integers in [0, high), int64 (B,), a function of (seed, indices[b], draw) only."""
    return (uniform(seed, indices, draw, 1)[:, 0] * high).long()
