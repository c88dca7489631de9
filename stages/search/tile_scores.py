"""The compiled inner loop of the search: the best score of every group of references, for every query.

A tile is 3 queries × 128 references. Its 24 vectors of 16 running sums stay in registers while int16 coordinates are
multiplied and added in pairs (one instruction on processors with VNNI, two with AVX-512 or AVX2, plain vector
arithmetic elsewhere). It leaves the scores, for as many queries as the cache holds, and the maximum of every 8
references: most of the scores are never read again.
"""

from types import FunctionType

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stages.search.tiled import GROUP, LANES, TILE, TOGETHER

SUMS, _PAIRS = ir.VectorType(ir.IntType(32), LANES), ir.VectorType(ir.IntType(16), 2 * LANES)


def processor_features() -> set[str]:
    """The vector features that numba compiles for: the processor's own unless numba was told another one."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return {part[1:] for part in (numba.config.CPU_FEATURES or "").split(",") if part.startswith("+")}
    return {name for name, there in binding.get_host_cpu_features().items() if there}


def x86(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), arguments)


def _half(builder: ir.IRBuilder, pairs: ir.Value, high: bool) -> ir.Value:
    """Every second int16 as an int32: the odd ones where `high`."""
    wide, shift = builder.bitcast(pairs, SUMS), ir.Constant(SUMS, [16] * LANES)
    return builder.ashr(wide if high else builder.shl(wide, shift), shift)


def _part(builder: ir.IRBuilder, vector: ir.Value, first: int, count: int) -> ir.Value:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(first, first + count)))
    return builder.shuffle_vector(vector, vector, mask)


def add_products(builder: ir.IRBuilder, sums: ir.Value, a: ir.Value, b: ir.Value, features: set[str]) -> ir.Value:
    """sums[i] + a[2i] b[2i] + a[2i+1] b[2i+1]. sums: 16 × int32, a and b: 32 × int16."""
    if {"avx512bw", "avx512vnni"} <= features:
        return x86(builder, "avx512.vpdpwssd.512", SUMS, sums, a, b)
    if "avx512bw" in features:
        return builder.add(sums, x86(builder, "avx512.pmaddw.d.512", SUMS, a, b))
    if "avx2" in features:
        half = ir.VectorType(ir.IntType(32), LANES // 2)
        low, high = (
            x86(builder, "avx2.pmadd.wd", half, *(_part(builder, v, at, LANES) for v in (a, b))) for at in (0, LANES)
        )
        joined = ir.Constant(SUMS, list(range(LANES)))
        return builder.add(sums, builder.shuffle_vector(low, high, joined))
    for high in (False, True):
        sums = builder.add(sums, builder.mul(_half(builder, a, high), _half(builder, b, high)))
    return sums


def _load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 2
    return loaded


def _scores(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, half: ir.Value, pairs: ir.Value, features: set) -> list:
    """Eight vectors of scores per query. x: int16 *, y: int16 *, half: int32 *, pairs: int64."""
    word, integer = ir.IntType(32), ir.IntType(64)
    before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("pairs", "maxima"))
    start = [_load(builder, builder.gep(half, [ir.Constant(integer, v * LANES)]), SUMS) for v in range(GROUP)]
    builder.branch(loop)
    builder.position_at_end(loop)
    step = builder.phi(integer)
    step.add_incoming(ir.Constant(integer, 0), before)
    sums = [[builder.phi(SUMS) for _ in range(GROUP)] for _ in range(TOGETHER)]
    place = builder.mul(step, ir.Constant(integer, 2 * TILE))
    right = [
        _load(builder, builder.gep(y, [builder.add(place, ir.Constant(integer, v * 2 * LANES))]), _PAIRS)
        for v in range(GROUP)
    ]
    for q in range(TOGETHER):
        at = builder.add(builder.mul(pairs, ir.Constant(integer, 2 * q)), builder.mul(step, ir.Constant(integer, 2)))
        single = builder.insert_element(
            ir.Constant(SUMS, ir.Undefined), _load(builder, builder.gep(x, [at]), word), ir.Constant(word, 0)
        )
        zeros = ir.Constant(ir.VectorType(word, LANES), [0] * LANES)
        left = builder.bitcast(builder.shuffle_vector(single, single, zeros), _PAIRS)
        for v in range(GROUP):
            sums[q][v].add_incoming(start[v], before)
            sums[q][v].add_incoming(add_products(builder, sums[q][v], right[v], left, features), loop)
    following = builder.add(step, ir.Constant(integer, 1))
    step.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)
    builder.position_at_end(after)
    return [[phi.incomings[1][0] for phi in row] for row in sums]


def _maximum(builder: ir.IRBuilder, vectors: list) -> ir.Value:
    while len(vectors) > 1:
        vectors = [builder.select(builder.icmp_signed(">", a, b), a, b) for a, b in zip(vectors[::2], vectors[1::2])]
    return vectors[0]


def _store(builder: ir.IRBuilder, vector: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
    offset = ir.Constant(address.type, offset) if isinstance(offset, int) else offset
    builder.store(vector, builder.inttoptr(builder.add(address, offset), vector.type.as_pointer())).align = 4


def tile_intrinsic(features: set[str]):
    """One tile, for a processor with these vector features."""

    @intrinsic
    def one_tile(typing, x, y, half, pairs, scores, maxima, queries):
        """x, y are addresses of int16, half, scores and maxima of int32; a query's scores are queries · 512 bytes, its
        maxima queries · 64 bytes, from the next one's."""

        def generate(context, builder, signature, arguments):
            x, y, half, pairs, scores, maxima, tiles = arguments
            short, word = (ir.IntType(bits).as_pointer() for bits in (16, 32))
            pointers = builder.inttoptr(x, short), builder.inttoptr(y, short), builder.inttoptr(half, word)
            found = _scores(builder, *pointers, pairs, features)
            for q, vectors in enumerate(found):
                next_query = builder.mul(tiles, ir.Constant(tiles.type, 4 * LANES * q))
                _store(builder, _maximum(builder, vectors), maxima, next_query)
                place = builder.add(scores, builder.mul(next_query, ir.Constant(tiles.type, GROUP)))
                for v, vector in enumerate(vectors):
                    _store(builder, vector, place, 4 * LANES * v)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return one_tile


@intrinsic
def dot_vectors(typing, a, b, vectors):
    """Σ a_i b_i of `vectors` · 32 int16 at two addresses, vectors > 0; int32."""

    def generate(context, builder, signature, arguments):
        a, b, count = arguments
        integer = ir.IntType(64)
        before, loop, after = builder.block, *(builder.append_basic_block(name) for name in ("vectors", "sum"))
        builder.branch(loop)
        builder.position_at_end(loop)
        step, running = builder.phi(integer), builder.phi(SUMS)
        step.add_incoming(ir.Constant(integer, 0), before)
        running.add_incoming(ir.Constant(SUMS, [0] * LANES), before)
        place = builder.mul(step, ir.Constant(integer, 4 * LANES))
        left, right = (
            _load(builder, builder.inttoptr(builder.add(at, place), _PAIRS.as_pointer()), _PAIRS) for at in (a, b)
        )
        sums = add_products(builder, running, left, right, processor_features())
        running.add_incoming(sums, loop)
        following = builder.add(step, ir.Constant(integer, 1))
        step.add_incoming(following, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        return total(builder, sums)

    return types.int32(types.int64, types.int64, types.int64), generate


def total(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The sum of a vector's integers."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        vector = builder.add(*(_part(builder, vector, first, half) for first in (0, half)))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


tile = tile_intrinsic(processor_features())  # a global: numba keeps no compiled function that has it from a closure


@numba.njit(nogil=True, cache=True, boundscheck=False)
def score_tiles(x, packed, half, scores, maxima, first):
    """scores[q, t, v, l] = x_q · y + half_y of the reference at lane l, vector v of tile t ≥ first; maxima over v.

    x: int16 (Q, K), Q a multiple of 3; packed: int16 (T, K/2, 8, 16, 2), half: int32 (T, 8, 16) from `tiled.pack`;
    scores: int32 (Q, T, 8, 16), maxima: int32 (Q, 16 T). All C-contiguous.
    """
    tiles, pairs = np.int64(packed.shape[0]), np.int64(packed.shape[1])
    for t in range(first, tiles):
        y, h = packed.ctypes.data + t * packed.strides[0], half.ctypes.data + t * half.strides[0]
        for q in range(0, x.shape[0], TOGETHER):
            left = x.ctypes.data + q * x.strides[0]
            all_of = scores.ctypes.data + q * scores.strides[0] + t * scores.strides[1]
            best = maxima.ctypes.data + q * maxima.strides[0] + t * LANES * maxima.strides[1]
            tile(np.int64(left), np.int64(y), np.int64(h), pairs, np.int64(all_of), np.int64(best), tiles)


def score_function(features: set[str]):
    """`score_tiles` for a processor with these vector features, compiled anew."""
    names = {**globals(), "tile": tile_intrinsic(features)}
    return numba.njit(nogil=True, boundscheck=False)(FunctionType(score_tiles.py_func.__code__, names))
