"""Compiled loops of `search.alignment` and `search.nearest_short`, and the cell means of reduced images."""

from typing import NamedTuple

import numba
import numpy as np

from stages.engine.row_kernels import inner_bytes, insert, squared_distance
from stages.engine.simd import compare_tile, lowest_bit
from stages.engine.sizes import SCAN_RUN, TILE, TILE_QUERIES

HAS_BYTE_TILES = compare_tile is not None
LARGEST_SCORE = np.int32(2**31 - 1)


class Shifts(NamedTuple):
    """The shifts that are tried, and how an image lies in memory while they are.

    A row of it takes whole vectors, filled up with zeros, in queries and in reference images alike. So one run of
    products adds up all rows of a shift, and what lies outside either image counts as 0.

    Attributes:
        shifts: int64 (P, 2), (dy, dx): query pixel (y, x) lies on reference pixel (y + dy, x + dx).
        counts: int64 (P,), the number of values that overlap.
        top, left: zeros before a reference image's first row and before every row, in bytes.
        step: bytes from one row to the next.
        query_size, image_size: bytes.
    """

    shifts: np.ndarray
    counts: np.ndarray
    top: int
    left: int
    step: int
    query_size: int
    image_size: int


@numba.njit(nogil=True, cache=True, boundscheck=False)
def box_sums(images, rows, boxes, weight, found):
    """found[n, p] = the sum of v² + weight v over the box p of the image rows[n], v = value − 128.

    images: uint8 (M, H, W, C); rows: int64 (N,); boxes: int64 (P, 4), each (first row, last row + 1, first value of a
    row, last value + 1); found: int64 (N, P).
    """
    height, line = images.shape[1], images.shape[2] * images.shape[3]
    above, factor = np.zeros((height + 1, line), np.int32), np.int32(weight)
    for n in range(rows.shape[0]):
        image = images[rows[n]].reshape(height, line)
        for y in range(height):
            for i in range(line):
                value = np.int32(np.int32(image[y, i]) - np.int32(128))
                above[y + 1, i] = np.int32(above[y, i] + np.int32(value * np.int32(value + factor)))
        for p in range(boxes.shape[0]):
            low, high, total = above[boxes[p, 0]], above[boxes[p, 1]], np.int64(0)
            for i in range(boxes[p, 2], boxes[p, 3]):
                total += np.int64(high[i]) - np.int64(low[i])
            found[n, p] = total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def lay_out(image, first, step, flipped, room):
    """Copy an image, uint8 (H, W · C), into `room` from byte `first` on, rows `step` apart, exclusive-or `flipped`."""
    for y in range(image.shape[0]):
        line = room[first + y * step : first + y * step + image.shape[1]]
        for i in range(line.shape[0]):
            line[i] = image[y, i] ^ flipped


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_shifts(queries, reference, candidates, tried, own, others, places, found):
    """found[q] = row, dy, dx, sum, count of the candidate and shift with the least mean squared difference.

    queries: uint8 (Q, h, w, C); reference: uint8 (M, H, W, C); candidates (Q, S) ascend, -1: none; tried: `Shifts`.
    Ties go to the lower row, then to the earlier shift. With a and b the values less 128, the sum over the overlap is
    (Σ a² + 256 Σ a) + Σ b² − 2 Σ a (b + 128): own, int64 (Q, P), has the first, others, int64 (U, P), the second for
    the distinct candidates, of which `places`, int64 (Q, S), are the candidates' numbers. 18 times as fast as NumPy's
    float32 differences, a shift at a time.
    """
    height, width, channels = reference.shape[1:]
    corner = tried.top + tried.left
    query, image = np.zeros(tried.query_size, np.uint8), np.zeros(tried.image_size, np.uint8)
    for q in range(queries.shape[0]):
        lay_out(queries[q].reshape(queries.shape[1], -1), 0, tried.step, np.uint8(128), query)
        row, at = np.int64(-1), 0
        best_sum, best_count = np.int64(255 * 255 + 1), np.int64(1)  # above any mean
        for c in range(candidates.shape[1]):
            candidate = candidates[q, c]
            if candidate < 0 or (c > 0 and candidate == candidates[q, c - 1]):
                continue
            lay_out(reference[candidate].reshape(height, width * channels), corner, tried.step, np.uint8(0), image)
            for s in range(tried.shifts.shape[0]):
                first = corner + tried.shifts[s, 0] * tried.step + tried.shifts[s, 1] * channels
                inner = inner_bytes(image[first : first + tried.query_size], query.view(np.int8))
                total, count = own[q, s] + others[places[q, c], s] - 2 * inner, tried.counts[s]
                if total * best_count < best_sum * count:
                    best_sum, best_count, row, at = total, count, candidate, s
        found[q, 0] = row
        if row >= 0:
            found[q, 1], found[q, 2] = tried.shifts[at, 0], tried.shifts[at, 1]
            found[q, 3], found[q, 4] = best_sum, best_count
        else:
            found[q, 1:5] = 0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_tiles(queries, reference, candidates, rows, columns, found):
    """found[q] = the least, over the candidates, of the largest mean squared difference of a tile, float64.

    6.7 times as fast as NumPy's float32 differences.
    """
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def cell_means(images, rows, columns, means):
    """means[n], uint8 (cells · C,) = the means of image n between the edges `rows` and `columns`, rounded half up.

    6.7 times as fast as NumPy's means.
    """
    for n in range(images.shape[0]):
        at = 0
        for i in range(rows.shape[0] - 1):
            for j in range(columns.shape[0] - 1):
                area = (rows[i + 1] - rows[i]) * (columns[j + 1] - columns[j])
                for c in range(images.shape[3]):
                    total = np.int64(area // 2)
                    for y in range(rows[i], rows[i + 1]):
                        for x in range(columns[j], columns[j + 1]):
                            total += images[n, y, x, c]
                    means[n, at] = total // area
                    at += 1


@numba.njit(nogil=True, cache=True, fastmath={"nnan", "nsz"}, boundscheck=False)
def lowest(inner, norms):
    """The least ‖y‖² − 2 x·y. A running minimum, which the compiler vectorises; it does not vectorise a count."""
    low = np.int32(norms[0] - np.int32(2) * inner[0])
    for j in range(inner.shape[0]):
        low = min(low, np.int32(norms[j] - np.int32(2) * inner[j]))
    return low


@numba.njit(nogil=True, cache=True, boundscheck=False)
def keep_lowest(inner, norms, first, count, keys):
    """Offer the references first, first + 1, ... to the ascending `keys`, int64 (Q, k).

    A key is (‖y‖² − 2 x·y) · count + row, which orders a query's references by distance, ties by row.
    inner: int32 (Q, C), the products x·y; norms: int32 (C,), ‖y‖². 2.7 times as fast as numpy.argpartition.
    """
    for q in range(inner.shape[0]):
        room = admitted(keys[q], count)
        for start in range(0, inner.shape[1], SCAN_RUN):
            stop = min(start + SCAN_RUN, inner.shape[1])
            if lowest(inner[q, start:stop], norms[start:stop]) > room:
                continue
            for j in range(start, stop):
                score = np.int32(norms[j] - np.int32(2) * inner[q, j])
                if score <= room:
                    insert(keys[q], np.int64(score) * count + first + j)
            room = admitted(keys[q], count)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def admitted(keys, count):
    """The largest score that may still enter `keys`."""
    return np.int32(min(keys[keys.shape[0] - 1] // count, np.int64(2**31 - 1)))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def scan_tiles(queries, packed, norms, count, keys):
    """Offer all references to the ascending `keys`, int64 (Q, k), as of `keep_lowest`, with bytes not less 128.

    queries: int8 (Q, 4 K), values less 128, Q a multiple of TILE_QUERIES; packed: uint8 (T, K, 8, 16, 4), row 128 t +
    16 v + i at [t, :, v, i]; norms: int32 (T, 128), Σ (y − 128)²; count: how many rows there are. Needs VNNI.
    """
    words = np.int64(packed.shape[1])
    scores, bits = np.empty((TILE_QUERIES, TILE), np.int32), np.empty((TILE_QUERIES, TILE // 16), np.int16)
    rooms = np.full(queries.shape[0], LARGEST_SCORE, np.int32)
    own, results = np.int64(scores.ctypes.data), np.int64(bits.ctypes.data)
    for t in range(packed.shape[0]):
        tile, lengths = np.int64(packed[t].ctypes.data), np.int64(norms[t].ctypes.data)
        for q in range(0, queries.shape[0], TILE_QUERIES):
            left, limits = np.int64(queries[q].ctypes.data), np.int64(rooms.ctypes.data + 4 * q)
            if compare_tile(left, tile, lengths, limits, words, own, results):
                for j in range(TILE_QUERIES):
                    offer(scores[j], bits[j], t * TILE, count, keys[q + j])
                    rooms[q + j] = admitted(keys[q + j], count)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def offer(scores, bits, first, count, keys):
    """Offer the references first, first + 1, … whose bits are set to `keys`, unless there are no more than `count`."""
    for v in range(bits.shape[0]):
        left = np.int64(bits[v]) & np.int64(0xFFFF)
        while left:
            at = 16 * v + lowest_bit(left)
            left &= left - 1
            if first + at < count:
                insert(keys, np.int64(scores[at]) * count + first + at)
