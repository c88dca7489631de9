"""Compiled scans: which candidates pass the bound, and their exact distances. Imported where a search is large."""

import numba
import numpy as np

EMPTY = np.int64(2**63 - 1)
DEPTH = 16_384  # pixels whose squared differences fit an int32


@numba.njit(nogil=True, cache=True, boundscheck=False)
def squared_distance(a, b):
    """‖a−b‖² of two uint8 vectors, int64."""
    total = np.int64(0)
    for start in range(0, a.shape[0], DEPTH):
        x, y = a[start : start + DEPTH], b[start : start + DEPTH]
        part = np.int32(0)
        for i in range(x.shape[0]):  # int16 differences let the compiler use multiply-and-add-pairs
            difference = np.int16(np.int16(x[i]) - np.int16(y[i]))
            part = np.int32(part + np.int32(np.int32(difference) * np.int32(difference)))
        total += np.int64(part)
    return total


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, boundscheck=False)
def dot(a, b):
    """Inner product of float32 vectors, summed in any order (`slack` allows for it)."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def insert(keys, key):
    """Put `key` into the ascending list `keys` unless it is there already or too large; the last one falls out."""
    if key >= keys[keys.shape[0] - 1]:
        return
    position = keys.shape[0] - 1
    while position > 0 and keys[position - 1] > key:
        position -= 1
    if position > 0 and keys[position - 1] == key:
        return
    for i in range(keys.shape[0] - 1, position, -1):
        keys[i] = keys[i - 1]
    keys[position] = key


@numba.njit(nogil=True, cache=True, boundscheck=False)
def passing(row, threshold, found):
    """Positions with row[j] >= threshold, written to `found` (as long as row); returns how many."""
    n = 0
    for j in range(row.shape[0]):
        found[n] = j
        n += row[j] >= threshold
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def keep_high(value, position, n, values, positions):
    """Put (value, position) into the descending list `values`, of which n are filled; returns the new n."""
    size = values.shape[0]
    if n == size and value <= values[size - 1]:
        return n
    i = n if n < size else size - 1
    while i > 0 and values[i - 1] < value:
        values[i], positions[i] = values[i - 1], positions[i - 1]
        i -= 1
    values[i], positions[i] = value, position
    return min(n + 1, size)


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"}, boundscheck=False)
def highest(values):
    """The largest of finite values."""
    top = values[0]
    for i in range(values.shape[0]):
        top = max(top, values[i])
    return top


@numba.njit(nogil=True, cache=True, boundscheck=False)
def high_scores(row, values, positions):
    """Some positions with high scores, found fast: the best of each of many groups, then the best of those."""
    width = max(1, row.shape[0] // (4 * values.shape[0]))
    n = 0
    for start in range(0, row.shape[0], width):
        group = row[start : start + width]
        top = highest(group)
        if n == values.shape[0] and top <= values[n - 1]:
            continue
        j = 0
        while group[j] < top:
            j += 1
        n = keep_high(top, start + j, n, values, positions)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def seeds(row, fine_x, fine_y, values, positions, best, at):
    """Positions of good candidates, into `at`: the best by the fine bound among many by the coarse one."""
    n = 0
    for i in range(high_scores(row, values, positions)):
        j = positions[i]
        n = keep_high(row[j] + dot(fine_x, fine_y[j]), j, n, best, at)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def threshold(keys, count, squared, slack):
    """The score below which the bound proves that nothing enters `keys`: bound = squared − 2 score > worst kept."""
    last = keys[keys.shape[0] - 1]
    if last == EMPTY:
        return np.float64(-np.inf)
    return (squared - np.float64(last // count)) / 2 - slack


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_block(scores, fine_x, fine_y, squared, slack, queries, reference, offset, count, exclude, keys, hard, limit):
    """Finish one block: every candidate whose bound allows it is measured in integers and offered to `keys`.

    A query with more than `limit` candidates is marked in `hard` and left to the dense search.
    """
    k = keys.shape[1]
    found = np.empty(scores.shape[1] + 1, np.int64)
    best, at = np.empty(k, np.float32), np.empty(k, np.int64)
    values, positions = np.empty(4 * k, np.float32), np.empty(4 * k, np.int64)
    last = fine_x.shape[1] - 1
    for q in range(scores.shape[0]):
        row = scores[q]
        if keys[q, k - 1] == EMPTY:
            for i in range(seeds(row, fine_x[q], fine_y, values, positions, best, at)):
                if at[i] + offset != exclude[q]:
                    insert(keys[q], squared_distance(queries[q], reference[at[i]]) * count + at[i] + offset)
        cut = threshold(keys[q], count, squared[q], slack[q])
        n = passing(row, np.float32(cut), found)
        if n > limit:
            hard[q] = True
            continue
        for i in range(n):
            j = found[i]
            if row[j] < cut or j + offset == exclude[q]:
                continue
            if last > 0 and row[j] + dot(fine_x[q], fine_y[j]) < cut:
                continue
            key = squared_distance(queries[q], reference[j]) * count + j + offset
            if key < keys[q, k - 1]:
                insert(keys[q], key)
                cut = threshold(keys[q], count, squared[q], slack[q])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def dense_block(inner, norms_x, norms_y, offset, count, exclude, keys):
    """Offer every candidate of exact inner products `inner` (Q, C) to `keys`."""
    k = keys.shape[1]
    found = np.empty(inner.shape[1] + 1, np.int64)
    for q in range(inner.shape[0]):
        worst = keys[q, k - 1] // count
        n = 0
        for j in range(inner.shape[1]):
            found[n] = j
            n += norms_x[q] + norms_y[j] - 2 * np.int64(inner[q, j]) <= worst
        for i in range(n):
            j = found[i]
            key = (norms_x[q] + norms_y[j] - 2 * np.int64(inner[q, j])) * count + j + offset
            if key < keys[q, k - 1] and j + offset != exclude[q]:
                insert(keys[q], key)
