"""Exact nearest neighbours of short vectors, such as reduced images: all products, and a scan that keeps the best.

The bound that `nearest` takes pays where it saves most of a vector's length. For a few hundred values its directions
would be half as many, and the exact int8 products of all values cost less. With VNNI they stay in registers until they
are compared with the last of the nearest so far: 6 times as fast as torch's float32 product and topk.
"""

from typing import NamedTuple

import numpy as np

from stages.engine import alignment_kernels
from stages.engine.products import (
    affordable,
    centred,
    check_images,
    compiled_norms,
    products,
    single_threaded_products,
    spread,
    threads,
)
from stages.engine.sizes import NO_KEY, TILE, TILE_QUERIES
from stages.errors import InputError

LANES = 16  # int32 in a vector
LONGEST = 4_096  # values of a vector: ‖y‖² − 2 x·y then fits an int32
PRODUCT_COLUMNS, PRODUCT_ROWS = 4_096, 512  # large enough for the int8 product, small enough for the third cache


class Prepared(NamedTuple):
    """Vectors that many searches take as their reference.

    Attributes:
        values: uint8 (M, d).
        norms: int32, Σ (y − 128)² of each; (T, TILE) where they are packed, else (M,).
        packed: as of `alignment_kernels.scan_tiles`; None on processors without the instructions for it.
    """

    values: np.ndarray
    norms: np.ndarray
    packed: np.ndarray | None

    @classmethod
    def of(cls, values: np.ndarray) -> "Prepared":
        """Prepare uint8 (M, d), d ≤ LONGEST."""
        values = check_images(values, "reference")
        count, d = values.shape
        if d > LONGEST:
            raise InputError(f"vectors of {d} values are too long for a search of short ones: {LONGEST} at most")
        norms = compiled_norms(values).astype(np.int32)
        if not alignment_kernels.HAS_BYTE_TILES:
            return cls(values, norms, None)
        tiles, words = -(-count // TILE), -(-d // 4)
        whole, filled = np.zeros((tiles * TILE, 4 * words), np.uint8), np.zeros(tiles * TILE, np.int32)
        whole[:count, :d], filled[:count] = values, norms
        packed = whole.reshape(tiles, TILE // LANES, LANES, words, 4).transpose(0, 3, 1, 2, 4)
        return cls(values, filled.reshape(tiles, TILE), np.ascontiguousarray(packed))


def nearest_short(
    queries: np.ndarray, reference: np.ndarray | Prepared, k: int, memory_budget: int = 1 << 30
) -> np.ndarray:
    """Return the k nearest rows of `reference` for each row of `queries`: the indices that `nearest` returns.

    Args:
        queries: uint8 (Q, d), d ≤ LONGEST.
        reference: uint8 (M, d); for many searches `Prepared`.
        k: neighbours per query.
        memory_budget: bytes of working memory.

    Returns:
        int64 (Q, k), rows of `reference`, nearest first, ties by index.
    """
    queries = check_images(queries, "queries")
    known = reference if isinstance(reference, Prepared) else Prepared.of(reference)
    count, d = known.values.shape
    if queries.shape[1] != d or not 1 <= k <= count:
        raise InputError(
            f"{k} nearest rows of {known.values.shape} were asked for {queries.shape}: the widths must be equal, and "
            "the rows must suffice"
        )
    keys = np.full((len(queries), k), NO_KEY, np.int64)
    if known.packed is not None:
        _scan(queries, known, keys)
    else:
        _multiply(queries, known, keys, affordable(memory_budget) // threads())
    return keys % count


def _scan(queries: np.ndarray, known: Prepared, keys: np.ndarray) -> None:
    """Fill the keys by tiles of products that stay in registers."""

    def search(a: int, b: int) -> None:
        size = -(-(b - a) // TILE_QUERIES) * TILE_QUERIES
        left = np.zeros((size, 4 * known.packed.shape[1]), np.int8)
        left[: b - a, : queries.shape[1]] = centred(queries[a:b])
        found = np.full((size, keys.shape[1]), NO_KEY, np.int64)
        alignment_kernels.scan_tiles(left, known.packed, known.norms, len(known.values), found)
        keys[a:b] = found[: b - a]

    spread(search, len(queries))


def _multiply(queries: np.ndarray, known: Prepared, keys: np.ndarray, budget: int) -> None:
    """Fill the keys by blocks of products. budget: bytes of working memory of a thread."""
    count, d = known.values.shape
    columns = max(1, min(PRODUCT_COLUMNS, budget // (16 * d)))
    rows = max(1, min(PRODUCT_ROWS, budget // (8 * (columns + d))))

    def search(a: int, b: int) -> None:
        left, kept = centred(queries[a:b]), keys[a:b]
        for first in range(0, count, columns):
            block = slice(first, first + columns)
            right = centred(known.values[block])
            for start in range(0, b - a, rows):
                part = slice(start, start + rows)
                inner = products(left[part], right)
                alignment_kernels.keep_lowest(inner, known.norms[block], first, count, kept[part])

    with single_threaded_products():
        spread(search, len(queries))
