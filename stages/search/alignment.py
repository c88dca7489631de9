"""Distances that allow for a shift or take the worst tile, from each query to a list of candidate rows.

Both are exact in integers over the candidates that they are given; the caller chooses the candidates.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from stages.engine import alignment_kernels
from stages.engine.alignment_kernels import Shifts
from stages.engine.products import spread
from stages.engine.simd import BYTE_STEP, VECTOR_BYTES
from stages.errors import InputError

TILES_PER_SIDE = 4


@dataclasses.dataclass(frozen=True)
class Shifted:
    """The best match of every query over candidates and shifts.

    Attributes:
        row: int64 (Q,), the reference row; -1 where a query has no candidate.
        shift: int64 (Q, 2), (dy, dx): query pixel (y, x) lies on reference pixel (y + dy, x + dx).
        squared: int64 (Q,), the sum of squared differences where the two overlap, on the 0..255 scale.
        count: int64 (Q,), the number of values that overlap; 0 where there is no candidate.
    """

    row: np.ndarray
    shift: np.ndarray
    squared: np.ndarray
    count: np.ndarray

    @property
    def distance(self) -> np.ndarray:
        """The root mean squared difference over the overlap, pixels in [0, 1]; infinite without a candidate."""
        mean = np.divide(self.squared, self.count, out=np.full(len(self.row), np.inf), where=self.count > 0)
        return np.sqrt(mean) / 255


def best_shift(queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray, reach: int) -> Shifted:
    """The candidate and the shift of at most `reach` pixels along each axis with the least mean squared difference.

    Args:
        queries: uint8 (Q, H, W, C).
        reference: uint8 (M, H, W, C).
        candidates: int64 (Q, S), rows of `reference`; -1: none.
        reach: largest shift, below half of the shorter side.

    Means are compared exactly (as fractions of integers); ties go to the lower row, then to the shift that comes
    first in the order of |dy|+|dx|, dy, dx.
    """
    _check(queries, reference, candidates)
    if not 0 <= 2 * reach < min(queries.shape[1:3]):
        raise InputError(f"a shift of {reach} pixels needs images of more than {2 * reach} pixels a side")
    steps = range(-reach, reach + 1)
    shifts = sorted(((y, x) for y in steps for x in steps), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    return _search_shifts(queries, reference, candidates, np.array(shifts, np.int64))


def best_window(queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray, places: np.ndarray) -> Shifted:
    """The candidate, and the window in it of the query's size, with the least squared difference; exact.

    Args:
        queries: uint8 (Q, h, w, C).
        reference: uint8 (M, H, W, C), at least as large.
        candidates: int64 (Q, S), rows of `reference`; -1: none.
        places: int64 (P, 2), (y, x) of the windows' first pixels: the shifts that are allowed.

    Ties go to the lower row, then to the earlier place.
    """
    _check(queries, reference[:, : queries.shape[1], : queries.shape[2]], candidates)
    room = np.array(reference.shape[1:3]) - queries.shape[1:3]
    if len(places) == 0 or places.min() < 0 or (places > room).any():
        raise InputError(f"windows {queries.shape[1:3]} do not all lie inside images {reference.shape[1:3]}")
    return _search_shifts(queries, reference, candidates, np.ascontiguousarray(places, np.int64))


def _search_shifts(queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray, shifts: np.ndarray) -> Shifted:
    queries, reference = np.ascontiguousarray(queries), np.ascontiguousarray(reference)
    found, candidates = np.zeros((len(queries), 5), np.int64), np.sort(candidates, axis=1)
    rows, places = np.unique(candidates, return_inverse=True)
    mine, theirs = _overlaps(shifts, queries.shape[1:], reference.shape[1:])
    tried = _laid_out(shifts, mine, queries.shape[1:], reference.shape[1:])
    own = _box_sums(queries, np.arange(len(queries)), mine, 256)
    others = _box_sums(reference, np.maximum(rows, 0), theirs, 0)
    places = places.reshape(candidates.shape)

    def work(a: int, b: int) -> None:
        known = own[a:b], others, places[a:b]
        alignment_kernels.search_shifts(queries[a:b], reference, candidates[a:b], tried, *known, found[a:b])

    spread(work, len(queries))
    return Shifted(found[:, 0], found[:, 1:3], found[:, 3], found[:, 4])


Shape = tuple[int, ...]
"""(H, W, C) of an image."""


def _overlaps(shifts: np.ndarray, query: Shape, image: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Return where query and image overlap under each shift, as boxes of either (`alignment_kernels.box_sums`)."""
    low, high = np.maximum(0, -shifts), np.minimum(query[:2], image[:2] - shifts)
    boxes = np.stack([low[:, 0], high[:, 0], query[2] * low[:, 1], query[2] * high[:, 1]], axis=1)
    moves = shifts[:, [0, 0, 1, 1]] * [1, 1, query[2], query[2]]
    return boxes, boxes + moves


def _laid_out(shifts: np.ndarray, boxes: np.ndarray, query: Shape, image: Shape) -> Shifts:
    """Return the shifts with the sizes of what lies in memory. boxes: of the query, as `_overlaps` returns them."""
    (least_y, least_x), (most_y, most_x) = shifts.min(0).tolist(), shifts.max(0).tolist()
    top, left = max(0, -least_y), max(0, -least_x)
    step = _whole(query[2] * (left + max(image[1], query[1] + most_x)), VECTOR_BYTES)
    size = _whole(query[0] * step, BYTE_STEP)
    last = max((top + image[0]) * step, (top + most_y) * step + (left + most_x) * query[2] + size)
    counts = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return Shifts(np.ascontiguousarray(shifts), counts, top * step, left * query[2], step, size, last)


def _whole(count: int, step: int) -> int:
    """Return the least multiple of `step` that is not below `count`."""
    return -(-count // step) * step


def _box_sums(images: np.ndarray, rows: np.ndarray, boxes: np.ndarray, weight: int) -> np.ndarray:
    """Return `alignment_kernels.box_sums`, int64 (len(rows), P)."""
    found = np.empty((len(rows), len(boxes)), np.int64)
    spread(lambda a, b: alignment_kernels.box_sums(images, rows[a:b], boxes, weight, found[a:b]), len(rows))
    return found


def tile_distance(queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """The least, over the candidates, of the largest distance of a tile; float64 (Q,), pixels in [0, 1].

    An image is cut into TILES_PER_SIDE² tiles (fewer where it is smaller). A tile's distance is the root mean squared
    difference inside it. Carlini et al. 2023 take the maximum over tiles, so that two images that share nothing but a
    plain background are not near. Arguments as of `best_shift`; infinite for a query without candidates.
    """
    _check(queries, reference, candidates)
    edges = (np.arange(min(TILES_PER_SIDE, n) + 1) * n // min(TILES_PER_SIDE, n) for n in queries.shape[1:3])
    found = np.full(len(queries), np.inf)
    _over_queries(alignment_kernels.search_tiles, queries, reference, candidates, found, *edges)
    return np.sqrt(found) / 255


def _over_queries(
    loop: Callable[..., None],
    queries: np.ndarray,
    reference: np.ndarray,
    candidates: np.ndarray,
    found: np.ndarray,
    *more: np.ndarray,
) -> None:
    """loop(queries, reference, candidates, *more, found) over all queries, cut for the threads."""
    queries, reference = np.ascontiguousarray(queries), np.ascontiguousarray(reference)
    spread(lambda a, b: loop(queries[a:b], reference, candidates[a:b], *more, found[a:b]), len(queries))


def _check(queries: np.ndarray, reference: np.ndarray, candidates: np.ndarray) -> None:
    for name, images in (("queries", queries), ("reference", reference)):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise InputError(f"{name} must be uint8 (N, H, W, C), not {images.dtype} {images.shape}")
    if queries.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"queries are {queries.shape[1:]}, reference images {reference.shape[1:]}: bring them to one size"
        )
    if candidates.ndim != 2 or len(candidates) != len(queries) or candidates.max(initial=-1) >= len(reference):
        raise ValueError(f"candidates {candidates.shape} do not fit {len(queries)} queries and {len(reference)} rows")
