"""Exact nearest neighbours among feature vectors: candidates by a float64 product, distances by direct differences.

Candidates are accepted when the product's rounding error, bounded here, cannot have hidden a nearer row; distances and
their order come from direct differences (METHODS §1, Numerics). So the result does not depend on the BLAS library, on
the number of threads or on the device.
"""

from collections.abc import Callable

import numpy as np
import torch

from stages.engine.products import affordable
from stages.errors import InputError

SPARE = 8  # candidates beyond k, so that near ties seldom need a search of all rows


def normalized(features: np.ndarray, ids: list[str]) -> np.ndarray:
    """Rows scaled to length 1, float64 (N, D). A zero row raises InputError: it has no direction."""
    rows = np.asarray(features, dtype=np.float64)
    norms = np.sqrt(np.square(rows).sum(axis=1))
    if (norms == 0).any():
        name = ids[int(np.flatnonzero(norms == 0)[0])]
        raise InputError(
            f"the feature of image {name} is zero, so it has no cosine: use another encoder or drop the image"
        )
    return rows / norms[:, None]


def nearest_features(
    queries: np.ndarray,
    reference: np.ndarray,
    k: int,
    *,
    exclude: np.ndarray | None = None,
    memory_budget: int = 1 << 28,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of `reference` (L2) for each row of `queries`, exactly.

    Args:
        queries: float32 or float64 (Q, D).
        reference: float32 or float64 (M, D).
        k: neighbours per query.
        exclude: int64 (Q,), one row of `reference` to leave out per query (-1: none).
        memory_budget: bytes of working memory beyond the inputs in float64 and the result.
        device: where the candidates are computed ("cuda" uses the GPU); the result is the same.

    Returns:
        index int64 (Q, k) and distance float64 (Q, k), nearest first, ties by index.

    Raises:
        InputError: k exceeds the rows available.
    """
    available = len(reference) - (0 if exclude is None else 1)
    if not 1 <= k <= available:
        raise InputError(f"{k} nearest neighbours were asked for, {available} reference features are available")
    queries, reference = np.asarray(queries, np.float64), np.asarray(reference, np.float64)
    exclude = np.full(len(queries), -1, np.int64) if exclude is None else np.asarray(exclude, np.int64)
    width = min(k + SPARE, available)
    propose = _proposer(reference, width, device)
    index, distance = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    memory_budget = affordable(memory_budget)
    rows = max(1, memory_budget // (8 * max(3 * len(reference), 2 * width * reference.shape[1])))
    for start in range(0, len(queries), rows):
        block, left_out = queries[start : start + rows], exclude[start : start + rows]
        candidates, certified_below = propose(block, left_out)
        best, squared = _rescore(block, reference, candidates, k)
        for row in np.flatnonzero(squared[:, -1] >= certified_below):
            best[row], squared[row] = _search_all(block[row], reference, left_out[row], k, memory_budget)
        index[start : start + rows], distance[start : start + rows] = best, np.sqrt(squared)
    return index, distance


def _proposer(
    reference: np.ndarray, width: int, device: str
) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function propose(block (B, D), exclude (B,)) -> candidates int64 (B, width) and bounds float64 (B,).

    No row outside the candidates has a squared distance below the bound.
    """
    there = torch.from_numpy(reference).to(device)
    norms = there.square().sum(1)
    # |fl(|a|²+|b|²−2ab) − |a−b|²| ≤ 2(D+3)u(|a|+|b|)² with u = 2⁻⁵³; doubled for safety
    unit = 4 * (reference.shape[1] + 3) * 2.0**-53
    largest = float(norms.max().sqrt())
    everything = width == len(reference)

    def propose(block: np.ndarray, exclude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = torch.from_numpy(block).to(device)
        own = x.square().sum(1)
        squared = torch.addmm(norms[None, :], x, there.T, alpha=-2).add_(own[:, None])
        some = torch.from_numpy(np.flatnonzero(exclude >= 0)).to(device)
        squared[some, torch.from_numpy(exclude).to(device)[some]] = torch.inf
        values, candidates = squared.topk(width, dim=1, largest=False)
        certified = values[:, -1] - unit * (own.sqrt() + largest).square()
        if everything or (width == len(reference) - 1 and len(some) == len(block)):
            certified.fill_(torch.inf)  # nothing lies outside the candidates
        return candidates.cpu().numpy(), certified.cpu().numpy()

    return propose


def _rescore(block: np.ndarray, reference: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best candidates (B, k) and their squared distances by direct differences, ties by index."""
    candidates = np.sort(candidates, axis=1)  # so that a stable sort by distance breaks ties by index
    squared = np.square(block[:, None, :] - reference[candidates]).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(candidates, order, 1), np.take_along_axis(squared, order, 1)


def _search_all(
    query: np.ndarray, reference: np.ndarray, left_out: int, k: int, budget: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest rows of one query and their squared distances by direct differences, for ties within rounding."""
    rows = max(1, budget // (8 * reference.shape[1]))
    squared = np.concatenate(
        [np.square(query - reference[i : i + rows]).sum(axis=1) for i in range(0, len(reference), rows)]
    )
    if left_out >= 0:
        squared[left_out] = np.inf
    order = np.argsort(squared, kind="stable")[:k]
    return order, squared[order]
