"""A certified lower bound on squared distances: project, keep the lengths of what is left over.

With P orthonormal rows, and the directions left out in groups g of which only the length ‖x_g‖ is kept,

    ‖x−y‖² ≥ ‖x‖² + ‖y‖² − 2 (Px·Py + Σ_g ‖x_g‖‖y_g‖)

about any mean m (Pythagoras, then Cauchy and Schwarz in every group). One group is the well-known residual bound;
several hold much more of queries whose energy is spread otherwise than the reference's, such as noise.

P has int8 directions, so that P x is exact in integers up to a factor per row. They are orthonormal up to this rounding
only: all that is asked of P is PᵀP ≼ 1 (every eigenvalue at most 1). Then 1 − PᵀP = CᵀC, and in the bound ‖Cx‖² =
‖x‖² − ‖Px‖² takes the place of the length outside the span, as x·y = Px·Py + Cx·Cy.

P x is then rounded: its leading coordinates to int16, and `slack` is what this can do; the others to int8, x = u X + e
with e the rounding and what lies beyond 127 u. Of a level's int8 coordinates

    x·y = u² X·Y + e_x·(u Y) + x·e_y ≤ u² X·Y + ‖e_x‖ ‖u Y‖ + ‖x‖ ‖e_y‖,

two more products of lengths. With these the bound stays a proof, in integers.
"""

import dataclasses

import numpy as np

from stages.engine.products import centred, products, spread

LINE = 64  # bytes: what a level behind the first takes a multiple of, so that its rows fill lines of the cache
CUTS = (92,)  # directions that every pair gets; all of them are for those that these leave
LEAD = 24  # leading directions that are int16, which hold most of the length; the others are int8
GROUPS = 6  # lengths kept of the directions that a level leaves out
# of a coordinate; a score is at most 3/2 LARGEST² (int8 coordinates that lose nearly all: ‖e_x‖‖uY‖ + ‖x‖‖e_y‖ up to
# 2 LARGEST², less ‖y‖²/2) and at least −3/2 LARGEST², so that it fits an int32 with room
LARGEST = 32_000
SAMPLE = 1_024  # rows that the directions are fitted to; any directions are correct, these are good
EXAMPLES = 128  # of these rows, for which the units of the int8 coordinates are chosen
BYTE = 127  # the largest int8 coordinate
SHIFTS = range(7)  # units of int8 coordinates are 2**shift: up to 64, so that no length leaves int16 by its rounding
LEADING, LEAF = 8, 24  # directions and rows of a leaf of the tree that puts queries in order
ROUNDING = 1e-9  # relative; far above what float64 does to an eigenvalue


@dataclasses.dataclass(frozen=True)
class Projection:
    """Directions P with PᵀP ≼ 1 in integers and a factor per row, and the mean that images are centred on.

    Attributes:
        rows: int8 (p + 1, d): the p integer directions A, then m − 128.
        factor: float64 (p,): P = diag(factor) A.
        origin: int64 (p + 1,): rows · (m − 128).
        examples: float32 (n, p), about P (x − m) of some images.
    """

    rows: np.ndarray
    factor: np.ndarray
    origin: np.ndarray
    examples: np.ndarray

    @property
    def size(self) -> int:
        """p."""
        return len(self.factor)

    def integers(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of uint8 images (N, d): A(x−128), int32 or int64 (N, p); ‖x−m‖² and ‖x−128‖², int64 (N,)."""
        raw, norms = products(centred(images), self.rows), compiled_norms(images)
        squared = norms + self.origin[-1] - 2 * raw[:, -1].astype(np.int64)
        return raw[:, :-1], squared, norms


def compiled_norms(images: np.ndarray) -> np.ndarray:
    """‖x − 128‖² of uint8 images (N, d), int64 (N,): `products.squared_norms` by a compiled loop."""
    from stages.engine.search_kernels import squared_lengths

    norms = np.empty(len(images), np.int64)
    squared_lengths(images, norms)
    return norms


def fit_projection(reference: np.ndarray, size: int) -> Projection:
    """About the `size` leading principal directions of evenly spaced rows of `reference`, uint8 (M, d)."""
    sample = reference[:: -(-len(reference) // SAMPLE)].astype(np.float32)
    mean = np.clip(np.rint(sample.mean(0)), 0, 255).astype(np.uint8)
    directions = _principal(sample - mean, size)
    largest = np.abs(directions).max(1, keepdims=True)
    integers = np.rint(directions * (127 / np.maximum(largest, 1e-30))).astype(np.int8)
    rows = np.concatenate([integers, centred(mean[None])])
    factor = _factor(integers)
    some = sample[:: -(-len(sample) // EXAMPLES)] - mean
    examples = (some @ integers.T.astype(np.float32)) * factor.astype(np.float32)
    return Projection(rows, factor, products(rows, rows[-1:])[:, 0].astype(np.int64), examples)


def _factor(integers: np.ndarray) -> np.ndarray:
    """Factors that make rows, int8 (p, d), of about one length, and the largest eigenvalue of their PᵀP at most 1."""
    gram = products(integers, integers).astype(np.float64)
    factor = 1 / np.sqrt(np.maximum(np.diag(gram), 1))
    return factor / np.sqrt(np.linalg.eigvalsh(gram * np.outer(factor, factor))[-1] * (1 + ROUNDING) + ROUNDING)


def _principal(sample: np.ndarray, size: int) -> np.ndarray:
    """Rows (at most `size`, d) near the leading right singular vectors, of any length: a randomised range finder on
    the smaller Gram matrix. Directions without variance are zero."""
    few = len(sample) < sample.shape[1]
    gram = sample @ sample.T if few else sample.T @ sample
    basis = np.random.default_rng(0).standard_normal((len(gram), min(size, len(gram))), dtype=np.float32)
    for _ in range(2):
        basis = np.linalg.qr(gram @ basis)[0]
    variances, rotation = np.linalg.eigh(basis.T @ (gram @ basis))
    rotation[:, variances <= 1e-6 * variances[-1]] = 0  # what float32 leaves there has no direction
    basis = (basis @ rotation[:, ::-1]).T
    return basis @ sample if few else basis


@dataclasses.dataclass(frozen=True)
class Level:
    """What a row of `Coordinates` holds of one level, from the byte `at` on: its int8 coordinates, zeros, and in int16
    the lengths that the level before had kept (negative in queries, which takes their products out again), its own
    leading coordinates, the lengths that it keeps, the two lengths of its rounding, zeros.

    Attributes:
        start, lead, stop: the directions [start, lead) are int16, [lead, stop) int8 in units of 2**shift.
        edges: of the groups of later directions that have a length of their own; the last length that a level keeps
            is that of everything outside the span.
        repeated: how many lengths of the level before are repeated.
        at, shorts, end: bytes at which the level, its int16 part, and the next level begin.
        shift: see above.
    """

    start: int
    lead: int
    stop: int
    edges: tuple[int, ...]
    repeated: int
    at: int
    shorts: int
    end: int
    shift: int

    @property
    def numbers(self) -> tuple[int, ...]:
        """What the compiled loops ask for: start, lead, stop, repeated, at, shorts, end, shift."""
        return self.start, self.lead, self.stop, self.repeated, self.at, self.shorts, self.end, self.shift

    @property
    def rounding(self) -> int:
        """The byte at which the two lengths of the rounding stand."""
        return self.shorts + 2 * (self.repeated + self.lead - self.start + len(self.edges))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where `Coordinates` hold what: the first level in `coarse`, the others one after the other in `fine`."""

    levels: tuple[Level, ...]

    @property
    def numbers(self) -> np.ndarray:
        """int64 (L, 8): of every level."""
        return np.array([level.numbers for level in self.levels])

    @property
    def edges(self) -> np.ndarray:
        """int64 (L, most edges), filled up with −1."""
        table = np.full((len(self.levels), max(len(level.edges) for level in self.levels)), -1)
        for row, level in zip(table, self.levels):
            row[: len(level.edges)] = level.edges
        return table

    @property
    def widths(self) -> tuple[int, int]:
        """Bytes of a row of `coarse` and of `fine`."""
        return self.levels[0].end, self.levels[-1].end if len(self.levels) > 1 else 0


def layout(projection: Projection, cuts: tuple[int, ...] = CUTS) -> Layout:
    """The layout of a projection whose levels end at `cuts`."""
    size, scale = projection.size, _scale(projection.rows.shape[1])
    stops = sorted({min(cut, size) for cut in cuts} | {size})
    levels = []
    for start, stop in zip([0, *stops], stops):
        first = not levels
        lead = min(LEAD, stop) if first else start
        edges, repeated = tuple(_edges(stop, size)), 0 if first else len(levels[-1].edges)
        at = 0 if len(levels) < 2 else levels[-1].end
        shorts = at + _filled(stop - lead, 4 if first else LINE)
        # two lengths of the rounding; behind the first level, an int32 that only references have
        used = repeated + lead - start + len(edges) + 2 + (0 if first else 2)
        end = shorts + _filled(2 * used, 4 if first else LINE)
        shift = _shift(projection.examples[:, lead:stop] * scale)
        levels.append(Level(start, lead, stop, edges, repeated, at, shorts, end, shift))
    return Layout(tuple(levels))


def _scale(d: int) -> float:
    """Units of a coordinate in a pixel's."""
    return LARGEST / (255 * np.sqrt(d))


def _filled(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _shift(coordinates: np.ndarray) -> int:
    """The shift for which these coordinates, (n, p), lose least by rounding to int8."""

    def lost(shift: int) -> float:
        unit = 1 << shift
        rounded = np.clip(np.rint(coordinates / unit), -BYTE, BYTE) * unit
        return float(np.sqrt(np.square(coordinates - rounded).sum(1)).mean())

    return min(SHIFTS, key=lost)


def _edges(start: int, stop: int) -> list[int]:
    return np.unique(np.rint(np.geomspace(start, stop, GROUPS)).astype(int)).tolist()


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Images as the bound sees them, in units of 1/scale.

    Attributes:
        coarse, fine: uint8 (N, ...), in the order of `layout`: coordinates rounded to the nearest, lengths rounded up.
            A level of `fine` ends with the int32 `Level` speaks of: what its score adds for the reference alone.
        squared, norms: int64 (N,), ‖x−m‖² and ‖x−128‖² in pixel units.
        added: int32 (N,), what the first level's score adds for the reference alone.
        length: float64 (N,), the larger of ‖Px‖ before and after rounding, of the int16 coordinates.
        error: float64 (N,), the length of their rounding.
        scale: float.
    """

    coarse: np.ndarray
    fine: np.ndarray
    squared: np.ndarray
    norms: np.ndarray
    added: np.ndarray
    length: np.ndarray
    error: np.ndarray
    scale: float

    def take(self, order: np.ndarray) -> "Coordinates":
        """These rows, in this order."""
        arrays = {f.name: getattr(self, f.name)[order] for f in dataclasses.fields(self) if f.name != "scale"}
        return Coordinates(**arrays, scale=self.scale)

    def similar(self, shape: Layout) -> np.ndarray:
        """An order, int64 (N,), in which rows that follow each other are alike: the leaves of a k-d tree."""
        first = shape.levels[0]
        points = self.coarse[:, first.shorts : first.shorts + 2 * min(LEADING, first.lead)].view(np.int16)
        leaves, pending = [], [np.arange(len(points))]
        while pending:
            rows = pending.pop()
            if len(rows) <= LEAF:
                leaves.append(rows)
                continue
            column = points[rows, np.argmax(points[rows].std(0))]
            rows = rows[np.argsort(column, kind="stable")]
            pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
        return np.concatenate(leaves)

    def as_queries(self, shape: Layout) -> "Coordinates":
        """The same for the other side of a product: int8 coordinates from 0 to 255, repeated lengths negative, the
        lengths of the rounding in the other order, nothing where references have their int32."""
        coarse, fine = self.coarse.copy(), self.fine.copy()
        for level, rows in zip(shape.levels, [coarse] + [fine] * (len(shape.levels) - 1)):
            rows[:, level.at : level.shorts] ^= 128
            shorts = rows[:, level.shorts : level.end].view(np.int16)
            shorts[:, : level.repeated] *= -1
            two = (level.rounding - level.shorts) // 2
            shorts[:, two : two + 2] = shorts[:, two : two + 2][:, ::-1].copy()
            if rows is fine:
                shorts[:, -2:] = 0
        return dataclasses.replace(self, coarse=coarse, fine=fine)


def coordinates(projection: Projection, images: np.ndarray, shape: Layout) -> Coordinates:
    """The coordinates of uint8 images (N, d) as references; a block at a time, so that float64 never holds them all."""
    from stages.engine.search_kernels import round_rows

    count, scale = len(images), _scale(images.shape[1])
    coarse, fine = (_lines(count, width) for width in shape.widths)
    squared, norms = np.empty((2, count), np.int64)
    added, (length, error) = np.empty(count, np.int32), np.empty((2, count))
    origin, factor, numbers, edges = projection.origin[:-1], projection.factor * scale, shape.numbers, shape.edges
    step = max(1, min(2048, (1 << 23) // images.shape[1]))

    def fill(a: int, b: int) -> None:
        for start in range(a, b, step):
            part = slice(start, min(start + step, b))
            raw, squared[part], norms[part] = projection.integers(images[part])
            filled = coarse[part], fine[part], added[part], length[part], error[part]
            round_rows(raw, origin, factor, squared[part], scale, numbers, edges, *filled)

    spread(fill, count)
    return Coordinates(coarse, fine, squared, norms, added, length, error, scale)


def _lines(count: int, width: int) -> np.ndarray:
    """Zeros, uint8 (count, width), that begin where a line of the cache does."""
    room = np.zeros(count * width + LINE, np.uint8)
    first = -room.ctypes.data % LINE
    return room[first : first + count * width].reshape(count, width)


def slack(queries: Coordinates, reference: Coordinates) -> np.ndarray:
    """How far rounding to int16 lets a score be below what it bounds, float64 (N,), for every row of the reference.

    Of the int16 coordinates, with û = x + e: x·y = û·v̂ − e_x·v̂ − x·e_y ≤ û·v̂ + ‖e_x‖‖v̂‖ + ‖x‖‖e_y‖. The last terms
    are float64's: Px is off by at most 1e-15 of its length, and the lengths got more than that before they were
    rounded up: ‖Cx‖ from ‖x‖² − ‖Px‖² is off by at most 2√(p·2⁻⁵²)·LARGEST < 0.25 for p ≤ 4096.
    """
    largest, worst = float(reference.length.max()), float(reference.error.max())
    return queries.error * largest + queries.length * worst + 1 + 1e-10 * LARGEST**2
