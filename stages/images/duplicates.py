"""Duplicate images: pairs within a pixel or a feature distance, and the groups that they form.

The pixel distance is l (stages/search/pixel_distance.py), the feature distance 1 − cosine.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.engine.products import affordable
from stages.errors import InputError
from stages.files.images import JoinedTables
from stages.search.pixel_distance import pixel_distance
from stages.search.range_search import pairs_within

MAX_PAIRS = 20_000_000  # a threshold that gives more joins most of the data set, which is a mistake


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of rows that count as duplicates.

    Attributes:
        i, j: int64 (P,), i < j, sorted by (i, j), each pair once.
        distance: float64 (P,), pixel or feature distance, as the search that found them measures it.
    """

    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.i)

    @classmethod
    def union(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """All pairs of `parts`, sorted; a pair that occurs twice is kept once."""
        nothing = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
        columns = zip(nothing, *((part.i, part.j, part.distance) for part in parts))
        i, j, distance = (np.concatenate(column) for column in columns)
        _, first = np.unique(np.stack([i, j]), axis=1, return_index=True)
        return cls(i[first], j[first], distance[first])


@dataclasses.dataclass(frozen=True)
class Groups:
    """Connected groups of at least two images.

    Attributes (all of length R, one entry per image in a group; sorted by group, then row):
        group: int32; groups are numbered by their first row.
        row: int64 row of the image.
        representative: int64, the lowest row of its group, which is kept.
        reason: the first layer with which the image is connected to its representative; None for the representative.
    """

    group: np.ndarray
    row: np.ndarray
    representative: np.ndarray
    reason: list[str | None]


def first_rows(ids: list[str]) -> np.ndarray:
    """For every row the lowest row with the same id, int64."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(name, row) for row, name in enumerate(ids)], np.int64)


def near_pairs(
    images: JoinedTables, rows: np.ndarray, radius: int, start: int, stop: int, memory_budget: int = 1 << 28
) -> Pairs:
    """The pairs of `rows` with ‖a − b‖² ≤ radius whose search starts in [start, stop) of the sorted rows.

    Two images whose brightness sums differ by more than √(d · radius) are farther apart than the radius
    (Cauchy-Schwarz). So rows are sorted by that sum and cut into cells of at least this width: both images of a pair
    lie in one cell or in two adjacent ones. Ranges [start, stop) that cover [0, len(rows)) together give every pair.
    """
    sums = _brightness(images, rows)
    order = np.argsort(sums, kind="stable")
    width = math.isqrt(images.dimension * radius) + 1
    cells = (sums[order] - sums[order[0]]) // width if len(rows) else np.zeros(0, np.int64)
    firsts = np.searchsorted(cells, np.unique(cells))
    parts = []
    for first in firsts[(firsts >= start) & (firsts < stop)]:
        window = np.sort(rows[order[first : np.searchsorted(cells, cells[first] + 1, side="right")]])
        pixels = images.pixels(window).reshape(len(window), -1)
        i, j, squared = pairs_within(pixels, radius, memory_budget)
        parts.append(Pairs(window[i], window[j], pixel_distance(squared, images.dimension)))
        _check_count(sum(map(len, parts)), "deduplicate.near")
    return Pairs.union(parts)


def _brightness(images: JoinedTables, rows: np.ndarray) -> np.ndarray:
    """The sum of each row's pixels on the 0..255 scale, int64."""
    sums = [images.pixels(block).reshape(len(block), -1).sum(1, dtype=np.int64) for block in _blocks(rows, 4096)]
    return np.concatenate([np.zeros(0, np.int64), *sums])


def _blocks(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    yield from (rows[start : start + size] for start in range(0, len(rows), size))


def feature_pairs(
    images: JoinedTables, rows: np.ndarray, threshold: float, encode: Callable[[np.ndarray], np.ndarray]
) -> Pairs:
    """The pairs of `rows` with 1 − cos(f(a), f(b)) ≤ threshold, where f is `encode`: uint8 (B,H,W,C) → float32 (B,D).

    A float32 product with a margin above its rounding error proposes candidates; float64 products decide.
    """
    features = np.concatenate([encode(images.pixels(block)) for block in _blocks(rows, 256)]).astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    norms[norms == 0] = np.inf  # then a zero vector has distance 1 from every other
    parts = [Pairs(rows[i], rows[j], distance) for i, j, distance in _cosine_blocks(features, norms, threshold)]
    _check_count(sum(map(len, parts)), "deduplicate.feature.threshold")
    return Pairs.union(parts)


def _cosine_blocks(
    features: np.ndarray, norms: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(i, j, distance) of the pairs i < j within the threshold, block after block of rows i."""
    unit = features / norms[:, None].astype(np.float32)
    margin = (features.shape[1] + 8) * 2.0**-23
    rows = affordable(1024)
    for start in range(0, len(unit), rows):
        cosine = unit[start : start + rows] @ unit[start:].T
        i, j = np.nonzero(cosine >= 1 - threshold - margin)
        i, j = i[i < j] + start, j[i < j] + start
        _check_count(len(i), "deduplicate.feature.threshold")
        distance = np.empty(len(i))
        for cut in _blocks(np.arange(len(i)), 4096):
            products = np.einsum("nd,nd->n", features[i[cut]], features[j[cut]], dtype=np.float64)
            distance[cut] = 1 - products / (norms[i[cut]] * norms[j[cut]])
        close = distance <= threshold
        yield i[close], j[close], distance[close]


def _check_count(count: int, key: str) -> None:
    if count > MAX_PAIRS:
        raise InputError(f"params.yaml: {key} joins more than {MAX_PAIRS:,} pairs of images: lower it")


def connected_groups(count: int, layers: dict[str, tuple[np.ndarray, np.ndarray]]) -> Groups:
    """The connected components, of at least two of `count` rows, of the edges of all layers together.

    layers: reason -> (i, j), int64 edges, in the order of precedence of the reasons.
    """
    edges_i, edges_j = np.zeros(0, np.int64), np.zeros(0, np.int64)
    lowest, reason = np.arange(count), np.full(count, None, object)
    levels = []
    for name, (i, j) in layers.items():
        edges_i, edges_j = np.concatenate([edges_i, i]), np.concatenate([edges_j, j])
        lowest = _lowest_connected(count, edges_i, edges_j)
        levels.append((name, lowest))
    for name, level in reversed(levels):  # so that the first layer that reaches the representative wins
        reason[level == lowest] = name
    reason[lowest == np.arange(count)] = None
    rows = np.flatnonzero(np.bincount(lowest, minlength=count)[lowest] > 1)
    rows = rows[np.argsort(lowest[rows], kind="stable")]
    numbers = np.unique(lowest[rows], return_inverse=True)[1].astype(np.int32)
    return Groups(numbers, rows, lowest[rows], reason[rows].tolist())


def _lowest_connected(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """For every row the lowest row of its connected component."""
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(count, count))
    _, component = connected_components(graph.tocsr().astype(bool), directed=False)
    _, first = np.unique(component, return_index=True)
    return first[component]
