"""Exact nearest neighbours of uint8 images on an accelerator: int8 matrix products with int32 sums, block by block.

A GPU takes int8 products so fast that a bound before them would cost more than it saves. Every function also runs on
CPU tensors.
"""

import numpy as np
import torch

from stages.engine.products import MAX_INT32_TERMS, int8_pays
from stages.engine.sizes import NO_KEY

ROW_MULTIPLE = 32  # CUDA's int8 product takes more than 16 rows, and multiples of 8 of everything else


def nearest_keys(
    queries: np.ndarray, reference: np.ndarray, k: int, exclude: np.ndarray, device: torch.device, memory_budget: int
) -> np.ndarray:
    """Return squared distance · M + index of the k nearest rows of `reference` per query, ascending: int64 (Q, k).

    Args:
        queries, reference: uint8 (Q, d) and (M, d), checked.
        k: at most the rows available.
        exclude: int64 (Q,), a row of `reference` to leave out per query, −1 for none.
        device: where the products are taken.
        memory_budget: bytes of working memory on the device.
    """
    count, d = reference.shape
    columns = max(1, min(count, memory_budget // (16 * d), memory_budget // 2048))
    step = max(1, min(4096, memory_budget // (48 * (columns + k)), memory_budget // (16 * d)))
    keys = np.full((len(queries), k), NO_KEY, np.int64)
    for c in range(0, count, columns):
        right = _prepared(reference[c : c + columns], device)
        for r in range(0, len(queries), step):
            part = slice(r, r + step)
            kept = torch.from_numpy(keys[part]).to(device)
            out = torch.from_numpy(exclude[part]).to(device)
            keys[part] = _better(kept, _prepared(queries[part], device), right, out - c, c, count).cpu().numpy()
    return keys


def _prepared(images: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """x − 128 as int8, padded with zeros to (multiple of 32, multiple of 8), and ‖x − 128‖², int64 (N,)."""
    count, d = images.shape
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(device)
    centred = torch.zeros(-(-count // ROW_MULTIPLE) * ROW_MULTIPLE, -(-d // 8) * 8, dtype=torch.int8, device=device)
    centred[:count, :d] = (pixels ^ 128).view(torch.int8)
    rows = max(1, (1 << 24) // d)
    squares = [part.to(torch.int32).square().sum(1, dtype=torch.int64) for part in centred[:count].split(rows)]
    return centred, torch.cat(squares) if squares else torch.zeros(0, dtype=torch.int64, device=device)


def _inner(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b.T of int8 (n, d) and (m, d), exactly: int64 (n, m)."""
    if a.device.type == "cpu" and not int8_pays():
        return (a.double() @ b.double().T).long()
    cuts = range(0, a.shape[1], MAX_INT32_TERMS // 8 * 8)
    parts = ((t[:, c : c + cuts.step].contiguous() for t in (a, b)) for c in cuts)
    return sum(torch._int_mm(left, right.T).long() for left, right in parts)


def _better(
    kept: torch.Tensor,
    left: tuple[torch.Tensor, torch.Tensor],
    right: tuple[torch.Tensor, torch.Tensor],
    exclude: torch.Tensor,
    offset: int,
    count: int,
) -> torch.Tensor:
    """The k least keys of `kept`, int64 (Q, k), and one block of references, ascending."""
    (x, norms_x), (y, norms_y) = left, right
    squared = _inner(x, y)[: len(norms_x), : len(norms_y)].mul_(-2).add_(norms_x[:, None]).add_(norms_y)
    keys = squared.mul_(count).add_(torch.arange(offset, offset + len(norms_y), device=kept.device))
    some = torch.nonzero((exclude >= 0) & (exclude < len(norms_y)))[:, 0]
    keys[some, exclude[some]] = NO_KEY
    return torch.cat([kept, keys], dim=1).topk(kept.shape[1], dim=1, largest=False, sorted=True).values
