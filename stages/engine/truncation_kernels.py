"""Compiled scans of `truncated_score`: which centres may weigh, and their weights. Imported where there are many."""

import math

import numba
import numpy as np

from stages.engine.byte_products import inner_bytes

TOP = np.float64(127 << 16)  # of the weights' three digits
SHARE = 1 / 64  # of a block's weight from which on a centre is summed by itself
COARSE = 4e-7  # how far two digits instead of three may move the mean of the centres, as a share of the distance
NEGLIGIBLE = 1e-9  # of the nearest centre's weight: what all centres that are not summed may weigh together
BINS, WIDTH = 256, 0.25  # of the histogram of log-weights
COPY = 1e-24  # of |x|^2: a squared distance below is float64's rounding of a point on the centre


@numba.njit(nogil=True, cache=True, boundscheck=False)
def farthest(best, squared, reach, shells):
    """The h up to which a centre may weigh, from an upper bound of the smallest; r^2 = squared + 2 h."""
    if shells:
        return (max(squared + 2 * best, 0.0) * reach - squared) / 2
    return best + reach / 2


@numba.njit(nogil=True, cache=True, boundscheck=False)
def compact(rows, lower, filled, cut):
    """Keep the candidates with lower bounds up to `cut`, in their order; returns how many."""
    n = 0
    for i in range(filled):
        if lower[i] <= cut:
            rows[n], lower[n] = rows[i], lower[i]
            n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def keep(bounds, best, size, offset, squared, reach, shells, rows, lower, filled):
    """Add to one sample's candidates those centres of a block whose lower bounds of h let them weigh; returns how many
    there are then, -1: too many. best: the smallest upper bound of h; size: |y|^2 of one centre."""
    rounding = 1e-12 * (squared + abs(best) + size)  # float64's own
    cut = farthest(best + rounding, squared, reach, shells) + rounding
    n = filled
    for j in range(bounds.shape[0]):
        if bounds[j] > cut:
            continue
        if n == rows.shape[0]:
            n = compact(rows, lower, n, cut)
            if n == rows.shape[0]:
                return -1
        rows[n], lower[n] = j + offset, bounds[j]
        n += 1
    return compact(rows, lower, n, cut)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def collect(inner, norms, lengths, offset, active, units, rest, squared, reach, shells, rows, lower, filled, best):
    """Add one block's candidates of the samples `active` to rows, lower and filled; -1 in `filled`: too many.

    inner: int32 (digits, len(active), m).
    """
    m = norms.shape[0]
    h = np.empty(m)
    for k in range(inner.shape[1]):
        b = active[k]
        for j in range(m):
            h[j] = 0.5 * norms[j] - units[b, 0] * inner[0, k, j]
        for digit in range(1, inner.shape[0]):
            unit = units[b, digit]
            for j in range(m):
                h[j] -= unit * inner[digit, k, j]
        off, smallest = rest[b], best[b]
        for j in range(m):
            smallest = min(smallest, h[j] + off * lengths[j])
            h[j] -= off * lengths[j]
        best[b] = smallest
        filled[b] = keep(h, smallest, norms[0], offset, squared[b], reach[b], shells, rows[b], lower[b], filled[b])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def collect_coarse(
    inner, images, scale, about, left, offset, active, points, scales, own, own_left, slack, squared, reach, shells,
    rows, lower, filled, best,
):  # fmt: skip
    """`collect` by coarse coordinates: inner int32 (2, len(active), 2, m), the products of their digits.

    The nearest centre by the lower bounds is measured, and bounds the smallest distance from above.
    """
    m = about.shape[0]
    h = np.empty(m)
    for k in range(inner.shape[1]):
        b = active[k]
        unit, nearest, smallest = scale * scales[b], 0, np.inf
        for j in range(m):
            middle = np.float64(inner[0, k, 1, j]) + np.float64(inner[1, k, 0, j])
            product = unit * (65536.0 * inner[0, k, 0, j] + 256.0 * middle + inner[1, k, 1, j])
            lost = own_left[b] * left[j] + slack[b]
            h[j] = 0.5 * (own[b] + about[j] - squared[b]) - product - lost
            if h[j] < smallest:
                nearest, smallest = j, h[j]
        best[b] = min(best[b], 0.5 * (squared_distance(points[b], images[nearest]) - squared[b]))
        filled[b] = keep(h, best[b], about[0], offset, squared[b], reach[b], shells, rows[b], lower[b], filled[b])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def log_weight(r2, shells, rate):
    """-rate ln r2 (shells) or -rate r2."""
    return -rate * math.log(max(r2, 1e-300)) if shells else -rate * r2


@numba.njit(nogil=True, cache=True, boundscheck=False)
def needed(rows, lower, filled, active, squared, shells, rate, share, used):
    """Order each sample's candidates such that the first used[b] hold all but `share` of the weight of them all, by the
    lower bounds of their distances."""
    mass, bins = np.empty(BINS), np.empty(rows.shape[1], np.int64)
    for b in active:
        n = filled[b]
        used[b] = n
        if n <= 0:
            continue
        top = log_weight(squared[b] + 2 * lower[b, :n].min(), shells, rate[b])
        mass[:] = 0.0
        for i in range(n):
            depth = top - log_weight(squared[b] + 2 * lower[b, i], shells, rate[b])
            bins[i] = min(np.int64(depth / WIDTH), BINS - 1)
            mass[bins[i]] += math.exp(-depth)
        last, left_out = BINS - 1, 0.0
        while last > 0 and left_out + mass[last] <= share * mass[0]:
            left_out += mass[last]
            last -= 1
        front, own_rows, own_lower = 0, rows[b, :n].copy(), lower[b, :n].copy()
        for i in range(n):
            if bins[i] <= last:
                rows[b, front], lower[b, front] = own_rows[i], own_lower[i]
                front += 1
        used[b] = front
        for i in range(n):
            if bins[i] > last:
                rows[b, front], lower[b, front] = own_rows[i], own_lower[i]
                front += 1


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, boundscheck=False)
def squared_distance(point, image):
    """|point - (image - 128)|^2, float64: a difference first, so that no copy is lost to cancellation."""
    total = 0.0
    for i in range(point.shape[0]):
        difference = point[i] - (np.float64(image[i]) - 128.0)
        total += difference * difference
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def pulled(out, point, image, weight):
    """out += weight (image - 128 - point)."""
    for i in range(out.shape[0]):
        out[i] += weight * ((np.float64(image[i]) - 128.0) - point[i])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weight_of(r2, least, shells, rate):
    """A centre's weight beside that of one at `least`."""
    if r2 == least:
        return 1.0
    return math.exp(-rate * math.log(r2 / max(least, 1e-300))) if shells else math.exp(-rate * (r2 - least))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def precision_of(r2, squared, inverse, pull):
    """p = pull/r2 (inverse) or pull; 0 on the centre itself, where pull/r2 has none."""
    if not inverse:
        return pull
    return pull / r2 if r2 > COPY * (squared + 1.0) else 0.0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def sum_kept(values, squared, images, rows, lower, used, count, shells, rate, inverse, pull, out, nearest, left):
    """The score over each sample's centres rows[b, :used[b]], in `out`, grey levels; the smallest r^2 in `nearest`.

    What is known of rows[b, used[b]:count[b]] and of centres with next to no weight goes to left (B, 2), beside the
    weights that were summed: upper bounds of their sum of w p r and of their sum of w.
    """
    for b in range(values.shape[0]):
        if used[b] <= 0:
            continue
        r2 = np.empty(used[b])
        for k in range(used[b]):
            r2[k] = squared_distance(values[b], images[rows[b, k]])
        least = r2.min()
        nearest[b] = least
        total, smallest = 0.0, NEGLIGIBLE / used[b]
        for k in range(used[b]):
            weight = weight_of(r2[k], least, shells, rate[b])
            mass = weight * precision_of(r2[k], squared[b], inverse, pull[b])
            if weight < smallest:
                left[b, 0] += mass * math.sqrt(r2[k])
                left[b, 1] += weight
                continue
            total += weight
            if mass > 0:
                pulled(out[b], values[b], images[rows[b, k]], mass)
        for k in range(used[b], count[b]):
            near = max(squared[b] + 2 * lower[b, k], 1e-300)
            weight = weight_of(near, least, shells, rate[b])
            far = near if shells else max(near, 1 / (2 * rate[b]))  # where w r is largest beyond `near`
            left[b, 0] += weight * (pull[b] / near if inverse else pull[b]) * math.sqrt(far)
            left[b, 1] += weight
        for i in range(out.shape[1]):
            out[b, i] /= total
        left[b, 0] /= total
        left[b, 1] /= total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def sum_exact(values, squared, images, shells, rate, inverse, pull, out):
    """The score over all centres one by one, float64, in `out` (zeros), grey levels."""
    for b in range(values.shape[0]):
        top, total = -np.inf, 0.0
        for k in range(images.shape[0]):
            r2 = squared_distance(values[b], images[k])
            own = log_weight(r2, shells, rate[b])
            if own > top:
                shrink = math.exp(top - own)
                total *= shrink
                for i in range(out.shape[1]):
                    out[b, i] *= shrink
                top = own
            weight = math.exp(own - top)
            total += weight
            mass = weight * precision_of(r2, squared[b], inverse, pull[b])
            if mass > 0:
                pulled(out[b], values[b], images[k], mass)
        for i in range(out.shape[1]):
            out[b, i] /= total


SUMS = {"nnan", "nsz", "reassoc", "contract"}  # lets sums and extrema be vectorised; each sample's order stays its own
TAYLOR = tuple(1 / math.factorial(n) for n in range(1, 14))  # of exp, after its 1
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693147180369123816490, 1.90821492927058770002e-10


@numba.njit(nogil=True, cache=True, fastmath=SUMS, boundscheck=False)
def exponentials(x, bits):
    """x = exp(x) in place for x <= 0, float64 to its last place or two, 0 below -700. bits: int64 scratch, as long.

    2^k times the Taylor series of the rest, |rest| <= ln 2 / 2: a loop that is vectorised, unlike math.exp.
    """
    powers = bits.view(np.float64)
    for j in range(x.shape[0]):
        value = max(x[j], -700.0)
        k = math.floor(value * LOG2E + 0.5)
        r = (value - k * LN2_HIGH) - k * LN2_LOW
        bits[j] = (np.int64(k) + 1023) << 52
        series = TAYLOR[12]
        for n in range(11, -1, -1):
            series = TAYLOR[n] + r * series
        series = 1.0 + r * series
        x[j] = series if x[j] >= -700.0 else 0.0
    for j in range(x.shape[0]):
        x[j] *= powers[j]


@numba.njit(nogil=True, cache=True, fastmath=SUMS, boundscheck=False)
def squared_distances(inner, norms, units, squared, r2):
    """r^2 of one sample's block from its products int32 (digits, m); returns the smallest."""
    for j in range(norms.shape[0]):
        r2[j] = squared + norms[j]
    for digit in range(inner.shape[0]):
        unit = 2 * units[digit]
        for j in range(norms.shape[0]):
            r2[j] -= unit * inner[digit, j]
    near = np.inf
    for j in range(norms.shape[0]):
        r2[j] = max(r2[j], 1e-300)
        near = min(near, r2[j])
    return near


@numba.njit(nogil=True, cache=True, fastmath=SUMS, boundscheck=False)
def rounding(mass, middle, lengths, unit):
    """Sum of |rounded mass - mass| |y| with masses in whole units from `middle`."""
    error = 0.0
    for j in range(mass.shape[0]):
        own = mass[j] - middle
        error += abs(math.floor(own / unit + 0.5) * unit - own) * lengths[j]
    return error


@numba.njit(nogil=True, cache=True, boundscheck=False)
def cut_in_digits(mass, centre, unit, step, high, middle, low):
    """Masses - centre in units, rounded to multiples of `step`, as three digits int8 (m,)."""
    for j in range(mass.shape[0]):
        whole = step * np.int64(math.floor((mass[j] - centre) / (step * unit) + 0.5))
        last = ((whole + 128) & 255) - 128
        whole = (whole - last) >> 8
        second = ((whole + 128) & 255) - 128
        high[j] = (whole - second) >> 8
        middle[j] = second
        low[j] = last


@numba.njit(nogil=True, cache=True, fastmath=SUMS, boundscheck=False)
def add_up(weight, mass, r2, norms, inverse, pull, sums):
    """Write mass = w p; add sums of w, w p, w p^2 r^2 and w |y|^2 to `sums` (4,)."""
    total, precision, pulls, lengths = 0.0, 0.0, 0.0, 0.0
    for j in range(mass.shape[0]):
        p = pull / r2[j] if inverse else pull
        own = weight[j] * p
        mass[j] = own
        total += weight[j]
        precision += own
        pulls += own * p * r2[j]
        lengths += weight[j] * norms[j]
    sums[0], sums[1], sums[2], sums[3] = sums[0] + total, sums[1] + precision, sums[2] + pulls, sums[3] + lengths


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weigh(
    inner, images, norms, lengths, units, values, squared, shells, rate, inverse, pull, state, digits, factors, fine,
    heavy,
):  # fmt: skip
    """One block of the sum over all centres: weights as three digits, and each sample's running sums.

    A centre with more than SHARE of the block's sum of w p is summed by itself, by differences: w g in `heavy` (B, d).
    The others are rounded, to two digits where that moves the mean by no more than COARSE of the nearest distance,
    else (`fine`) to three.

    inner: int32 (digits, B, m); values: float64 (B, d); digits: int8 (3, B, m) of
    (w p - factors[b, 2]) / factors[b, 1]; factors[b, 0]: what the sums so far are worth under the new largest
    log-weight; state: (B, 8) largest log-weight, smallest r^2, sum of w of centres by themselves, and of the others the
    sums of w, w p, w p^2 r^2, w |y|^2 and |rounding of w p| |y|.
    """
    m = norms.shape[0]
    r2, weight, mass, bits = np.empty(m), np.empty(m), np.empty(m), np.empty(m, np.int64)
    for b in range(inner.shape[1]):
        near = squared_distances(inner[:, b], norms, units[b], squared[b], r2)
        top = max(log_weight(near, shells, rate[b]), state[b, 0])
        shrink = math.exp(state[b, 0] - top)
        state[b, 0], state[b, 1] = top, min(state[b, 1], near)
        for i in range(heavy.shape[1]):
            heavy[b, i] *= shrink
        state[b, 2:] *= shrink
        for j in range(m):
            weight[j] = log_weight(r2[j], shells, rate[b]) - top
        exponentials(weight, bits)
        block = np.zeros(4)
        add_up(weight, mass, r2, norms, inverse, pull[b], block)
        share, alone = SHARE * block[1], False
        for j in range(m):
            if mass[j] > share:
                alone = True
                exact = squared_distance(values[b], images[j])
                own = math.exp(log_weight(exact, shells, rate[b]) - top)
                state[b, 2] += own
                pulled(heavy[b], values[b], images[j], own * precision_of(exact, squared[b], inverse, pull[b]))
                weight[j] = 0.0
        if alone:
            block[:] = 0.0
            add_up(weight, mass, r2, norms, inverse, pull[b], block)
        middle = 0.5 * max(mass.max(), 1e-300)
        unit = middle / TOP
        allowed = COARSE * block[1] * math.sqrt(near)
        error = np.inf
        if 256 * unit * lengths[0] * m < 16 * allowed:  # else not worth a try
            error = rounding(mass, middle, lengths, 256 * unit)
        fine[b] = error > allowed
        if fine[b]:
            error = rounding(mass, middle, lengths, unit)
        step = 1 if fine[b] else 256
        cut_in_digits(mass, middle, unit, step, digits[0, b], digits[1, b], digits[2, b])
        state[b, 3:7] += block
        state[b, 7] += error
        factors[b, 0], factors[b, 1], factors[b, 2] = shrink, unit, middle


@numba.njit(nogil=True, cache=True, boundscheck=False)
def few_products(images, digits, out):
    """out (n, m) = digits int8 (n, d) times (images - 128), uint8 (m, d): for few rows, without packing the images."""
    offset = np.empty(digits.shape[0], np.int64)
    for k in range(digits.shape[0]):
        offset[k] = 128 * digits[k].astype(np.int64).sum()
    for j in range(images.shape[0]):
        for k in range(digits.shape[0]):
            out[k, j] = inner_bytes(images[j], digits[k]) - offset[k]


@numba.njit(nogil=True, cache=True, boundscheck=False)
def few_sums(weights, images, out):
    """out int32 (n, d), zeros, = weights int8 (n, m) times (images - 128), uint8 (m, d), m <= 2^16: for few rows."""
    for j in range(images.shape[0]):
        for k in range(weights.shape[0]):
            weight = np.int32(weights[k, j])
            if weight != 0:
                for i in range(images.shape[1]):
                    out[k, i] += weight * (np.int32(images[j, i]) - np.int32(128))
