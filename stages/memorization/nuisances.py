"""Copies that were changed: recoloured, moved, enlarged, shrunk, rotated or partly covered.

An image is undone in many views: each maps it back onto the training image it may be a copy of, as CELLS × CELLS cells,
with a mask of the cells that the copy still shows. Under a view the image is compared with training images up to their
colours: the least ‖image − A x − b‖ over all colour matrices A and offsets b, which has a closed form. Gains, offsets,
grey and exchanged channels are such maps, gamma is one nearly. The distance is relative: the root of the part of the
image's variance that x does not explain, from 0 to 1.

Training images are tried that a shortlist names: the nearest by brightness, up to gain and offset, on COARSE × COARSE
cells, over the whole reference and exactly, for a few coarse views (`SHORTLISTS`) of the image and of its mirror image.
Of these the SCREENED ones that correlate most under any view of a kind are compared in colour.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy import sparse

from stages.engine import nuisance_kernels
from stages.engine.products import spread
from stages.files.arrays import Arrays
from stages.memorization.reduced import COARSE, reduce
from stages.search.nearest_short import Prepared, nearest_short

CELLS = 16  # cells per side of the images that are compared
FINEST = 32  # pixels per side of the images that views are taken of
SAMPLES = 2  # per cell and axis
SCREENED = 16  # training images that each kind compares in colour, and lists
ROUNDING = 0.25  # variance on the 0..255 scale, above that of rounding: what varies less explains nothing
OUTSIDE = 10  # nearest images outside the nearest one's duplicate group: the scale of rho
APART = 0.1  # of the side: places of moved images on the shortlist lie this far apart at most
BLOCK = 256  # images whose views are held at once
ANGLES = (3.0, -3.0, 5.5, -5.5, 8.0, -8.0)  # degrees
SHRUNK = tuple(side / 32 for side in (18, 20, 22, 24, 26, 28, 30))  # of the side, in the middle
Hidden = tuple[int, int, int, int]  # cells from and to, along y and along x


@dataclasses.dataclass(frozen=True)
class View:
    """Where each point of a training image lies in a changed copy of it.

    Attributes:
        words: the change, for a person.
        scale, angle: the copy is this many times as large, and turned by so many degrees.
        offset: (y, x), where the training image's centre lies, from the copy's centre; of the side.
        hidden: cells that the copy does not show.
    """

    words: str
    scale: float = 1.0
    angle: float = 0.0
    offset: tuple[float, float] = (0.0, 0.0)
    hidden: Hidden | None = None

    @property
    def bare(self) -> "View":
        """The same cells, all of them shown."""
        return dataclasses.replace(self, words="", hidden=None)


def _places(count: int, room: float) -> list[tuple[float, float]]:
    """count² places (y, x) in the middles of equal parts of the square of side `room` around 0."""
    steps = [room * ((i + 0.5) / count - 0.5) for i in range(count)]
    return list(itertools.product(steps, repeat=2))


def _hidden() -> Iterator[tuple[str, Hidden]]:
    """Boxes of half the side, which hold any box of 3/8, and bands of 3/8, which hold the thirds."""
    half, band = CELLS // 2, 3 * CELLS // 8
    for y, x in itertools.product(range(0, CELLS - half + 1, CELLS // 8), repeat=2):
        yield f"a box at ({y}, {x})", (y, y + half, x, x + half)
    for start in (0, CELLS // 8, CELLS // 3, CELLS // 2, CELLS - band):
        yield f"a band of rows from {start}", (start, start + band, 0, CELLS)
        yield f"a band of columns from {start}", (0, CELLS, start, start + band)


VIEWS = {
    "recoloured": [View("recoloured")],
    "shrunk": [View(f"shrunk to {part:.0%} of the side", part) for part in SHRUNK],
    "rotated": [View(f"rotated by {angle:+g} degrees", angle=angle) for angle in ANGLES],
    "covered": [View(f"covered by {words}", hidden=hidden) for words, hidden in _hidden()],
}
KINDS = tuple(VIEWS)
PLAIN = View("")
_HALF, _EDGE = COARSE // 2, COARSE // 4
_ALL = np.arange(COARSE)
_SIDES = np.delete(_ALL, slice(_EDGE, COARSE - _EDGE))
PARTS = {
    "whole": (_ALL, _ALL),
    "top": (_ALL[:_HALF], _ALL),
    "bottom": (_ALL[_HALF:], _ALL),
    "left": (_ALL, _ALL[:_HALF]),
    "right": (_ALL, _ALL[_HALF:]),
    "rows": (_SIDES, _ALL),
    "columns": (_ALL, _SIDES),
}
COARSE_VIEWS = {
    "plain": [PLAIN],
    "zoomed": [View("", 32 / 27, offset=place) for place in _places(2, 5 / 27)],
    "shrunk": [View("", part) for part in (20 / 32, 24 / 32)],
}
LISTED = {"plain": 16, "moved": 6, "zoomed": 4, "shrunk": 8, "parts": 8}  # of each coarse view or part
SHORTLISTS = {
    "recoloured": ("plain",),
    "shrunk": ("plain", "shrunk"),
    "rotated": ("plain",),
    "covered": ("plain", "parts"),
}


@functools.lru_cache(maxsize=256)
def operator(view: View, side: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the linear map from side² pixels of an image to the view's CELLS² cells, and the mask, int16 (CELLS²,).

    A cell is the mean of SAMPLES² bilinear samples; it is in the mask where these lie inside the image.
    """
    grid = (np.arange(CELLS * SAMPLES) + 0.5) / (CELLS * SAMPLES) - 0.5
    y, x = np.meshgrid(grid, grid, indexing="ij")
    turn = np.deg2rad(view.angle)
    at_y = view.scale * (np.cos(turn) * y - np.sin(turn) * x) + view.offset[0]
    at_x = view.scale * (np.sin(turn) * y + np.cos(turn) * x) + view.offset[1]
    inside = (np.abs(at_y) <= 0.5) & (np.abs(at_x) <= 0.5)
    cell = np.arange(CELLS * SAMPLES) // SAMPLES
    cell = (cell[:, None] * CELLS + cell).ravel()
    points = [np.clip((at + 0.5) * side - 0.5, 0, side - 1).ravel() for at in (at_y, at_x)]
    first = [np.clip(point.astype(int), 0, max(0, side - 2)) for point in points]
    shape, parts = (CELLS * CELLS, side * side), []
    for corner in itertools.product(range(min(2, side)), repeat=2):
        weight, pixel = np.full(len(cell), 1 / SAMPLES**2), np.zeros(len(cell), int)
        for point, low, step in zip(points, first, corner):
            weight = weight * (1 - np.abs(point - low - step))
            pixel = pixel * side + low + step
        parts.append(sparse.csr_matrix((weight, (cell, pixel)), shape, dtype=np.float32))
    mask = (np.bincount(cell, inside.ravel()) == SAMPLES**2).reshape(CELLS, CELLS).astype(np.int16)
    if view.hidden is not None:
        top, bottom, left, right = view.hidden
        mask[top:bottom, left:right] = 0
    return sum(parts[1:], parts[0]), mask.ravel()


@dataclasses.dataclass(frozen=True)
class Pixels:
    """N images, prepared for views.

    Attributes:
        values: float32 (side², C · N), channel by channel.
        side, channels: of the images.
        known: view, as `bare` returns it → what `seen` has found.
    """

    values: np.ndarray
    side: int
    channels: int
    known: dict[View, np.ndarray] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, images: np.ndarray) -> "Pixels":
        """Take uint8 images (N, H, W, C) as squares of at most FINEST pixels a side, each a mean of their pixels."""
        side, channels = min(FINEST, *images.shape[1:3]), images.shape[3]
        if images.shape[1:3] != (side, side):
            images = reduce(images, cells=side).reshape(len(images), side, side, channels)
        values = images.reshape(len(images), side * side, channels).transpose(1, 2, 0).astype(np.float32)
        return cls(values.reshape(side * side, -1), side, channels)

    def seen(self, view: View) -> np.ndarray:
        """Return the cells under a view, uint8 (N, C, CELLS²)."""
        if view.bare not in self.known:
            cells = np.clip(np.rint(operator(view, self.side)[0] @ self.values), 0, 255).astype(np.uint8)
            cells = cells.reshape(CELLS * CELLS, self.channels, -1).transpose(2, 1, 0)
            self.known[view.bare] = np.ascontiguousarray(cells)
        return self.known[view.bare]


def brightness(cells: np.ndarray) -> np.ndarray:
    """Return the mean over the channels of cells (N, C, CELLS²), uint8 (N, CELLS²)."""
    return (cells.sum(1, dtype=np.uint16) // cells.shape[1]).astype(np.uint8)


def descriptors(grey: np.ndarray, part: str = "whole") -> np.ndarray:
    """Return what the shortlist compares: brightness on COARSE² cells, or a part of them, free of gain and offset.

    grey: uint8 (N, CELLS²). uint8 (N, D) around 128, of mean 0 and one length; distances order as correlations do.
    """
    step = CELLS // COARSE
    coarse = grey.reshape(-1, COARSE, step, COARSE, step).mean((2, 4), dtype=np.float32)
    values = coarse[:, PARTS[part][0]][:, :, PARTS[part][1]].reshape(len(grey), -1)
    values -= values.mean(1, keepdims=True)
    values /= np.maximum(np.sqrt(np.square(values).mean(1, keepdims=True)), 1e-3)
    return np.clip(np.rint(128 + 40 * values), 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Reduced:
    """The reference as the views see it.

    Attributes:
        cells: uint8 (M, C, CELLS²).
        grey: uint8 (M, CELLS²).
        parts: PARTS → descriptors, uint8 (M, D), prepared for searches.
    """

    cells: np.ndarray
    grey: np.ndarray
    parts: dict[str, Prepared]

    @classmethod
    def of(cls, images: np.ndarray) -> "Reduced":
        """Take images uint8 (M, H, W, C) as the views see them."""
        cells = np.concatenate(_in_blocks(images, lambda block: Pixels.of(block).seen(PLAIN)))
        grey = brightness(cells)
        return cls(cells, grey, {part: Prepared.of(descriptors(grey, part)) for part in PARTS})


def shortlists(pixels: Pixels, reference: Reduced, budget: int, shift: float = 0.0) -> dict[str, np.ndarray]:
    """Return the rows that each list of LISTED names, int64 (N, S). shift: how far copies are moved, of the side."""

    def nearest(some: list[np.ndarray], name: str, part: str = "whole") -> np.ndarray:
        known = reference.parts[part]
        found = nearest_short(np.concatenate(some), known, min(LISTED[name], len(known.values)), budget)
        return np.concatenate(np.split(found, len(some)), axis=1)

    moved = [View("", offset=place) for place in _places(max(1, math.ceil(2 * shift / APART)), 2 * shift)]
    lists = {
        name: nearest([descriptors(brightness(pixels.seen(view))) for view in views], name)
        for name, views in {**COARSE_VIEWS, "moved": moved}.items()
    }
    grey = brightness(pixels.seen(PLAIN))
    parts = [nearest([descriptors(grey, part)], "parts", part) for part in PARTS if part != "whole"]
    return lists | {"parts": np.concatenate(parts, axis=1)}


def explain(
    images: np.ndarray, reference: Reduced, budget: int, shift: float = 0.0
) -> tuple[Arrays, dict[str, np.ndarray]]:
    """Return the best SCREENED reference images of each kind, nearest first, for images uint8 (N, H, W, C); and the
    shortlists by name, int64 (N, S), with those for images that are moved by up to `shift` of the side.

    row int64, view int64 (place in VIEWS[kind]) and residual, relative float64 (N, kinds, SCREENED). residual: mean
    squared difference that the colours do not explain, 0..255 scale; relative: its root over the image's deviation.
    −1 and ∞ fill up.
    """
    found, lists = zip(*_in_blocks(images, lambda block: _explain(Pixels.of(block), reference, budget, shift)))
    return tuple({name: np.concatenate([part[name] for part in some]) for name in some[0]} for some in (found, lists))


def _in_blocks(images: np.ndarray, work: Callable[[np.ndarray], Any]) -> list[Any]:
    """Return what `work` makes of every BLOCK images, in order; every thread takes some of the blocks."""
    made = [None] * -(-len(images) // BLOCK)

    def some(a: int, b: int) -> None:
        for n in range(a, b):
            made[n] = work(images[n * BLOCK : (n + 1) * BLOCK])

    spread(some, len(made))
    return made


def _explain(pixels: Pixels, reference: Reduced, budget: int, shift: float) -> tuple[Arrays, dict[str, np.ndarray]]:
    lists, kinds = shortlists(pixels, reference, budget, shift), []
    for kind, views in VIEWS.items():
        rows = _distinct(np.concatenate([lists[name] for name in SHORTLISTS[kind]], axis=1))
        kinds.append(_compare(pixels, views, rows, reference))
    count = max(found["row"].shape[1] for found in kinds)
    return {name: np.stack([_filled(found[name], count) for found in kinds], axis=1) for name in kinds[0]}, lists


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    """Return (N, S) with columns of −1, or of ∞ for floats, up to `count`."""
    fill = np.inf if values.dtype.kind == "f" else -1
    return np.pad(values, ((0, 0), (0, count - values.shape[1])), constant_values=fill)


def _distinct(rows: np.ndarray) -> np.ndarray:
    """Return each list ascending, with −1 in place of repeated rows."""
    rows = np.sort(rows, axis=1)
    rows[:, 1:][rows[:, 1:] == rows[:, :-1]] = -1
    return rows


def _compare(pixels: Pixels, views: list[View], rows: np.ndarray, reference: Reduced) -> Arrays:
    """The comparison of `explain` for one kind. rows: int64 (N, S), what is tried."""
    masks = np.stack([operator(view, pixels.side)[1] for view in views])
    bare = [view.bare for view in views]
    geometry = list(dict.fromkeys(bare))
    which = np.array([geometry.index(view) for view in bare])
    cells = np.stack([pixels.seen(view) for view in geometry])
    grey = [brightness(own) for own in cells]
    if geometry == [PLAIN] and all(view.hidden for view in views):
        best, view = _covered(grey[0], np.array([view.hidden for view in views]), rows, reference.grey)
    else:
        best, view = _correlated(grey, which, masks, rows, reference.grey)
    chosen = np.argsort(-best, axis=1, kind="stable")[:, :SCREENED]
    rows, view = np.take_along_axis(rows, chosen, 1), np.take_along_axis(view, chosen, 1)
    found = np.empty((*rows.shape, 2))

    def work(a: int, b: int) -> None:
        own = cells[:, a:b], which, masks, view[a:b]
        nuisance_kernels.residuals(*own, reference.cells, rows[a:b], ROUNDING, found[a:b])

    spread(work, len(rows))
    residual, total = found[..., 0], found[..., 1]
    quotient = np.divide(residual + ROUNDING, total + ROUNDING, out=np.full(rows.shape, np.inf), where=rows >= 0)
    return best_first({"row": rows, "view": view, "residual": residual, "relative": np.sqrt(quotient)})


def _correlated(
    grey: list[np.ndarray], which: np.ndarray, masks: np.ndarray, rows: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's largest correlation under any view, float32 (N, S), and that view, int64 (N, S)."""
    best, view = np.full(rows.shape, -np.inf, np.float32), np.zeros(rows.shape, np.int64)
    for place, mask in enumerate(masks):
        now = _correlations(_centred(grey[which[place]], mask), mask, reference, rows)
        view[now > best] = place
        best = np.maximum(best, now)
    return best, view


def _covered(
    grey: np.ndarray, boxes: np.ndarray, rows: np.ndarray, reference: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `_correlated` does, for views that hide a box of cells each."""
    best, view = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.int64)

    def work(a: int, b: int) -> None:
        nuisance_kernels.covered_correlations(grey[a:b], boxes, reference, rows[a:b], best[a:b], view[a:b])

    spread(work, len(rows))
    return best, view


def _correlations(queries: np.ndarray, mask: np.ndarray, reference: np.ndarray, rows: np.ndarray) -> np.ndarray:
    found = np.empty(rows.shape, np.float32)
    spread(lambda a, b: nuisance_kernels.correlations(queries[a:b], mask, reference, rows[a:b], found[a:b]), len(rows))
    return found


def best_first(found: Arrays) -> Arrays:
    """Return what `explain` returns, or such arrays side by side, with the least relative distance first.

    Of several entries with one row the first stays: the others, and entries without a row, go to the end.
    """
    order = np.lexsort((found["relative"], found["row"]), axis=-1)
    found = {name: np.take_along_axis(values, order, -1) for name, values in found.items()}
    again = np.zeros(found["row"].shape, bool)
    again[..., 1:] = found["row"][..., 1:] == found["row"][..., :-1]
    found = {**found, "relative": np.where(again, np.inf, found["relative"]), "row": np.where(again, -1, found["row"])}
    order = np.argsort(found["relative"], axis=-1, kind="stable")
    return {name: np.take_along_axis(values, order, -1) for name, values in found.items()}


def _centred(grey: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return brightness (N, P) less its rounded mean over the mask, 0 outside it; int16."""
    values = grey.astype(np.int16) - np.rint(grey[:, mask > 0].mean(1))[:, None].astype(np.int16)
    return values * mask
