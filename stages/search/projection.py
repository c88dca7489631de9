"""A certified lower bound on squared distances: project, keep the length of what is left over.

With P orthonormal rows and r the residual, ‖x−y‖² ≥ ‖Px−Py‖² + (‖r_x‖−‖r_y‖)² (Pythagoras, then the triangle
inequality). About a mean m it is one inner product of short vectors:

    bound = ‖x‖² + ‖y‖² − 2 (Px·Py + ‖r_x‖‖r_y‖)

P is spanned by int8 rows A, so that A x is exact in integers and P x = L⁻¹ A x with L Lᵀ = A Aᵀ is exact to float64.
What is left is the rounding of one float32 product, which `slack` bounds: with it the bound stays a proof.
"""

import dataclasses

import numpy as np

from stages.search.products import centred, products, squared_norms

SAMPLE = 1_024  # rows that the directions are fitted to; any directions are correct, these are good
CONDITION = 100.0  # of the directions' correlations: the float64 part of the error stays far below `slack`


@dataclasses.dataclass(frozen=True)
class Projection:
    """Orthonormal directions inside the span of integer rows, and the mean that images are centred on.

    Attributes:
        rows: int8 (p + 1, d): the p integer directions A, then m − 128.
        whiten: float64 (p, p): L⁻¹.
        origin: int64 (p + 1,): rows · (m − 128).
    """

    rows: np.ndarray
    whiten: np.ndarray
    origin: np.ndarray

    def coordinates(self, images: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(x−m) and ‖x−m‖². images: uint8 (N, d), norms: their `squared_norms`; float64 (N, p), int64 (N,)."""
        raw = np.concatenate([products(centred(block), self.rows) for block in _blocks(images)])
        along_mean = raw[:, -1].astype(np.int64)
        squared = norms - 2 * along_mean + self.origin[-1]
        return (raw[:, :-1] - self.origin[:-1]).astype(np.float64) @ self.whiten.T, squared


def _blocks(images: np.ndarray) -> list[np.ndarray]:
    rows = max(1, (1 << 25) // images.shape[1])
    return [images[start : start + rows] for start in range(0, len(images), rows)] or [images]


def fit_projection(reference: np.ndarray, size: int) -> Projection | None:
    """The `size` leading principal directions of evenly spaced rows of `reference`, uint8 (M, d).

    Returns None where the integer directions do not span `size` dimensions well enough for float64.
    """
    sample = reference[:: -(-len(reference) // SAMPLE)].astype(np.float32)
    mean = np.clip(np.rint(sample.mean(0)), 0, 255).astype(np.uint8)
    directions = _principal(sample - mean, size)
    scale = np.abs(directions).max(1, keepdims=True)
    integers = np.rint(directions * (127 / scale)).astype(np.int8)
    gram = products(integers, integers).astype(np.float64)
    scales = np.sqrt(np.diag(gram))
    if np.linalg.cond(gram / np.outer(scales, scales)) > CONDITION:
        return None
    rows = np.concatenate([integers, centred(mean[None])])
    origin = products(rows, rows[-1:])[:, 0].astype(np.int64)
    return Projection(rows, np.linalg.inv(np.linalg.cholesky(gram)), origin)


def _principal(sample: np.ndarray, size: int) -> np.ndarray:
    """Orthonormal rows (size, d) near the leading right singular vectors: a randomised range finder."""
    start = np.random.default_rng(0).standard_normal((sample.shape[1], size), dtype=np.float32)
    basis = np.linalg.qr(start)[0]
    for _ in range(2):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    rotation = np.linalg.eigh(basis.T @ (sample.T @ (sample @ basis)))[1]
    return (basis @ rotation[:, ::-1]).T


@dataclasses.dataclass(frozen=True)
class BoundVectors:
    """Images as the bound sees them: squared − 2 (coarse_x·coarse_y [+ fine_x·fine_y]) ≤ ‖x−y‖².

    Attributes:
        coarse: float32 (N, c + 2): Px in c dimensions, ‖r‖, and 1 (queries) or −‖y‖²/2 (reference).
        fine: float32 (N, p − c + 2): the other dimensions, their ‖r‖, and the coarse ‖r‖ with a sign that takes the
            coarse residuals' product out again. (N, 1) zeros where p ≤ c.
        squared: int64 (N,), ‖x−m‖².
    """

    coarse: np.ndarray
    fine: np.ndarray
    squared: np.ndarray

    def take(self, rows: slice) -> "BoundVectors":
        """These rows."""
        return BoundVectors(self.coarse[rows], self.fine[rows], self.squared[rows])


def bound_vectors(projection: Projection, images: np.ndarray, coarse: int, *, reference: bool) -> BoundVectors:
    """The bound's vectors of uint8 images (N, d), as queries or as the reference."""
    coordinates, squared = projection.coordinates(images, squared_norms(images))
    first, rest = coordinates[:, :coarse], coordinates[:, coarse:]
    inside = np.einsum("ij,ij->i", first, first)
    left = np.sqrt(np.maximum(squared - inside, 0))
    last = -0.5 * squared if reference else np.ones(len(squared))
    vectors = np.column_stack([first, left, last]).astype(np.float32)
    if rest.shape[1] == 0:
        return BoundVectors(vectors, np.zeros((len(images), 1), np.float32), squared)
    still_left = np.sqrt(np.maximum(squared - inside - np.einsum("ij,ij->i", rest, rest), 0))
    fine = np.column_stack([rest, still_left, -left if reference else left]).astype(np.float32)
    return BoundVectors(vectors, fine, squared)


def slack(queries: BoundVectors, reference: BoundVectors) -> np.ndarray:
    """How far the float32 inner products can be off, float64 (N,), for every vector of the reference.

    A sum of n rounded products, in whatever order, is off by at most n u/(1−n u) · Σ|a_i b_i| with u = 2⁻²⁴; rounding
    the vectors themselves adds 2u. Σ|a_i b_i| ≤ ‖x‖‖y‖ + ‖y‖²/2 for the coarse product and ≤ 2‖x‖‖y‖ for the fine one.
    The last factor 2 covers 1−n u and float64: ‖r‖ from ‖x‖² − ‖Px‖² is off by at most √(p·2⁻⁵²·CONDITION)‖x‖.
    """
    largest = float(reference.squared.max())
    terms = reference.coarse.shape[1] + 2 * reference.fine.shape[1] + 8
    return 2 * terms * 2.0**-24 * (np.sqrt(queries.squared * largest) + largest / 2 + 1)
