"""Compiled scans: which candidates pass the bound, and their exact distances. Imported where a search is large."""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stages.search.byte_products import inner_bytes
from stages.search.projection import WIDTH
from stages.search.tile_scores import dot_vectors
from stages.search.tiled import GROUP, LANES, LOWEST

EMPTY = np.int64(2**63 - 1)
LINE = 64  # bytes of a cache line
AHEAD = 8  # rows of coordinates asked for before they are read
NEXT = 2  # images asked for before they are read
RUN = 64  # references of a dense block that are looked at together
PIECE = 32  # images measured under one cut
SEEDS = 2  # groups looked at for each neighbour that is asked for
DEPTH = 16_384  # pixels whose squared differences fit an int32


@intrinsic
def _fetch(typing, address):
    """Ask for the cache line at an address (int64) that is going to be read soon."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, second_cache, data = 0, 2, 1  # the second cache takes more requests at a time than the first
        builder.call(function, [pointer, *(ir.Constant(word, value) for value in (to_read, second_cache, data))])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@numba.njit(nogil=True, cache=True, boundscheck=False)
def fetch(start, stop):
    """Ask for the bytes between two addresses before they are needed: memory is slower than what is done with it."""
    for address in range(start, stop, LINE):
        _fetch(address)


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


@numba.njit(nogil=True, cache=True, boundscheck=False)
def fine_score(score, x, y, levels, cut):
    """The score at the last of the columns `levels`, where levels end, or at the first that is below `cut`.

    score: at the first level, from `score_tiles`; x, y: addresses of rows of coordinates.
    """
    for level in range(1, levels.shape[0]):
        if score < cut:
            break
        start, stop = levels[level - 1], levels[level]
        score = np.int32(score + dot_vectors(x + 2 * start, y + 2 * start, (stop - start) // WIDTH))
    return score


@numba.njit(nogil=True, cache=True, boundscheck=False)
def squared_lengths(images, out):
    """‖x − 128‖² of the rows of uint8 images, into the int64 array `out`."""
    for row in range(images.shape[0]):
        total = np.int64(0)
        for start in range(0, images.shape[1], DEPTH):
            x = images[row, start : start + DEPTH]
            part = np.int32(0)
            for i in range(x.shape[0]):
                difference = np.int16(np.int16(x[i]) - np.int16(128))
                part = np.int32(part + np.int32(np.int32(difference) * np.int32(difference)))
            total += np.int64(part)
        out[row] = total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def round_rows(raw, origin, factor, squared, scale, levels, directions, edges, rows, length, error):
    """Fill `rows`, `length` and `error` of `projection.Coordinates` from the integers `raw` − origin.

    raw: (N, p); origin: int64 (p,); factor: float64 (p,), what an integer is in units of 1/scale.

    edges: int64 (L, most groups + 1), the edges of each level's groups, then −1.
    """
    exact, nearest = np.empty((2, factor.shape[0]))
    for r in range(raw.shape[0]):
        for i in range(factor.shape[0]):
            exact[i] = np.float64(np.int64(raw[r, i]) - origin[i]) * factor[i]
            nearest[i] = np.rint(exact[i])
        before = after = off = 0.0
        for i in range(factor.shape[0]):
            before += exact[i] * exact[i]
            after += nearest[i] * nearest[i]
            off += (exact[i] - nearest[i]) * (exact[i] - nearest[i])
        length[r], error[r] = np.sqrt(max(before, after)), np.sqrt(off)
        outside = np.sqrt(max(scale * scale * np.float64(squared[r]) - before, 0.0))
        column = kept = many = 0
        for level in range(levels.shape[0]):
            for i in range(many):  # the lengths of the level before
                rows[r, column + i] = rows[r, kept + i]
            column += many
            for i in range(directions[level - 1] if level else 0, directions[level]):
                rows[r, column] = np.int16(nearest[i])
                column += 1
            kept, many = column, 1
            while many < edges.shape[1] and edges[level, many] >= 0:
                inside = 0.0
                for i in range(edges[level, many - 1], edges[level, many]):
                    inside += exact[i] * exact[i]
                rows[r, column] = np.int16(np.ceil(np.sqrt(inside) + 0.01))
                column += 1
                many += 1
            rows[r, column] = np.int16(np.ceil(outside + 0.25))
            column = levels[level]


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
def lowest_score(radius, squared, scale, slack):
    """The lowest score of a reference whose squared distance may be `radius`: scale² radius ≥ the bound, which is
    scale² squared − 2 (score + slack)."""
    cut = np.floor(scale * scale * (np.float64(squared) - np.float64(radius)) / 2 - slack) - 1
    return np.int32(max(np.float64(LOWEST), min(cut, np.float64(-(LOWEST + 2)))))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def cut_of(keys, count, squared, scale, slack):
    """The lowest score with which a reference may enter `keys`."""
    last = keys[keys.shape[0] - 1]
    return LOWEST if last == EMPTY else lowest_score(last // count, squared, scale, slack)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def seeds(scores, maxima, x, y, levels, best, at):
    """Good references, into `at`: the best by the fine score of those that are their groups' best by the coarse one."""
    values, places = np.empty(SEEDS * best.shape[0], np.int32), np.empty(SEEDS * best.shape[0], np.int64)
    left, rows, row = np.int64(x.ctypes.data), np.int64(y.ctypes.data), np.int64(y.strides[0])
    found = high_scores(maxima, values, places)
    while values[found - 1] == LOWEST:
        found -= 1
    for i in range(found):
        tile, lane = places[i] // LANES, places[i] % LANES
        v = 0
        while scores[tile, v, lane] < values[i]:
            v += 1
        places[i] = GROUP * places[i] + v
        fetch(rows + places[i] * row + 2 * levels[0], rows + (places[i] + 1) * row)
    n = 0
    for i in range(found):
        if n < best.shape[0] or values[i] > best[n - 1]:
            n = keep_high(fine_score(values[i], left, rows + places[i] * row, levels, LOWEST), places[i], n, best, at)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def groups_above(maxima, cut):
    """How many groups have a reference with a coarse score ≥ `cut`."""
    n = np.int32(0)
    for group in range(maxima.shape[0]):
        n += np.int32(maxima[group] >= cut)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def coarse_survivors(scores, maxima, size, first, cut, kept, at):
    """References in [first, size) with a coarse score ≥ `cut`, into `kept` and `at`, which has room for all
    groups and one more behind `size`; their number."""
    groups, first_score = at[size:], np.int64(scores.ctypes.data)
    found = 0
    for group in range(first // GROUP, maxima.shape[0]):
        groups[found] = group
        found += maxima[group] >= cut
    n = 0
    for i in range(found):
        if i + AHEAD < found:
            ahead = groups[i + AHEAD]
            line = first_score + (ahead // LANES * GROUP * LANES + ahead % LANES) * scores.itemsize
            fetch(line, line + GROUP * LINE)
        tile, lane = groups[i] // LANES, groups[i] % LANES
        for v in range(GROUP):
            j = GROUP * groups[i] + v
            if scores[tile, v, lane] >= cut and j >= first and j < size:
                kept[n], at[n] = scores[tile, v, lane], j
                n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def fine_survivors(n, x, y, levels, cut, kept, at):
    """Those of the n references in `kept` and `at` whose fine score is ≥ `cut` too, in the same place; their number."""
    left, rows, row = np.int64(x.ctypes.data), np.int64(y.ctypes.data), np.int64(y.strides[0])
    m = 0
    for i in range(-AHEAD, n):
        if i + AHEAD < n:
            fetch(rows + at[i + AHEAD] * row + 2 * levels[0], rows + (at[i + AHEAD] + 1) * row)
        if i < 0:
            continue
        score = fine_score(kept[i], left, rows + at[i] * row, levels, cut)
        if score >= cut:
            kept[m], at[m] = score, at[i]
            m += 1
    return m


@numba.njit(nogil=True, cache=True, boundscheck=False)
def measure(places, n, order, exclude, query, base, reference, norms, count, keys):
    """Offer the references at the first n of `places` to `keys`, measured in integers.

    base: ‖x−128‖² + 256 Σ(x−128), so that ‖x−y‖² = base + ‖y−128‖² − 2 y·(x−128) with y as unsigned bytes.
    """
    rows, size = np.int64(reference.ctypes.data), np.int64(reference.strides[0])
    for i in range(n):
        if i + NEXT < n:
            ahead = rows + order[places[i + NEXT]] * size
            fetch(ahead, ahead + size)
        row = order[places[i]]
        if row != exclude:
            squared = base + norms[places[i]] - 2 * inner_bytes(reference[row], query)
            insert(keys, squared * count + row)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_block(
    scores, maxima, x, squared, slack, scale, y, levels, order, norms, central, queries, base, reference, count,
    exclude, keys, hard, limit, wanted,
):  # fmt: skip
    """Finish some queries over one span of the reference, given their coarse scores.

    Every reference that the bound lets through is measured in integers and offered to `keys`. A query with coarse
    survivors in more than `limit` groups is marked in `hard`, and they in `wanted`, a bool per group: the dense search
    finishes it.

    scores: int32 (Q, T, 8, 16) and maxima: int32 (Q, 16 T) from `score_tiles`; x: int16 (Q, W); squared: int64, slack:
    float64 (Q,), of the queries; y: int16 (M, W), the span's references in the order in which they are grouped;
    order, norms: int64 (M,), their rows in `reference` and their ‖y−128‖²; central: int64, places tried for queries
    that are far from everything; queries: int8 (Q, d), x−128; base: int64 (Q,), see `measure`.
    """
    k = keys.shape[1]
    best, first = np.empty(k, np.int32), np.empty(k, np.int64)
    fine, at = np.empty(y.shape[0], np.int32), np.empty(y.shape[0] + maxima.shape[1] + 1, np.int64)
    for q in range(x.shape[0]):
        known = exclude[q], queries[q], base[q], reference, norms, count, keys[q]
        if keys[q, k - 1] == EMPTY:
            measure(first, seeds(scores[q], maxima[q], x[q], y, levels, best, first), order, *known)
        cut = cut_of(keys[q], count, squared[q], scale, slack[q])
        if groups_above(maxima[q], cut) > limit:
            measure(central, central.shape[0], order, *known)
            cut = cut_of(keys[q], count, squared[q], scale, slack[q])
        hard[q] = groups_above(maxima[q], cut) > limit
        if hard[q]:
            for group in range(wanted.shape[0]):
                if maxima[q, group] >= cut:  # and nothing else is written: other threads write here, too
                    wanted[group] = True
            continue
        n = coarse_survivors(scores[q], maxima[q], y.shape[0], 0, cut, fine, at)
        n = fine_survivors(n, x[q], y, levels, cut, fine, at)
        for start in range(0, n, PIECE):  # the cut rises from piece to piece
            cut = cut_of(keys[q], count, squared[q], scale, slack[q])
            stop, m = min(start + PIECE, n), start
            for i in range(start, stop):
                if fine[i] >= cut:
                    at[m] = at[i]
                    m += 1
            measure(at[start:m], m - start, order, *known)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def join_block(scores, maxima, x, squared, slack, scale, y, levels, order, images, offset, radius, found):
    """Pairs i < j within `radius`, of the queries i = offset, offset + 1 ... and one span: into `found`, int64 (3, n).

    Returns how many there are, or −1 if `found` might not hold them. Arrays as in `search_block`; `order` ascends.
    """
    fine, at = np.empty(y.shape[0], np.int32), np.empty(y.shape[0] + maxima.shape[1] + 1, np.int64)
    n = 0
    for q in range(x.shape[0]):
        i = offset + q
        cut = lowest_score(radius, squared[q], scale, slack[q])
        first = max(0, i + 1 - order[0])
        m = coarse_survivors(scores[q], maxima[q], y.shape[0], first, cut, fine, at)
        m = fine_survivors(m, x[q], y, levels, cut, fine, at)
        if n + m > found.shape[1]:
            return -1
        for s in range(m):
            j = order[at[s]]
            distance = squared_distance(images[i], images[j])
            if distance <= radius:
                found[0, n], found[1, n], found[2, n] = i, j, distance
                n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def dense_block(inner, norms_x, norms_y, rows, count, exclude, keys):
    """Offer the references `rows` (C,) to `keys`, given their exact inner products `inner` (Q, C)."""
    k = keys.shape[1]
    for q in range(inner.shape[0]):
        room = keys[q, k - 1] // count - norms_x[q]
        for start in range(0, inner.shape[1], RUN):
            stop, n = min(start + RUN, inner.shape[1]), 0
            for j in range(start, stop):
                n += norms_y[j] - 2 * np.int64(inner[q, j]) <= room
            if n == 0:
                continue
            for j in range(start, stop):
                key = (norms_x[q] + norms_y[j] - 2 * np.int64(inner[q, j])) * count + rows[j]
                if key < keys[q, k - 1] and rows[j] != exclude[q]:
                    insert(keys[q], key)
            room = keys[q, k - 1] // count - norms_x[q]
