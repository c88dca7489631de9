"""The artifacts that the report is made of, each read once; an error names the command to run."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import ImageTable, read_images
from stages.files.runs import read_runs, reference
from stages.reporting.runs import FID, Columns, joined, seeds
from stages.reporting.runs import FILTER as RUNS
from stages.reporting.words import Rate

LOSS = ("step", "loss", "loss_low_sigma", "loss_middle_sigma", "loss_high_sigma")
FILTER = ("headline", "metrics", "distance", "ratio", "verdicts", "leaks", "verified", "faults")
SAMPLE = ("count", "nfe", "sampler", "seed")
DISTANCES = ("name", "encoder", "samples", "train", "test", "floor", "recall", "coverage", "vendi", "sharpness")
CALIBRATED = ("calibrated_distance", "blend")  # metrics that the report names, whatever the headline


@dataclasses.dataclass(frozen=True)
class Learned:
    """A trained score beside the empirical one: alignment.json, and the images of its interpolations."""

    measured: dict[str, Any]
    images: ImageTable

    @property
    def grid(self) -> np.ndarray:
        """The interpolated images, uint8 (kinds of mixture, paths, points, H, W, C)."""
        return self.images.images.reshape(*self.measured["grid"], *self.images.images.shape[1:])


@dataclasses.dataclass(frozen=True)
class Variant:
    """Everything the report says about one variant.

    Attributes:
        name, spec: the key and the value under `variants` in params.yaml.
        score, sample, filter, fid: the stages' JSON files.
        loss: columns of the reference run's loss.tsv; None for a closed form.
        runs: the measures of every training seed and snapshot; None for a closed form.
        pairs: pairs.parquet, one row per sample.
        neighbors: neighbors.parquet, the nearest training images of the first samples.
        samples: the samples, in order.
        pairs_picture: the picture grid that filter drew.
        learned: its score beside the empirical one; None for a closed form and for a consistency function.
    """

    name: str
    spec: dict[str, Any]
    score: dict[str, Any]
    sample: dict[str, Any]
    filter: dict[str, Any]
    fid: dict[str, Any]
    loss: dict[str, np.ndarray] | None
    runs: Columns | None
    pairs: pa.Table
    neighbors: pa.Table
    samples: ImageTable
    pairs_picture: Path
    learned: Learned | None = None

    @property
    def network(self) -> bool:
        """True for a trained network, False for a closed-form score."""
        return self.spec["score"] == "network"

    @property
    def form(self) -> str:
        """The form of the score or of its target: conditioning, unconditioning, temperature, …"""
        return self.spec["form"]

    @property
    def tree(self) -> dict[str, Any]:
        """The parameters that it was trained and sampled with, all spelled out, as `contrasts.contrast` takes them."""
        spec = {**self.score["spec"], "sampler": self.sample["sampler"]}
        train = {key: self.score[key] for key in ("noise", "network", "optimization") if key in self.score}
        if self.runs is not None:
            train["seeds"] = sorted(seeds(self.runs))
        return {"spec": spec, "train": train, "sample": {"seed": self.sample["seed"]}}

    @property
    def metric(self) -> str:
        """The headline metric's name."""
        return self.filter["headline"]

    @property
    def limits(self) -> list[float]:
        """The r₁/r₂ of a copy and of a near copy (filter.ratios), ascending."""
        return [self.filter["metrics"][name]["threshold"] for name in ("nn_ratio_copy", "nn_ratio_near_copy")]

    @property
    def copies(self) -> Rate:
        """Samples that the headline metric flags."""
        return Rate.of(self.filter["metrics"][self.metric])

    @property
    def control(self) -> Rate:
        """Held-out real images that the headline metric flags."""
        return Rate.of(self.filter["metrics"][self.metric], "holdout_")

    @property
    def blends(self) -> Rate:
        """Samples that are blends of training images."""
        return Rate.of(self.filter["metrics"]["blend"])

    @property
    def faults(self) -> dict[str, str]:
        """Which limits that held-out images set its samples exceed, fault -> words."""
        return self.filter["faults"]

    @property
    def broken(self) -> list[str]:
        """Why its samples are broken; empty where they are not. Blends are left out: they have a rate of their own."""
        return [words for fault, words in self.faults.items() if fault != "blend"]

    @property
    def verified(self) -> Rate | None:
        """Samples that people call copies; None where nobody has judged pairs."""
        found = self.filter["verified"]
        return Rate.of(found) if found else None

    @property
    def verified_without_repeated(self) -> Rate | None:
        """`verified` without the training images that repeat."""
        found = self.filter["verified"]
        return Rate.of(found["without_repeated"]) if found else None

    @property
    def median_multiple(self) -> float:
        """Median distance to the nearest training image, over the held-out images' median."""
        return self.filter["distance"]["median_multiple"]

    @property
    def fd_over_floor(self) -> float:
        """Fréchet distance to the test images over the floor (held-out against test images)."""
        return self.fid["test"]["distance"] / self.fid["floor"]["distance"]


@dataclasses.dataclass(frozen=True)
class TheoryBlock:
    """One block of stage verify.

    Attributes:
        name, title: its key in params.yaml and its heading.
        claims: its rows of verify.json.
        tables: name -> rows, numbers as float and the rest as text.
        pictures: (caption, PNG file).
        question: what the papers leave open and it measures, None where it measures a claim of theirs.
    """

    name: str
    title: str
    claims: list[dict[str, Any]]
    tables: dict[str, list[dict[str, Any]]]
    pictures: list[tuple[str, Path]]
    question: str | None = None

    @property
    def failed(self) -> int:
        """The number of its claims that do not hold."""
        return sum(not claim["passed"] for claim in self.claims)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """All artifacts of the report.

    Attributes:
        rejected, duplicates: the tables of ingest and deduplicate.
        splits: the ingested images by split. train: the deduplicated training images.
        theory: the blocks of stage verify on the papers' claims, with their claims, tables and pictures.
        questions: its blocks on what the papers leave open.
        theory_scope: the mode and the images with which the theory was verified.
        holdout_ratio: r₁/r₂ of every held-out image, float64.
        files: every file that was read.
    """

    variants: list[Variant]
    ingest: dict[str, Any]
    rejected: pa.Table
    deduplicate: dict[str, Any]
    duplicates: pa.Table
    splits: dict[str, ImageTable]
    train: ImageTable
    index: dict[str, Any]
    theory: list[TheoryBlock]
    questions: list[TheoryBlock]
    theory_scope: str
    holdout_ratio: np.ndarray
    files: list[Path]

    @property
    def metric(self) -> str:
        """The headline metric's name."""
        return self.variants[0].metric

    @property
    def over_seeds(self) -> bool:
        """Whether some network has several training seeds, so that its numbers are of sample.curve_count samples."""
        return any(len(seeds(variant.runs)) > 1 for variant in self.variants if variant.runs is not None)

    @property
    def claims(self) -> list[dict[str, Any]]:
        """The claims of all blocks of the theory."""
        return [claim for block in self.theory for claim in block.claims]


class Reader:
    """Reads artifacts under `data` and remembers their paths; a missing one names the command that writes it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.files: list[Path] = []

    def path(self, stage: str, name: str, variant: str | None = None) -> Path:
        """The path of an artifact that must exist."""
        folder = self.data / stage / variant if variant else self.data / stage
        target = f"{stage}@{variant}" if variant else stage
        if not (folder / name).is_file():
            raise InputError(f"{folder / name} is missing: run stage {stage} first (dvc repro {target})")
        self.files.append(folder / name)
        return folder / name

    def json(self, stage: str, name: str, variant: str | None, *needed: str) -> dict[str, Any]:
        """A JSON object with the `needed` keys."""
        path = self.path(stage, name, variant)
        value = read_json(path)
        missing = [key for key in needed if key not in value]
        if missing:
            raise InputError(f"{path} has no key {missing[0]!r}: rerun stage {stage} (dvc repro -f -s {stage})")
        return value


def read_inputs(data: Path, variants: dict[str, dict[str, Any]], holdout_ratio: np.ndarray) -> Inputs:
    """Read the report's artifacts under `data`; `variants` is that section of params.yaml, in its order.

    holdout_ratio: r₁/r₂ of the held-out images, float64 (N,).
    """
    reader = Reader(data)
    found = [_variant(reader, name, spec) for name, spec in variants.items()]
    odd = [variant for variant in found if variant.metric != found[0].metric]
    if odd:
        raise InputError(
            f"data/filter/{odd[0].name}/filter.json has the headline {odd[0].metric}, {found[0].name} has "
            f"{found[0].metric}: one of them is stale, run dvc repro"
        )
    claims = reader.json("verify", "verify.json", None, "claims")["claims"]
    blocks = reader.json("verify", "blocks.json", None, "blocks")["blocks"]
    measured = [_theory_block(reader, block, claims) for block in blocks]
    return Inputs(
        variants=found,
        ingest=reader.json("ingest", "ingest.json", None, "source", "shape", "counts", "seen", "rejected"),
        rejected=pq.read_table(reader.path("ingest", "rejected.parquet")),
        deduplicate=reader.json("deduplicate", "deduplicate.json", None, "counts", "groups", "removed"),
        duplicates=pq.read_table(reader.path("deduplicate", "groups.parquet")),
        splits={split: read_images(reader.path("ingest", f"{split}.arrow")) for split in ("train", "test", "holdout")},
        train=read_images(reader.path("deduplicate", "train.arrow")),
        index=reader.json("index", "index.json", None),
        theory=[block for block in measured if block.question is None],
        questions=[block for block in measured if block.question is not None],
        theory_scope=f"{blocks[0]['mode']} mode, images: {blocks[0]['dataset']}",
        holdout_ratio=holdout_ratio,
        files=reader.files,
    )


def _theory_block(reader: Reader, block: dict[str, Any], claims: list[dict[str, Any]]) -> TheoryBlock:
    return TheoryBlock(
        name=block["name"],
        title=block["title"],
        claims=[claim for claim in claims if claim["topic"] == block["name"]],
        tables={name: read_table(reader.path("verify", f"{name}.tsv")) for name in block["tables"]},
        pictures=[(entry["caption"], reader.path("verify", f"{entry['name']}.png")) for entry in block["pictures"]],
        question=block["question"],
    )


def read_table(path: Path) -> list[dict[str, Any]]:
    """The rows of a TSV table; values that read as numbers become floats, others stay text."""
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _variant(reader: Reader, name: str, spec: dict[str, Any]) -> Variant:
    network = spec["score"] == "network"
    variant = Variant(
        name=name,
        spec=spec,
        filter=reader.json("filter", "filter.json", name, *FILTER),
        score=reader.json("train", "score.json", name, "noise", "start"),
        sample=reader.json("sample", "sample.json", name, *SAMPLE, *(["precision"] if network else [])),
        fid=reader.json("fid", "fid.json", name, *DISTANCES, "first_holdout", *([] if network else ["first"])),
        loss=_reference_loss(reader, name) if network else None,
        runs=_runs(reader, name) if network else None,
        pairs=pq.read_table(reader.path("filter", "pairs.parquet", name)),
        neighbors=pq.read_table(reader.path("filter", "neighbors.parquet", name)),
        samples=read_images(reader.path("sample", "samples.arrow", name)),
        pairs_picture=reader.path("filter", "pairs.png", name),
        learned=_learned(reader, name) if network and spec["form"] != "consistency" else None,
    )
    _check(variant)
    return variant


def _check(variant: Variant) -> None:
    """Raise InputError where a variant's artifacts do not fit together."""
    folder, metrics = f"data/filter/{variant.name}", sorted(variant.filter["metrics"])
    if variant.metric not in metrics:
        raise InputError(
            f"{folder}/filter.json: headline {variant.metric!r} is not among its metrics {metrics}: "
            "correct filter.headline in params.yaml"
        )
    if absent := [name for name in CALIBRATED if name not in metrics]:
        raise InputError(
            f"{folder}/filter.json has no metric {absent[0]!r}: rerun stage filter "
            f"(dvc repro -f -s filter@{variant.name})"
        )
    if variant.median_multiple is None or variant.fid["floor"]["distance"] <= 0:
        raise InputError(
            f"{variant.name}: the held-out images equal training or test images, so there is no control: "
            "set deduplicate.exact to true, or give other held-out images"
        )
    if variant.pairs.num_rows != len(variant.samples):
        raise InputError(
            f"{folder}/pairs.parquet has {variant.pairs.num_rows} rows for {len(variant.samples)} samples: "
            f"it is stale, run dvc repro filter@{variant.name}"
        )


def _learned(reader: Reader, name: str) -> Learned:
    return Learned(
        reader.json("sample", "alignment.json", name, "levels", "temperatures", "paths", "grid", "settings"),
        read_images(reader.path("sample", "interpolation.arrow", name)),
    )


def _reference_loss(reader: Reader, name: str) -> dict[str, np.ndarray]:
    run = reference(read_runs(reader.path("train", "runs.json", name)))
    return read_columns(reader.path("train", f"seed-{run.seed}/loss.tsv", name), LOSS)


def _runs(reader: Reader, name: str) -> Columns:
    tables = (("filter", RUNS), ("fid", FID))
    return joined(*(read_columns(reader.path(stage, "runs.tsv", name), needed) for stage, needed in tables), name)


def read_columns(path: Path, needed: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of a curve over the training steps, float64 (rows,). Raises InputError where one is missing."""
    rows = read_table(path)
    if not rows or not set(needed) <= set(rows[0]):
        raise InputError(f"{path} has no rows with the columns {', '.join(needed)}: rerun stage {path.parts[-3]}")
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}
