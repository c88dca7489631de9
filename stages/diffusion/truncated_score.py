"""Closed-form scores over many centres on a CPU: integer products for all, float64 for the few that weigh.

The score at x is s = sum_i w_i p_i (x_i - x), w = softmax(l(r_i^2)), with l falling in r (METHODS §1.1, §1.4, §1.5):

    conditioning     l = -r^2 / 2 sigma^2     p = 1/sigma^2
    shells           l = -(c/T) ln r          p = c/r^2

**The point.** x is taken in units of a grey level about 128 and rounded to q * scale with integers |q| <= 127 * 2^16:
24 bits, off by at most 2^-24 of the largest pixel, which is float32's own rounding. Everything below is for that point.
q = 2^16 a + 2^8 b + c with int8 digits a, b, c, so q . y_i for uint8 images y_i - 128 is three exact int8 products.

**Which centres weigh.** With the first digit alone, r_i^2 = |x|^2 + 2 h_i, h_i = |y_i|^2/2 - x . y_i is known up to
E_i = scale |q - 2^16 a| |y_i| (Cauchy-Schwarz). Centre i is dropped where the lower bound h_i - E_i proves that
r_i > R, R chosen from the smallest upper bound such that l(R^2) = l(r_min^2) - L.

**Truncation error.** Let S be the centres kept, s_S the score over S. Dropped weights relative to the nearest
centre's are at most exp(-L), and g(r) = exp(l(r^2) - l(r_min^2)) p(r) r falls in r for r >= R (for
conditioning where R >= sigma, which L >= 1/2 gives). With Z_S >= 1 the normaliser over S, B = sum over the dropped of
w p (x_i - x) and tau their total weight,

    s = (Z_S s_S + B) / (Z_S + tau)   so   |s - s_S| = |B - tau s_S| / (Z_S + tau) <= M g(R) + M exp(-L) |s_S|.

`_drop` chooses L such that the right side stays below 1e-6 |s_S|, or below 1e-6 of what moving every pixel by 2^-24
(the rounding of x) does to the pull of one centre, whichever is larger: no score is known better than x is.

**All centres.** Samples that keep too many are summed over all: r_i^2 from the three digits, exact, then in every block
of 4096 the few centres (at most 255) with more than 1/256 of the block's weight one by one, the others with weights
rounded to 24 bits of the largest of them, so that their sum with the images is three integer products again. A weight
is off by at most 2^-24/256 of the block's sum, so the mean of the centres by at most 4096 2^-32 = 2^-20 of the largest
distance D of a centre from it, and s by p 2^-20 D. Where many centres weigh, sigma sqrt d is many times D.

Only integers are summed over a batch, so a sample's score is the same bits in every batch.
"""

import dataclasses
import math

import numpy as np

from stages.search.products import centred, products, spread, squared_norms, weighted_sums

TOLERANCE = 1e-6  # of the score
ROUNDING = 2.0**-24  # of a pixel near 1, in float32
BLOCK = 4096  # centres visited at once
TOP = 127 << 16  # largest fixed-point value: its first digit is 127
KEPT = 4096  # most centres per sample that are summed one by one
TOGETHER = 128  # samples worked on at once
BUFFER = 8 * KEPT  # candidates per sample while the smallest bound is still being found; 12 bytes each
HOPELESS = 0.6  # share of the first block's centres that stay, above which all centres are summed at once
GREY = 255.0


@dataclasses.dataclass(frozen=True)
class ManyCentres:
    """Training images as centres, one byte per pixel (memory-mapped if they come so) and 16 per image.

    Attributes:
        images: uint8 (M, d).
        norms: int64 (M,), |y - 128|^2.
        lengths: float64 (M,), |y - 128|.
    """

    images: np.ndarray
    norms: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    @property
    def dimension(self) -> int:
        """d."""
        return self.images.shape[1]

    @property
    def most(self) -> int:
        """Centres per sample above which one product with all of them is faster than one by one."""
        return min(KEPT, max(64, len(self) // 8))

    def blocks(self) -> list[slice]:
        """Rows visited at once."""
        return [slice(a, min(a + BLOCK, len(self))) for a in range(0, len(self), BLOCK)]


def make_many_centres(images: np.ndarray) -> ManyCentres:
    """Centres of uint8 images (M, d)."""
    norms = squared_norms(images)
    return ManyCentres(images, norms, np.sqrt(norms.astype(np.float64)))


@dataclasses.dataclass(frozen=True)
class Law:
    """How a centre at squared distance r2 (grey levels squared) weighs and pulls, for every sample.

    Attributes:
        shells: log-weight -rate ln r2 (True) or -rate r2.
        rate: float64 (B,).
        inverse: precision p = pull/r2 (True) or p = pull.
        pull: float64 (B,).
    """

    shells: bool
    rate: np.ndarray
    inverse: bool
    pull: np.ndarray

    def take(self, rows: np.ndarray) -> "Law":
        """The law of these samples."""
        return Law(self.shells, self.rate[rows], self.inverse, self.pull[rows])

    def reach(self, depth: np.ndarray) -> np.ndarray:
        """By which r2 grows (a factor for shells, else a summand) where the log-weight falls by `depth` (B,)."""
        with np.errstate(over="ignore"):
            return np.exp(depth / self.rate) if self.shells else depth / self.rate

    def precision(self, r2: np.ndarray) -> np.ndarray:
        """p, (B,)."""
        return self.pull / r2 if self.inverse else self.pull


def conditioning(centres: ManyCentres, x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """s(x; sigma) of METHODS §1.1. x: float64 (B, d) in [0,1] units plus noise; sigma: float64 (B,). Returns (B, d)."""
    return score(centres, x, _gaussian(sigma))


def _gaussian(sigma: np.ndarray) -> Law:
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


@dataclasses.dataclass(frozen=True)
class Points:
    """Samples as fixed-point numbers: x = 128 + scale q, in grey levels, q = 2^16 a + 2^8 b + c.

    Attributes:
        digits: int8 (3, B, d): a, b, c.
        scale: float64 (B,).
        squared: float64 (B,), |scale q|^2.
        rest: float64 (B,), |scale (q - 2^16 a)|.
    """

    digits: np.ndarray
    scale: np.ndarray
    squared: np.ndarray
    rest: np.ndarray

    def take(self, rows: np.ndarray) -> "Points":
        """These samples."""
        return Points(self.digits[:, rows], self.scale[rows], self.squared[rows], self.rest[rows])

    @property
    def values(self) -> np.ndarray:
        """scale q, float64 (B, d)."""
        a, b, c = (digit.astype(np.float64) for digit in self.digits)
        return (65536 * a + 256 * b + c) * self.scale[:, None]


def quantise(x: np.ndarray) -> Points:
    """x float64 (B, d), in [0,1] units plus noise, as fixed-point numbers with 24 bits for its largest value."""
    grey = GREY * x - 128
    scale = np.maximum(np.abs(grey).max(1), 1.0) / TOP
    q = np.rint(grey / scale[:, None]).astype(np.int64)
    low = ((q + 128) & 255) - 128
    middle = ((((q - low) >> 8) + 128) & 255) - 128
    high = (((q - low) >> 8) - middle) >> 8
    rest = np.sqrt(np.square(256 * middle + low).sum(1).astype(np.float64)) * scale
    squared = np.square(q).sum(1).astype(np.float64) * scale**2
    return Points(np.stack([high, middle, low]).astype(np.int8), scale, squared, rest)


def score(centres: ManyCentres, x: np.ndarray, law: Law) -> np.ndarray:
    """The score of a law at x float64 (B, d): float64 (B, d). See the module's docstring for its error."""
    parts = [np.arange(a, min(a + TOGETHER, len(x))) for a in range(0, len(x), TOGETHER)]
    return np.concatenate([_score(centres, x[part], law.take(part)) for part in parts])


def _score(centres: ManyCentres, x: np.ndarray, law: Law) -> np.ndarray:
    points, out = quantise(x), np.empty_like(x)
    waiting, everything = np.arange(len(x)), []
    depth = math.log(len(centres) / TOLERANCE) + 2
    for deeper in (0.0, -math.log(ROUNDING)):
        some, own = points.take(waiting), law.take(waiting)
        kept = candidates(centres, some, own, depth + deeper)
        everything.append(waiting[kept.count < 0])
        found, proven = _sum_kept(centres, some, own, kept, depth + deeper)
        out[waiting[proven]] = found[proven]
        waiting = waiting[~proven & (kept.count >= 0)]
    rest = np.concatenate([*everything, waiting])
    out[rest] = _sum_all(centres, points.take(rest), law.take(rest))
    return out


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Centres that may weigh. rows: int32 (B, n), of which row b fills count[b]; count -1: too many, sum over all."""

    rows: np.ndarray
    count: np.ndarray


def candidates(centres: ManyCentres, points: Points, law: Law, depth: float) -> Candidates:
    """The centres that the first digit does not prove to weigh less than exp(-depth) of the nearest one."""
    from stages.diffusion.truncation_kernels import collect

    count, size = len(points.scale), min(BUFFER, len(centres))
    rows, lower = np.empty((count, size), np.int32), np.empty((count, size))
    filled, best = np.zeros(count, np.int64), np.full(count, np.inf)
    reach = law.reach(np.full(count, depth))
    for block in centres.blocks():
        active = np.flatnonzero(filled >= 0)
        if len(active) == 0:
            break
        inner = products(points.digits[0][active], centred(centres.images[block]))

        def scan(a: int, b: int, active: np.ndarray = active, inner: np.ndarray = inner, block: slice = block) -> None:
            collect(
                inner[a:b], centres.norms[block], centres.lengths[block], block.start, active[a:b], points.scale,
                points.rest, points.squared, reach, law.shells, HOPELESS, rows, lower, filled, best,
            )  # fmt: skip

        spread(scan, len(active))
    filled[filled > centres.most] = -1
    return Candidates(rows, filled)


def _sum_kept(
    centres: ManyCentres, points: Points, law: Law, kept: Candidates, depth: float
) -> tuple[np.ndarray, np.ndarray]:
    """The score over the kept centres (B, d), and for which samples the certificate holds (bool (B,))."""
    from stages.diffusion.truncation_kernels import sum_kept

    values, count = points.values, kept.count
    out, nearest = np.zeros_like(values), np.zeros(len(values))

    def work(a: int, b: int) -> None:
        sum_kept(
            values[a:b], centres.images, kept.rows[a:b], count[a:b], law.shells, law.rate[a:b], law.inverse,
            law.pull[a:b], out[a:b], nearest[a:b],
        )  # fmt: skip

    if len(values):
        spread(work, len(values))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        reach = law.reach(np.full(len(values), depth))
        farthest = nearest * reach if law.shells else nearest + reach
        size, near = np.linalg.norm(out, axis=1), law.precision(nearest)
        dropped = (
            (len(centres) - count) * math.exp(-depth) * (law.precision(farthest) * np.sqrt(farthest) / GREY + size)
        )
        rounding = ROUNDING * math.sqrt(centres.dimension) * near
        proven = (count >= 0) & ((count == len(centres)) | (dropped <= TOLERANCE * np.maximum(size, rounding)))
    return out, proven


def _sum_all(centres: ManyCentres, points: Points, law: Law) -> np.ndarray:
    """The score over all centres, (B, d): an online softmax over blocks whose sums are integers."""
    from stages.diffusion.truncation_kernels import weigh

    count, d = len(points.scale), centres.dimension
    if count == 0:
        return np.empty((0, d))
    moment, heavy = np.zeros((count, d)), np.zeros((count, d))
    state = np.zeros((count, 3))  # of a sample: largest log-weight, sum of w, sum of w p
    state[:, 0] = -np.inf
    for block in centres.blocks():
        images = centred(centres.images[block])
        inner = products(points.digits.reshape(-1, d), images).reshape(3, count, -1)  # at once: images are packed once
        weights = np.empty((3, count, len(images)), np.int8)
        factors = np.empty((count, 2))  # of a sample: what its moment shrinks by, the unit of its weights

        def work(a: int, b: int, inner: np.ndarray = inner, block: slice = block, weights: np.ndarray = weights,
                 factors: np.ndarray = factors) -> None:  # fmt: skip
            weigh(
                inner[:, a:b], centres.images[block], centres.norms[block], points.scale[a:b], points.squared[a:b],
                law.shells, law.rate[a:b], law.inverse, law.pull[a:b], state[a:b], weights[:, a:b], factors[a:b],
                heavy[a:b],
            )  # fmt: skip

        spread(work, count)
        sums = weighted_sums(weights.reshape(-1, len(images)), images).reshape(3, count, d)
        part = 65536.0 * sums[0] + 256.0 * sums[1] + sums[2]
        moment = moment * factors[:, :1] + part * factors[:, 1:]
    return (moment + heavy - state[:, 2:] * points.values) / (state[:, 1:2] * GREY)
