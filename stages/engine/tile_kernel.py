"""The compiled inner loop of the bounded search: the coarse score of every reference, and the best of every group.

A tile is 3 queries × 128 references. Its 24 vectors of 16 running sums stay in registers while pairs of int16 are
multiplied and added. The upper halves of the sums are stored, and the maximum of every 4 references.
"""

from types import FunctionType

import numba
import numpy as np

from stages.engine.simd import score_tile, tile_function
from stages.engine.sizes import LANES, TILE_QUERIES

SPAN_BYTES = 1 << 19  # of references that stay in the second cache while all queries meet them
TILE_VISITS = 8  # tiles of queries that meet one tile of references while it is in the first cache


@numba.njit(nogil=True, cache=True, boundscheck=False)
def score_tiles(x, packed, added, scores, maxima, first):
    """scores[q, t, j, g] = (x_q · y + added) / 65536, rounded down, of reference 4 (32 t + g) + j, t ≥ first.

    x: int32 (Q, K), each word two int16, Q a multiple of 3; packed: int32 (T, K, 4, 2, 16), added: int32 (T, 4, 2, 16)
    from `tiled.pack`. scores: int16 (Q, T, 4, 32); maxima: int16 (Q, 32 T), the maxima over j. All C-contiguous.
    """
    tiles, words = np.int64(packed.shape[0]), np.int64(packed.shape[1])
    span, few = max(1, SPAN_BYTES // packed.strides[0]), TILE_QUERIES * TILE_VISITS
    for start in range(first, tiles, span):
        for block in range(0, x.shape[0], few):
            for t in range(start, min(start + span, tiles)):
                y, alone = packed.ctypes.data + t * packed.strides[0], added.ctypes.data + t * added.strides[0]
                for q in range(block, min(block + few, x.shape[0]), TILE_QUERIES):
                    left = x.ctypes.data + q * x.strides[0]
                    own_scores = scores.ctypes.data + q * scores.strides[0] + t * scores.strides[1]
                    own_maxima = maxima.ctypes.data + q * maxima.strides[0] + t * LANES * maxima.strides[1]
                    sides = np.int64(left), np.int64(y), np.int64(alone)
                    score_tile(*sides, words, np.int64(own_scores), np.int64(own_maxima), tiles)


def score_function(features: set[str]):
    """`score_tiles` compiled anew for a processor with these vector features."""
    names = {**globals(), "score_tile": tile_function(features)}
    return numba.njit(nogil=True, boundscheck=False)(FunctionType(score_tiles.py_func.__code__, names))
