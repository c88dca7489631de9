"""Noise: the levels of the VE-SDE, and normal draws that depend on (seed, sample, draw) only.

The generator is counter-based (Philox 4x32-10, Salmon et al. 2011): the bits of draw n of sample i are a
function of (seed, i, n), so a sample is the same whatever its batch, shard, device or the moment a run was
interrupted, and nothing has to be saved to resume.
"""

import hashlib
import math

import torch
from torch import Tensor

from stages.diffusion.parameters import NoiseParams

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def levels(noise: NoiseParams, count: int) -> Tensor:
    """`count` levels, log-uniform from sigma_max down to sigma_min. Returns float64 (count,)."""
    if count < 2:
        return torch.tensor([noise.sigma_max], dtype=torch.float64)
    return torch.logspace(math.log10(noise.sigma_max), math.log10(noise.sigma_min), count, dtype=torch.float64)


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10. counter: four int64 tensors of one shape holding 32-bit words; key: two 32-bit words.

    Returns four int64 tensors of 32-bit words. Checked against the published test vectors.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # int64 wraps: its 64 bits are the full product
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _words(seed: int, indices: Tensor, draw: int, count: int) -> Tensor:
    """32-bit words as int64 (B, count): word n of sample i is a function of (seed, i, draw, n)."""
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
    """A seed of 64 bits for torch's own generators from several numbers, by sha256.

    On a CPU torch keeps the low 32 bits of a seed (MT19937), so that (a << 32) + b would not depend on a.
    """
    return int.from_bytes(hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()[:8], "little")


def uniform(seed: int, indices: Tensor, draw: int, count: int) -> Tensor:
    """Uniform numbers in (0, 1), float64 (B, count), a function of (seed, indices[b], draw) only.

    indices: int64 (B,), on the device where the numbers are wanted.
    """
    return (_words(seed, indices, draw, count).double() + 0.5) / 2.0**32


def normal(seed: int, indices: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers, float32 (B, *shape), a function of (seed, indices[b], draw) only.

    Box-Muller in float64 on 32-bit uniforms: |z| reaches 6.7, and CPU and CUDA agree to float32 rounding.
    """
    size = math.prod(shape)
    u = uniform(seed, indices, draw, size + size % 2).reshape(len(indices), -1, 2)
    radius, angle = torch.sqrt(-2 * torch.log(u[..., 0])), 2 * math.pi * u[..., 1]
    z = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=2).reshape(len(indices), -1)
    return z[:, :size].float().reshape(len(indices), *shape)


def integers(seed: int, indices: Tensor, draw: int, high: int) -> Tensor:
    """Integers in [0, high), int64 (B,), a function of (seed, indices[b], draw) only."""
    return (uniform(seed, indices, draw, 1)[:, 0] * high).long()
