"""Exact inner products of two rows of bytes, compiled: what every candidate that the bound leaves is measured with.

On processors with VNNI one instruction multiplies 64 bytes and adds them up; elsewhere it is a loop that the compiler
vectorises.
"""

import numba
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from stages.engine.tile_scores import SUMS, processor_features, total, x86

STEP = 256  # bytes that the instructions take at a time
DEPTH = 16_384  # bytes whose products, below 2**15 each, fit an int32


def sum_function(features: set[str]):
    """Σ a_i b_i of `steps` · 256 bytes at two addresses, a unsigned and b signed; None without the instruction."""
    if not {"avx512bw", "avx512vnni"} <= features:
        return None

    @intrinsic
    def sum_of_products(typing, a, b, steps):
        def generate(context, builder, signature, arguments):
            return _sum(builder, *arguments)

        return types.int32(types.int64, types.int64, types.int64), generate

    return sum_of_products


def _sum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, steps: ir.Value) -> ir.Value:
    """The loop: four vectors of running sums, so that no instruction waits for the one before."""
    integer, lanes = ir.IntType(64), SUMS.count
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("bytes", "sum"))
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(integer)
    step.add_incoming(ir.Constant(integer, 0), before)
    sums = [builder.phi(SUMS) for _ in range(STEP // (4 * lanes))]
    offset = builder.mul(step, ir.Constant(integer, STEP))
    added = []
    for v, running in enumerate(sums):
        running.add_incoming(ir.Constant(SUMS, [0] * lanes), before)
        place = builder.add(offset, ir.Constant(integer, 4 * lanes * v))
        left, right = (builder.load(builder.inttoptr(builder.add(at, place), SUMS.as_pointer())) for at in (a, b))
        left.align = right.align = 1
        added.append(x86(builder, "avx512.vpdpbusd.512", SUMS, running, left, right))
        running.add_incoming(added[-1], loop)
    following = builder.add(step, ir.Constant(integer, 1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, after)
    builder.position_at_end(after)
    while len(added) > 1:
        added = [builder.add(x, y) for x, y in zip(added[::2], added[1::2])]
    return total(builder, added[0])


sum_of_products = sum_function(processor_features())
FAST = sum_of_products is not None


@numba.njit(nogil=True, cache=True, boundscheck=False)
def inner_bytes(a, b):
    """Σ a_i b_i of a uint8 and an int8 row, both contiguous; int64."""
    total = np.int64(0)
    for start in range(0, a.shape[0], DEPTH):
        stop = min(start + DEPTH, a.shape[0])
        first = start
        if FAST and stop - start >= STEP:
            steps = (stop - start) // STEP
            total += sum_of_products(np.int64(a.ctypes.data + start), np.int64(b.ctypes.data + start), np.int64(steps))
            first = start + steps * STEP
        part = np.int32(0)
        for i in range(first, stop):
            part = np.int32(part + np.int32(np.int32(a[i]) * np.int32(b[i])))
        total += np.int64(part)
    return total
