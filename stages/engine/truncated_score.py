"""Closed-form scores over many centres on a CPU, each with a certified error.

The score at x is s = sum_i w_i g_i with g_i = p_i (y_i - x), w = softmax(l(r_i^2)) and r_i = |y_i - x|. The log-weight
l falls with the distance (METHODS §1.1, 1.4, 1.5):

    Gaussian kernel (conditioning)       l = -r^2 / 2 sigma^2     p = 1/sigma^2
    power-law kernel (unconditioning)    l = -(c/T) ln r          p = c/r^2

The error of every score is at most 1e-6 of the score's norm. Two methods compute a bound of their own error beside the
score; a sample for which neither bound is small enough is summed in float64 over all centres (`sum_all`), where the
only error is float64's rounding.

**Fixed point.** x in grey levels about 128 is written as unit (2^24 a + 2^16 b + 2^8 c + e) with int8 digits a, b, c, e
(`Samples`). The products of digits with the images y_i (pixels - 128) are exact. The first n digits leave a remainder
delta of x whose length is known, so they determine x . y_i up to |delta| |y_i| (Cauchy-Schwarz).

**Candidate sets** (`_sum_candidates`). Write r_i^2 = |x|^2 + 2 h_i with h_i = |y_i|^2/2 - x . y_i. Where the noise is
small, lower bounds of r_i^2 come from 128 principal directions (`Projected`). Elsewhere one or two digits give h_i up
to E_i = |delta| |y_i|. From the smallest upper bound of r^2 follows a radius R beyond which the log-weight is at least
L below the nearest centre's. Centre i is left out where its lower bound h_i - E_i proves r_i > R. With two digits the
bounds are close to the distances, and only the nearest candidates are summed, which hold all but 1e-7 of the weight
(`defer_tail`). The sum takes differences in float64. Let S be the centres summed, s_S their score, Z_S >= 1 the sum of
their weights in units of the nearest one's, B the sum of w g over the other centres and tau the sum of their weights:

    s = (Z_S s_S + B) / (Z_S + tau)   so   |s - s_S| = |B - tau s_S| / (Z_S + tau) <= (|B| + tau |s_S|) / Z_S

The lower bounds of the distances bound |B| and tau where they are known; beyond R, w p r <= exp(-L) p(R) R, since w p r
decreases there (for the Gaussian kernel where R >= sigma, which holds for L >= 1/2).

**All centres** (`_sum_integers`). Distances from n digits, so that x . y_i has an error of at most |delta| |y_i|. In
every block of 4096 centres, those with more than 1/64 of the block's weight (at most 63) are summed by differences. The
others' weights are rounded to 17 or 25 bits of the largest, so that their sum with the images is two or three integer
products again. With ~ for what is computed, e_i the errors of the others' log-weights and k_i those of their ln p,

    s - s~ = sum_i w~_i [ (exp(e_i) - 1)(g~_i - s~) + exp(e_i)(exp(k_i) - 1) g~_i ] / sum_all w~_i exp(e_i)

where sum_i is over the others. With Z the sum of all w~, W = sum_i w~_i / Z, V = sum_i w~_i |g~_i - s~|^2 / Z,
G = sum_i w~_i |g~_i|^2 / Z, r their smallest distance, |y| the longest image and E = max |e_i| + |k_i| this is at most

    power law:  |e_i| <= (c/T) |delta| |y| / r^2, |k_i| <= 2 |delta| |y| / r^2 (0 where p does not depend on r):
                2 |delta| |y| / r^2 exp(2E) sqrt(W) [ c/2T sqrt(V) + sqrt(G) ]
    Gaussian:   |e_i| <= |delta| |y_i| / sigma^2:  |delta| / sigma^2 exp(2E) sqrt(sum_i w~_i |y_i|^2 / Z) sqrt(V)
      where no centre is summed by itself, since a change of all log-weights alike has no effect:
                |e_i| <= |delta| |g_i - s~|:       |delta| exp(2E) V

The rounding of the weights adds at most sum_i |rounding of w~_i p~_i| |y_i| / Z, which is summed as it happens.

Only integers are summed over a batch, and the method is chosen for each sample alone, so that its score has the same
bits in every batch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stages.engine import candidate_kernels, score_kernels
from stages.engine.fixed_point import DIGITS, GREY, Samples, fixed_point, project_samples
from stages.engine.many_centres import CentreBlock, ManyCentres
from stages.engine.products import centred, products, spread, weighted_sums

TOLERANCE = 1e-6  # certified error, as a share of the score's norm
THREE_DIGIT_ERROR = 1e-5  # estimate, often ten times too large, above which four digits of x are taken
CANCELLATION_DROP = -math.log(2.0**-24)  # further log-weight drop of candidates where the nearest centres' terms cancel
MAX_CANDIDATES = {0: 512, 1: 2048, 2: 2048}  # summed one by one for a sample, by the digits that they were found with
EXCESS = (3, 1.5)  # times MAX_CANDIDATES, extrapolated from the first and the second block: the sample is given up
MAX_NOISE = 4  # squared norm of a sample for the projection, as a multiple of the centres' mean square
SAMPLE_BATCH = 128  # samples worked on at once
CANDIDATE_BUFFER = 1 << 15  # candidates per sample while the smallest bound is not yet found; 12 bytes each
FEW_ROWS = 20  # rows of a product up to which packing the images costs more than the product
MAX_FEW_DEPTH = 1 << 16  # pixels whose products fit an int32 without packing
Scored = tuple[np.ndarray, np.ndarray]  # scores in grey levels (B, d), and upper bounds of their errors' norms (B,)


class Kernel(NamedTuple):
    """How much a centre at squared distance r2 (grey levels squared) weighs, and its precision p, for every sample.

    Attributes:
        power_law: log-weight -rate ln r2 (True) or -rate r2 (Gaussian).
        rate: float64 (B,).
        inverse: p = strength / r2 (True) or p = strength.
        strength: float64 (B,).
    """

    power_law: bool
    rate: np.ndarray
    inverse: bool
    strength: np.ndarray

    def take(self, rows: np.ndarray) -> "Kernel":
        """The kernel of the samples `rows`."""
        return Kernel(self.power_law, self.rate[rows], self.inverse, self.strength[rows])

    def growth(self, drop: float) -> np.ndarray:
        """How r2 grows while the log-weight falls by `drop`, (B,): a factor for power laws, else a summand."""
        drops = np.full(len(self.rate), drop)
        with np.errstate(over="ignore"):
            return np.exp(drops / self.rate) if self.power_law else drops / self.rate

    def precision(self, r2: np.ndarray) -> np.ndarray:
        """p at r2, (B,)."""
        return self.strength / r2 if self.inverse else self.strength

    def decreasing(self) -> np.ndarray:
        """Whether w p r decreases with the distance beyond the radius R of the candidates, bool (B,)."""
        fixed = self.power_law and not self.inverse
        return 2 * self.rate >= 1 if fixed else np.ones(len(self.rate), bool)


def conditioning(centres: ManyCentres, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """s(x; sigma) of METHODS §1.1. x: float64 (B, d) in [0,1] units plus noise; sigma: float64 (B,). Returns (B, d)."""
    return score(centres, x, gaussian_kernel(sigma))


def gaussian_kernel(sigma: np.ndarray) -> Kernel:
    """The kernel of `conditioning`."""
    return Kernel(False, 1 / (2 * (GREY * sigma) ** 2), False, 1 / sigma**2)


def unconditioning(
    centres: ManyCentres,
    x: np.ndarray,
    temperature: np.ndarray,
    power: int,
    sigma: np.ndarray | None = None,
) -> np.ndarray:
    """The shell score at temperature T, float64 (B,), with exponent c = `power` (METHODS §1.4-1.5): float64 (B, d).

    sigma: float64 (B,) for precision "scheduled", 1/sigma^2; None for "optimal", c/r^2.
    """
    strength = np.full(len(x), power * GREY**2) if sigma is None else 1 / sigma**2
    return score(centres, x, Kernel(True, power / (2 * temperature), sigma is None, strength))


def score(centres: ManyCentres, x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """sum_i w_i p_i (x_i - x) at x float64 (B, d): float64 (B, d), with an error of at most 1e-6 of its norm.

    Measured against a softmax over torch.cdist in float32, 50,000 centres: 6.0 times as fast on average.
    """
    parts = [np.arange(a, min(a + SAMPLE_BATCH, len(x))) for a in range(0, len(x), SAMPLE_BATCH)]
    return np.concatenate([_score(centres, x[part], kernel.take(part)) for part in parts])


def _score(centres: ManyCentres, x: np.ndarray, kernel: Kernel) -> np.ndarray:
    """Each sample's score by the cheapest method whose bound certifies it."""
    samples, out = fixed_point(x), np.empty_like(x)
    drop = math.log(len(centres) / TOLERANCE) + 2

    def certify(rows: np.ndarray, method: Callable[..., Scored], *options: float) -> tuple[np.ndarray, np.ndarray]:
        """Score the samples `rows`; returns those whose bound is too large, and those with too many candidates."""
        found, bound = method(centres, samples.take(rows), kernel.take(rows), *options)
        certified = bound <= TOLERANCE * np.linalg.norm(found, axis=1)
        out[rows[certified]] = found[certified]
        return rows[~certified & ~np.isnan(bound)], rows[np.isnan(bound)]

    uncertified, many = [], np.arange(len(x))
    for digits in (0, 1, 2):
        cancelled, many = certify(many, _sum_candidates, drop, digits)
        uncertified.append(cancelled)
    remaining = [*certify(np.concatenate(uncertified), _sum_candidates, drop + CANCELLATION_DROP, 1)]
    digits = _needed_digits(centres, samples.take(many), kernel.take(many))
    for n in np.unique(digits):
        rows, _ = certify(many[digits == n], _sum_integers, n)
        remaining.append(certify(rows, _sum_integers, DIGITS)[0] if n < DIGITS else rows)
    rows = np.concatenate(remaining)
    out[rows] = _sum_all(centres, samples.take(rows), kernel.take(rows))
    return out / GREY


class CandidateSets(NamedTuple):
    """The centres of each sample that may weigh.

    Attributes:
        rows: int32 (B, n), of which sample b fills count[b]; count -1: too many, to be summed over all.
        lower: float64 (B, n), lower bounds of their h.
        count: int64 (B,).
        summed: int64 (B,), how many of these hold nearly all of the weight: they come first.
        smallest: float64 (B,), an upper bound of the smallest h.
        growth: float64 (B,), `Kernel.growth` up to the candidates' radius.
    """

    rows: np.ndarray
    lower: np.ndarray
    count: np.ndarray
    summed: np.ndarray
    smallest: np.ndarray
    growth: np.ndarray


def candidate_sets(centres: ManyCentres, samples: Samples, kernel: Kernel, drop: float, digits: int) -> CandidateSets:
    """The centres that are not proven to weigh less than exp(-drop) of the nearest one.

    The proof takes the first `digits` digits, or with none the projection. A sample that will probably have many more
    than MAX_CANDIDATES, judged after the first blocks, or has more after the last one, gets count -1.
    """
    size = (len(samples.values), min(CANDIDATE_BUFFER, len(centres)))
    count, summed = np.zeros((2, size[0]), np.int64)
    smallest, growth = np.full(size[0], np.inf), kernel.growth(drop)
    sets = CandidateSets(np.empty(size, np.int32), np.empty(size), count, summed, smallest, growth)
    if digits == 0:
        _collect_projected(centres, samples, kernel, sets)
        summed[:] = np.maximum(count, 0)
        return sets

    def limit(active: np.ndarray, most: float) -> None:
        """Find which candidates to sum; give up the samples with more than `most` of them."""
        summed[active] = count[active]
        if digits > 1:
            candidate_kernels.defer_tail(samples, kernel, sets, active, TOLERANCE / 8)
        count[active[summed[active] > most]] = -1

    for turn, block in enumerate(centres.blocks(pilot=True)):
        active = np.flatnonzero(count >= 0)
        if len(active) == 0:
            break
        inner = _products(samples.digits[:digits, active], block.images)
        _over_samples(len(active), candidate_kernels.collect, inner, block, samples, kernel.power_law, sets, active)
        seen = (block.start + len(block.images)) / len(centres)
        if turn < len(EXCESS) and seen < 1:
            limit(active[count[active] >= 0], EXCESS[turn] * MAX_CANDIDATES[digits] * seen)
    limit(np.flatnonzero(count >= 0), MAX_CANDIDATES[digits])
    summed[count < 0] = 0
    return sets


def _over_samples(count: int, loop: Callable[..., None], *arguments: object) -> None:
    """loop(*arguments, a, b) over the samples [0, count), cut for the threads."""
    spread(lambda a, b: loop(*arguments, a, b), count)


def _collect_projected(centres: ManyCentres, samples: Samples, kernel: Kernel, sets: CandidateSets) -> None:
    """Fill candidate sets by the bound in the projection; count -1 also where the bound does not help."""
    noisy = samples.squared > MAX_NOISE * centres.power
    sets.count[:] = -1
    if noisy.all() or (projected := centres.projected) is None:
        return
    own = project_samples(projected.projection, samples)
    sets.count[projected.helps(own) & ~noisy] = 0
    slack = own.length * projected.error + own.error * projected.length  # what rounding does to Px . Py
    for block in projected.blocks():
        active = np.flatnonzero(sets.count >= 0)
        if len(active) == 0:
            break
        sides = (digits.reshape(-1, projected.projection.size) for digits in (own.digits[:, active], block.digits))
        inner = products(*sides).reshape(2, len(active), 2, -1)
        more = block, samples, own, slack, kernel.power_law, sets, active
        _over_samples(len(active), candidate_kernels.collect_projected, inner, *more)
        sets.count[sets.count > (block.start + len(block.images)) // 4] = -1
    sets.count[sets.count > MAX_CANDIDATES[0]] = -1


def _sum_candidates(
    centres: ManyCentres, samples: Samples, kernel: Kernel, drop: float, digits: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores over the candidates, and the bounds of their errors: `Scored`; NaN where there are too many candidates."""
    out, count = np.zeros_like(samples.values), len(samples.values)
    if count == 0:
        return out, np.zeros(0)
    nearest, tail, sets = np.zeros(count), np.zeros((count, 2)), candidate_sets(centres, samples, kernel, drop, digits)
    _over_samples(count, score_kernels.sum_candidates, centres.images, samples, kernel, sets, out, nearest, tail)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        radius2 = nearest * sets.growth if kernel.power_law else nearest + sets.growth
        beyond = (len(centres) - sets.count) * math.exp(-drop)  # their weights' sum at most
        pull, weight = beyond * kernel.precision(radius2) * np.sqrt(radius2) + tail[:, 0], beyond + tail[:, 1]
        complete = sets.count == len(centres)
        pull, weight = np.where(complete, tail[:, 0], pull), np.where(complete, tail[:, 1], weight)
        bound = np.where(complete | kernel.decreasing(), pull + weight * np.linalg.norm(out, axis=1), np.inf)
    return out, np.where(sets.count < 0, np.nan, bound)


def _needed_digits(centres: ManyCentres, samples: Samples, kernel: Kernel) -> np.ndarray:
    """How many digits of x `_sum_integers` will likely need, int64 (B,), from the centres' mean length."""
    length, size = math.sqrt(centres.power), np.sqrt(samples.squared)
    if kernel.power_law:
        slope = centres.longest * (kernel.rate * length / size + kernel.inverse) / samples.squared
    else:
        slope = kernel.rate * length**2 / size
    likely = 2 * samples.rest[1:] * slope
    return 2 + (likely[0] > TOLERANCE / 2) + (likely[1] > THREE_DIGIT_ERROR)


class RunningSums(NamedTuple):
    """The online softmax of `_sum_integers`.

    Attributes:
        state: float64 (B, 8), the largest log-weight, the smallest r^2, the sum of w of centres summed by themselves,
            and of the others the sums of w, w p, w p^2 r^2, w |y|^2 and |rounding of w p| |y|.
        single: float64 (B, d), sum of w g of centres summed by themselves.
    """

    state: np.ndarray
    single: np.ndarray


class BlockWeights(NamedTuple):
    """One block's weights: w p = centre + unit (65536 a + 256 b + c) for every sample.

    Attributes:
        digits: int8 (3, B, m), a, b and c.
        fine: bool (B,), whether c is used.
        shrink: float64 (B,), what earlier sums are to be multiplied with, as the largest log-weight has grown.
        unit, centre: float64 (B,).
    """

    digits: np.ndarray
    fine: np.ndarray
    shrink: np.ndarray
    unit: np.ndarray
    centre: np.ndarray


def _sum_integers(centres: ManyCentres, samples: Samples, kernel: Kernel, digits: int) -> Scored:
    """Scores over all centres, and the bounds of their errors: an online softmax whose sums are integer products."""
    count, d = samples.values.shape
    sums, moment = RunningSums(np.zeros((count, 8)), np.zeros((count, d))), np.zeros((count, d))
    sums.state[:, 0], sums.state[:, 1] = -np.inf, np.inf
    for block in centres.blocks() if count else ():
        packed = centred(block.images)
        inner = _products(samples.digits[:digits], block.images, packed)
        weights = BlockWeights(
            np.empty((3, count, len(packed)), np.int8), np.empty(count, bool), *np.empty((3, count))
        )  # fmt: skip
        _over_samples(count, score_kernels.weigh, inner, block, samples, kernel, sums, weights)
        own, everything = _moment(weights, block, packed)
        moment = moment * weights.shrink[:, None] + own * weights.unit[:, None] + everything * weights.centre[:, None]
    rounded = moment - sums.state[:, 4:5] * samples.values
    found = (rounded + sums.single) / sums.state[:, 2:4].sum(1, keepdims=True)
    return found, _integer_bound(centres, samples, kernel, digits, sums.state, rounded, found)


def _products(digits: np.ndarray, images: np.ndarray, packed: np.ndarray | None = None) -> np.ndarray:
    """Digits int8 (n, B, d) times images - 128, uint8 (m, d) or `packed` as int8: int32 (n, B, m).

    A few rows are multiplied without packing the images: 5.4 times as fast for one sample, 1.4 times for 100.
    """
    n, count, d = digits.shape
    rows = digits.reshape(-1, d)
    if len(rows) > FEW_ROWS or d > MAX_FEW_DEPTH:
        return products(rows, centred(images) if packed is None else packed).reshape(n, count, -1)
    out = np.empty((len(rows), len(images)), np.int32)
    spread(lambda a, b: score_kernels.few_products(images[a:b], rows, out[:, a:b]), len(images))
    return out.reshape(n, count, -1)


def _moment(weights: BlockWeights, block: CentreBlock, packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """65536 a + 256 b + c times images - 128 (`packed`: as int8): float64 (B, d); and the images' sum, (d,)."""
    digits, fine = weights.digits, weights.fine
    rows = np.concatenate([*digits[:2], digits[2, fine], np.ones((1, len(packed)), np.int8)])
    if len(rows) > FEW_ROWS:
        found = weighted_sums(rows, packed)
    else:
        found = np.zeros((len(rows), packed.shape[1]), np.int32)
        spread(lambda a, b: score_kernels.few_sums(rows[a:b], block.images, found[a:b]), len(rows))
    high, middle, low = np.split(found[:-1], [len(fine), 2 * len(fine)])
    sums = 65536.0 * high + 256.0 * middle
    sums[fine] += low
    return sums, found[-1]


def _integer_bound(
    centres: ManyCentres,
    samples: Samples,
    kernel: Kernel,
    digits: int,
    state: np.ndarray,
    rounded: np.ndarray,
    found: np.ndarray,
) -> np.ndarray:
    """The bound of `_sum_integers`'s error, grey levels (B,). rounded: (B, d), sums of w g by rounded weights."""
    _, near, single, weight, _, pulls, norms, rounding = state.T
    off, longest, total = samples.rest[digits - 1], centres.longest, single + weight
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        rounding, share = rounding / total, weight / total
        near = near - 2 * off * longest
        # the computed r^2 is off by up to 2 off longest
        squares = (pulls * (1 + 1e-12) + 2 * weight * kernel.precision(near) ** 2 * off * longest) / total
        size = np.linalg.norm(found, axis=1)
        variance = squares - 2 * (rounded * found).sum(1) / total + share * size**2 + 2 * rounding * size
        deviation = np.sqrt(np.maximum(variance, 0)) + rounding
        if kernel.power_law:
            step = 2 * off * longest / near
            largest = step * (kernel.rate + kernel.inverse)
            shift = step * np.sqrt(share) * (kernel.rate * deviation + kernel.inverse * np.sqrt(squares))
        else:
            step = 2 * kernel.rate * off
            largest = 2 * step * longest
            shift = step * np.where(single > 0, np.sqrt(norms / total) * deviation, deviation**2 / kernel.strength)
        shift *= np.exp(2 * largest)
    return np.where(near > 0, shift + rounding, np.inf)


def _sum_all(centres: ManyCentres, samples: Samples, kernel: Kernel) -> np.ndarray:
    """Scores over all centres, one by one in float64, grey levels (B, d)."""
    out = np.zeros_like(samples.values)
    _over_samples(len(out), score_kernels.sum_all, centres.images, samples, kernel, out)
    return out
