"""Compiled loops that sum a closed-form score (`truncated_score`): over candidates, over all centres, block by block.

`samples` is a `Samples`, `kernel` a `Kernel`, `block` a `CentreBlock`; loops over samples take the range [a, b).
"""

import math

import numba
import numpy as np

from stages.engine.candidate_kernels import log_weight, squared_distance
from stages.engine.row_kernels import inner_bytes

WEIGHT_TOP = np.float64(127 << 16)  # the largest weight in units of its third digit
SINGLE_SHARE = 1 / 64  # of a block's weight: a centre with more is summed by itself
TWO_DIGIT_ERROR = 4e-7  # how far two digits instead of three may move the centres' mean, as a share of the distance
NEGLIGIBLE = 1e-9  # of the nearest centre's weight: what all centres left out of a sum may weigh together
ON_CENTRE = 1e-24  # of |x|^2: a smaller squared distance is float64's rounding of a point on the centre
REORDERED = {"nnan", "nsz", "reassoc", "contract"}  # vectorises sums; their order is the same in every batch
TAYLOR = tuple(1 / math.factorial(n) for n in range(1, 14))  # of exp, after its 1
LOG2E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693147180369123816490, 1.90821492927058770002e-10


@numba.njit(nogil=True, cache=True, boundscheck=False)
def add_difference(out, point, image, weight):
    """out += weight (image - 128 - point)."""
    for i in range(out.shape[0]):
        out[i] += weight * ((np.float64(image[i]) - 128.0) - point[i])


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weight_of(r2, least, power_law, rate):
    """A centre's weight as a multiple of that of one at `least`."""
    if r2 == least:
        return 1.0
    return math.exp(-rate * math.log(r2 / max(least, 1e-300))) if power_law else math.exp(-rate * (r2 - least))


@numba.njit(nogil=True, cache=True, boundscheck=False)
def precision_of(r2, squared, inverse, strength):
    """p = strength/r2 (inverse) or strength; 0 on the centre itself, where strength/r2 has no limit."""
    if not inverse:
        return strength
    return strength / r2 if r2 > ON_CENTRE * (squared + 1.0) else 0.0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def sum_candidates(images, samples, kernel, sets, out, nearest, tail, a, b):
    """The scores of the samples [a, b) over their centres rows[b, :summed[b]], into `out` (zeros), grey levels.

    nearest: (B,), the smallest r^2; tail: (B, 2), upper bounds of the sums of w p r and of w, in units of the weights
    that were summed, over rows[b, summed[b]:count[b]] and the centres of negligible weight.
    """
    for own in range(a, b):
        count, rate, strength = sets.summed[own], kernel.rate[own], kernel.strength[own]
        squared, point = samples.squared[own], samples.values[own]
        if count <= 0:
            continue
        r2 = np.empty(count)
        for k in range(count):
            r2[k] = squared_distance(point, images[sets.rows[own, k]])
        least = r2.min()
        nearest[own] = least
        total, smallest = 0.0, NEGLIGIBLE / count
        for k in range(count):
            weight = weight_of(r2[k], least, kernel.power_law, rate)
            mass = weight * precision_of(r2[k], squared, kernel.inverse, strength)
            if weight < smallest:
                tail[own, 0] += mass * math.sqrt(r2[k])
                tail[own, 1] += weight
                continue
            total += weight
            if mass > 0:
                add_difference(out[own], point, images[sets.rows[own, k]], mass)
        for k in range(count, sets.count[own]):
            near = max(squared + 2 * sets.lower[own, k], 1e-300)
            weight = weight_of(near, least, kernel.power_law, rate)
            far = near if kernel.power_law else max(near, 1 / (2 * rate))  # where w r is largest beyond `near`
            tail[own, 0] += weight * (strength / near if kernel.inverse else strength) * math.sqrt(far)
            tail[own, 1] += weight
        for i in range(out.shape[1]):
            out[own, i] /= total
        tail[own, 0] /= total
        tail[own, 1] /= total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def sum_all(images, samples, kernel, out, a, b):
    """The scores of the samples [a, b) over all centres one by one, float64, into `out` (zeros), grey levels."""
    for own in range(a, b):
        squared, point = samples.squared[own], samples.values[own]
        top, total = -np.inf, 0.0
        for k in range(images.shape[0]):
            r2 = squared_distance(point, images[k])
            logarithm = log_weight(r2, kernel.power_law, kernel.rate[own])
            if logarithm > top:
                shrink = math.exp(top - logarithm)
                total *= shrink
                for i in range(out.shape[1]):
                    out[own, i] *= shrink
                top = logarithm
            weight = math.exp(logarithm - top)
            total += weight
            mass = weight * precision_of(r2, squared, kernel.inverse, kernel.strength[own])
            if mass > 0:
                add_difference(out[own], point, images[k], mass)
        for i in range(out.shape[1]):
            out[own, i] /= total


@numba.njit(nogil=True, cache=True, fastmath=REORDERED, forceinline=True, boundscheck=False)
def exponentials(x, bits):
    """x = exp(x) in place for x <= 0, to 3e-14 of it, 0 below -700. bits: int64 scratch, as long.

    2^k times the Taylor series of the rest, |rest| <= ln 2 / 2: a loop that is vectorised, unlike math.exp, and 4.5
    times as fast.
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


@numba.njit(nogil=True, cache=True, fastmath=REORDERED, forceinline=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, fastmath=REORDERED, forceinline=True, boundscheck=False)
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


@numba.njit(nogil=True, cache=True, fastmath=REORDERED, forceinline=True, boundscheck=False)
def add_up(weight, mass, r2, norms, inverse, strength, sums):
    """Write mass = w p; add sums of w, w p, w p^2 r^2 and w |y|^2 to `sums` (4,)."""
    total, precision, pulls, lengths = 0.0, 0.0, 0.0, 0.0
    for j in range(mass.shape[0]):
        p = strength / r2[j] if inverse else strength
        own = weight[j] * p
        mass[j] = own
        total += weight[j]
        precision += own
        pulls += own * p * r2[j]
        lengths += weight[j] * norms[j]
    sums[0], sums[1], sums[2], sums[3] = sums[0] + total, sums[1] + precision, sums[2] + pulls, sums[3] + lengths


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weigh(inner, block, samples, kernel, sums, weights, a, b):
    """One block of the sum over all centres for the samples [a, b): weights as three digits, and the running sums.

    A centre with more than SINGLE_SHARE of the block's sum of w p is summed by itself, by differences: w g in
    `sums.single`. The others' w p are rounded to two digits where that moves the mean by no more than TWO_DIGIT_ERROR
    of the nearest distance, else to three.

    inner: int32 (digits, B, m); sums: `RunningSums`; weights: a `BlockWeights`, filled here.
    """
    m = block.squared.shape[0]
    r2, weight, mass, bits = np.empty(m), np.empty(m), np.empty(m), np.empty(m, np.int64)
    for own in range(a, b):
        rate, strength, state = kernel.rate[own], kernel.strength[own], sums.state[own]
        squared, point = samples.squared[own], samples.values[own]
        near = squared_distances(inner[:, own], block.squared, samples.units[own], squared, r2)
        top = max(log_weight(near, kernel.power_law, rate), state[0])
        shrink = math.exp(state[0] - top)
        state[0], state[1] = top, min(state[1], near)
        for i in range(sums.single.shape[1]):
            sums.single[own, i] *= shrink
        state[2:] *= shrink
        for j in range(m):
            weight[j] = log_weight(r2[j], kernel.power_law, rate) - top
        exponentials(weight, bits)
        totals = np.zeros(4)
        add_up(weight, mass, r2, block.squared, kernel.inverse, strength, totals)
        share, alone = SINGLE_SHARE * totals[1], False
        for j in range(m):
            if mass[j] > share:
                alone = True
                exact = squared_distance(point, block.images[j])
                single = math.exp(log_weight(exact, kernel.power_law, rate) - top)
                state[2] += single
                precision = precision_of(exact, squared, kernel.inverse, strength)
                add_difference(sums.single[own], point, block.images[j], single * precision)
                weight[j] = 0.0
        if alone:
            totals[:] = 0.0
            add_up(weight, mass, r2, block.squared, kernel.inverse, strength, totals)
        middle = 0.5 * max(mass.max(), 1e-300)
        unit = middle / WEIGHT_TOP
        allowed = TWO_DIGIT_ERROR * totals[1] * math.sqrt(near)
        error = np.inf
        if 256 * unit * block.lengths[0] * m < 16 * allowed:  # else not worth a try
            error = rounding(mass, middle, block.lengths, 256 * unit)
        fine = error > allowed
        if fine:
            error = rounding(mass, middle, block.lengths, unit)
        high, middle_digit, low = weights.digits[0, own], weights.digits[1, own], weights.digits[2, own]
        cut_in_digits(mass, middle, unit, 1 if fine else 256, high, middle_digit, low)
        state[3:7] += totals
        state[7] += error
        weights.fine[own], weights.shrink[own], weights.unit[own], weights.centre[own] = fine, shrink, unit, middle


@numba.njit(nogil=True, cache=True, boundscheck=False)
def few_products(images, digits, out):
    """out (n, m) = digits int8 (n, d) times (images - 128), uint8 (m, d): for few rows, without packing the images.

    For four rows 39 times as fast as torch's float32 product.
    """
    offset = np.empty(digits.shape[0], np.int64)
    for k in range(digits.shape[0]):
        offset[k] = 128 * digits[k].astype(np.int64).sum()
    for j in range(images.shape[0]):
        for k in range(digits.shape[0]):
            out[k, j] = inner_bytes(images[j], digits[k]) - offset[k]


@numba.njit(nogil=True, cache=True, boundscheck=False)
def few_sums(weights, images, out):
    """out int32 (n, d), zeros, = weights int8 (n, m) times (images - 128), uint8 (m, d), m <= 2^16: for few rows.

    For four rows 13 times as fast as torch's float32 product.
    """
    for j in range(images.shape[0]):
        for k in range(weights.shape[0]):
            weight = np.int32(weights[k, j])
            if weight != 0:
                for i in range(images.shape[1]):
                    out[k, i] += weight * (np.int32(images[j, i]) - np.int32(128))
