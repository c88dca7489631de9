"""Stage report: one self-contained HTML page, metrics.json, plots and the results table.

Outs in data/report: report.html, metrics.json (`dvc metrics diff`), results.json (`scoresmooth results`),
plots/*.tsv (`dvc plots`). Its one shard is the held-out images' r1/r2, which stands beside that of the samples.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.files.arrow import write_parquet
from stages.files.artifacts import atomic_path, write_json, write_text, write_tsv
from stages.files.images import read_images
from stages.files.paths import DATA, images_of
from stages.protocol import Parts, Shard, StageParams, main
from stages.reporting.answer import Opening, answer, rates
from stages.reporting.checks import checks
from stages.reporting.contrasts import ContrastParams, contrast_row, measured, read_contrasts, require_variants
from stages.reporting.frontier import frontier
from stages.reporting.published import Published, published_tables

if TYPE_CHECKING:
    import numpy as np

    from stages.reporting.inputs import Inputs, Variant

OUT = DATA / "report"


class VariantSummary(BaseModel):
    """The keys of a variant that the report reads; it shows the others unread (`variants.py` validates them)."""

    model_config = ConfigDict(extra="allow", frozen=True)

    score: Literal["network", "closed-form"]
    form: str


class Params(StageParams):
    """What the report shows, and when it warns."""

    SECTION: ClassVar[str] = "report"
    SHARED: ClassVar[dict[str, str]] = {"variants": "variants"}

    variants: dict[str, VariantSummary] = Field(min_length=1)
    pictures: int = Field(ge=1, le=512, description="samples shown per variant: the first ones, not selected")
    duplicate_groups: int = Field(ge=0, description="groups of duplicates shown as pictures, the largest first")
    rejected_images: int = Field(ge=0, description="rejected input files listed")
    published: Published | None = Field(description="a paper's numbers to compare with; null: none")
    contrasts: list[ContrastParams] = Field(description="pairs of variants that the report compares")

    @model_validator(mode="after")
    def _existing(self) -> Self:
        require_variants(self.contrasts, self.variants)
        if self.published is not None:
            self.published.require_variants(self.variants)
        return self


def plan(params: Params) -> list[Shard]:
    """One shard: r1/r2 of the held-out images."""
    return [
        Shard(
            "report",
            "holdout",
            "held-out ratios",
            {"neighbors": 2},
            (str(images_of("holdout")), str(images_of("train"))),
            ".parquet",
        )
    ]


def work(shard: Shard) -> Path:
    """Write r1/r2 of every held-out image against the training images, exact: a table with the column ratio."""
    import pyarrow as pa

    from stages.memorization.ratios import nn_ratio
    from stages.search.nearest import nearest

    holdout, train = (read_images(path) for path in shard.inputs)
    _, squared = nearest(holdout.flat, train.flat, shard.settings["neighbors"])
    return write_parquet(shard.path, pa.table({"ratio": nn_ratio(squared)}))


def gather(params: Params, parts: Parts) -> None:
    """Read the artifacts and write the page, the metrics, the plots and the results table."""
    import pyarrow.parquet as pq

    from stages.reporting.html import render
    from stages.reporting.inputs import read_inputs
    from stages.reporting.most_copied import Across, columns, most_copied, nearest_rows
    from stages.reporting.results import copy_rows, loss_rows, metrics, results, run_rows

    variants = {name: variant.model_dump(mode="json") for name, variant in params.variants.items()}
    inputs = _with_learned(read_inputs(DATA, variants, pq.read_table(parts["holdout"][0])["ratio"].to_numpy()))
    found = checks(inputs.variants, len(inputs.train))
    contrasts = read_contrasts(params.contrasts, {variant.name: variant.tree for variant in inputs.variants})
    changes = measured(contrasts, {variant.name: variant for variant in inputs.variants})
    compared = frontier(inputs.variants)
    rows = [contrast_row(*pair) for pair in changes]
    opening = Opening(answer(inputs.variants, changes, compared), rates(inputs.variants, contrasts), compared)
    beside = published_tables(params.published, inputs)
    copied = most_copied(inputs.variants)
    images = inputs.train.flat[[image.row for image in copied]]
    nearest = {variant.name: _nearest_samples(variant, images) for variant in inputs.variants}
    across = Across(columns(copied, inputs.train.images), nearest_rows(copied, inputs.variants, nearest))
    shown = {"report": params.model_dump(mode="json", exclude={"variants"}), "variants": variants}
    write_text(OUT / "report.html", render(inputs, opening, found, rows, beside, across, shown))
    write_json(OUT / "metrics.json", metrics(inputs, found))
    write_json(OUT / "results.json", {**results(inputs, opening, found, rows), "published": beside})
    plots = {
        "copy_rate": copy_rows(inputs.variants),
        "loss": loss_rows(inputs.variants),
        "runs": run_rows(inputs.variants),
    }
    for name, rows in plots.items():
        if rows:
            write_tsv(OUT / "plots" / f"{name}.tsv", rows)


def _nearest_samples(variant: "Variant", images: "np.ndarray") -> "tuple[np.ndarray, np.ndarray]":
    """Return the sample nearest to each image, int64 (n,), and its pixel distance, float64 (n,).

    images: uint8 (n, d).
    """
    import numpy as np

    from stages.search.nearest import nearest
    from stages.search.pixel_distance import pixel_distance

    if not len(images):
        return np.zeros(0, np.int64), np.zeros(0)
    index, squared = nearest(images, variant.samples.flat, 1)
    return index[:, 0], pixel_distance(squared[:, 0], images.shape[1])


def _with_learned(inputs: "Inputs") -> "Inputs":
    """The inputs with one more block of theory: the trained scores beside the empirical one."""
    from stages.files.png import png_bytes
    from stages.reporting.inputs import TheoryBlock
    from stages.reporting.learned import CAPTION, NAME, TITLE, draw_interpolations, learned_tables
    from stages.theory.learned import learned_claims

    tables = learned_tables(inputs.variants)
    if not tables["learned_levels"]:
        return inputs
    claims = [
        {"topic": NAME, **claim.row()} for claim in learned_claims(tables["learned_levels"], tables["learned_paths"])
    ]
    picture = OUT / "plots" / "interpolation.png"
    with atomic_path(picture) as temporary:
        temporary.write_bytes(png_bytes(draw_interpolations(inputs.variants)))
    for name, rows in tables.items():
        write_tsv(OUT / "plots" / f"{name}.tsv", rows)
    block = TheoryBlock(NAME, TITLE, claims, tables, [(CAPTION, picture)])
    return dataclasses.replace(inputs, theory=[*inputs.theory, block])


if __name__ == "__main__":
    main("report")
