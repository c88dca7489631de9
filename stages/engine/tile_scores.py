"""The compiled inner loop of the search: the best score of every group of references, for every query.

A tile is 3 queries × 128 references. Its 24 vectors of 16 running sums stay in registers while int8 coordinates are
multiplied and added four at a time and int16 ones two at a time: one instruction on processors with VNNI; elsewhere
bytes become int16, and these take two with AVX-512 or AVX2, plain vector arithmetic without. It leaves the upper halves
of the sums, for as many queries as the cache holds, and the maximum of every 4 references.
"""

from collections.abc import Callable
from types import FunctionType

import numba
import numpy as np
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stages.engine.tiled import GROUP, HALF, LANES, TILE, TOGETHER

SPAN = 1 << 19  # bytes of references that stay in the second cache while all queries meet them
FEW = 24  # queries that meet one tile while it is in the first cache, a multiple of TOGETHER
WORDS, VECTORS = LANES // 2, 2 * GROUP  # sums in a vector, vectors of a tile
SUMS, _PAIRS = ir.VectorType(ir.IntType(32), WORDS), ir.VectorType(ir.IntType(16), LANES)


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
    wide, shift = builder.bitcast(pairs, SUMS), ir.Constant(SUMS, [16] * WORDS)
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
        half = ir.VectorType(ir.IntType(32), WORDS // 2)
        low, high = (
            x86(builder, "avx2.pmadd.wd", half, *(_part(builder, v, at, WORDS) for v in (a, b))) for at in (0, WORDS)
        )
        joined = ir.Constant(SUMS, list(range(WORDS)))
        return builder.add(sums, builder.shuffle_vector(low, high, joined))
    for high in (False, True):
        sums = builder.add(sums, builder.mul(_half(builder, a, high), _half(builder, b, high)))
    return sums


def add_byte_products(builder: ir.IRBuilder, sums: ir.Value, a: ir.Value, b: ir.Value, features: set[str]) -> ir.Value:
    """sums[i] + Σ_j a[4i + j] b[4i + j], j < 4. sums, a and b: 16 × int32; a's bytes are unsigned, b's signed."""
    if {"avx512bw", "avx512vnni"} <= features:
        return x86(builder, "avx512.vpdpbusd.512", SUMS, sums, a, b)
    eight = ir.Constant(_PAIRS, [8] * _PAIRS.count)
    a, b = (builder.bitcast(vector, _PAIRS) for vector in (a, b))
    even = builder.and_(a, ir.Constant(_PAIRS, [255] * _PAIRS.count)), builder.ashr(builder.shl(b, eight), eight)
    odd = builder.lshr(a, eight), builder.ashr(b, eight)
    return add_products(builder, add_products(builder, sums, *even, features), *odd, features)


def _load(builder: ir.IRBuilder, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
    offset = ir.Constant(address.type, offset) if isinstance(offset, int) else offset
    loaded = builder.load(builder.inttoptr(builder.add(address, offset), kind.as_pointer()))
    loaded.align = 4
    return loaded


def _repeat(builder: ir.IRBuilder, steps: ir.Value, start: list, body: Callable[[ir.Value, list], list]) -> list:
    """values = body(step, values) for every step < steps, from `start` on; what they are after the last."""
    before, head, inside, after = (
        builder.block, *(builder.append_basic_block(name) for name in ("head", "inside", "after"))
    )  # fmt: skip
    builder.branch(head)
    builder.position_at_end(head)
    step, values = builder.phi(steps.type), [builder.phi(value.type) for value in start]
    builder.cbranch(builder.icmp_signed("<", step, steps), inside, after)
    builder.position_at_end(inside)
    found = body(step, values)
    following = builder.add(step, ir.Constant(steps.type, 1))
    for phi, first, later in zip([step, *values], [ir.Constant(steps.type, 0), *start], [following, *found]):
        phi.add_incoming(first, before)
        phi.add_incoming(later, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def _splat(builder: ir.IRBuilder, number: ir.Value) -> ir.Value:
    single = builder.insert_element(ir.Constant(SUMS, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(single, single, ir.Constant(SUMS, [0] * WORDS))


def _scores(builder: ir.IRBuilder, x: ir.Value, y: ir.Value, added: ir.Value, steps: tuple, features: set) -> list:
    """Eight vectors of sums per query. x, y, added: addresses; steps: words of int8, of int16, the shift."""
    integer, word = ir.IntType(64), ir.IntType(32)
    n_bytes, n_shorts, shift = steps
    width = builder.mul(builder.add(n_bytes, n_shorts), ir.Constant(integer, 4))

    def words(first: ir.Value, add: Callable) -> Callable[[ir.Value, list], list]:
        def body(step: ir.Value, sums: list) -> list:
            step = builder.add(first, step)
            left, right = (builder.mul(step, ir.Constant(integer, size)) for size in (4, 4 * TILE))
            ats = [builder.add(builder.mul(width, ir.Constant(integer, q)), left) for q in range(TOGETHER)]
            both = [_splat(builder, _load(builder, x, at, word)) for at in ats]
            found = list(sums)
            for v in range(VECTORS):  # one vector of references at a time: with the sums they fill the registers
                some = _load(builder, y, builder.add(right, ir.Constant(integer, 4 * WORDS * v)), SUMS)
                for q in range(TOGETHER):
                    found[q * VECTORS + v] = add(builder, sums[q * VECTORS + v], some, both[q])
            return found

        return body

    def of_bytes(builder: ir.IRBuilder, sums: ir.Value, some: ir.Value, both: ir.Value) -> ir.Value:
        return add_byte_products(builder, sums, both, some, features)

    def of_shorts(builder: ir.IRBuilder, sums: ir.Value, some: ir.Value, both: ir.Value) -> ir.Value:
        return add_products(builder, sums, *(builder.bitcast(vector, _PAIRS) for vector in (some, both)), features)

    zero = ir.Constant(integer, 0)
    sums = _repeat(builder, n_bytes, [ir.Constant(SUMS, [0] * WORDS)] * (TOGETHER * VECTORS), words(zero, of_bytes))
    by = _splat(builder, builder.trunc(shift, word))
    alone = [_load(builder, added, 4 * WORDS * v, SUMS) for v in range(VECTORS)]
    sums = [builder.add(builder.shl(value, by), alone[i % VECTORS]) for i, value in enumerate(sums)]
    sums = _repeat(builder, n_shorts, sums, words(n_bytes, of_shorts))
    return [sums[q * VECTORS : (q + 1) * VECTORS] for q in range(TOGETHER)]


def _halves(builder: ir.IRBuilder, vectors: list) -> list:
    """The upper halves of two vectors of sums in one of int16, in turns."""
    bits, upper = ir.Constant(SUMS, [HALF] * WORDS), ir.Constant(SUMS, [-1 << HALF] * WORDS)
    return [
        builder.bitcast(builder.or_(builder.lshr(even, bits), builder.and_(odd, upper)), _PAIRS)
        for even, odd in zip(vectors[::2], vectors[1::2])
    ]


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
    def one_tile(typing, x, y, added, n_bytes, n_shorts, shift, scores, maxima, tiles):
        """x, y, added, scores, maxima are addresses; a query's scores are tiles · 256 bytes, its maxima tiles · 64
        bytes, from the next one's."""

        def generate(context, builder, signature, arguments):
            x, y, added, n_bytes, n_shorts, shift, scores, maxima, tiles = arguments
            found = _scores(builder, x, y, added, (n_bytes, n_shorts, shift), features)
            for q, vectors in enumerate(found):
                next_query, vectors = (
                    builder.mul(tiles, ir.Constant(tiles.type, 2 * LANES * q)),
                    _halves(builder, vectors),
                )
                _store(builder, _maximum(builder, vectors), maxima, next_query)
                place = builder.add(scores, builder.mul(next_query, ir.Constant(tiles.type, GROUP)))
                for v, vector in enumerate(vectors):
                    _store(builder, vector, place, 2 * LANES * v)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), generate

    return one_tile


def level_function(features: set[str]):
    """What a level behind the first adds to a score, for a processor with these vector features."""

    @intrinsic
    def level_score(typing, x, y, n_bytes, n_shorts, shift):
        """x, y: addresses of a query's and a reference's level; so many vectors of int8 and of int16 (> 0), the last of
        which ends with the reference's int32. Returns int32."""

        def generate(context, builder, signature, arguments):
            x, y, n_bytes, n_shorts, shift = arguments
            size, word = ir.Constant(x.type, 4 * WORDS), ir.IntType(32)

            def vectors(first: ir.Value, add: Callable, kind: ir.Type) -> Callable[[ir.Value, list], list]:
                def body(step: ir.Value, sums: list) -> list:
                    at = builder.mul(builder.add(first, step), size)
                    left, right = (_load(builder, side, at, kind) for side in (x, y))
                    return [add(builder, sums[0], left, right, features)]

                return body

            zero = ir.Constant(x.type, 0)
            sums = _repeat(builder, n_bytes, [ir.Constant(SUMS, [0] * WORDS)], vectors(zero, add_byte_products, SUMS))
            sums = [builder.shl(sums[0], _splat(builder, builder.trunc(shift, word)))]
            sums = _repeat(builder, n_shorts, sums, vectors(n_bytes, add_products, _PAIRS))
            end = builder.mul(builder.add(n_bytes, n_shorts), size)
            alone = _load(builder, y, builder.sub(end, ir.Constant(x.type, 4)), word)
            return builder.add(total(builder, sums[0]), alone)

        return types.int32(*[types.int64] * 5), generate

    return level_score


@intrinsic
def places_above(typing, scores, cut):
    """Which of the 32 int16 at an address are ≥ `cut` (int16): int64, a bit for each."""

    def generate(context, builder, signature, arguments):
        address, cut = arguments
        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        one = builder.insert_element(ir.Constant(_PAIRS, ir.Undefined), cut, ir.Constant(ir.IntType(32), 0))
        above = builder.icmp_signed(">=", _load(builder, address, 0, _PAIRS), builder.shuffle_vector(one, one, mask))
        return builder.zext(builder.bitcast(above, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(types.int64, types.int16), generate


@intrinsic
def lowest_bit(typing, bits):
    """The place of the lowest bit that is set in an int64, which is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


def total(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    """The sum of a vector's integers."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        vector = builder.add(*(_part(builder, vector, first, half) for first in (0, half)))
    return builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))


# globals: numba keeps no compiled function that has them from a closure
tile = tile_intrinsic(processor_features())
level_score = level_function(processor_features())


@numba.njit(nogil=True, cache=True, boundscheck=False)
def score_tiles(x, packed, added, n_bytes, n_shorts, shift, scores, maxima, first):
    """scores[q, t, j, g] = x_q · y / 65536, rounded down, of reference 4 (32 t + g) + j, t ≥ first; maxima over j.

    x: int32 (Q, K), Q a multiple of 3; packed: int32 (T, K, 4, 2, 16), added: int32 (T, 4, 2, 16) from `tiled.pack`. Of
    the K words the first n_bytes are four products of a uint8 and an int8, times 2**shift, the other n_shorts two of
    int16; `added` comes to their sum. scores: int16 (Q, T, 4, 32), maxima: int16 (Q, 32 T). All C-contiguous.
    """
    tiles = np.int64(packed.shape[0])
    counts = np.int64(n_bytes), np.int64(n_shorts), np.int64(shift)
    span = max(1, SPAN // packed.strides[0])
    for start in range(first, tiles, span):
        for few in range(0, x.shape[0], FEW):
            for t in range(start, min(start + span, tiles)):
                y, h = packed.ctypes.data + t * packed.strides[0], added.ctypes.data + t * added.strides[0]
                for q in range(few, min(few + FEW, x.shape[0]), TOGETHER):
                    left = x.ctypes.data + q * x.strides[0]
                    all_of = scores.ctypes.data + q * scores.strides[0] + t * scores.strides[1]
                    best = maxima.ctypes.data + q * maxima.strides[0] + t * LANES * maxima.strides[1]
                    addresses = np.int64(left), np.int64(y), np.int64(h)
                    tile(*addresses, *counts, np.int64(all_of), np.int64(best), tiles)


def score_function(features: set[str]):
    """`score_tiles` for a processor with these vector features, compiled anew."""
    names = {**globals(), "tile": tile_intrinsic(features)}
    return numba.njit(nogil=True, boundscheck=False)(FunctionType(score_tiles.py_func.__code__, names))
