"""Compiled scans of `truncated_score`: which centres may weigh, and their weights. Imported where there are many."""

import math

import numba
import numpy as np

TOP = np.float64(127 << 16)
SHARE = 1 / 256


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
def collect(
    inner, norms, lengths, offset, active, scale, rest, squared, reach, shells, hopeless, rows, lower, filled, best
):
    """Add one block's candidates of the samples `active` to rows, lower and filled; -1 in `filled`: too many."""
    size = rows.shape[1]
    for k in range(inner.shape[0]):
        b = active[k]
        unit, off = scale[b] * 65536.0, rest[b]
        smallest = best[b]
        for j in range(inner.shape[1]):
            smallest = min(smallest, 0.5 * norms[j] - unit * inner[k, j] + off * lengths[j])
        best[b] = smallest
        slack = 1e-12 * (squared[b] + abs(smallest) + norms[0])  # float64's own rounding of h
        cut = farthest(smallest + slack, squared[b], reach[b], shells) + slack
        n = filled[b]
        for j in range(inner.shape[1]):
            bound = 0.5 * norms[j] - unit * inner[k, j] - off * lengths[j]
            if bound > cut:
                continue
            if n == size:
                n = compact(rows[b], lower[b], n, cut)
                if n == size:
                    n = -1
                    break
            rows[b, n], lower[b, n] = j + offset, bound
            n += 1
        if n > 0 and offset == 0 and n > hopeless * inner.shape[1] and n < rows.shape[1] and size > inner.shape[1]:
            n = -1
        if n >= 0:
            n = compact(rows[b], lower[b], n, cut)
        filled[b] = n


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
def sum_kept(values, images, rows, count, shells, rate, inverse, pull, out, nearest):
    """The score over each sample's centres rows[b, :count[b]], in `out`; the smallest r^2 in `nearest`."""
    for b in range(values.shape[0]):
        if count[b] <= 0:
            continue
        r2 = np.empty(count[b])
        for k in range(count[b]):
            r2[k] = squared_distance(values[b], images[rows[b, k]])
        least = r2.min()
        nearest[b] = least
        total = 0.0
        for k in range(count[b]):
            if shells:
                weight = 1.0 if r2[k] == least else math.exp(-rate[b] * math.log(r2[k] / max(least, 1e-300)))
            else:
                weight = math.exp(-rate[b] * (r2[k] - least))
            total += weight
            mass = weight * pull[b]
            if inverse:
                mass = mass / r2[k] if r2[k] > 1e-300 else 0.0
            if mass > 0:
                pulled(out[b], values[b], images[rows[b, k]], mass)
        for i in range(out.shape[1]):
            out[b, i] /= total * 255.0


@numba.njit(nogil=True, cache=True, boundscheck=False)
def log_weights(inner, norms, scale, squared, shells, rate, r2, out):
    """r^2 and log-weights of one sample's block, from its three products int32 (3, m); returns the largest."""
    top = -np.inf
    for j in range(norms.shape[0]):
        product = 65536 * np.int64(inner[0, j]) + 256 * np.int64(inner[1, j]) + np.int64(inner[2, j])
        r2[j] = max(squared + norms[j] - 2 * scale * product, 1e-300)
        out[j] = -rate * math.log(r2[j]) if shells else -rate * r2[j]
        top = max(top, out[j])
    return top


@numba.njit(nogil=True, cache=True, boundscheck=False)
def weigh(inner, images, norms, scale, squared, shells, rate, inverse, pull, state, digits, factors, heavy):
    """One block of the sum over all centres: weights as three digits, and each sample's running sums.

    A centre with more than SHARE of the block's sum of w p is added to `heavy` (B, d), grey levels - 128, at once; the
    others are rounded to TOP-ths of the largest of them.

    inner: int32 (3, B, m); state: (B, 3) largest log-weight, sum of w, sum of w p; digits: int8 (3, B, m) of
    w p / factors[b, 1]; factors[b, 0]: what the sums so far are worth under the new largest log-weight.
    """
    m = norms.shape[0]
    r2, mass = np.empty(m), np.empty(m)
    for b in range(inner.shape[1]):
        top = log_weights(inner[:, b], norms, scale[b], squared[b], shells, rate[b], r2, mass)
        top = max(top, state[b, 0])
        sum_of_mass = 0.0
        for j in range(m):
            mass[j] = math.exp(mass[j] - top) * (pull[b] / r2[j] if inverse else pull[b])
            sum_of_mass += mass[j]
        shrink = math.exp(state[b, 0] - top)
        total, precision, largest = 0.0, 0.0, 0.0
        for i in range(heavy.shape[1]):
            heavy[b, i] *= shrink
        for j in range(m):
            if mass[j] > SHARE * sum_of_mass:
                total += mass[j] * r2[j] if inverse else mass[j]
                precision += mass[j]
                for i in range(heavy.shape[1]):
                    heavy[b, i] += mass[j] * (np.float64(images[j, i]) - 128.0)
                mass[j] = 0.0
            largest = max(largest, mass[j])
        unit = largest / TOP if largest > 0 else 1.0
        for j in range(m):
            whole = np.int64(mass[j] / unit + 0.5)
            total += whole * unit * r2[j] if inverse else whole * unit
            precision += whole * unit
            low = ((whole + 128) & 255) - 128
            whole = (whole - low) >> 8
            middle = ((whole + 128) & 255) - 128
            digits[0, b, j] = (whole - middle) >> 8
            digits[1, b, j] = middle
            digits[2, b, j] = low
        state[b, 0] = top
        state[b, 1] = state[b, 1] * shrink + total / pull[b]
        state[b, 2] = state[b, 2] * shrink + precision
        factors[b, 0] = shrink
        factors[b, 1] = unit
