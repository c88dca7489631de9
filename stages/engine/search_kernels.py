"""Compiled scans: which candidates pass the bound, and their exact distances. Imported where a search is large."""

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stages.engine.byte_products import inner_bytes
from stages.engine.projection import BYTE
from stages.engine.tile_scores import level_score, lowest_bit, places_above
from stages.engine.tiled import GROUP, HALF, LANES, LOWEST, TILE

EMPTY = np.int64(2**63 - 1)
LINE = 64  # bytes of a cache line
AHEAD = 8  # rows of coordinates asked for before they are read
NEXT = 2  # images asked for before they are read
RUN = 64  # references of a dense block that are looked at together
PIECE = 32  # images measured under one cut
NONE = np.int16(-(2**15))  # the score of places that fill the last tile up, and of references that have been measured
SEEDS, MORE = 2, 8  # references measured before all others: so many for each neighbour, and so many more
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
def rounded_up(length):
    """A length as an int16 that is not below it, whatever float64 did to it."""
    return np.int16(np.ceil(length + 0.01))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def round_bytes(exact, start, stop, shift, row):
    """Coordinates [start, stop) as int8 into `row`; returns the larger of their lengths before and after, the length
    of what they lost, and their sum as integers."""
    unit, before, after, lost, total = np.float64(1 << shift), 0.0, 0.0, 0.0, np.int64(0)
    for i in range(start, stop):
        integer = max(-np.float64(BYTE), min(np.float64(BYTE), np.rint(exact[i] / unit)))
        row[i - start] = np.int8(integer)
        kept = integer * unit
        before += exact[i] * exact[i]
        after += kept * kept
        lost += (exact[i] - kept) * (exact[i] - kept)
        total += np.int64(integer)
    return np.sqrt(max(before, after)), np.sqrt(lost), total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def group_lengths(exact, outside, edges, lengths):
    """The lengths of the groups of coordinates between `edges` (then −1), and that outside; how many there are."""
    many = 0
    while many + 1 < edges.shape[0] and edges[many + 1] >= 0:
        inside = 0.0
        for i in range(edges[many], edges[many + 1]):
            inside += exact[i] * exact[i]
        lengths[many] = rounded_up(np.sqrt(inside))
        many += 1
    lengths[many] = np.int16(np.ceil(outside + 0.25))
    return many + 1


@numba.njit(nogil=True, cache=True, boundscheck=False)
def round_rows(raw, origin, factor, squared, scale, levels, edges, coarse, fine, added, length, error):
    """Fill rows of `projection.Coordinates` from the integers `raw` − origin.

    raw: (N, p); origin: int64 (p,); factor: float64 (p,), what an integer is in units of 1/scale; squared: int64 (N,);
    levels, edges: `Layout.numbers` and `.edges`.
    """
    exact, lengths = np.empty(factor.shape[0]), np.empty(edges.shape[1] + 1, np.int16)
    for r in range(raw.shape[0]):
        before = after = off = whole = 0.0
        for i in range(factor.shape[0]):
            exact[i] = np.float64(np.int64(raw[r, i]) - origin[i]) * factor[i]
            whole += exact[i] * exact[i]
        outside = np.sqrt(max(scale * scale * np.float64(squared[r]) - whole, 0.0))
        kept = 0
        for level in range(levels.shape[0]):
            start, lead, stop, repeated, at, shorts_at, end, shift = levels[level]
            row = fine[r, at:end] if level else coarse[r, at:end]
            shorts = row[shorts_at - at :].view(np.int16)
            size, lost, total = round_bytes(exact, lead, stop, shift, row.view(np.int8))
            column = repeated
            shorts[:repeated] = lengths[:repeated]
            for i in range(start, lead):
                nearest = np.rint(exact[i])
                shorts[column] = np.int16(nearest)
                column += 1
                before += exact[i] * exact[i]
                after += nearest * nearest
                off += (exact[i] - nearest) * (exact[i] - nearest)
            kept = group_lengths(exact, outside, edges[level], lengths)
            shorts[column : column + kept] = lengths[:kept]
            shorts[column + kept], shorts[column + kept + 1] = rounded_up(size), rounded_up(lost)
            alone = -128 * total * np.int64(1 << (2 * shift))  # as the other side's bytes are 128 too large
            if level:
                shorts[shorts.shape[0] - 2 :].view(np.int32)[0] = np.int32(alone)
            else:
                added[r] = np.int32(alone + np.int64(np.ceil(-0.5 * scale * scale * np.float64(squared[r]))))
        length[r], error[r] = np.sqrt(max(before, after)), np.sqrt(off)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def insert(keys, key):
    """Put `key` into the ascending list `keys` unless it is there already or too large; the last one falls out."""
    if key >= keys[keys.shape[0] - 1]:
        return
    position, same = 0, 0
    for i in range(keys.shape[0]):  # a loop without a branch is compiled to vectors
        position += keys[i] < key
        same += keys[i] == key
    if same == 0:
        for i in range(position, keys.shape[0]):
            keys[i], key = key, keys[i]


@numba.njit(nogil=True, cache=True, boundscheck=False)
def kept_cut(cut):
    """The lowest score, as scores are kept, of a reference whose sum is not below `cut`."""
    return np.int16(cut >> HALF)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def largest_sum(score):
    """The largest sum of which `score` is kept."""
    return (np.int32(score) << HALF) | np.int32((1 << HALF) - 1)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def highest(values):
    """The largest value."""
    top = values[0]
    for i in range(values.shape[0]):
        top = max(top, values[i])
    return top


@numba.njit(nogil=True, cache=True, boundscheck=False)
def high_scores(scores, maxima, places):
    """Some references with high coarse scores, found fast: the best of each of many runs of groups, of these the best.

    Into `places`; their scores become NONE. Returns how many there are.
    """
    width = 1
    while 6 * width * places.shape[0] <= maxima.shape[0]:  # a power of two: whole vectors
        width *= 2
    best = np.empty(-(-maxima.shape[0] // width), np.int16)
    for run in range(best.shape[0]):
        best[run] = highest(maxima[run * width : (run + 1) * width])
    spare = max(0, best.shape[0] - places.shape[0])
    least, n = max(np.partition(best, spare)[spare], np.int16(NONE + 1)), 0
    for run in range(best.shape[0]):
        if best[run] < least or n == places.shape[0]:
            continue
        group, j = run * width, 0
        while maxima[group] < best[run]:
            group += 1
        while scores[group // LANES, j, group % LANES] < best[run]:
            j += 1
        scores[group // LANES, j, group % LANES] = NONE
        places[n] = GROUP * group + j
        n += 1
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
def groups_above(maxima, cut):
    """How many groups have a reference with a coarse score ≥ `cut`, as scores are kept."""
    n = np.int32(0)
    for group in range(maxima.shape[0]):
        n += np.int32(maxima[group] >= cut)
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def coarse_survivors(scores, size, first, cut, kept, at):
    """References in [first, size) whose sum may be ≥ `cut`, into `at`, and into `kept` the largest that it may be;
    their number."""
    least, address, n = kept_cut(cut), np.int64(scores.ctypes.data), 0
    for tile in range(first // TILE, scores.shape[0]):
        for j in range(GROUP):
            above = places_above(address + (tile * GROUP + j) * np.int64(scores.itemsize * LANES), least)
            while above:
                lane = lowest_bit(above)
                above &= above - 1
                place = GROUP * (tile * LANES + lane) + j
                if place >= first and place < size:
                    kept[n], at[n] = largest_sum(scores[tile, j, lane]), place
                    n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def fine_survivors(n, x, y, levels, cut, kept, at):
    """Those of the n references in `kept` and `at` whose scores at all `levels` are ≥ `cut` too, in the same place;
    their number."""
    left, rows, row = np.int64(x.ctypes.data), np.int64(y.ctypes.data), np.int64(y.strides[0])
    for level in range(1, levels.shape[0]):
        start, end, twice = levels[level, 4], levels[level, 6], np.int64(2 * levels[level, 7])
        n_bytes, n_shorts = (levels[level, 5] - start) // LINE, (end - levels[level, 5]) // LINE
        m = 0
        for i in range(-AHEAD, n):
            if i + AHEAD < n:
                fetch(rows + at[i + AHEAD] * row + start, rows + at[i + AHEAD] * row + end)
            if i < 0:
                continue
            score = np.int32(kept[i] + level_score(left + start, rows + at[i] * row + start, n_bytes, n_shorts, twice))
            kept[m], at[m] = score, at[i]
            m += score >= cut
        n = m
    return n


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
def mark(scores, cut, wanted):
    """Mark in the bool array `wanted` where scores are ≥ `cut`."""
    for i in range(scores.shape[0]):
        wanted[i] |= scores[i] >= cut


@numba.njit(nogil=True, cache=True, boundscheck=False)
def search_block(
    scores, maxima, x, squared, slack, scale, y, levels, order, norms, central, queries, base, reference, count,
    exclude, keys, hard, limit, wanted,
):  # fmt: skip
    """Finish some queries over one span of the reference, given their coarse scores.

    Every reference that the bound lets through is measured in integers and offered to `keys`. A query with coarse
    survivors in more than `limit` groups is marked in `hard`, and they in `wanted`, as `scores` are arranged: the dense
    search finishes it.

    scores: int16 (Q, T, 4, 32) and maxima: int16 (Q, 32 T) from `score_tiles`; x: uint8 (Q, F), fine coordinates,
    squared: int64, slack: float64 (Q,), of the queries; y: uint8 (M, F), fine coordinates of the span's references in
    the order in which they are grouped; order, norms: int64 (M,), their rows in `reference` and their ‖y−128‖²;
    central: int64, places tried for queries that are far from everything; queries: int8 (Q, d), x−128; base: int64
    (Q,), see `measure`.
    """
    k = keys.shape[1]
    first = np.empty(SEEDS * k + MORE, np.int64)
    fine, at = np.empty(y.shape[0], np.int32), np.empty(y.shape[0], np.int64)
    for q in range(x.shape[0]):
        known = exclude[q], queries[q], base[q], reference, norms, count, keys[q]
        if keys[q, k - 1] == EMPTY:
            measure(first, high_scores(scores[q], maxima[q], first), order, *known)
        cut = cut_of(keys[q], count, squared[q], scale, slack[q])
        if groups_above(maxima[q], kept_cut(cut)) > limit:
            measure(central, central.shape[0], order, *known)
            cut = cut_of(keys[q], count, squared[q], scale, slack[q])
        hard[q] = groups_above(maxima[q], kept_cut(cut)) > limit
        if hard[q]:
            mark(scores[q].reshape(-1), kept_cut(cut), wanted.reshape(-1))
            continue
        n = coarse_survivors(scores[q], y.shape[0], 0, cut, fine, at)
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
def join_block(scores, x, squared, slack, scale, y, levels, order, images, offset, radius, found):
    """Pairs i < j within `radius`, of the queries i = offset, offset + 1 ... and one span: into `found`, int64 (3, n).

    Returns how many there are, or −1 if `found` might not hold them. Arrays as in `search_block`; `order` ascends.
    """
    fine, at = np.empty(y.shape[0], np.int32), np.empty(y.shape[0], np.int64)
    n = 0
    for q in range(x.shape[0]):
        i = offset + q
        cut = lowest_score(radius, squared[q], scale, slack[q])
        first = max(0, i + 1 - order[0])
        m = coarse_survivors(scores[q], y.shape[0], first, cut, fine, at)
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
            stop, least = min(start + RUN, inner.shape[1]), EMPTY
            for j in range(start, stop):
                least = min(least, norms_y[j] - 2 * np.int64(inner[q, j]))
            if least > room:
                continue
            for j in range(start, stop):
                key = (norms_x[q] + norms_y[j] - 2 * np.int64(inner[q, j])) * count + rows[j]
                if key < keys[q, k - 1] and rows[j] != exclude[q]:
                    insert(keys[q], key)
            room = keys[q, k - 1] // count - norms_x[q]
