"""Compiled loops of the bounded search: coordinates, coarse scores, candidates that pass the bound, exact distances.

A tile is 3 queries × 128 references. Its 24 vectors of 16 running sums stay in registers while pairs of int16 are
multiplied and added. The upper halves of the sums are stored, and the maximum of every 4 references.

`x` is the queries' `Coordinates`, `y` the references' `Tiles`, `scores` a `Scores`, `search` a `KnownQueries`. Loops
over queries take the range [start, stop), whose scores begin at 0.
"""

from types import FunctionType

import numba
import numpy as np

from stages.engine.row_kernels import inner_bytes, inner_shorts, insert, prefetch, squared_distance
from stages.engine.simd import lowest_bit, places_above, score_tile, tile_function
from stages.engine.sizes import FILLER_SUM, GROUP, LANES, NO_KEY, SCAN_RUN, SCORE_BITS, TILE, TILE_QUERIES

SPAN_BYTES = 1 << 19  # of references that stay in the second cache while all queries meet them
TILE_VISITS = 8  # tiles of queries that meet one tile of references while it is in the first cache
ROWS_AHEAD, IMAGES_AHEAD = 8, 2  # fetched before they are read; 1.15 times as long without
MEASURED_AT_ONCE = 32  # images measured before the list of the nearest gives a stricter bound
MEASURED = np.int16(-(2**15))  # the score of references that have been measured
FIRST_PER_NEIGHBOR, FIRST_MORE = 2, 8  # references with high scores measured first: for each neighbour, and on top


@numba.njit(nogil=True, cache=True, boundscheck=False)
def round_rows(raw, origin, factor, leading, rows, first):
    """Fill the rows from `first` on of the `Coordinates` `rows`, whose `squared` is there, from raw − origin.

    raw: integers (N, p); origin: int64 (p,); factor: float64 (p,), what an integer is in units of 1/scale.
    """
    at, scale = rows.coarse.shape[1] - 2, rows.scale
    for r in range(raw.shape[0]):
        row = first + r
        before = after = off = later = 0.0
        for i in range(factor.shape[0]):
            exact = np.float64(np.int64(raw[r, i]) - origin[i]) * factor[i]
            nearest = np.rint(exact)
            before += exact * exact
            after += nearest * nearest
            off += (exact - nearest) * (exact - nearest)
            if i < leading:
                rows.coarse[row, i] = np.int16(nearest)
            else:
                rows.fine[row, 1 + i - leading] = np.int16(nearest)
                later += exact * exact
        whole = scale * scale * np.float64(rows.squared[row])
        if leading < factor.shape[0]:
            rows.coarse[row, at] = rows.fine[row, 0] = np.int16(np.ceil(np.sqrt(later) + 0.01))
        rows.coarse[row, at + 1] = np.int16(np.ceil(np.sqrt(max(whole - before, 0.0)) + 0.25))
        rows.added[row] = np.int32(np.ceil(-0.5 * whole))
        rows.length[row], rows.error[row] = np.sqrt(max(before, after)), np.sqrt(off)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def score_tiles(x, packed, added, scores, maxima, first):
    """scores[q, t, j, g] = (x_q · y + added) / 65536, rounded down, of reference 4 (32 t + g) + j, t ≥ first.

    x: int32 (Q, K), each word two int16, Q a multiple of 3; packed: int32 (T, K, 4, 2, 16), added: int32 (T, 4, 2, 16)
    from `tiled.pack`. scores: int16 (Q, T, 4, 32); maxima: int16 (Q, 32 T), the maxima over j. All C-contiguous.
    8.4 times as fast as torch's float32 product with NumPy's maximum.
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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def kept_cut(cut):
    """The lowest score, as scores are kept, of a reference whose sum is not below `cut`."""
    return np.int16(cut >> SCORE_BITS)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def highest(values):
    """The largest value, by a loop that is compiled to vectors."""
    top = values[0]
    for i in range(values.shape[0]):
        top = max(top, values[i])
    return top


@numba.njit(nogil=True, cache=True, boundscheck=False)
def high_scores(sums, maxima, places):
    """Some references with high coarse scores, found fast: the best one of many runs of groups, of these the best.

    Into `places`; their scores become MEASURED. Returns their number.
    """
    width = 1
    while 6 * width * places.shape[0] <= maxima.shape[0]:  # a power of two: whole vectors
        width *= 2
    best = np.empty(-(-maxima.shape[0] // width), np.int16)
    for run in range(best.shape[0]):
        best[run] = highest(maxima[run * width : (run + 1) * width])
    spare = max(0, best.shape[0] - places.shape[0])
    least, n = max(np.partition(best, spare)[spare], np.int16(MEASURED + 1)), 0
    for run in range(best.shape[0]):
        if best[run] < least or n == places.shape[0]:
            continue
        group, j = run * width, 0
        while maxima[group] < best[run]:
            group += 1
        while sums[group // LANES, j, group % LANES] < best[run]:
            j += 1
        sums[group // LANES, j, group % LANES] = MEASURED
        places[n] = GROUP * group + j
        n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def lowest_sum(radius, x, q):
    """The lowest sum of a reference whose squared distance from query q may be `radius`.

    scale² radius ≥ the bound, which is scale² squared − 2 (sum + slack).
    """
    cut = np.floor(x.scale * x.scale * (np.float64(x.squared[q]) - np.float64(radius)) / 2 - x.slack[q]) - 1
    return np.int32(max(np.float64(FILLER_SUM), min(cut, np.float64(-(FILLER_SUM + 2)))))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def entry_sum(search, x, q):
    """The lowest sum with which a reference may enter query q's keys."""
    last = search.keys[q, search.keys.shape[1] - 1]
    return FILLER_SUM if last == NO_KEY else lowest_sum(last // search.reference.shape[0], x, q)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def groups_above(maxima, cut):
    """The number of groups that have a reference with a coarse score ≥ `cut`, as scores are kept."""
    n = np.int32(0)
    for group in range(maxima.shape[0]):
        n += np.int32(maxima[group] >= cut)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def coarse_survivors(sums, size, first, cut, largest, places):
    """References in [first, size) whose sum may be ≥ `cut`, into `places`, and the largest possible sum of each, into
    `largest`; returns their number."""
    least, address, n = kept_cut(cut), np.int64(sums.ctypes.data), 0
    for tile in range(first // TILE, sums.shape[0]):
        for j in range(GROUP):
            above = places_above(address + (tile * GROUP + j) * np.int64(sums.itemsize * LANES), least)
            while above:
                lane = lowest_bit(above)
                above &= above - 1
                place = GROUP * (tile * LANES + lane) + j
                if place >= first and place < size:
                    largest[n] = (np.int32(sums[tile, j, lane]) << SCORE_BITS) | np.int32((1 << SCORE_BITS) - 1)
                    places[n] = place
                    n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def fine_survivors(n, query, fine, cut, largest, places):
    """Of the first n references in `places` those whose fine sums may be ≥ `cut` too, in the same place; returns their
    number. query: int16 (F,), fine: int16 (M, F)."""
    if fine.shape[1] == 0:
        return n
    rows, width, m = np.int64(fine.ctypes.data), np.int64(fine.strides[0]), 0
    for i in range(-ROWS_AHEAD, n):
        if i + ROWS_AHEAD < n:
            ahead = rows + places[i + ROWS_AHEAD] * width
            prefetch(ahead, ahead + width)
        if i < 0:
            continue
        largest[m], places[m] = np.int32(largest[i] + inner_shorts(query, fine[places[i]])), places[i]
        m += largest[m] >= cut
    return m


@numba.njit(nogil=True, cache=True, boundscheck=False)
def measure(places, n, y, search, q):
    """Offer the references at the first n of `places` to query q's keys, with their exact squared distances."""
    reference, query, count = search.reference, search.queries[q], search.reference.shape[0]
    rows, size = np.int64(reference.ctypes.data), np.int64(reference.strides[0])
    for i in range(n):
        if i + IMAGES_AHEAD < n:
            ahead = rows + y.order[places[i + IMAGES_AHEAD]] * size
            prefetch(ahead, ahead + size)
        row = y.order[places[i]]
        if row != search.exclude[q]:
            squared = search.base[q] + y.rows.norms[places[i]] - 2 * inner_bytes(reference[row], query)
            insert(search.keys[q], squared * count + row)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def mark(sums, cut, wanted):
    """Mark in the bool array `wanted` where scores are ≥ `cut`, as scores are kept."""
    for i in range(sums.shape[0]):
        wanted[i] |= sums[i] >= cut


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_block(scores, x, y, search, start, stop, limit, given_up, wanted):
    """Finish the queries [start, stop) over one span of the reference, given their coarse scores.

    Every reference that the bound lets through is measured and offered to the query's keys. A query with candidates in
    more than `limit` groups is marked in `given_up`, bool (Q,), and the candidates in `wanted`, bool (T, 4, 32): exact
    products finish it.
    """
    first = np.empty(FIRST_PER_NEIGHBOR * search.keys.shape[1] + FIRST_MORE, np.int64)
    largest, places = np.empty(y.order.shape[0], np.int32), np.empty(y.order.shape[0], np.int64)
    for q in range(start, stop):
        sums, maxima = scores.sums[q - start], scores.maxima[q - start]
        if search.keys[q, search.keys.shape[1] - 1] == NO_KEY:
            measure(first, high_scores(sums, maxima, first), y, search, q)
        cut = entry_sum(search, x, q)
        if groups_above(maxima, kept_cut(cut)) > limit:
            measure(y.central, y.central.shape[0], y, search, q)
            cut = entry_sum(search, x, q)
        given_up[q] = groups_above(maxima, kept_cut(cut)) > limit
        if given_up[q]:
            mark(sums.reshape(-1), kept_cut(cut), wanted.reshape(-1))
            continue
        n = coarse_survivors(sums, y.order.shape[0], 0, cut, largest, places)
        n = fine_survivors(n, x.fine[q], y.rows.fine, cut, largest, places)
        for a in range(0, n, MEASURED_AT_ONCE):
            cut = entry_sum(search, x, q)
            b, m = min(a + MEASURED_AT_ONCE, n), a
            for i in range(a, b):
                if largest[i] >= cut:
                    places[m] = places[i]
                    m += 1
            measure(places[a:m], m - a, y, search, q)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def join_block(scores, x, y, images, offset, start, stop, radius, found):
    """Pairs i < j within `radius` of the rows i = offset + q, q in [start, stop), and one span: into `found`, (3, n).

    Returns their number, or −1 if `found` might not hold them. `y.order` ascends.
    """
    largest, places = np.empty(y.order.shape[0], np.int32), np.empty(y.order.shape[0], np.int64)
    n = 0
    for q in range(start, stop):
        i, cut = offset + q, lowest_sum(radius, x, q)
        first = max(0, i + 1 - y.order[0])
        m = coarse_survivors(scores.sums[q - start], y.order.shape[0], first, cut, largest, places)
        m = fine_survivors(m, x.fine[q], y.rows.fine, cut, largest, places)
        if n + m > found.shape[1]:
            return -1
        for s in range(m):
            j = y.order[places[s]]
            distance = squared_distance(images[i], images[j])
            if distance <= radius:
                found[0, n], found[1, n], found[2, n] = i, j, distance
                n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def dense_block(inner, norms_x, norms_y, rows, count, exclude, keys):
    """Offer the references `rows` (C,) of `count` to `keys`, given their exact inner products `inner` (Q, C).

    2 times as fast as numpy.argpartition.
    """
    k = keys.shape[1]
    for q in range(inner.shape[0]):
        room = keys[q, k - 1] // count - norms_x[q]
        for start in range(0, inner.shape[1], SCAN_RUN):
            stop, least = min(start + SCAN_RUN, inner.shape[1]), NO_KEY
            for j in range(start, stop):
                least = min(least, norms_y[j] - 2 * np.int64(inner[q, j]))
            if least > room:
                continue
            for j in range(start, stop):
                key = (norms_x[q] + norms_y[j] - 2 * np.int64(inner[q, j])) * count + rows[j]
                if key < keys[q, k - 1] and rows[j] != exclude[q]:
                    insert(keys[q], key)
            room = keys[q, k - 1] // count - norms_x[q]
