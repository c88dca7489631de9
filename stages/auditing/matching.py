"""Every image against the reference: exact neighbours, also mirrored, best shift and crop, tiles, the next group.

The nearest images and the mirrored ones are exact over the whole reference. Shifts and crops are searched in two
steps: a shortlist (the nearest by pixels, and the nearest among reduced images, see `shortlist`), then the exact best
shift, or window, over the shortlist. The shortlist is the one step that is no proof; the self-test measures what it
misses.
"""

import dataclasses

import numpy as np

from stages.auditing import crops
from stages.auditing.reduced import COARSE, Window, reduce
from stages.auditing.store import Arrays, Store
from stages.engine.products import single_threaded_products
from stages.files.artifacts import sha256_json
from stages.search.alignment import best_shift, tile_distance
from stages.search.nearest import nearest
from stages.search.nearest_short import nearest_short

NEIGHBORS = 50  # of every image, exact
OUTSIDE = 10  # nearest images outside the nearest one's duplicate group: the scale of rho
REACH = 2  # pixels of shift
COARSE_NEIGHBORS = 12
PIXEL_CANDIDATES = 8
WIDE = 1_024  # neighbours that are searched at most to get beyond a duplicate group; larger groups go one by one
BLOCK = 4_096  # images per stored piece


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is searched.

    Attributes:
        images: uint8 (M, H, W, C).
        rows: int64 (M,), each one's row among the training images.
        group: int64 (M,); equal for images of one duplicate group.
        digest: of images and groups.
        own: (index, squared), int64 (M, n): each one's nearest other images, where they are known already.
        kept: reduced images, by window, where they take little room (`reduced`).
    """

    images: np.ndarray
    rows: np.ndarray
    group: np.ndarray
    digest: str
    own: tuple[np.ndarray, np.ndarray] | None = None
    kept: dict[Window | None, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def flat(self) -> np.ndarray:
        """uint8 (M, d)."""
        return self.images.reshape(len(self), -1)

    def reduced(self, window: Window | None, budget: int) -> np.ndarray:
        """`reduce(images, window)`: uint8 (M, D), kept for the next block while all take a quarter of `budget`."""
        if window in self.kept:
            return self.kept[window]
        found = reduce(self.images, window)
        if found.nbytes + sum(array.nbytes for array in self.kept.values()) <= budget // 4:
            self.kept[window] = found
        return found

    def neighbors(self, rows: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """The NEIGHBORS nearest other images of distinct rows: index and squared distance, int64 (R, n)."""
        if self.own is not None:
            return self.own[0][rows], self.own[1][rows]
        count = min(NEIGHBORS, len(self) - 1)
        return nearest(self.flat[rows], self.flat, count, exclude=rows, memory_budget=budget)


@dataclasses.dataclass(frozen=True)
class Matches:
    """N images against a reference of M; k = min(NEIGHBORS, M). Squares are ‖a−b‖² on the 0..255 scale, int64.

    Attributes:
        index, squared: (N, k), the nearest reference images.
        outside: (N, OUTSIDE), squares to the nearest ones outside the nearest one's group; −1 where there are no more.
        mirrored_index, mirrored_squared, mirrored_outside: the same for the image mirrored left to right.
        shift_row: (N,), the best match over the shortlist, shifts of up to REACH pixels and the mirror image.
        shift: (N, 2), its (dy, dx).
        shift_mirrored: bool (N,), whether it matches the mirrored image.
        shift_distance: float64 (N,), root mean squared difference over the overlap, pixels in [0, 1].
        crop_row, crop_distance: (N,), the best match over enlarged windows (`crops.Cropped`) of the shortlist and the
            mirror image; crop_window: (N, 3), its (y, x, side); crop_mirrored: bool (N,).
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
    tile: np.ndarray
    own_index: np.ndarray
    own_squared: np.ndarray
    own_outside: np.ndarray
    dimension: int

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: np.ndarray) -> "Matches":
        """These rows."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Matches(**{n: v if n == "dimension" else v[rows] for n, v in fields.items()})

    @classmethod
    def join(cls, parts: "list[Matches]") -> "Matches":
        """One after the other."""
        names = [f.name for f in dataclasses.fields(cls) if f.name != "dimension"]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, dimension=parts[0].dimension)


def mirrored(images: np.ndarray) -> np.ndarray:
    """Images (N, H, W, C) mirrored left to right."""
    return np.ascontiguousarray(images[:, :, ::-1])


def expected_seconds(count: int, reference: int, dimension: int) -> float:
    """Estimated seconds of `match`, for the progress bar."""
    return count * (2e-11 * reference * dimension**0.9 + 4e-7 * dimension)  # searches, then shifts and windows


def match(images: np.ndarray, digest: str, reference: Reference, store: Store, budget: int) -> Matches:
    """Match every image, block by block, each block from the store where it is there.

    Args:
        images: uint8 (N, H, W, C).
        digest: of what `images` is, for the store.
        budget: bytes of working memory.
    """
    parts = []
    key = [digest, reference.digest, NEIGHBORS, OUTSIDE, REACH, COARSE, COARSE_NEIGHBORS, PIXEL_CANDIDATES]
    key += crops.SETTINGS
    for start in range(0, len(images), BLOCK):
        block = np.ascontiguousarray(images[start : start + BLOCK])

        def compute(block: np.ndarray = block) -> Arrays:
            with single_threaded_products():
                return _match(block, reference, budget)

        cost = expected_seconds(len(block), len(reference), block[0].size)
        found = store.arrays("matches", [*key, start, len(block)], cost, compute)
        parts.append(Matches(**found, dimension=block[0].size))
    return Matches.join(parts)


def _match(block: np.ndarray, reference: Reference, budget: int) -> Arrays:
    count, k = len(block), min(NEIGHBORS, len(reference))
    images = np.concatenate([block, mirrored(block)])  # one search prepares the reference once
    flat = images.reshape(len(images), -1)
    index, squared = nearest(flat, reference.flat, k, memory_budget=budget)
    beyond = outside(flat, index, squared, reference, OUTSIDE, budget)
    candidates = shortlist(images, index, reference, budget)
    shifted = best_shift(images, reference.images, candidates, min(REACH, (min(images.shape[1:3]) - 1) // 2))
    turned, best = _nearer_half(shifted.distance)
    cropped = crops.best_crop(images, reference.images, index, lambda window: reference.reduced(window, budget), budget)
    crop_turned, crop_best = _nearer_half(cropped.distance)
    found = {"index": index, "squared": squared, "outside": beyond}
    halves = {name: values[:count] for name, values in found.items()}
    halves |= {f"mirrored_{name}": values[count:] for name, values in found.items()}
    halves |= {"shift_row": shifted.row[best], "shift": shifted.shift[best], "shift_mirrored": turned}
    halves["shift_distance"] = shifted.distance[best]
    halves |= {"crop_row": cropped.row[crop_best], "crop_window": cropped.window[crop_best]}
    halves |= {"crop_mirrored": crop_turned, "crop_distance": cropped.distance[crop_best]}
    halves["tile"] = tile_distance(block, reference.images, halves["index"])
    return halves | _own(halves["index"][:, 0], reference, budget)


def _nearer_half(distance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of 2N distances, N images and then their mirror images: whether the latter is nearer, and its place; (N,)."""
    plain, turned = np.split(distance, 2)
    nearer = turned < plain
    return nearer, np.arange(len(plain)) + len(plain) * nearer


def _own(nearest_rows: np.ndarray, reference: Reference, budget: int) -> Arrays:
    """The neighbours of every nearest image, each distinct one searched once."""
    rows, back = np.unique(nearest_rows, return_inverse=True)
    queries = reference.flat[rows]
    index, squared = reference.neighbors(rows, budget)
    # itself leads the list, so that its own group is the one to leave
    with_self = np.concatenate([rows[:, None], index], axis=1), np.pad(squared, ((0, 0), (1, 0)))
    own_outside = outside(queries, *with_self, reference, 1, budget)[:, 0]
    return {"own_index": index[back], "own_squared": squared[back], "own_outside": own_outside[back]}


def outside(
    queries: np.ndarray, index: np.ndarray, squared: np.ndarray, reference: Reference, count: int, budget: int
) -> np.ndarray:
    """Squares to the `count` nearest reference images outside the group of the first neighbour, int64 (N, count).

    Taken from the list (index, squared) where it holds enough of them; else the reference without that group is
    searched. −1 fills up where the reference has no more.
    """
    own = reference.group[index[:, 0]]
    result, found = _foreign(reference, own, index, squared, count)
    short = np.flatnonzero(found < count)
    size = np.bincount(reference.group)[own[short]]
    wide = short[size + count <= WIDE]
    if len(wide):  # so many neighbours are enough, whatever the group
        k = min(len(reference), int(size.max(where=size + count <= WIDE, initial=1)) + count)
        further = nearest(queries[wide], reference.flat, k, memory_budget=budget)
        result[wide], _ = _foreign(reference, own[wide], *further, count)
    rest = short[size + count > WIDE]
    for group in np.unique(own[rest]):
        others = np.flatnonzero(reference.group != group)
        some, wanted = rest[own[rest] == group], min(count, len(others))
        if wanted:
            result[some, :wanted] = nearest(queries[some], reference.flat[others], wanted, memory_budget=budget)[1]
    return result


def _foreign(
    reference: Reference, own: np.ndarray, index: np.ndarray, squared: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first `count` squares of each list outside the group `own`, −1 filling up; and how many there are."""
    foreign = reference.group[index] != own[:, None]
    order = np.argsort(~foreign, axis=1, kind="stable")[:, :count]  # the foreign ones first, nearest first
    result = np.full((len(index), count), -1, np.int64)
    result[:, : order.shape[1]] = np.where(
        np.take_along_axis(foreign, order, 1), np.take_along_axis(squared, order, 1), -1
    )
    return result, foreign.sum(1)


def shortlist(images: np.ndarray, index: np.ndarray, reference: Reference, budget: int) -> np.ndarray:
    """Reference rows worth trying at every shift, int64 (N, S), −1 filling up.

    The PIXEL_CANDIDATES nearest by pixels, and of every coarse shift of the image the COARSE_NEIGHBORS nearest among
    the reduced reference images. Every shift of up to REACH pixels is within a quarter of a cell, along each axis, of
    a coarse shift: none where a cell is that wide, one pixel to either side, or all of them.
    """
    cell = min(images.shape[1:3]) / COARSE
    steps = (0,) if cell >= 4 * REACH else (-1, 1) if cell >= 4 else range(-REACH, REACH + 1)
    shifts = [(y, x) for y in steps for x in steps]
    reduced, count = reference.reduced(None, budget), min(COARSE_NEIGHBORS, len(reference))
    moved = np.concatenate([reduce(_moved(images, *shift)) for shift in shifts])
    found = nearest_short(moved, reduced, count, budget)
    return np.concatenate([index[:, :PIXEL_CANDIDATES], *np.split(found, len(shifts))], axis=1)


def _moved(images: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Images shifted by whole pixels, the border repeated."""
    height, width = images.shape[1:3]
    y, x = np.clip(np.arange(height) - dy, 0, height - 1), np.clip(np.arange(width) - dx, 0, width - 1)
    return images[:, y][:, :, x]


def reference_of(
    images: np.ndarray,
    rows: np.ndarray,
    group: np.ndarray,
    digest: str,
    own: tuple[np.ndarray, np.ndarray] | None = None,
) -> Reference:
    """The reference made of `rows` of the training images; digest: of all training images; own: as in Reference."""
    rows = np.asarray(rows, np.int64)
    pixels = images if len(rows) == len(images) else images[rows]
    group = group[rows]
    return Reference(pixels, rows, group, sha256_json([digest, sha256_json(rows.tolist()), group.tolist()]), own)
