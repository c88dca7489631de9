"""Closed-form scores over many centres on a CPU: integer products for all, float64 for the few that weigh.

The score at x is s = sum_i w_i g_i, g_i = p_i (x_i - x), w = softmax(l(r_i^2)), l falling (METHODS §1.1, 1.4, 1.5):

    conditioning     l = -r^2 / 2 sigma^2     p = 1/sigma^2
    shells           l = -(c/T) ln r          p = c/r^2

Every score is off by at most 1e-6 of its own norm, which one of three bounds shows once it is computed; a sample for
which none does is summed in float64 over all centres (`sum_exact`), off by float64's rounding alone.

**Integers.** x is taken in units of a grey level about 128 and written as scale (2^24 a + 2^16 b + 2^8 c + e) with
int8 digits a, b, c, e (`Points`). The products of digits with the images y_i - 128 are exact. The first n digits leave
a rest delta of x of known length, so they give x . y_i up to |delta| |y_i| (Cauchy-Schwarz).

**Few centres** (`_few`). Where the noise is small, lower bounds of r_i^2 come from 128 principal directions (`Coarse`).
Else, with the first digit, or two, r_i^2 = |x|^2 + 2 h_i, h_i = |y_i|^2/2 - x . y_i is known within
E_i = |delta| |y_i|. Centre i is dropped where the lower bound h_i - E_i proves that r_i > R, R chosen from the smallest
upper bound such that l(R^2) = l(r_min^2) - L. With two digits the bounds are so near the distances that of the rest the
nearest that hold all but 1e-7 of the weight are picked (`needed`). Those kept are summed by differences in float64.
Let S be the centres summed, s_S their score, Z_S >= 1 their weights' sum beside the nearest one's, B = sum over the
dropped of w g and tau their weight:

    s = (Z_S s_S + B) / (Z_S + tau)   so   |s - s_S| = |B - tau s_S| / (Z_S + tau) <= (|B| + tau |s_S|) / Z_S

and |B|, tau follow from the lower bounds where there are any, and from w p r <= exp(-L) p(R) R beyond R, since w p r
falls there (for conditioning where R >= sigma, which L >= 1/2 gives).

**All centres** (`_all`). Distances from n digits, with |delta| |y_i| of error on x . y_i; then in every block of 4096
the few centres (at most 63) with more than 1/64 of the block's weight by differences, the others with weights rounded
to 17 or 25 bits of the largest of them, so that their sum with the images is two or three integer products again.
With ~ for what is computed, e_i the errors of the others' log-weights, k_i those of their ln p, and sums over them,

    s - s~ = sum_i w~_i [ (exp(e_i) - 1)(g~_i - s~) + exp(e_i)(exp(k_i) - 1) g~_i ] / sum_all w~_i exp(e_i).

With Z the sum of all w~, W = sum_i w~_i / Z, V = sum_i w~_i |g~_i - s~|^2 / Z, G = sum_i w~_i |g~_i|^2 / Z,
r their smallest distance, |y| the longest image and E = max |e_i| + |k_i| this is at most

    shells:        |e_i| <= (c/T) |delta| |y| / r^2, |k_i| <= 2 |delta| |y| / r^2 (0 where p does not depend on r):
                   2 |delta| |y| / r^2 exp(2E) sqrt(W) [ c/2T sqrt(V) + sqrt(G) ]
    conditioning:  |e_i| <= |delta| |y_i| / sigma^2:  |delta| / sigma^2 exp(2E) sqrt(sum_i w~_i |y_i|^2 / Z) sqrt(V)
      where no centre is summed by itself, since a change of all log-weights alike has no effect:
                   |e_i| <= |delta| |g_i - s~|:       |delta| exp(2E) V

To this comes the rounding of the weights, at most sum_i |rounding of w~_i p~_i| |y_i| / Z, summed as it happens.

Only integers are summed over a batch, and each sample finds its own way, so its score is the same bits in every batch.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from stages.engine.many_centres import DIGITS, GREY, Law, ManyCentres, Points, coarse_points, quantise
from stages.engine.products import centred, products, spread, weighted_sums

TOLERANCE = 1e-6  # of the score
EXPECTED = 1e-5  # estimate of the error with three digits of x, often ten times too large, above which four are taken
CANCELLED = -math.log(2.0**-24)  # how much deeper centres are sought where the pulls of the nearest cancel
KEPT = {0: 512, 1: 2048, 2: 2048}  # most centres per sample summed one by one, by the digits that they were found with
NOISY = 4  # times the centres' mean square, above which a sample has too much noise for coarse coordinates
PATIENCE = (3, 1.5)  # how many times more than KEPT a sample may promise to need after the first parts of the centres
TOGETHER = 128  # samples worked on at once
Way = Callable[..., tuple[np.ndarray, np.ndarray]]  # a score, grey levels (B, d), and a bound of its error (B,)
FEW_ROWS, DEPTH = 20, 1 << 16  # rows of a product up to which images are not packed for it; pixels whose sum fits int32
BUFFER = 1 << 15  # candidates per sample while the smallest bound is still being found; 12 bytes each


def conditioning(centres: ManyCentres, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """s(x; sigma) of METHODS §1.1. x: float64 (B, d) in [0,1] units plus noise; sigma: float64 (B,). Returns (B, d)."""
    return score(centres, x, gaussian(sigma))


def gaussian(sigma: np.ndarray) -> Law:
    """The law of `conditioning`."""
    return Law(False, 1 / (2 * (GREY * sigma) ** 2), False, 1 / sigma**2)


def unconditioning(
    centres: ManyCentres,
    x: np.ndarray,
    temperature: np.ndarray,
    power: int,
    sigma: np.ndarray | None = None,
) -> np.ndarray:
    """The shells' score at temperature T, float64 (B,), with exponent c = `power` (METHODS §1.4-1.5): float64 (B, d).

    sigma: float64 (B,) for precision "scheduled", 1/sigma^2; None for "optimal", c/r^2.
    """
    pull = np.full(len(x), power * GREY**2) if sigma is None else 1 / sigma**2
    return score(centres, x, Law(True, power / (2 * temperature), sigma is None, pull))


def score(centres: ManyCentres, x: np.ndarray, law: Law) -> np.ndarray:
    """The score of a law at x float64 (B, d): float64 (B, d), off by at most 1e-6 of its norm."""
    parts = [np.arange(a, min(a + TOGETHER, len(x))) for a in range(0, len(x), TOGETHER)]
    return np.concatenate([_score(centres, x[part], law.take(part)) for part in parts])


def _score(centres: ManyCentres, x: np.ndarray, law: Law) -> np.ndarray:
    """Each sample's score by the cheapest way whose bound holds."""
    points, out = quantise(x), np.empty_like(x)
    depth = math.log(len(centres) / TOLERANCE) + 2

    def settle(rows: np.ndarray, way: Way, *options: float) -> tuple[np.ndarray, np.ndarray]:
        """Those of the samples `rows` whose bound does not hold, and those for which the way is too long."""
        found, bound = way(centres, points.take(rows), law.take(rows), *options)
        proven = bound <= TOLERANCE * np.linalg.norm(found, axis=1)
        out[rows[proven]] = found[proven]
        return rows[~proven & ~np.isnan(bound)], rows[np.isnan(bound)]

    unproven, many = [], np.arange(len(x))
    for digits in (0, 1, 2):
        cancelled, many = settle(many, _few, depth, digits)
        unproven.append(cancelled)
    whole, exact = many, [*settle(np.concatenate(unproven), _few, depth + CANCELLED, 1)]
    digits = _digits(centres, points.take(whole), law.take(whole))
    for n in np.unique(digits):
        unproven, _ = settle(whole[digits == n], _all, n)
        exact.append(settle(unproven, _all, DIGITS)[0] if n < DIGITS else unproven)
    rows = np.concatenate(exact)
    out[rows] = _exact(centres, points.take(rows), law.take(rows))
    return out / GREY


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Centres that may weigh.

    Attributes:
        rows: int32 (B, n), of which row b fills count[b]; count -1: too many, sum over all.
        lower: float64 (B, n), lower bounds of their h.
        used: int64 (B,), how many of these hold nearly all of the weight: they come first.
    """

    rows: np.ndarray
    lower: np.ndarray
    count: np.ndarray
    used: np.ndarray


def candidates(centres: ManyCentres, points: Points, law: Law, depth: float, digits: int) -> Candidates:
    """The centres that the first digits, or with none the coarse coordinates, do not prove to weigh less than
    exp(-depth) of the nearest one.

    A sample that promises to need many more than KEPT after the first parts, or needs more after the last, gets -1.
    """
    from stages.engine.truncation_kernels import collect, needed

    if digits == 0:
        return _coarse_candidates(centres, points, law, depth)
    count, size = len(points), min(BUFFER, len(centres))
    rows, lower = np.empty((count, size), np.int32), np.empty((count, size))
    filled, used, best = np.zeros(count, np.int64), np.zeros(count, np.int64), np.full(count, np.inf)
    reach, units = law.reach(np.full(count, depth)), points.units(digits)

    def limit(active: np.ndarray, most: float) -> None:
        """Count those used of what is there so far; give up the samples that would need more than `most`."""
        used[active] = filled[active]
        if digits > 1:
            share = TOLERANCE / 8
            needed(rows, lower, filled, active, points.squared, law.shells, law.rate, share, used)
        filled[active[used[active] > most]] = -1

    for turn, block in enumerate(centres.blocks(pilot=True)):
        active = np.flatnonzero(filled >= 0)
        if len(active) == 0:
            break
        inner = _products(points.digits[:digits, active], centres.images[block])

        def scan(a: int, b: int, active: np.ndarray = active, inner: np.ndarray = inner, start: int = block.start,
                 norms: tuple[np.ndarray, np.ndarray] = centres.norms(block)) -> None:  # fmt: skip
            collect(
                inner[:, a:b], *norms, start, active[a:b], units,
                points.rest[digits - 1], points.squared, reach, law.shells, rows, lower, filled, best,
            )  # fmt: skip

        spread(scan, len(active))
        if turn < len(PATIENCE) and block.stop < len(centres):
            limit(active[filled[active] >= 0], PATIENCE[turn] * KEPT[digits] * block.stop / len(centres))
    limit(np.flatnonzero(filled >= 0), KEPT[digits])
    return Candidates(rows, lower, filled, np.where(filled < 0, 0, used))


def _coarse_candidates(centres: ManyCentres, points: Points, law: Law, depth: float) -> Candidates:
    """`candidates` by coarse coordinates; -1 also where these would not help."""
    from stages.engine.truncation_kernels import collect_coarse

    count, empty = len(points), np.zeros((len(points), 0))
    filled, noisy = np.full(count, -1), points.squared > NOISY * centres.power
    if noisy.all() or (y := centres.coarse) is None:
        return Candidates(empty.astype(np.int32), empty, filled, np.zeros(count, np.int64))
    x, size = coarse_points(y.projection, points), min(BUFFER, len(centres))
    filled[y.helps(x) & ~noisy] = 0
    rows, lower, best = np.empty((count, size), np.int32), np.empty((count, size)), np.full(count, np.inf)
    reach = law.reach(np.full(count, depth))
    slack = x.length * y.error + x.error * y.length  # what rounding the coordinates does to Px . Py
    for block, digits, squared, left in y.blocks():
        active = np.flatnonzero(filled >= 0)
        if len(active) == 0:
            break
        own, theirs = (part.reshape(-1, y.projection.size) for part in (x.digits[:, active], digits))
        inner = products(own, theirs).reshape(2, len(active), 2, -1)

        def scan(a: int, b: int, active: np.ndarray = active, inner: np.ndarray = inner, block: slice = block,
                 squared: np.ndarray = squared, left: np.ndarray = left) -> None:  # fmt: skip
            collect_coarse(
                inner[:, a:b], centres.images[block], y.scale, squared, left, block.start,
                active[a:b], points.values, x.scale, x.squared, x.left, slack, points.squared, reach, law.shells,
                rows, lower, filled, best,
            )  # fmt: skip

        spread(scan, len(active))
        filled[filled > block.stop // 4] = -1
    filled[filled > KEPT[0]] = -1
    return Candidates(rows, lower, filled, np.maximum(filled, 0))


def _products(digits: np.ndarray, images: np.ndarray, packed: np.ndarray | None = None) -> np.ndarray:
    """Digits int8 (n, B, d) times images - 128, uint8 (m, d), or `packed` as int8: int32 (n, B, m), at once: the
    product packs the images once."""
    n, count, d = digits.shape
    rows = digits.reshape(-1, d)
    if len(rows) > FEW_ROWS or d > DEPTH:
        return products(rows, centred(images) if packed is None else packed).reshape(n, count, -1)
    from stages.engine.truncation_kernels import few_products

    out = np.empty((len(rows), len(images)), np.int32)
    spread(lambda a, b: few_products(images[a:b], rows, out[:, a:b]), len(images))
    return out.reshape(n, count, -1)


def _moment(
    weights: np.ndarray, fine: np.ndarray, images: np.ndarray, packed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights in three digits int8 (3, B, m), the last 0 where not `fine`, times images - 128, uint8 (m, d) and
    `packed` as int8: float64 (B, d); and the images' sum, (d,)."""
    rows = np.concatenate([*weights[:2], weights[2, fine], np.ones((1, len(images)), np.int8)])
    if len(rows) > FEW_ROWS:
        found = weighted_sums(rows, packed)
    else:
        from stages.engine.truncation_kernels import few_sums

        found = np.zeros((len(rows), images.shape[1]), np.int32)
        spread(lambda a, b: few_sums(rows[a:b], images, found[a:b]), len(rows))
    high, middle, low = np.split(found[:-1], [len(fine), 2 * len(fine)])
    sums = 65536.0 * high + 256.0 * middle
    sums[fine] += low
    return sums, found[-1]


def _few(centres: ManyCentres, points: Points, law: Law, depth: float, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """The score over the centres kept, grey levels (B, d), and the bound of its error (B,); NaN: too many were kept."""
    from stages.engine.truncation_kernels import sum_kept

    out, nearest, left = np.zeros_like(points.values), np.zeros(len(points)), np.zeros((len(points), 2))
    if len(points) == 0:
        return out, np.zeros(0)
    kept = candidates(centres, points, law, depth, digits)

    def work(a: int, b: int) -> None:
        sum_kept(
            points.values[a:b], points.squared[a:b], centres.images, kept.rows[a:b], kept.lower[a:b], kept.used[a:b],
            kept.count[a:b], law.shells, law.rate[a:b], law.inverse, law.pull[a:b], out[a:b], nearest[a:b], left[a:b],
        )  # fmt: skip

    spread(work, len(points))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        reach = law.reach(np.full(len(points), depth))
        far = nearest * reach if law.shells else nearest + reach
        size, unseen = np.linalg.norm(out, axis=1), (len(centres) - kept.count) * math.exp(-depth)
        pulled, weight = unseen * law.precision(far) * np.sqrt(far) + left[:, 0], unseen + left[:, 1]
        everything = kept.count == len(centres)
        pulled, weight = np.where(everything, left[:, 0], pulled), np.where(everything, left[:, 1], weight)
        bound = np.where(everything | law.falls(), pulled + weight * size, np.inf)
    return out, np.where(kept.count < 0, np.nan, bound)


def _digits(centres: ManyCentres, points: Points, law: Law) -> np.ndarray:
    """With how many digits of x the bound of `_all` will likely hold, int64 (B,): from the centres' mean length."""
    length, size = math.sqrt(centres.power), np.sqrt(points.squared)
    if law.shells:
        slope = centres.longest * (law.rate * length / size + law.inverse) / points.squared
    else:
        slope = law.rate * length**2 / size
    likely = 2 * points.rest[1:] * slope
    return 2 + (likely[0] > TOLERANCE / 2) + (likely[1] > EXPECTED)


def _all(centres: ManyCentres, points: Points, law: Law, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """The score over all centres, grey levels (B, d), and the bound of its error (B,): an online softmax over blocks
    whose sums are integers."""
    from stages.engine.truncation_kernels import weigh

    count, d = points.values.shape
    if count == 0:
        return np.zeros((0, d)), np.zeros(0)
    moment, heavy, units = np.zeros((count, d)), np.zeros((count, d)), points.units(digits)
    state = np.zeros((count, 8))  # as `weigh` has it
    state[:, 0], state[:, 1] = -np.inf, np.inf
    for block in centres.blocks():
        images = centres.images[block]
        packed = centred(images)
        inner = _products(points.digits[:digits], images, packed)
        weights, fine = np.empty((3, count, len(images)), np.int8), np.empty(count, bool)
        factors = np.empty((count, 3))  # of a sample: what its moment shrinks by, the unit of its weights, their middle

        def work(a: int, b: int, inner: np.ndarray = inner, images: np.ndarray = images, weights: np.ndarray = weights,
                 norms: tuple[np.ndarray, np.ndarray] = centres.norms(block), factors: np.ndarray = factors,
                 fine: np.ndarray = fine) -> None:  # fmt: skip
            weigh(
                inner[:, a:b], images, *norms, units[a:b],
                points.values[a:b], points.squared[a:b], law.shells, law.rate[a:b], law.inverse, law.pull[a:b],
                state[a:b], weights[:, a:b], factors[a:b], fine[a:b], heavy[a:b],
            )  # fmt: skip

        spread(work, count)
        sums, of_all = _moment(weights, fine, images, packed)
        moment = moment * factors[:, :1] + sums * factors[:, 1:2] + of_all * factors[:, 2:]
    light = moment - state[:, 4:5] * points.values
    found = (light + heavy) / state[:, 2:4].sum(1, keepdims=True)
    return found, _bound(centres, points, law, digits, state, light, found)


def _bound(
    centres: ManyCentres, points: Points, law: Law, digits: int, state: np.ndarray, light: np.ndarray, found: np.ndarray
) -> np.ndarray:
    """The bound of the error of `_all`, grey levels (B,), of the module's docstring. light: sums of w g by rounded
    weights, (B, d)."""
    _, near, alone, weight, _, pulls, norms, rounded = state.T
    off, longest, total = points.rest[digits - 1], centres.longest, alone + weight
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        rounding, share = rounded / total, weight / total
        near = near - 2 * off * longest
        squares = (pulls * (1 + 1e-12) + 2 * weight * law.precision(near) ** 2 * off * longest) / total  # r^2 is off
        size = np.linalg.norm(found, axis=1)
        variance = squares - 2 * (light * found).sum(1) / total + share * size**2 + 2 * rounding * size
        apart = np.sqrt(np.maximum(variance, 0)) + rounding
        if law.shells:
            step = 2 * off * longest / near
            largest = step * (law.rate + law.inverse)
            shift = step * np.sqrt(share) * (law.rate * apart + law.inverse * np.sqrt(squares))
        else:
            step = 2 * law.rate * off
            largest = 2 * step * longest
            shift = step * np.where(alone > 0, np.sqrt(norms / total) * apart, apart**2 / law.pull)
        shift *= np.exp(2 * largest)
    return np.where(near > 0, shift + rounding, np.inf)


def _exact(centres: ManyCentres, points: Points, law: Law) -> np.ndarray:
    """The score over all centres, one by one in float64, grey levels (B, d)."""
    from stages.engine.truncation_kernels import sum_exact

    out = np.zeros_like(points.values)

    def work(a: int, b: int) -> None:
        sum_exact(
            points.values[a:b], points.squared[a:b], centres.images, law.shells, law.rate[a:b], law.inverse,
            law.pull[a:b], out[a:b],
        )  # fmt: skip

    if len(points):
        spread(work, len(points))
    return out
