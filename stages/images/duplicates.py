"""Duplicate images: pairs within a pixel or a feature distance, and the groups that they form.

Pixel distance is l = ||a - b|| / sqrt(d) with pixels in [0,1] (METHODS §6). Feature distance is 1 - cosine.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from stages.engine.products import affordable
from stages.errors import InputError
from stages.files.distance import pixel_distance
from stages.files.images import ImageTable
from stages.search.range_search import pairs_within

MAX_PAIRS = 20_000_000  # beyond, a threshold joins most of the data set and is a mistake


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Pairs of rows that count as duplicates.

    Attributes:
        i, j: int64 (P,), i < j, sorted by (i, j), each pair once.
        distance: float64 (P,), in the units of the search that found them.
    """

    i: np.ndarray
    j: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.i)

    @classmethod
    def union(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """All pairs of `parts`, sorted; a pair that occurs twice is kept once."""
        stacked = [
            np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)]) for name in ("i", "j", "distance")
        ]
        i, j = stacked[0].astype(np.int64), stacked[1].astype(np.int64)
        _, first = np.unique(np.stack([i, j]), axis=1, return_index=True)
        return cls(i[first], j[first], stacked[2][first])


@dataclasses.dataclass(frozen=True)
class Groups:
    """Connected groups of at least two images.

    Attributes (all of length R, one entry per image in a group; sorted by group, then row):
        group: int32; groups are numbered by their first row.
        row: int64 row of the image.
        representative: int64, the lowest row of its group, which is kept.
        reason: the first of the layers by which the image hangs together with its representative; None for the latter.
    """

    group: np.ndarray
    row: np.ndarray
    representative: np.ndarray
    reason: list[str | None]


class Images:
    """Several image tables of one shape as one sequence of rows, table after table."""

    def __init__(self, tables: Sequence[ImageTable]):
        self.tables = list(tables)
        shapes = {table.images.shape[1:] for table in tables}
        if len(shapes) != 1:
            raise InputError(f"image tables have different shapes {sorted(shapes)}: run ingest again")
        self.edges = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
        self.ids = [name for table in tables for name in table.ids]
        self.labels = np.concatenate([table.labels for table in tables])
        self.dimension = tables[0].dimension

    def __len__(self) -> int:
        return len(self.ids)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which table each row is in, and which of its rows it is."""
        table = np.searchsorted(self.edges, rows, side="right") - 1
        return table, rows - self.edges[table]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """A copy of these rows' images, uint8 (len(rows), H, W, C)."""
        pixels = np.empty((len(rows), *self.tables[0].images.shape[1:]), np.uint8)
        table, row = self.locate(rows)
        for number, source in enumerate(self.tables):
            pixels[table == number] = source.images[row[table == number]]
        return pixels

    def brightness(self, rows: np.ndarray) -> np.ndarray:
        """The sum of each row's pixels on the 0..255 scale, int64."""
        blocks = [rows[start : start + 4096] for start in range(0, len(rows), 4096)]
        sums = [self.pixels(block).reshape(len(block), -1).sum(1, dtype=np.int64) for block in blocks]
        return np.concatenate([np.zeros(0, np.int64), *sums])

    def first_rows(self) -> np.ndarray:
        """For every row the lowest row with equal pixels (equal id), int64."""
        first: dict[str, int] = {}
        return np.array([first.setdefault(name, row) for row, name in enumerate(self.ids)], np.int64)


def near_pairs(
    images: Images, rows: np.ndarray, radius: int, start: int, stop: int, memory_budget: int = 1 << 28
) -> Pairs:
    """The pairs of `rows` with ||a - b||² <= radius that a search started in [start, stop) of the sorted rows finds.

    Two images whose brightness sums differ by more than sqrt(d · radius) are farther apart than the radius
    (Cauchy-Schwarz), so rows are sorted by that sum and cut into cells at least so wide: a pair lies in one cell or in
    two that follow each other. The union over ranges [start, stop) that cover [0, len(rows)) is every pair, exactly.
    """
    sums = images.brightness(rows)
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


def feature_pairs(
    images: Images, rows: np.ndarray, threshold: float, encode: Callable[[np.ndarray], np.ndarray]
) -> Pairs:
    """The pairs of `rows` with 1 - cos(f(a), f(b)) <= threshold, where f is `encode`: uint8 (B,H,W,C) -> float32 (B,D).

    Candidates come from a float32 product with a margin above its rounding error; they are decided in float64.
    """
    batches = [encode(images.pixels(rows[start : start + 256])) for start in range(0, len(rows), 256)]
    features = np.concatenate(batches).astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))
    norms[norms == 0] = np.inf  # a zero vector is at distance 1 from everything
    parts = [Pairs(rows[i], rows[j], distance) for i, j, distance in _cosine_blocks(features, norms, threshold)]
    _check_count(sum(map(len, parts)), "deduplicate.feature.threshold")
    return Pairs.union(parts)


def _cosine_blocks(
    features: np.ndarray, norms: np.ndarray, threshold: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    unit = features / norms[:, None].astype(np.float32)
    margin = (features.shape[1] + 8) * 2.0**-23
    rows = affordable(1024)
    for start in range(0, len(unit), rows):
        cosine = unit[start : start + rows] @ unit[start:].T
        i, j = np.nonzero(cosine >= 1 - threshold - margin)
        i, j = i[i < j] + start, j[i < j] + start
        _check_count(len(i), "deduplicate.feature.threshold")
        distance = np.empty(len(i))
        for cut in (slice(at, at + 4096) for at in range(0, len(i), 4096)):
            products = np.einsum("nd,nd->n", features[i[cut]], features[j[cut]], dtype=np.float64)
            distance[cut] = 1 - products / (norms[i[cut]] * norms[j[cut]])
        yield i[distance <= threshold], j[distance <= threshold], distance[distance <= threshold]


def _check_count(count: int, key: str) -> None:
    if count > MAX_PAIRS:
        raise InputError(f"params.yaml: {key} joins more than {MAX_PAIRS:,} pairs of images: lower it")


def connected_groups(count: int, layers: dict[str, tuple[np.ndarray, np.ndarray]]) -> Groups:
    """Connected groups of `count` rows under the edges of all layers together.

    Args:
        count: number of rows.
        layers: reason -> (i, j), int64 edges, in the order of precedence of the reasons.
    """
    edges_i, edges_j = np.zeros(0, np.int64), np.zeros(0, np.int64)
    lowest, reason = np.arange(count), np.full(count, None, object)
    levels = []
    for name, (i, j) in layers.items():
        edges_i, edges_j = np.concatenate([edges_i, i]), np.concatenate([edges_j, j])
        lowest = _lowest_connected(count, edges_i, edges_j)
        levels.append((name, lowest))
    for name, level in reversed(levels):  # the first layer that reaches the representative has the last word
        reason[level == lowest] = name
    reason[lowest == np.arange(count)] = None
    members = np.bincount(lowest, minlength=count)[lowest] > 1
    rows = np.flatnonzero(members)
    rows = rows[np.lexsort((rows, lowest[rows]))]
    numbers = np.unique(lowest[rows], return_inverse=True)[1].astype(np.int32)
    return Groups(numbers, rows, lowest[rows], reason[rows].tolist())


def _lowest_connected(count: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """For every row the lowest row that edges lead to."""
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(count, count))
    _, component = connected_components(graph.tocsr().astype(bool), directed=False)
    _, first = np.unique(component, return_index=True)
    return first[component]
