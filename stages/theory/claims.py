"""A claim of the theory as one measured row, what a block of claims hands back, and how a block is added.

A block is a group of claims that are computed together: the unit of work (a shard) of stage verify. To add one:

1.  Write its mathematics and its parameters in a module of its own, `stages/theory/TOPIC.py`. The parameters are a
    subclass of `Block` (or of `ImageBlock`, which is handed training images). Importing the module must not import
    torch: import it inside functions.

        class Chen(Block):
            TITLE: ClassVar[str] = "Smoothing in one dimension"       # heading in the report
            steps: int = Field(ge=1, description="Euler steps")       # no defaults: params.yaml spells every key

            def findings(self, seed: int, images: np.ndarray | None) -> Findings:
                return Findings(claims=[Claim(...)], tables={"chen_flow": [{"x": 0.0, "measured": 1.0}]})

2.  Add one field to `Blocks` in stages/verify.py (`chen: Chen`), the section `chen` to stages/theory/blocks.yaml, and
    run `scoresmooth dag --write`. A value that differs between the two modes is written
    `steps: {quick: 100, full: 10000}`; the block sees the one number.

3.  Draw its figures in stages/reporting/theory_figures.py: a function from the block's tables to SVG text, entered in
    FIGURES under the block's name. Every table is also data/verify/NAME.tsv, for `plots` in dvc.yaml. Pictures made of
    pixels go into `Findings.pictures`.

4.  Work it out in stages/theory/README.md (statement, derivation, number), and test each formula by hand.

A long block is cut into several shards by `pieces`; claims that compare the pieces are made in `conclude`.
Tables hold JSON values only: no NaN and no infinity (write "∞"), equal keys in every row of one table.
"""

import dataclasses
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from stages.protocol import Section

Table = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """One row of data/verify/verify.json.

    Attributes:
        claim: the statement in words.
        formula: what is compared, in symbols.
        source: METHODS section and where it comes from.
        computed: what was computed, with sizes.
        expected: the value that the statement gives.
        tolerance: largest |measured − expected| (or, where `deviation` is given, largest deviation) that still passes.
        reason: why the tolerance is what it is.
        measured: the value found.
        uncertainty: one standard error of `measured`; None where it is not random.
        deviation: where a row summarizes many cases, the largest |measured − expected| over them.
        dtype: number format of the computation.
    """

    claim: str
    formula: str
    source: str
    computed: str
    expected: float
    tolerance: float
    reason: str
    measured: float
    uncertainty: float | None = None
    deviation: float | None = None
    dtype: str = "float64"

    @property
    def passed(self) -> bool:
        """Whether the deviation stays within the tolerance; a NaN never passes."""
        deviation = abs(self.measured - self.expected) if self.deviation is None else self.deviation
        return bool(deviation <= self.tolerance)

    def row(self) -> dict[str, Any]:
        """The claim as JSON values, with `passed`."""
        return {**dataclasses.asdict(self), "passed": self.passed}


@dataclasses.dataclass(frozen=True)
class Picture:
    """Small images side by side, for the report.

    Attributes:
        caption: what the rows and columns are.
        pixels: uint8 (rows, columns, H, W, C).
    """

    caption: str
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Findings:
    """What a block (or one piece of it) hands back.

    Attributes:
        claims: its measured rows.
        tables: name -> rows of named values, for plots and figures; rows of one name from several pieces are joined.
        pictures: name -> picture.
    """

    claims: list[Claim]
    tables: dict[str, Table] = dataclasses.field(default_factory=dict)
    pictures: dict[str, Picture] = dataclasses.field(default_factory=dict)


class Block(Section):
    """Parameters of one block of claims, and its work. TITLE: its heading in the report."""

    TITLE: ClassVar[str]

    def pieces(self) -> list[Self]:
        """The block cut into independent pieces, one shard each."""
        return [self]

    def findings(self, seed: int, images: np.ndarray | None) -> Findings:
        """Compute (a piece of) the block: deterministic in its parameters, `seed` and `images`.

        images: None, or for an ImageBlock uint8 (M, H, W, C).
        """
        raise NotImplementedError

    def conclude(self, tables: dict[str, Table]) -> list[Claim]:
        """Claims about all pieces together, from their joined tables."""
        return []


class ImageBlock(Block):
    """A block that is handed training images: the first `images` of a seeded order of the data set."""

    images: int = Field(ge=2, description="training images used; all of them where there are fewer")

    def source(self, default: str | None) -> str | None:
        """Where its images come from: `default` is what verify.dataset names (None: what the pipeline ingested)."""
        return default
