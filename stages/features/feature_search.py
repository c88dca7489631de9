"""Exact nearest neighbours among feature vectors: candidates by a float64 product, distances by direct differences.

Every row is a candidate that the product's rounding error, bounded here, could place among the k nearest. Distances and
their order come from direct differences (METHODS §1, Numerics). So the result does not depend on the BLAS library, on
the number of threads or on the device.
"""

import numpy as np
import torch

from stages.engine.products import affordable
from stages.errors import InputError


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
    index, distance = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
    memory_budget = affordable(memory_budget)
    rows = max(1, memory_budget // (8 * max(3 * len(reference), 2 * k * reference.shape[1])))
    there = torch.from_numpy(reference).to(device)
    norms = there.square().sum(1)
    for start in range(0, len(queries), rows):
        block = slice(start, start + rows)
        query, candidate = _candidates(queries[block], there, norms, k, exclude[block])
        squared = _squared_distances(queries[block], reference, query, candidate, memory_budget)
        order = np.lexsort((candidate, squared, query))
        first = np.searchsorted(query, np.arange(len(index[block])))[:, None] + np.arange(k)
        index[block], distance[block] = candidate[order[first]], np.sqrt(squared[order[first]])
    return index, distance


def _candidates(
    queries: np.ndarray, reference: torch.Tensor, norms: torch.Tensor, k: int, exclude: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (query, row of reference), int64 (P,), sorted, that contain the k nearest rows of every query.

    norms: |b|² of the reference's rows b.
    """
    x, left_out = torch.from_numpy(queries).to(reference.device), torch.from_numpy(exclude).to(reference.device)
    own = x.square().sum(1)
    squared = torch.addmm(norms[None, :], x, reference.T, alpha=-2).add_(own[:, None])
    some = (left_out >= 0).nonzero()[:, 0]
    squared[some, left_out[some]] = torch.inf
    # |fl(|a|²+|b|²−2ab) − |a−b|²| ≤ e = 2(D+3)u(|a|+|b|)² with u = 2⁻⁵³. The k-th smallest value is at most e above the
    # k-th distance, and the values of the k nearest rows are at most e above their distances: 2e between them; doubled
    error = 8 * (reference.shape[1] + 3) * 2.0**-53 * (own.sqrt() + norms.max().sqrt()).square()
    furthest = squared.topk(k, dim=1, largest=False).values[:, -1] + error
    query, candidate = (squared <= furthest[:, None]).nonzero().cpu().numpy().T
    return query, candidate


def _squared_distances(
    queries: np.ndarray, reference: np.ndarray, query: np.ndarray, candidate: np.ndarray, budget: int
) -> np.ndarray:
    """‖queries[query] − reference[candidate]‖² by direct differences, float64 (P,)."""
    rows = max(1, budget // (24 * reference.shape[1]))
    pairs = ((query[start : start + rows], candidate[start : start + rows]) for start in range(0, len(query), rows))
    return np.concatenate([np.square(queries[a] - reference[b]).sum(axis=1) for a, b in pairs])
