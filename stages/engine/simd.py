"""Vector instructions for the compiled loops, written as LLVM code: tiles of int16 products, sums of byte products.

On processors with VNNI one instruction multiplies 64 bytes, or 32 int16, and adds the products up. Elsewhere int16 take
two instructions with AVX-512 or AVX2 and plain vector arithmetic without; bytes take a loop that the compiler
vectorises.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numba
from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from stages.engine.sizes import GROUP, LANES, SCORE_BITS, TILE, TILE_QUERIES

WORDS, VECTORS = LANES // 2, 2 * GROUP  # sums in a vector, vectors of a tile
VECTOR_BYTES = 4 * WORDS
BYTE_STEP = 4 * VECTOR_BYTES  # bytes that `sum_of_products` takes at a time
INTEGER, WORD, HALF_WORD = ir.IntType(64), ir.IntType(32), ir.IntType(16)
SUMS, PAIRS = ir.VectorType(WORD, WORDS), ir.VectorType(HALF_WORD, LANES)
VNNI = {"avx512bw", "avx512vnni"}


def processor_features() -> set[str]:
    """The vector features that numba compiles for: the processor's own unless numba is configured for another one."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return {part[1:] for part in (numba.config.CPU_FEATURES or "").split(",") if part.startswith("+")}
    return {name for name, there in binding.get_host_cpu_features().items() if there}


def integer(value: int) -> ir.Constant:
    """An int64 constant."""
    return ir.Constant(INTEGER, value)


def filled(kind: ir.VectorType, value: int) -> ir.Constant:
    """A vector of equal integers."""
    return ir.Constant(kind, [value] * kind.count)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Writes vector code with an IR builder, for a processor with these features. Addresses are int64."""

    builder: ir.IRBuilder
    features: set[str]

    def x86(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Call an x86 instruction."""
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.x86.{name}")
        return self.builder.call(function, arguments)

    def pointer(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type) -> ir.Value:
        """A pointer to `offset` bytes behind an address."""
        offset = integer(offset) if isinstance(offset, int) else offset
        return self.builder.inttoptr(self.builder.add(address, offset), kind.as_pointer())

    def load(self, address: ir.Value, offset: ir.Value | int, kind: ir.Type, align: int = 4) -> ir.Value:
        loaded = self.builder.load(self.pointer(address, offset, kind))
        loaded.align = align
        return loaded

    def store(self, vector: ir.Value, address: ir.Value, offset: ir.Value | int) -> None:
        self.builder.store(vector, self.pointer(address, offset, vector.type)).align = 4

    def part(self, vector: ir.Value, first: int, count: int) -> ir.Value:
        """Elements [first, first + count)."""
        mask = ir.Constant(ir.VectorType(WORD, count), list(range(first, first + count)))
        return self.builder.shuffle_vector(vector, vector, mask)

    def splat(self, number: ir.Value, kind: ir.VectorType = SUMS) -> ir.Value:
        """A vector of equal elements."""
        single = self.builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(single, single, filled(ir.VectorType(WORD, kind.count), 0))

    def repeat(self, steps: ir.Value, start: list, body: Callable[[ir.Value, list], list]) -> list:
        """values = body(step, values) for every step < steps, beginning with `start`; returns the last values."""
        builder = self.builder
        blocks = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
        before, head, inside, after = builder.block, *blocks
        builder.branch(head)
        builder.position_at_end(head)
        step, values = builder.phi(steps.type), [builder.phi(value.type) for value in start]
        builder.cbranch(builder.icmp_signed("<", step, steps), inside, after)
        builder.position_at_end(inside)
        found = body(step, values)
        following = builder.add(step, integer(1))
        for phi, first, later in zip([step, *values], [integer(0), *start], [following, *found]):
            phi.add_incoming(first, before)
            phi.add_incoming(later, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        return values

    def halves(self, pairs: ir.Value, high: bool) -> ir.Value:
        """Every second int16 as an int32: the odd ones where `high`."""
        wide, shift = self.builder.bitcast(pairs, SUMS), filled(SUMS, 16)
        return self.builder.ashr(wide if high else self.builder.shl(wide, shift), shift)

    def add_products(self, sums: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """sums[i] + a[2i] b[2i] + a[2i+1] b[2i+1]. sums: 16 × int32, a and b: 32 × int16."""
        builder = self.builder
        if self.features >= VNNI:
            return self.x86("avx512.vpdpwssd.512", SUMS, sums, a, b)
        if "avx512bw" in self.features:
            return builder.add(sums, self.x86("avx512.pmaddw.d.512", SUMS, a, b))
        if "avx2" in self.features:
            half = ir.VectorType(WORD, WORDS // 2)
            both = ([self.part(vector, first, WORDS) for vector in (a, b)] for first in (0, WORDS))
            low, high = (self.x86("avx2.pmadd.wd", half, *parts) for parts in both)
            return builder.add(sums, builder.shuffle_vector(low, high, ir.Constant(SUMS, list(range(WORDS)))))
        for odd in (False, True):
            sums = builder.add(sums, builder.mul(self.halves(a, odd), self.halves(b, odd)))
        return sums

    def total(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's elements."""
        while vector.type.count > 1:
            half = vector.type.count // 2
            vector = self.builder.add(*(self.part(vector, first, half) for first in (0, half)))
        return self.builder.extract_element(vector, ir.Constant(WORD, 0))

    def maximum(self, vectors: list) -> ir.Value:
        """The largest of several vectors, element by element."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2])
            vectors = [self.builder.select(self.builder.icmp_signed(">", a, b), a, b) for a, b in pairs]
        return vectors[0]

    def upper_halves(self, vectors: list) -> list:
        """The upper halves of each two vectors of sums in one of int16, alternating."""
        bits, upper = filled(SUMS, SCORE_BITS), filled(SUMS, -1 << SCORE_BITS)
        both = (
            self.builder.or_(self.builder.lshr(even, bits), self.builder.and_(odd, upper))
            for even, odd in zip(vectors[::2], vectors[1::2])
        )
        return [self.builder.bitcast(vector, PAIRS) for vector in both]

    def add_byte_products(self, sums: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """sums[i] + a[4i] b[4i] + … + a[4i+3] b[4i+3], with VNNI. sums: 16 × int32; a: 64 × uint8; b: 64 × int8."""
        return self.x86("avx512.vpdpbusd.512", SUMS, sums, a, b)

    def tile_sums(
        self, x: ir.Value, y: ir.Value, start: list, words: ir.Value, kind: ir.Type, add: Callable[..., ir.Value]
    ) -> list[list]:
        """Eight vectors of sums for each query of a tile, from `start` on. x, y: addresses of queries and references;
        words: of 4 bytes in a row; kind: the vector of numbers that `add` multiplies, references first."""
        builder, width = self.builder, self.builder.mul(words, integer(4))

        def body(step: ir.Value, sums: list) -> list:
            left, right = (builder.mul(step, integer(size)) for size in (4, 4 * TILE))
            offsets = [builder.add(builder.mul(width, integer(q)), left) for q in range(TILE_QUERIES)]
            queries = [builder.bitcast(self.splat(self.load(x, offset, WORD)), kind) for offset in offsets]
            found = list(sums)
            for v in range(VECTORS):  # one vector of references at a time: with the sums they fill the registers
                references = self.load(y, builder.add(right, integer(VECTOR_BYTES * v)), kind)
                for q in range(TILE_QUERIES):
                    found[q * VECTORS + v] = add(sums[q * VECTORS + v], references, queries[q])
            return found

        sums = self.repeat(words, start * TILE_QUERIES, body)
        return [sums[q * VECTORS : (q + 1) * VECTORS] for q in range(TILE_QUERIES)]


def tile_function(features: set[str]):
    """`score_tile` for a processor with these features."""

    @intrinsic
    def score_tile(typing, x, y, added, words, scores, maxima, tiles):
        """Scores of one tile and their maxima over groups, from and to addresses. From one query's to the next one's,
        scores are tiles · 256 bytes apart and maxima tiles · 64."""

        def generate(context, builder, signature, arguments):
            x, y, added, words, scores, maxima, tiles = arguments
            vectors = Vectors(builder, features)
            start = [vectors.load(added, VECTOR_BYTES * v, SUMS) for v in range(VECTORS)]
            for q, sums in enumerate(vectors.tile_sums(x, y, start, words, PAIRS, vectors.add_products)):
                halves, own_maxima = vectors.upper_halves(sums), builder.mul(tiles, integer(2 * LANES * q))
                vectors.store(vectors.maximum(halves), maxima, own_maxima)
                own_scores = builder.add(scores, builder.mul(own_maxima, integer(GROUP)))
                for v, vector in enumerate(halves):
                    vectors.store(vector, own_scores, 2 * LANES * v)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return score_tile


def byte_function(features: set[str]):
    """`sum_of_products` for a processor with these features; None where a plain loop is as good."""
    if not VNNI.issubset(features):
        return None

    @intrinsic
    def sum_of_products(typing, a, b, steps):
        """Σ a_i b_i of steps · BYTE_STEP bytes at two addresses, a unsigned and b signed: int32."""

        def generate(context, builder, signature, arguments):
            a, b, steps = arguments
            vectors = Vectors(builder, features)

            def body(step: ir.Value, sums: list) -> list:  # four running sums: no instruction waits for the one before
                offset = builder.mul(step, integer(BYTE_STEP))
                places = [builder.add(offset, integer(VECTOR_BYTES * v)) for v in range(len(sums))]
                sides = ([vectors.load(side, place, SUMS, align=1) for side in (a, b)] for place in places)
                return [vectors.add_byte_products(own, *both) for own, both in zip(sums, sides)]

            sums = vectors.repeat(steps, [filled(SUMS, 0)] * (BYTE_STEP // VECTOR_BYTES), body)
            while len(sums) > 1:
                sums = [builder.add(x, y) for x, y in zip(sums[::2], sums[1::2])]
            return vectors.total(sums[0])

        return types.int32(types.int64, types.int64, types.int64), generate

    return sum_of_products


def byte_tile_function(features: set[str]):
    """`compare_tile` for a processor with these features; None without VNNI."""
    if not VNNI.issubset(features):
        return None

    @intrinsic
    def compare_tile(typing, x, y, norms, rooms, words, scores, bits):
        """scores[q, i] = norms[i] − 2 x_q · y_i of one tile, int32, from and to addresses; bits[q, v], int16, has a bit
        for each score of a vector of 16 that is ≤ rooms[q], int32. Returns whether there is one, int32."""

        def generate(context, builder, signature, arguments):
            x, y, norms, rooms, words, scores, bits = arguments
            vectors, every = Vectors(builder, features), ir.Constant(HALF_WORD, 0)
            sums = vectors.tile_sums(x, y, [filled(SUMS, 0)] * VECTORS, words, SUMS, vectors.add_byte_products)
            for q, v in itertools.product(range(TILE_QUERIES), range(VECTORS)):
                twice = builder.shl(sums[q][v], filled(SUMS, 1))
                score = builder.sub(vectors.load(norms, VECTOR_BYTES * v, SUMS), twice)
                room = vectors.splat(vectors.load(rooms, 4 * q, WORD))
                below = builder.bitcast(builder.icmp_signed("<=", score, room), HALF_WORD)
                vectors.store(score, scores, 4 * TILE * q + VECTOR_BYTES * v)
                builder.store(below, vectors.pointer(bits, 2 * (VECTORS * q + v), HALF_WORD)).align = 2
                every = builder.or_(every, below)
            return builder.zext(every, WORD)

        return types.int32(*[types.int64] * 7), generate

    return compare_tile


@intrinsic
def places_above(typing, scores, cut):
    """Which of the 32 int16 at an address are ≥ `cut` (int16): int64, a bit for each."""

    def generate(context, builder, signature, arguments):
        address, cut = arguments
        vectors = Vectors(builder, set())
        above = builder.icmp_signed(">=", vectors.load(address, 0, PAIRS), vectors.splat(cut, PAIRS))
        return builder.zext(builder.bitcast(above, ir.IntType(LANES)), INTEGER)

    return types.int64(types.int64, types.int16), generate


@intrinsic
def lowest_bit(typing, bits):
    """The place of the lowest bit that is set in an int64, which is not 0."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def prefetch_line(typing, address):
    """Ask for the cache line at an address (int64) before it is read."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, WORD, WORD, WORD])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read, second_cache, data = 0, 2, 1  # the second cache takes more requests at a time than the first
        builder.call(function, [pointer, *(ir.Constant(WORD, value) for value in (to_read, second_cache, data))])
        return context.get_dummy_value()

    return types.void(types.int64), generate


# globals, as numba keeps no compiled function that has them from a closure
score_tile = tile_function(processor_features())
sum_of_products = byte_function(processor_features())
compare_tile = byte_tile_function(processor_features())
