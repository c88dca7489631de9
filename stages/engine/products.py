"""Exact inner products of small integers: the matrix product that every distance here is built on.

‖a−b‖² = ‖a‖² + ‖b‖² − 2 a·b has no rounding when every term is an integer. The images are centred to int8
(x − 128), so that the processor's int8 dot products with int32 accumulation do the work.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.errors import InputError

# |sum of d products of int8| ≤ 128² d: below 2**31 up to this d, below 2**24 (exact in float32) up to the other
INT32_DEPTH = 131_000
FLOAT32_DEPTH = 1_024
MEMORY_SHARE = "SCORESMOOTH_MEMORY_SHARE"


def affordable(amount: int) -> int:
    """`amount` (bytes, or rows of a block) times the share of memory that this process is to do with; at least 1.

    The share is the environment variable MEMORY_SHARE, which a runner sets to 0.5 where it tries work again that ran
    out of memory; without it, 1. Only for blocks whose size changes no bit of a result.
    """
    return max(1, int(amount * float(os.environ.get(MEMORY_SHARE, "1"))))


def threads() -> int:
    """How many threads a search may use: OMP_NUM_THREADS if set, else the processors of this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))


def spread(work: Callable[[int, int], None], count: int) -> None:
    """work(a, b) over [0, count), cut for as many threads as this process may use. `work` must release the lock."""
    edges = [count * i // threads() for i in range(threads() + 1)]
    spans = [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
    if len(spans) == 1:
        return work(*spans[0])
    with ThreadPoolExecutor(len(spans)) as pool:
        for job in [pool.submit(work, a, b) for a, b in spans]:
            job.result()


@contextlib.contextmanager
def single_threaded_products() -> Iterator[None]:
    """Products take one thread each within, where `spread` cuts the work.

    A product's own threads wait for the next one spinning, on the processors that the compiled scans need in between.
    Searches may overlap, in threads of their own: every one ends with the number that the first of them found.
    """
    import torch

    with _WITHIN.lock:
        if not _WITHIN.searches:
            _WITHIN.before = torch.get_num_threads()
        _WITHIN.searches += 1
        torch.set_num_threads(1)  # of threads that start from now on, too
    try:
        yield
    finally:
        with _WITHIN.lock:
            _WITHIN.searches -= 1
            torch.set_num_threads(_WITHIN.before)


class _Within:
    """The searches within `single_threaded_products`, and torch's threads before the first of them."""

    def __init__(self) -> None:
        self.lock, self.searches, self.before = threading.Lock(), 0, 0


_WITHIN = _Within()


def check_images(images: np.ndarray, name: str) -> np.ndarray:
    """`images` as a contiguous uint8 (N, d) array; anything else raises InputError."""
    if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] == 0:
        raise InputError(
            f"{name} must be uint8 (N, d) with d > 0, not {images.dtype} {images.shape}: flatten the images"
        )
    return np.ascontiguousarray(images)


def centred(images: np.ndarray) -> np.ndarray:
    """uint8 images as int8 x − 128."""
    return (images ^ np.uint8(128)).view(np.int8)


def squared_norms(images: np.ndarray) -> np.ndarray:
    """‖x − 128‖² of every row, int64 (N,). images: uint8 (N, d)."""
    norms = np.zeros(len(images), np.int64)
    rows = max(1, (1 << 20) // images.shape[1])
    for start in range(0, len(images), rows):
        for c in range(0, images.shape[1], INT32_DEPTH):
            block = images[start : start + rows, c : c + INT32_DEPTH].astype(np.int32) - 128
            norms[start : start + rows] += np.einsum("ij,ij->i", block, block)
    return norms


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b.T, exactly. a: int8 (n, d), b: int8 (m, d); returns int32 (n, m), int64 where d needs it."""
    d = a.shape[1]
    if d > INT32_DEPTH:
        cuts = range(0, d, INT32_DEPTH)
        return sum(products(a[:, c : c + INT32_DEPTH], b[:, c : c + INT32_DEPTH]).astype(np.int64) for c in cuts)
    if a.shape[0] * b.shape[0] * d < 1 << 28 or not int8_is_exact():
        return _float_products(a, b)
    return _int8_products(a, b)


def weighted_sums(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    """weights @ images, exactly. weights: int8 (n, m), m <= INT32_DEPTH; images: int8 (m, d); returns int32 (n, d)."""
    import torch

    if weights.shape[0] * images.size < 1 << 28 or not int8_is_exact():
        return _float_products(weights, images.T)
    return torch._int_mm(torch.from_numpy(weights), torch.from_numpy(images)).numpy()


def _float_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product in float32, cut along d so that no partial sum leaves the integers that float32 holds."""
    total = np.zeros((len(a), len(b)), np.int32)
    for c in range(0, a.shape[1], FLOAT32_DEPTH):
        left, right = a[:, c : c + FLOAT32_DEPTH], b[:, c : c + FLOAT32_DEPTH]
        total += (left.astype(np.float32) @ right.astype(np.float32).T).astype(np.int32)
    return total


def _int8_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    a, b = (np.require(part, requirements=["C", "W"]) for part in (a, b))
    return torch._int_mm(torch.from_numpy(a), torch.from_numpy(b).T).numpy()


@functools.cache
def int8_is_exact() -> bool:
    """Whether this machine's int8 product is exact on the values that break it.

    Processors without int8 dot products emulate them with saturating 16-bit sums in some libraries: an
    all-extreme input shows it. Then the float32 product is used, which is exact everywhere.
    """
    patterns = np.array([[-128, -128], [127, 127], [-128, 127], [127, -128], [0, -128]], np.int8)
    a = np.tile(patterns, (4, 161))  # depth 322: no multiple of a vector's length
    a = np.concatenate([a, np.random.default_rng(0).integers(-128, 128, a.shape, dtype=np.int8)])
    return np.array_equal(_int8_products(a, a[:37]), _float_products(a, a[:37]))
