"""Every image against the reference: exact neighbours, also mirrored, the best shift and crop, and the next group.

The nearest images of the image and of its mirror image are exact over the whole reference. Shifts, crops and the
changes of stages.memorization.nuisances are searched in two steps: a shortlist (the nearest by pixels, and the nearest
among reduced images), then the exact best shift, window or view over the shortlist. The shortlist is the only inexact
step; the self-test measures what it misses. Crops and shrunk copies are then measured at full resolution.
"""

import dataclasses
import functools

import numpy as np

from stages.engine.products import single_threaded_products
from stages.files.arrays import Arrays
from stages.memorization import mixtures, nuisances
from stages.memorization.crops import best_crop
from stages.memorization.neighbors import BUDGET, NEIGHBORS
from stages.memorization.nuisances import OUTSIDE
from stages.memorization.refined import measured_crops, measured_shrunk
from stages.search.alignment import best_shift, tile_distance
from stages.search.nearest import nearest
from stages.search.pixel_distance import pixel_distance

LEAST_REACH, REACH = 2, 3  # pixels of shift, of small and of other images
CANDIDATES = 4  # the nearest by pixels and by brightness, at which shifts and crops are searched besides the shortlist
WIDE = 1_024  # neighbours that are searched at most to get beyond a duplicate group; larger groups go one by one
BLOCK = 4_096  # images that are matched at once


@dataclasses.dataclass(frozen=True)
class Reference:
    """The training images that are searched.

    Attributes:
        images: uint8 (M, H, W, C).
        rows: int64 (M,), each one's row among the training images.
        group: int64 (M,); equal for images of one duplicate group.
        own: (index, squared), int64 (M, n): each one's nearest other images, where they are known already.
        budget: bytes of working memory for a search.
    """

    images: np.ndarray
    rows: np.ndarray
    group: np.ndarray
    own: tuple[np.ndarray, np.ndarray] | None = None
    budget: int = BUDGET

    def __len__(self) -> int:
        return len(self.images)

    @property
    def flat(self) -> np.ndarray:
        """uint8 (M, d)."""
        return self.images.reshape(len(self), -1)

    def part(self, rows: np.ndarray) -> "Reference":
        """Return these rows as a reference of their own."""
        return Reference(self.images[rows], self.rows[rows], self.group[rows], budget=self.budget)

    @functools.cached_property
    def seen(self) -> nuisances.Reduced:
        """The images as the views of changed copies see them."""
        return nuisances.Reduced.of(self.images)

    def nearest(self, queries: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` nearest images, or all, of uint8 (Q, d): index and squared distance, int64 (Q, k)."""
        return nearest(queries, self.flat, min(count, len(self)), memory_budget=self.budget)

    def neighbors(self, rows: np.ndarray, count: int = NEIGHBORS) -> tuple[np.ndarray, np.ndarray]:
        """Return the `count` nearest other images, or all, of distinct rows: index and squared, int64 (R, n)."""
        if self.own is not None:
            return self.own[0][rows, :count], self.own[1][rows, :count]
        count = min(count, len(self) - 1)
        return nearest(self.flat[rows], self.flat, count, exclude=rows, memory_budget=self.budget)


def whole_reference(
    images: np.ndarray,
    group: np.ndarray | None = None,
    own: tuple[np.ndarray, np.ndarray] | None = None,
    budget: int = BUDGET,
) -> Reference:
    """Return all training images as the reference. Arguments as attributes of Reference; group None: no groups."""
    rows = np.arange(len(images))
    return Reference(images, rows, rows if group is None else group, own, budget)


@dataclasses.dataclass(frozen=True)
class Matches:
    """N images against a reference of M. Squares are ‖a−b‖² on the 0..255 scale, int64; k nearest are listed.

    Attributes:
        index, squared: (N, k), the nearest reference images.
        outside: (N, OUTSIDE), squares to the nearest ones outside the nearest one's group; −1 where there are no more.
        mirrored_index, mirrored_squared, mirrored_outside: the same for the image mirrored left to right.
        shift_row: (N,), the best match over the shortlist, shifts of up to `reach` pixels and the mirror image.
        shift: (N, 2), its (dy, dx).
        shift_mirrored: bool (N,), whether it matches the mirrored image.
        shift_distance: float64 (N,), root mean squared difference over the overlap, pixels in [0, 1].
        crop_row, crop_distance: (N,), the best match over enlarged windows (`crops.Cropped`) of the shortlist and the
            mirror image, the distance between whole pixels (`refined`); crop_window: (N, 3), the (y, x, side) in whole
            pixels; crop_mirrored: bool (N,).
        changed_row, changed_view: int64 (N, kinds, S), the S nearest reference images under each kind of change
            (`nuisances.KINDS`) of the image or its mirror image, and the place of the view; −1: no more.
        changed_relative, changed_residual: float64 (N, kinds, S), their distances (`nuisances.explain`); ∞: no more.
        changed_mirrored: bool (N, kinds, S), whether they match the mirrored image.
        changed_group: int64 (N, kinds, S), their duplicate groups; −1: no more.
        hull, effective: float64 (N,), distance to the convex hull of the nearest images of the 8 nearest
            duplicate groups, and the effective number of its weights (stages.memorization.blends).
        mixture, mixture_effective: float64 (N,), the same, with further points where a change brings the image near to
            a training image (stages.memorization.mixtures).
        tile: float64 (N,), tile-max distance: the least over the k nearest.
        own_index, own_squared: (N, n), from the nearest reference image to those nearest to it, itself not counted.
        own_outside: (N,), square from there to the next image outside its group; −1 where there is none.
        dimension: d.
    """

    index: np.ndarray
    squared: np.ndarray
    outside: np.ndarray
    mirrored_index: np.ndarray
    mirrored_squared: np.ndarray
    mirrored_outside: np.ndarray
    shift_row: np.ndarray
    shift: np.ndarray
    shift_mirrored: np.ndarray
    shift_distance: np.ndarray
    crop_row: np.ndarray
    crop_window: np.ndarray
    crop_mirrored: np.ndarray
    crop_distance: np.ndarray
    changed_row: np.ndarray
    changed_view: np.ndarray
    changed_relative: np.ndarray
    changed_residual: np.ndarray
    changed_mirrored: np.ndarray
    changed_group: np.ndarray
    hull: np.ndarray
    effective: np.ndarray
    mixture: np.ndarray
    mixture_effective: np.ndarray
    tile: np.ndarray
    own_index: np.ndarray
    own_squared: np.ndarray
    own_outside: np.ndarray
    dimension: int

    def __len__(self) -> int:
        return len(self.index)


def mirrored(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, C) mirrored left to right."""
    return np.ascontiguousarray(images[:, :, ::-1])


def match(images: np.ndarray, reference: Reference, count: int = NEIGHBORS, own_count: int = NEIGHBORS) -> Arrays:
    """Match images uint8 (N, H, W, C), N ≥ 1: the arrays of Matches that do not depend on duplicate groups.

    count: how many nearest images are listed of each image (k); own_count: of its nearest training image (n).
    """
    blocks = (np.ascontiguousarray(images[start : start + BLOCK]) for start in range(0, len(images), BLOCK))
    with single_threaded_products():
        return join([_match(block, reference, count, own_count) for block in blocks])


def join(parts: list[Arrays]) -> Arrays:
    """Return the named arrays of several blocks, one after the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _match(block: np.ndarray, reference: Reference, count: int, own_count: int) -> Arrays:
    images = np.concatenate([block, mirrored(block)])  # one search prepares the reference once
    index, squared = reference.nearest(images.reshape(len(images), -1), count)
    side = min(images.shape[1:3])
    pixels = reach(side)
    changed, lists = nuisances.explain(images, reference.seen, reference.budget, pixels / side)
    changed = measured_shrunk(images, reference.images, changed)
    near = np.concatenate([index[:, :CANDIDATES], lists["plain"][:, :CANDIDATES]], axis=1)
    candidates = np.concatenate([near, lists["moved"]], axis=1)
    shifted = best_shift(images, reference.images, candidates, pixels)
    turned, best = _nearer_half(shifted.distance)
    cropped = best_crop(images, reference.images, np.concatenate([near, lists["zoomed"]], axis=1))
    usual = pixel_distance(squared[:, -1], reference.flat.shape[1])
    crop_distance = measured_crops(images, reference.images, cropped, usual)
    crop_turned, crop_best = _nearer_half(crop_distance)
    mine = len(block)
    own = index[:mine]
    return {
        "index": own,
        "squared": squared[:mine],
        "mirrored_index": index[mine:],
        "mirrored_squared": squared[mine:],
        "shift_row": shifted.row[best],
        "shift": shifted.shift[best],
        "shift_mirrored": turned,
        "shift_distance": shifted.distance[best],
        "crop_row": cropped.row[crop_best],
        "crop_window": cropped.window[crop_best],
        "crop_mirrored": crop_turned,
        "crop_distance": crop_distance[crop_best],
        **_either(changed),
        "tile": tile_distance(block, reference.images, own),
        **_own(own[:, 0], reference, own_count),
    }


def _nearer_half(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where the mirror image is nearer, bool (N,), and the place of the nearer one among the 2N distances of N
    images and then of their mirror images."""
    plain, turned = np.split(distance, 2)
    nearer = turned < plain
    return nearer, np.arange(len(plain)) + len(plain) * nearer


def reach(side: int) -> int:
    """Return how many pixels images of this side are shifted by at most: a tenth of it within the bounds above."""
    return min((side - 1) // 2, max(LEAST_REACH, min(REACH, side // 10)))


def _either(changed: Arrays) -> Arrays:
    """Return the best matches of N images or their mirror images, from those of the N and then of the mirror images."""
    halves = {name: np.split(values, 2) for name, values in changed.items()}
    sides = {name: np.concatenate(pair, axis=-1) for name, pair in halves.items()}
    count = changed["row"].shape[-1]
    sides["mirrored"] = np.broadcast_to(np.arange(2 * count) >= count, sides["row"].shape)
    return {f"changed_{name}": values[..., :count] for name, values in nuisances.best_first(sides).items()}


def _own(nearest_rows: np.ndarray, reference: Reference, count: int) -> Arrays:
    """Return the neighbours of every nearest image; each distinct one is searched once."""
    rows, back = np.unique(nearest_rows, return_inverse=True)
    index, squared = reference.neighbors(rows, count)
    return {"own_index": index[back], "own_squared": squared[back]}


def with_groups(found: Arrays, images: np.ndarray, reference: Reference) -> Arrays:
    """Add what depends on duplicate groups to what `match` found of images uint8 (N, H, W, C): the distances to images
    of other groups, and the hull, in which a group is one image."""
    flat, turned = (some.reshape(len(images), -1) for some in (images, mirrored(images)))
    rows, first, back = np.unique(found["index"][:, 0], return_index=True, return_inverse=True)
    # itself leads the list, so that its own group is the one to leave
    index = np.concatenate([rows[:, None], found["own_index"][first]], axis=1)
    squared = np.pad(found["own_squared"][first], ((0, 0), (1, 0)))
    return {
        **found,
        **mixtures.hulls(found, np.stack([flat, turned]), reference.flat, reference.group, reference.nearest),
        "outside": outside(flat, found["index"], found["squared"], reference, OUTSIDE),
        "mirrored_outside": outside(turned, found["mirrored_index"], found["mirrored_squared"], reference, OUTSIDE),
        "own_outside": outside(reference.flat[rows], index, squared, reference, 1)[back, 0],
        "changed_group": np.where(found["changed_row"] < 0, -1, reference.group[found["changed_row"]]),
    }


def outside(
    queries: np.ndarray, index: np.ndarray, squared: np.ndarray, reference: Reference, count: int
) -> np.ndarray:
    """Return the squared distances to the `count` nearest reference images outside the first neighbour's group.

    int64 (N, count); −1 fills up where the reference has no more. They come from the list (index, squared) where it
    is long enough, else from a search of the reference without that group.
    """
    own = reference.group[index[:, 0]]
    result, found = _foreign(reference, own, index, squared, count)
    short = np.flatnonzero(found < count)
    size = np.bincount(reference.group)[own[short]]
    wide = short[size + count <= WIDE]
    if len(wide):  # a group and `count` more neighbours reach beyond the group
        further = reference.nearest(queries[wide], int(size.max(where=size + count <= WIDE, initial=1)) + count)
        result[wide], _ = _foreign(reference, own[wide], *further, count)
    rest = short[size + count > WIDE]
    for group in np.unique(own[rest]):
        others = reference.part(np.flatnonzero(reference.group != group))
        some, wanted = rest[own[rest] == group], min(count, len(others))
        if wanted:
            result[some, :wanted] = others.nearest(queries[some], wanted)[1]
    return result


def _foreign(
    reference: Reference, own: np.ndarray, index: np.ndarray, squared: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the first `count` squares of each list outside the group `own`, −1 filling up, and how many there are."""
    foreign = reference.group[index] != own[:, None]
    order = np.argsort(~foreign, axis=1, kind="stable")[:, :count]  # the foreign ones first, nearest first
    result = np.full((len(index), count), -1, np.int64)
    result[:, : order.shape[1]] = np.where(
        np.take_along_axis(foreign, order, 1), np.take_along_axis(squared, order, 1), -1
    )
    return result, foreign.sum(1)
