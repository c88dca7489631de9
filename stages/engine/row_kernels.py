"""Compiled loops over one or two rows: products, distances, lengths, and the sorted list of the nearest."""

import numba
import numpy as np

from stages.engine.simd import BYTE_STEP, prefetch_line, sum_of_products
from stages.engine.sizes import CACHE_LINE, INT32_BYTE_TERMS

HAS_BYTE_SUMS = sum_of_products is not None


@numba.njit(nogil=True, cache=True, boundscheck=False)
def inner_bytes(a, b):
    """Σ a_i b_i of a uint8 and an int8 row, both contiguous; int64. The search takes 4.8 times as long without VNNI."""
    total = np.int64(0)
    for start in range(0, a.shape[0], INT32_BYTE_TERMS):
        stop = min(start + INT32_BYTE_TERMS, a.shape[0])
        first = start
        if HAS_BYTE_SUMS and stop - start >= BYTE_STEP:
            steps = (stop - start) // BYTE_STEP
            total += sum_of_products(np.int64(a.ctypes.data + start), np.int64(b.ctypes.data + start), np.int64(steps))
            first = start + steps * BYTE_STEP
        part = np.int32(0)
        for i in range(first, stop):
            part = np.int32(part + np.int32(np.int32(a[i]) * np.int32(b[i])))
        total += np.int64(part)
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def inner_shorts(a, b):
    """Σ a_i b_i of two int16 rows, int32 (which wraps around)."""
    total = np.int32(0)
    for i in range(a.shape[0]):
        total = np.int32(total + np.int32(np.int32(a[i]) * np.int32(b[i])))
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def squared_distance(a, b):
    """‖a−b‖² of two uint8 rows, int64."""
    total = np.int64(0)
    for start in range(0, a.shape[0], INT32_BYTE_TERMS):
        x, y = a[start : start + INT32_BYTE_TERMS], b[start : start + INT32_BYTE_TERMS]
        part = np.int32(0)
        for i in range(x.shape[0]):  # int16 differences let the compiler use multiply-and-add-pairs
            difference = np.int16(np.int16(x[i]) - np.int16(y[i]))
            part = np.int32(part + np.int32(np.int32(difference) * np.int32(difference)))
        total += np.int64(part)
    return total


@numba.njit(nogil=True, cache=True, boundscheck=False)
def squared_lengths(images, out):
    """‖x − 128‖² of the rows of uint8 images (N, d), into the int64 array `out` (N,)."""
    grey = np.full(images.shape[1], 128, np.uint8)
    for row in range(images.shape[0]):
        out[row] = squared_distance(images[row], grey)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def prefetch(start, stop):
    """Ask for the bytes between two addresses before they are read: memory is slower than the arithmetic."""
    for address in range(start, stop, CACHE_LINE):
        prefetch_line(address)


@numba.njit(nogil=True, cache=True, boundscheck=False)
def insert(keys, key):
    """Put `key` into the ascending list `keys` unless it is there already or too large; the last one falls out."""
    if key >= keys[keys.shape[0] - 1]:
        return
    position, same = 0, 0
    for i in range(keys.shape[0]):  # a loop without a branch is compiled to vectors
        position += keys[i] < key
        same += keys[i] == key
    if same == 0:
        for i in range(position, keys.shape[0]):
            keys[i], key = key, keys[i]
