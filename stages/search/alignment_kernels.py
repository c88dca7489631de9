"""Compiled scans of `alignment`."""

import numba
import numpy as np

from stages.search.kernels import squared_distance


@numba.njit(nogil=True, cache=True, boundscheck=False)
def shifted_difference(query, image, dy, dx, count, best_sum, best_count):
    """Sum over the overlap, or -1 as soon as sum/count exceeds best_sum/best_count."""
    height, width, channels = query.shape
    flat_query, flat_image = query.reshape(height, -1), image.reshape(height, -1)
    left, right = max(0, -dx) * channels, (width - max(0, dx)) * channels
    offset = dx * channels
    total = np.int64(0)
    for y in range(max(0, -dy), height - max(0, dy)):
        total += squared_distance(flat_query[y, left:right], flat_image[y + dy, left + offset : right + offset])
        if total * best_count > best_sum * count:
            return np.int64(-1)
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_shifts(queries, reference, candidates, shifts, found):
    """found[q] = row, dy, dx, sum, count of the best candidate and shift; candidates ascend."""
    height, width, channels = queries.shape[1:]
    for q in range(queries.shape[0]):
        row, at = np.int64(-1), 0
        best_sum, best_count = np.int64(255 * 255 + 1), np.int64(1)  # above any mean
        for c in range(candidates.shape[1]):
            candidate = candidates[q, c]
            if candidate < 0 or (c > 0 and candidate == candidates[q, c - 1]):
                continue
            for s in range(shifts.shape[0]):
                dy, dx = shifts[s, 0], shifts[s, 1]
                count = (height - abs(dy)) * (width - abs(dx)) * channels
                total = shifted_difference(queries[q], reference[candidate], dy, dx, count, best_sum, best_count)
                if total >= 0 and total * best_count < best_sum * count:
                    best_sum, best_count, row, at = total, count, candidate, s
        found[q, 0] = row
        if row >= 0:
            found[q, 1], found[q, 2], found[q, 3], found[q, 4] = shifts[at, 0], shifts[at, 1], best_sum, best_count
        else:
            found[q, 1:5] = 0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_tiles(queries, reference, candidates, rows, columns, found):
    """found[q] = least over the candidates of the largest mean squared difference of a tile."""
    height, channels = queries.shape[1], queries.shape[3]
    for q in range(queries.shape[0]):
        best = np.inf
        query = queries[q].reshape(height, -1)
        for c in range(candidates.shape[1]):
            if candidates[q, c] < 0:
                continue
            image = reference[candidates[q, c]].reshape(height, -1)
            worst = 0.0
            for i in range(rows.shape[0] - 1):
                for j in range(columns.shape[0] - 1):
                    a, b = columns[j] * channels, columns[j + 1] * channels
                    total = np.int64(0)
                    for y in range(rows[i], rows[i + 1]):
                        total += squared_distance(query[y, a:b], image[y, a:b])
                    worst = max(worst, total / ((rows[i + 1] - rows[i]) * (b - a)))
                if worst >= best:
                    break
            best = min(best, worst)
        found[q] = best
