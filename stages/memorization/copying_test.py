"""C_T, the data-copying test of Meehan, Chaudhuri & Dasgupta 2020.

In each cell of the image space the distances of generated and of held-out images to the training images in that cell
are compared by the Mann-Whitney U statistic; below 0, generated images lie nearer to the training set than held-out
ones do. C_T is the mean of the cells' z-scores, weighted by the held-out images in them.
"""

import dataclasses
import math

import numpy as np
from scipy.stats import rankdata

from stages.engine.products import spread
from stages.search.nearest import nearest

BLOCK = 1024  # images that are assigned to cells at once


@dataclasses.dataclass(frozen=True)
class CopyingTest:
    """Attributes: c_t (None where no cell could be compared), how many cells were compared and how many there are."""

    c_t: float | None
    cells_used: int
    cells: int


def u_z_score(generated: np.ndarray, held_out: np.ndarray) -> float:
    """Return Z_U of distances (m,) and (n,): (U − mn/2) / √(mn(m+n+1)/12), U = #{generated farther} + ½ #{ties}.

    Negative where generated images are nearer. The variance has no correction for ties, as in the paper.
    """
    m, n = len(generated), len(held_out)
    ranks = rankdata(np.concatenate([generated, held_out]))
    u = ranks[:m].sum() - m * (m + 1) / 2
    return float((u - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12))


def copying_test(
    generated: np.ndarray,
    generated_cell: np.ndarray,
    held_out: np.ndarray,
    held_out_cell: np.ndarray,
    cells: int,
    fewest: int,
) -> CopyingTest:
    """Return C_T over cells 0..cells−1.

    Args:
        generated, held_out: float64 (m,) and (n,), distance to the nearest training image of the image's cell.
        generated_cell, held_out_cell: int64, which cell each image lies in.
        fewest: a cell takes part when it holds at least this many images of both sets.
    """
    scores, weights = [], []
    for cell in range(cells):
        mine, theirs = generated[generated_cell == cell], held_out[held_out_cell == cell]
        if min(len(mine), len(theirs)) >= fewest:
            scores.append(u_z_score(mine, theirs))
            weights.append(len(theirs))
    c_t = float(np.average(scores, weights=weights)) if scores else None
    return CopyingTest(c_t, len(scores), cells)


def cell_centres(images: np.ndarray, count: int, seed: int, rounds: int = 20) -> np.ndarray:
    """Return centres (count, d) of `images` (N, d), float64, by Lloyd's k-means from seeded distinct rows.

    A cell that runs empty keeps its centre. There are fewer centres where there are fewer distinct rows.
    """
    distinct = np.unique(images, axis=0)
    start = np.random.default_rng(seed).permutation(len(distinct))[:count]
    centres = distinct[np.sort(start)].astype(np.float64)
    data = images.astype(np.float64)
    for _ in range(rounds):
        cell = assign(data, centres)
        sizes = np.bincount(cell, minlength=len(centres))
        sums = (cell == np.arange(len(centres))[:, None]).astype(np.float64) @ data
        new = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centres)
        if np.array_equal(new, centres):
            break
        centres = new
    return centres


def assign(images: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the nearest centre of every row, int64 (N,), ties to the lower one."""
    norms, cells = np.square(centres).sum(1), np.empty(len(images), np.int64)

    def some(a: int, b: int) -> None:
        for n in range(a, b):
            block = slice(BLOCK * n, BLOCK * (n + 1))
            cells[block] = np.argmin(norms - 2 * images[block].astype(np.float64) @ centres.T, axis=1)

    spread(some, -(-len(images) // BLOCK))
    return cells


def cell_distances(
    index: np.ndarray, squared: np.ndarray, queries: np.ndarray, cell: np.ndarray, reference: np.ndarray,
    reference_cell: np.ndarray, memory_budget: int = 1 << 30,
) -> np.ndarray:  # fmt: skip
    """Return ‖a−b‖ on the 0..255 scale from each query to the nearest reference image of its cell, float64 (N,).

    Args:
        index, squared: int64 (N, k), each query's exact neighbour list; searched further only where no entry of the
            list lies in the query's cell.
        queries, reference: uint8 (N, d) and (M, d).
        cell, reference_cell: int64 (N,) and (M,); a reference image of cell −1 takes no part.

    Infinite where a cell has no reference image.
    """
    inside = reference_cell[index] == cell[:, None]
    found = np.where(inside.any(1), np.take_along_axis(squared, inside.argmax(1)[:, None], 1)[:, 0], -1)
    result = np.where(found >= 0, np.sqrt(np.maximum(found, 0)), np.inf)
    for missing in np.unique(cell[found < 0]):
        rows, own = np.flatnonzero((found < 0) & (cell == missing)), np.flatnonzero(reference_cell == missing)
        if len(own):
            nearest_squared = nearest(queries[rows], reference[own], 1, memory_budget=memory_budget)[1]
            result[rows] = np.sqrt(nearest_squared[:, 0])
    return result
