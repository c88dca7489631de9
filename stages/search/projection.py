"""A certified lower bound on squared distances: project, keep the lengths of what is left over.

With P orthonormal rows, and the directions left out in groups g of which only the length ‖x_g‖ is kept,

    ‖x−y‖² ≥ ‖x‖² + ‖y‖² − 2 (Px·Py + Σ_g ‖x_g‖‖y_g‖)

about any mean m (Pythagoras, then Cauchy and Schwarz in every group). One group is the well-known residual bound;
several hold much more of queries whose energy is spread otherwise than the reference's, such as noise.

P has int8 directions, so that P x is exact in integers up to a factor per row. They are orthonormal up to this rounding
only: all that is asked of P is PᵀP ≼ 1 (every eigenvalue at most 1). Then 1 − PᵀP = CᵀC, and in the bound ‖Cx‖² =
‖x‖² − ‖Px‖² takes the place of the length outside the span, as x·y = Px·Py + Cx·Cy. P x is then rounded to int16, and
`slack` is what this rounding can do: with it the bound stays a proof, in integers.
"""

import dataclasses

import numpy as np

from stages.search.products import centred, products, spread

WIDTH = 32  # columns that the compiled products take at a time
CUTS = (122,)  # directions that every pair gets; all of them are for those that these leave
GROUPS = 6  # lengths kept of the directions that a level leaves out
LARGEST = 32_000  # of a coordinate: the products of two vectors of this length fit an int32 with room
SAMPLE = 1_024  # rows that the directions are fitted to; any directions are correct, these are good
LEADING, LEAF = 8, 24  # directions and rows of a leaf of the tree that puts queries in order
ROUNDING = 1e-9  # relative; far above what float64 does to an eigenvalue


@dataclasses.dataclass(frozen=True)
class Projection:
    """Directions P with PᵀP ≼ 1 in integers and a factor per row, and the mean that images are centred on.

    Attributes:
        rows: int8 (p + 1, d): the p integer directions A, then m − 128.
        factor: float64 (p,): P = diag(factor) A.
        origin: int64 (p + 1,): rows · (m − 128).
    """

    rows: np.ndarray
    factor: np.ndarray
    origin: np.ndarray

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
    from stages.search.kernels import squared_lengths

    norms = np.empty(len(images), np.int64)
    spread(lambda a, b: squared_lengths(images[a:b], norms[a:b]), len(images))
    return norms


def fit_projection(reference: np.ndarray, size: int) -> Projection:
    """About the `size` leading principal directions of evenly spaced rows of `reference`, uint8 (M, d)."""
    sample = reference[:: -(-len(reference) // SAMPLE)].astype(np.float32)
    mean = np.clip(np.rint(sample.mean(0)), 0, 255).astype(np.uint8)
    directions = _principal(sample - mean, size)
    largest = np.abs(directions).max(1, keepdims=True)
    integers = np.rint(directions * (127 / np.maximum(largest, 1e-30))).astype(np.int8)
    rows = np.concatenate([integers, centred(mean[None])])
    return Projection(rows, _factor(integers), products(rows, rows[-1:])[:, 0].astype(np.int64))


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
    for _ in range(3):
        basis = np.linalg.qr(gram @ basis)[0]
    variances, rotation = np.linalg.eigh(basis.T @ (gram @ basis))
    rotation[:, variances <= 1e-6 * variances[-1]] = 0  # what float32 leaves there has no direction
    basis = (basis @ rotation[:, ::-1]).T
    return basis @ sample if few else basis


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a row of `Coordinates` holds what. Level after level: the lengths that the level before had kept (negative
    in queries, which takes their products out again), its own directions, the lengths that it keeps, zeros.

    Attributes:
        levels: int64 (L,), the column at which each level ends, a multiple of 32. The inner product of two rows up to
            there is the level's score.
        directions: how many directions the levels up to this one have.
        groups: per level the edges of the groups of later directions that have a length of their own; the last
            length that a level keeps is that of everything outside the span.
        repeated: bool (W,), the columns that repeat lengths of the level before.
    """

    levels: np.ndarray
    directions: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    repeated: np.ndarray


def layout(size: int, cuts: tuple[int, ...] = CUTS) -> Layout:
    """The layout of `size` directions whose levels end at `cuts`."""
    directions = tuple(sorted({min(cut, size) for cut in cuts} | {size}))
    groups = tuple(tuple(_edges(cut, size)) for cut in directions)
    repeats = np.array([0, *map(len, groups[:-1])])
    used = np.diff(directions, prepend=0) + [len(edges) for edges in groups] + repeats
    levels = np.cumsum(-(-used // WIDTH) * WIDTH)
    column = np.arange(levels[-1])
    at = np.searchsorted(levels, column, side="right")
    return Layout(levels, directions, groups, column - np.array([0, *levels])[at] < repeats[at])


def _edges(start: int, stop: int) -> list[int]:
    return np.unique(np.rint(np.geomspace(start, stop, GROUPS)).astype(int)).tolist()


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """Images as the bound sees them, in units of 1/scale.

    Attributes:
        rows: int16 (N, W): the directions rounded to the nearest, the lengths rounded up, in the order of `layout`.
        squared, norms: int64 (N,), ‖x−m‖² and ‖x−128‖² in pixel units.
        length: float64 (N,), the larger of ‖Px‖ before and after rounding.
        error: float64 (N,), the length of Px's rounding.
        scale: float.
    """

    rows: np.ndarray
    squared: np.ndarray
    norms: np.ndarray
    length: np.ndarray
    error: np.ndarray
    scale: float

    @property
    def half(self) -> np.ndarray:
        """−‖y‖²/2 in units of 1/scale², rounded up: int32 (N,)."""
        return np.ceil(-0.5 * self.scale**2 * self.squared).astype(np.int32)

    def take(self, order: np.ndarray) -> "Coordinates":
        """These rows, in this order."""
        arrays = {f.name: getattr(self, f.name)[order] for f in dataclasses.fields(self) if f.name != "scale"}
        return Coordinates(**arrays, scale=self.scale)

    def similar(self) -> np.ndarray:
        """An order, int64 (N,), in which rows that follow each other are alike: the leaves of a k-d tree."""
        points, leaves, pending = self.rows[:, :LEADING], [], [np.arange(len(self.rows))]
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
        """The same, with the repeated lengths negative."""
        return dataclasses.replace(self, rows=np.where(shape.repeated, -self.rows, self.rows))


def coordinates(projection: Projection, images: np.ndarray, shape: Layout) -> Coordinates:
    """The coordinates of uint8 images (N, d); a block at a time, so that float64 never holds them all."""
    from stages.search.kernels import round_rows

    scale = LARGEST / (255 * np.sqrt(images.shape[1]))
    rows = np.zeros((len(images), shape.levels[-1]), np.int16)
    squared, norms = np.empty((2, len(images)), np.int64)
    length, error = np.empty((2, len(images)))
    edges = np.full((len(shape.groups), max(map(len, shape.groups))), -1)
    for level, group in enumerate(shape.groups):
        edges[level, : len(group)] = group
    origin, factor, directions = projection.origin[:-1], projection.factor * scale, np.array(shape.directions)
    step = max(1, min(1024, (1 << 22) // images.shape[1]))
    for start in range(0, len(images), step):
        part = slice(start, start + step)
        raw, squared[part], norms[part] = projection.integers(images[part])
        out = raw, squared[part], rows[part], length[part], error[part]

        def fill(a: int, b: int) -> None:
            x, of, *filled = (array[a:b] for array in out)  # noqa: B023  (finished before the next block)
            round_rows(x, origin, factor, of, scale, shape.levels, directions, edges, *filled)

        spread(fill, len(raw))
    return Coordinates(rows, squared, norms, length, error, scale)


def slack(queries: Coordinates, reference: Coordinates) -> np.ndarray:
    """How far rounding lets a score be below the true inner product, float64 (N,), for every row of the reference.

    With û = Px + e: Px·Py = û·v̂ − e_x·v̂ − Px·e_y ≤ û·v̂ + ‖e_x‖‖v̂‖ + ‖Px‖‖e_y‖. A level has fewer directions, so
    this covers each. The last term is float64's: Px is off by at most 1e-15 of its length, and the lengths got more
    than that before they were rounded up: ‖Cx‖ from ‖x‖² − ‖Px‖² is off by at most 2√(p·2⁻⁵²)·LARGEST < 0.25 for
    p ≤ 4096.
    """
    largest, worst = float(reference.length.max()), float(reference.error.max())
    return queries.error * largest + queries.length * worst + 1 + 1e-10 * queries.length * largest
