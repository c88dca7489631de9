"""Compiled loops that find which centres may weigh in a closed-form score (`truncated_score`).

`samples` is a `Samples`, `kernel` a `Kernel`, `sets` a `CandidateSets`; h is half of r^2 - |x|^2.
"""

import math

import numba
import numpy as np

HISTOGRAM_BINS, HISTOGRAM_STEP = 256, 0.25  # of log-weights below the largest


@numba.njit(nogil=True, cache=True, boundscheck=False)
def log_weight(r2, power_law, rate):
    """-rate ln r2 (power law) or -rate r2 (Gaussian)."""
    return -rate * math.log(max(r2, 1e-300)) if power_law else -rate * r2


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract"}, forceinline=True, boundscheck=False)
def squared_distance(point, image):
    """|point - (image - 128)|^2, float64, by differences: a product would lose copies to cancellation."""
    total = 0.0
    for i in range(point.shape[0]):
        difference = point[i] - (np.float64(image[i]) - 128.0)
        total += difference * difference
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def farthest(best, squared, growth, power_law):
    """The h up to which a centre may weigh, from an upper bound of the smallest; r^2 = squared + 2 h."""
    if power_law:
        return (max(squared + 2 * best, 0.0) * growth - squared) / 2
    return best + growth / 2


@numba.njit(nogil=True, cache=True, boundscheck=False)
def compact(rows, lower, count, cut):
    """Keep the candidates with lower bounds up to `cut`, in their order; returns how many."""
    n = 0
    for i in range(count):
        if lower[i] <= cut:
            rows[n], lower[n] = rows[i], lower[i]
            n += 1
    return n


@numba.njit(nogil=True, cache=True, boundscheck=False)
def keep(bounds, start, size, b, squared, power_law, sets):
    """Add to sample b's candidates those centres of a block whose lower bounds of h let them weigh.

    bounds: float64 (m,); start: the block's first row; size: |y|^2 of one centre; squared: |x|^2. The count becomes -1
    where the candidates do not fit.
    """
    rows, lower = sets.rows[b], sets.lower[b]
    rounding = 1e-12 * (squared + abs(sets.smallest[b]) + size)  # float64's own
    cut = farthest(sets.smallest[b] + rounding, squared, sets.growth[b], power_law) + rounding
    n = sets.count[b]
    for j in range(bounds.shape[0]):
        if bounds[j] > cut:
            continue
        if n == rows.shape[0]:
            n = compact(rows, lower, n, cut)
            if n == rows.shape[0]:
                sets.count[b] = -1
                return
        rows[n], lower[n] = j + start, bounds[j]
        n += 1
    sets.count[b] = compact(rows, lower, n, cut)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def collect(inner, block, samples, power_law, sets, active, a, b):
    """Add one block's candidates of the samples active[a:b] to `sets`, by the bounds of the first digits.

    inner: int32 (digits, len(active), m), the products of the digits with the block.
    """
    norms, lengths, last = block.squared, block.lengths, inner.shape[0] - 1
    m = norms.shape[0]
    h = np.empty(m)
    for k in range(a, b):
        own = active[k]
        for j in range(m):
            h[j] = 0.5 * norms[j]
        for digit in range(inner.shape[0]):
            unit = samples.units[own, digit]
            for j in range(m):
                h[j] -= unit * inner[digit, k, j]
        off, smallest = samples.rest[last, own], sets.smallest[own]
        for j in range(m):
            smallest = min(smallest, h[j] + off * lengths[j])
            h[j] -= off * lengths[j]
        sets.smallest[own] = smallest
        keep(h, block.start, norms[0], own, samples.squared[own], power_law, sets)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def collect_projected(inner, block, samples, projected, slack, power_law, sets, active, a, b):
    """Add one block's candidates of the samples active[a:b] to `sets`, by the bound in the projection.

    The centre with the least lower bound is measured, and bounds the smallest distance from above.

    inner: int32 (2, len(active), 2, m), the products of both sides' digits; block: a `ProjectedBlock`;
    projected: the samples as `Projected`; slack: float64 (B,), what rounding may do to Px . Py.
    """
    m = block.squared.shape[0]
    h = np.empty(m)
    for k in range(a, b):
        own = active[k]
        both, nearest, smallest, squared = block.unit * projected.unit[own], 0, np.inf, samples.squared[own]
        for j in range(m):
            middle = np.float64(inner[0, k, 1, j]) + np.float64(inner[1, k, 0, j])
            product = both * (65536.0 * inner[0, k, 0, j] + 256.0 * middle + inner[1, k, 1, j])
            lost = projected.outside[own] * block.outside[j] + slack[own]
            h[j] = 0.5 * (projected.squared[own] + block.squared[j] - squared) - product - lost
            if h[j] < smallest:
                nearest, smallest = j, h[j]
        measured = 0.5 * (squared_distance(samples.values[own], block.images[nearest]) - squared)
        sets.smallest[own] = min(sets.smallest[own], measured)
        keep(h, block.start, block.squared[0], own, squared, power_law, sets)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def defer_tail(samples, kernel, sets, active, share):
    """Order each sample's candidates such that the first summed[b] hold all but `share` of the weight of all of them.

    Weights are those at the lower bounds of the distances, added up in a histogram.
    """
    mass, bins = np.empty(HISTOGRAM_BINS), np.empty(sets.rows.shape[1], np.int64)
    for b in active:
        n, rate, squared = sets.count[b], kernel.rate[b], samples.squared[b]
        sets.summed[b] = n
        if n <= 0:
            continue
        rows, lower = sets.rows[b, :n].copy(), sets.lower[b, :n].copy()
        top = log_weight(squared + 2 * lower.min(), kernel.power_law, rate)
        mass[:] = 0.0
        for i in range(n):
            drop = top - log_weight(squared + 2 * lower[i], kernel.power_law, rate)
            bins[i] = min(np.int64(drop / HISTOGRAM_STEP), HISTOGRAM_BINS - 1)
            mass[bins[i]] += math.exp(-drop)
        last, left_out = HISTOGRAM_BINS - 1, 0.0
        while last > 0 and left_out + mass[last] <= share * mass[0]:
            left_out += mass[last]
            last -= 1
        front = 0
        for tail in (False, True):
            for i in range(n):
                if (bins[i] > last) == tail:
                    sets.rows[b, front], sets.lower[b, front] = rows[i], lower[i]
                    front += 1
            if not tail:
                sets.summed[b] = front
