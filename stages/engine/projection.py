"""A certified lower bound on squared distances: project, and keep the lengths of what the projection leaves out.

With P orthonormal rows, and the directions left out in groups g of which only the length ‖x_g‖ is kept,

    ‖x−y‖² ≥ ‖x‖² + ‖y‖² − 2 (Px·Py + Σ_g ‖x_g‖‖y_g‖)

about any mean m (Pythagoras, then Cauchy and Schwarz in every group). The bound is taken at two levels. The coarse one
has the leading directions, one group of all later directions and one of everything outside the span; the fine one has
all directions, and only the group outside.

P has int8 directions, so that P x is exact in integers up to a factor per row. They are orthonormal up to this rounding
only, and the bound needs no more than PᵀP ≼ 1 (every eigenvalue at most 1). Then 1 − PᵀP = CᵀC, and in the bound
‖Cx‖² = ‖x‖² − ‖Px‖² takes the place of the length outside the span, as x·y = Px·Py + Cx·Cy.

P x is then rounded to int16; `as_queries` bounds what this can do. With this the bound stays a proof, in integers.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from stages.engine import compiled
from stages.engine.products import centred, compiled_norms, products, spread
from stages.engine.sizes import CACHE_LINE

# in units of a coordinate; a score is between −3/2 and 1/2 of its square, so that it fits an int32
LARGEST_COORDINATE = 32_000
FITTED_ROWS = 1_024  # that the directions are fitted to; any directions are correct, these are good
ROUND_BYTES = 1 << 23  # of images whose coordinates are rounded at once, so that float64 never holds them all
LEAF_DIRECTIONS, LEAF_ROWS = 8, 24  # of the tree that puts queries in order
EIGENVALUE_ERROR = 1e-9  # relative; far above what float64 does to an eigenvalue


@dataclasses.dataclass(frozen=True)
class Projection:
    """Directions P with PᵀP ≼ 1 in integers and a factor per row, and the mean that images are centred on.

    Attributes:
        rows: int8 (p + 1, d): the p integer directions A, then m − 128.
        factor: float64 (p,): P = diag(factor) A.
        origin: int64 (p + 1,): rows · (m − 128).
        leading: the number of directions that the coarse level has; it takes every pair, the fine one what it leaves.
    """

    rows: np.ndarray
    factor: np.ndarray
    origin: np.ndarray
    leading: int

    @property
    def size(self) -> int:
        """p."""
        return len(self.factor)

    def integers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of uint8 images (N, d): A(x−128), int32 or int64 (N, p); ‖x−m‖² and ‖x−128‖², int64 (N,)."""
        raw, norms = products(centred(images), self.rows), compiled_norms(images)
        squared = norms + self.origin[-1] - 2 * raw[:, -1].astype(np.int64)
        return raw[:, :-1], squared, norms


def fit_projection(reference: np.ndarray, size: int, leading: int) -> Projection:
    """About the `size` leading principal directions of evenly spaced rows of `reference`, uint8 (M, d)."""
    sample = reference[:: -(-len(reference) // FITTED_ROWS)].astype(np.float32)
    mean = np.clip(np.rint(sample.mean(0)), 0, 255).astype(np.uint8)
    directions = _principal(sample - mean, size)
    largest = np.abs(directions).max(1, keepdims=True)
    integers = np.rint(directions * (127 / np.maximum(largest, 1e-30))).astype(np.int8)
    rows = np.concatenate([integers, centred(mean[None])])
    origin = products(rows, rows[-1:])[:, 0].astype(np.int64)
    return Projection(rows, _factor(integers), origin, min(leading, len(integers)))


def _factor(integers: np.ndarray) -> np.ndarray:
    """Factors that make rows, int8 (p, d), of about one length, and the largest eigenvalue of their PᵀP at most 1."""
    gram = products(integers, integers).astype(np.float64)
    factor = 1 / np.sqrt(np.maximum(np.diag(gram), 1))
    largest = np.linalg.eigvalsh(gram * np.outer(factor, factor))[-1]
    return factor / np.sqrt(largest * (1 + EIGENVALUE_ERROR) + EIGENVALUE_ERROR)


def _principal(sample: np.ndarray, size: int) -> np.ndarray:
    """Rows (at most `size`, d) near the leading right singular vectors, of any length: a randomised range finder on
    the smaller Gram matrix. Directions without variance are zero."""
    few = len(sample) < sample.shape[1]
    gram = sample @ sample.T if few else sample.T @ sample
    basis = np.random.default_rng(0).standard_normal((len(gram), min(size, len(gram))), dtype=np.float32)
    for _ in range(2):
        basis = np.linalg.qr(gram @ basis)[0]
    variances, rotation = np.linalg.eigh(basis.T @ (gram @ basis))
    rotation[:, variances <= 1e-6 * variances[-1]] = 0  # float32's rounding, which has no direction
    basis = (basis @ rotation[:, ::-1]).T
    return basis @ sample if few else basis


class Coordinates(NamedTuple):
    """Images as the bound sees them, in units of 1/scale; coordinates are rounded to the nearest, lengths up.

    Attributes:
        coarse: int16 (N, c + 2), c even: the c leading coordinates, the length of the later ones, the length outside.
        fine: int16 (N, ...): the length of the later coordinates (negative in queries, which takes its product out of
            the coarse score again), these coordinates, zeros that fill lines of the cache; empty where there are none.
        squared, norms: int64 (N,), ‖x−m‖² and ‖x−128‖² in pixel units.
        added: int32 (N,), what a score adds for the reference alone: −scale² squared / 2, rounded up.
        length: float64 (N,), the larger of ‖Px‖ before and after rounding.
        error: float64 (N,), the length of the rounding.
        slack: float64 (N,), of queries: how far rounding lets a score fall below what it bounds.
        scale: float.
    """

    coarse: np.ndarray
    fine: np.ndarray
    squared: np.ndarray
    norms: np.ndarray
    added: np.ndarray
    length: np.ndarray
    error: np.ndarray
    slack: np.ndarray
    scale: float

    def take(self, order: np.ndarray) -> "Coordinates":
        """These rows, in this order."""
        return Coordinates(*(field[order] for field in self[:-1]), self.scale)

    def as_queries(self, reference: "Coordinates") -> "Coordinates":
        """The same as the other side of a product with `reference`.

        With û = x + e for the rounded coordinates, x·y = û·v̂ − e_x·v̂ − x·e_y ≤ û·v̂ + ‖e_x‖‖v̂‖ + ‖x‖‖e_y‖, which
        `slack` bounds over all references. Its last terms are float64's rounding: Px is off by at most 1e-15 of its
        length. The lengths were enlarged by more than their own before they were rounded up: ‖Cx‖ from ‖x‖² − ‖Px‖² is
        off by at most 2√(p·2⁻⁵²)·LARGEST_COORDINATE < 0.25 for p ≤ 4096.
        """
        largest, worst = float(reference.length.max()), float(reference.error.max())
        slack = self.error * largest + self.length * worst + 1 + 1e-10 * LARGEST_COORDINATE**2
        fine = self.fine.copy()
        fine[:, :1] *= -1
        return self._replace(fine=fine, slack=slack)

    def similar(self) -> np.ndarray:
        """An order, int64 (N,), in which consecutive rows are alike: the leaves of a k-d tree."""
        points = self.coarse[:, : min(LEAF_DIRECTIONS, self.coarse.shape[1] - 2)]
        leaves, pending = [], [np.arange(len(points))]
        while pending:
            rows = pending.pop()
            if len(rows) <= LEAF_ROWS:
                leaves.append(rows)
                continue
            column = points[rows, np.argmax(points[rows].std(0))]
            rows = rows[np.argsort(column, kind="stable")]
            pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return np.concatenate(leaves)


def coordinates(projection: Projection, images: np.ndarray) -> Coordinates:
    """The coordinates of uint8 images (N, d) as references, 4.9 times as fast as torch's float32 product, rounded."""
    (count, d), size, leading = images.shape, projection.size, projection.leading
    scale = LARGEST_COORDINATE / (255 * np.sqrt(d))
    coarse = np.zeros((count, leading + leading % 2 + 2), np.int16)
    fine = _cache_lines(count, 1 + size - leading if size > leading else 0)
    squared, norms = np.empty((2, count), np.int64)
    found = Coordinates(coarse, fine, squared, norms, np.empty(count, np.int32), *np.zeros((3, count)), scale)
    origin, factor, step = projection.origin[:-1], projection.factor * scale, max(1, min(2048, ROUND_BYTES // d))

    def fill(a: int, b: int) -> None:
        for start in range(a, b, step):
            part = slice(start, min(start + step, b))
            raw, squared[part], norms[part] = projection.integers(images[part])
            compiled.round_rows(raw, origin, factor, leading, found, start)

    spread(fill, count)
    return found


def _cache_lines(count: int, width: int) -> np.ndarray:
    """Zeros, int16 (count, at least width), whose rows fill whole lines of the cache."""
    line = CACHE_LINE // 2
    width = -(-width // line) * line
    room = np.zeros(count * width + line, np.int16)
    first = -room.ctypes.data % CACHE_LINE // 2
    return room[first : first + count * width].reshape(count, width)
