"""Exact inner products of small integers, of which all distances between images consist; threads and memory for them.

‖a−b‖² = ‖a‖² + ‖b‖² − 2 a·b has no rounding when every term is an integer. Images are centred to int8 (x − 128), so
that the processor's int8 dot products with int32 sums can be used.
"""

import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages.engine import compiled
from stages.errors import InputError

# |sum of d products of int8| ≤ 128² d
MAX_INT32_TERMS = 131_000  # the sum is below 2**31
MAX_FLOAT32_TERMS = 1_024  # it is below 2**24, exact in float32
SMALL_PRODUCT = 1 << 22  # multiplications up to which float32 takes about as long as the int8 product
FLOAT_TILE = 256  # rows and columns of a large product that are multiplied in float32 at once
TRIED = 256  # side of the matrices whose products are timed
SLOWER = 3  # times the float32 product's time: above, the int8 product is taken for a plain loop; beside other work
#             single calls differ by less
NORMS_BLOCK = 1 << 19  # bytes of images whose norms NumPy takes at once
MEMORY_SHARE = "SCORESMOOTH_MEMORY_SHARE"


def affordable(amount: int) -> int:
    """`amount` (bytes, or rows of a block) times the share of memory that this process may use; at least 1.

    The share is the environment variable named by MEMORY_SHARE, by default 1. A runner sets it to 0.5 when it repeats
    work that ran out of memory. Only for blocks whose size changes no bit of a result.
    """
    return max(1, int(amount * float(os.environ.get(MEMORY_SHARE, "1"))))


def threads() -> int:
    """The number of threads a search may use: OMP_NUM_THREADS if set, else the processors of this process."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) > 0 else len(os.sched_getaffinity(0))


def spread(work: Callable[[int, int], None], count: int) -> None:
    """Call work(a, b) for consecutive spans of [0, count), one per thread. `work` must release Python's lock.

    Within a span another call takes no further threads: the processors have work already.
    """
    parts = 1 if getattr(_SPAN, "inside", False) else threads()
    edges = [count * i // parts for i in range(parts + 1)]
    spans = [(a, b) for a, b in zip(edges, edges[1:]) if b > a]
    if len(spans) < 2:
        return None if not spans else work(*spans[0])
    with ThreadPoolExecutor(len(spans), initializer=_enter_span) as pool:
        for job in [pool.submit(work, a, b) for a, b in spans]:
            job.result()


_SPAN = threading.local()


def _enter_span() -> None:
    _SPAN.inside = True


@contextlib.contextmanager
def single_threaded_products() -> Iterator[None]:
    """Let each product take one thread within this block, where `spread` cuts the work.

    The threads of a product wait for the next one spinning, on the processors that the compiled loops need in between.
    Searches in different threads may overlap: the last one to end restores the number that the first one found.
    Measured: the 50 nearest of 25,000 images for 3,000 queries take 0.6 times as long.
    """
    import torch

    with _WITHIN.lock:
        if not _WITHIN.searches:
            _WITHIN.before = torch.get_num_threads()
        _WITHIN.searches += 1
        torch.set_num_threads(1)  # also of threads that start from now on
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
    """‖x − 128‖² of every row of uint8 images (N, d), int64 (N,)."""
    norms = np.zeros(len(images), np.int64)
    rows = max(1, NORMS_BLOCK // images.shape[1])
    for start in range(0, len(images), rows):
        block = images[start : start + rows].astype(np.int64) - 128
        norms[start : start + rows] = np.einsum("ij,ij->i", block, block)
    return norms


def compiled_norms(images: np.ndarray) -> np.ndarray:
    """`squared_norms` by a compiled loop, for searches that need such loops anyway: 4 times as fast as numpy.einsum."""
    norms = np.empty(len(images), np.int64)
    compiled.squared_lengths(images, norms)
    return norms


def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b.T, exactly. a: int8 (n, d), b: int8 (m, d); returns int32 (n, m), int64 where d needs it.

    5.5 times as fast as torch's float32 product (`benchmarks.engine`, which has the processor).
    """
    d = a.shape[1]
    if d > MAX_INT32_TERMS:
        cuts = (slice(c, c + MAX_INT32_TERMS) for c in range(0, d, MAX_INT32_TERMS))
        return sum(products(a[:, cut], b[:, cut]).astype(np.int64) for cut in cuts)
    return _products(a, b.T)


def weighted_sums(weights: np.ndarray, images: np.ndarray) -> np.ndarray:
    """weights @ images, exactly. weights: int8 (n, m), m ≤ MAX_INT32_TERMS; images: int8 (m, d); int32 (n, d).

    15 times as fast as torch's float32 product.
    """
    return _products(weights, images)


def _products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b, exactly, of int8 (n, m) and (m, d), m ≤ MAX_INT32_TERMS: int32 (n, d)."""
    if len(a) * b.size < SMALL_PRODUCT:
        return _float_products(a, b)
    return _int8_products(a, b) if int8_pays() else _tiled_float_products(a, b)


def _tiled_float_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The float32 product tile by tile: beside the result a thread holds 2.5 MB, as searches with a budget count on."""
    total = np.empty((len(a), b.shape[1]), np.int32)
    for top in range(0, len(a), FLOAT_TILE):
        rows = slice(top, top + FLOAT_TILE)
        for left in range(0, b.shape[1], FLOAT_TILE):
            columns = slice(left, left + FLOAT_TILE)
            total[rows, columns] = _float_products(a[rows], b[:, columns], _torch_product)
    return total


def _float_products(a: np.ndarray, b: np.ndarray, multiply: Callable = np.matmul) -> np.ndarray:
    """The product in float32, cut such that every partial sum is an integer that float32 holds."""
    total = np.zeros((len(a), b.shape[1]), np.int32)
    for c in range(0, a.shape[1], MAX_FLOAT32_TERMS):
        left, right = a[:, c : c + MAX_FLOAT32_TERMS], b[c : c + MAX_FLOAT32_TERMS]
        total += multiply(left.astype(np.float32), right.astype(np.float32)).astype(np.int32)
    return total


def _torch_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A large product of float32, on as many threads as `single_threaded_products` leaves.

    NumPy's takes all processors in each of our threads: on two cores of an AMD EPYC with AVX2, matching 256 images with
    50,000 took 19 s by it and takes 5 s. It is left where somebody lets torch round the factors.
    """
    import torch

    if torch.get_float32_matmul_precision() != "highest":
        return a @ b
    return torch.mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()


def _int8_products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import torch

    parts = (np.require(part if part.flags.forc else part.copy(), requirements="W") for part in (a, b))
    return torch._int_mm(*map(torch.from_numpy, parts)).numpy()


@functools.cache
def int8_pays() -> bool:
    """Whether this machine's int8 product is exact, and not slower than the float32 product.

    Where the processor has no int8 dot products, torch takes a plain loop for it: on an AMD EPYC with AVX2 alone it is
    exact and takes 15 to 26 times as long as float32. Both are exact, so the choice changes no result.
    """
    if not int8_is_exact():
        return False
    a = np.random.default_rng(0).integers(-128, 128, (TRIED, TRIED), dtype=np.int8)
    spent = {}
    for product in (_int8_products, _float_products):
        times = []
        for _ in range(4):  # the first call prepares what the others need
            started = time.perf_counter()
            product(a, a.T)
            times.append(time.perf_counter() - started)
        spent[product] = min(times)
    return spent[_int8_products] < SLOWER * spent[_float_products]


@functools.cache
def int8_is_exact() -> bool:
    """Whether this machine's int8 product is exact on the values that break it.

    On processors without int8 dot products some libraries emulate them with saturating 16-bit sums, which extreme
    values reveal. The float32 product takes its place there; it is exact everywhere.
    """
    patterns = np.array([[-128, -128], [127, 127], [-128, 127], [127, -128], [0, -128]], np.int8)
    a = np.tile(patterns, (4, 161))  # depth 322: no multiple of a vector's length
    a = np.concatenate([a, np.random.default_rng(0).integers(-128, 128, a.shape, dtype=np.int8)])
    return np.array_equal(_int8_products(a, a[:37].T), _float_products(a, a[:37].T))
