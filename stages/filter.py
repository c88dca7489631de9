"""Stage filter@variant: which samples copy a training image, how sure that is, and the same for held-out images.

Outs in data/filter/VARIANT:
    pairs.parquet   one row per sample with its nearest and next training image, its mirrored, shifted and cropped
                    match and its scores, sorted by verdict, then ratio; its distance to the hull of the nearest
                    training images, and whether it is a blend
    pairs.png       pairs of that list, evenly spaced, as pictures
    neighbors.parquet    the ten nearest training images of the first four samples, in pixels and in features
    candidates.parquet   the pairs that `scoresmooth review data/filter/VARIANT` shows to a person, with their pictures
    filter.json     every metric with its rate, its interval and its control; verdicts; distances; faults of samples;
                    for samples with labels the headline's rate in every class
    runs.tsv        for networks one row per run (seed, step): how many of its samples each measure flags
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from stages.errors import InputError
from stages.features.weights import EncoderParams, pinned
from stages.files.arrays import Arrays, write_arrays
from stages.files.arrow import write_parquet
from stages.files.artifacts import write_json, write_tsv
from stages.files.images import ImageTable, read_images
from stages.files.paths import DATA, VERDICTS, images_of, run_samples_of, samples_of
from stages.memorization.quality_rule import QualityRule
from stages.memorization.ratios import PUBLISHED, candidate_count
from stages.memorization.verdict_log import read_decisions
from stages.protocol import Parts, Section, Shard, StageParams, main, span_shards, spans

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from stages.memorization.metrics import Rules, Searched


class Ratios(Section):
    """Thresholds of r1/r2: of the verdicts, and of the metrics nn_ratio_copy and nn_ratio_near_copy."""

    copy_below: float = Field(gt=0, lt=1, description="verdict copy")
    near_copy_below: float = Field(gt=0, lt=1, description="verdict near_copy, unless the features deny it")

    @model_validator(mode="after")
    def _ordered(self) -> "Ratios":
        if self.copy_below > self.near_copy_below:
            raise ValueError("copy_below must not exceed near_copy_below")
        return self


class Carlini(Section):
    """Carlini et al. 2023: a copy is nearer than alpha times the mean of the n nearest."""

    alpha: float = Field(gt=0, lt=1, description="share of the mean distance")
    n: int = Field(ge=2, description="how many nearest training images the mean is taken over")


class Grid(Section):
    """The picture of pairs."""

    rows: int = Field(ge=1, le=200, description="pairs below each other")
    columns: int = Field(ge=1, le=8, description="pairs beside each other")


class Params(StageParams):
    """The two-stage filter, the other copy metrics, and the verdicts."""

    SECTION: ClassVar[str] = "filter"
    SHARED: ClassVar[dict[str, str]] = {"encoder": "embed.encoder", "device": "embed.device"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    encoder: EncoderParams
    device: Literal["auto", "cpu", "cuda"]
    neighbors: int = Field(
        ge=2, description="k: nearest training images of every sample, exact; rho is l1 over their mean"
    )
    percentile: float = Field(gt=0, lt=100, description="q: the features of the lowest q percent of rho are compared")
    percentile_of: Literal["holdout", "samples"] = Field(
        description="whose percentile: of held-out images, or of each set itself, which flags q percent of any set"
    )
    margin: float = Field(
        gt=0,
        description="allowed feature distance, as a multiple of the match's own nearest-neighbour feature distance",
    )
    ratios: Ratios
    carlini: Carlini
    quality: QualityRule
    headline: Literal[PUBLISHED] = Field(description="the metric that the report leads with")
    grid: Grid
    candidates: int = Field(ge=0, description="most pairs in candidates.parquet, for a person to judge")
    verdicts: dict[str, str] = Field(description="variant -> file of people's verdicts, in data/verdicts")
    repeated_within: float = Field(
        ge=0, lt=1, description="a training image repeats if another one lies within this pixel distance l"
    )
    shards: int = Field(gt=0, description="pieces of the search; changes no result")

    @field_validator("verdicts")
    @classmethod
    def _watched(cls, verdicts: dict[str, str]) -> dict[str, str]:
        for path in verdicts.values():
            if VERDICTS not in Path(path).parents or ".." in Path(path).parts:
                raise ValueError(f"{path} does not lie in {VERDICTS}, where DVC sees it change: move it there")
        return verdicts

    @field_validator("carlini")
    @classmethod
    def _listed(cls, carlini: Carlini, info: ValidationInfo) -> Carlini:
        if carlini.n > info.data.get("neighbors", carlini.n):
            raise ValueError(f"n {carlini.n} exceeds filter.neighbors {info.data['neighbors']}: lower it")
        return carlini

    @property
    def rules(self) -> "Rules":
        """The metrics' parameters."""
        from stages.memorization.metrics import Rules

        carlini, ratios = self.carlini, (self.ratios.copy_below, self.ratios.near_copy_below)
        return Rules(self.percentile, self.margin, carlini.alpha, carlini.n, self.percentile_of, *ratios)


def plan(params: Params) -> list[Shard]:
    """Spans of the samples and the held-out images, under the same search; the training set; the runs' samples."""
    train, samples, holdout = (read_images(path) for path in (images_of("train"), *_sources(params.variant).values()))
    _check(params, train, samples, holdout)
    if params.variant in params.verdicts:
        read_decisions(params.verdicts[params.variant])  # a damaged file is found before any work
    search = {"neighbors": params.neighbors, "own_neighbors": params.carlini.n}
    embed = {"encoder": pinned(params.encoder).model_dump(), "device": params.device, "neighbors": params.neighbors}
    shards = []
    for task, table, pieces in (("samples", samples, params.shards), ("holdout", holdout, 1)):
        # which images are candidates is known only when all are searched: each piece takes the features of those below
        # what the held-out threshold may be at most, or of as many of its own lowest as there may be candidates
        lowest = {"lowest": candidate_count(len(table), params.percentile)}
        held_out = {"percentile": params.percentile, "within": params.repeated_within}
        rule = held_out if params.percentile_of == "holdout" else lowest
        shards += _spans(params, task, _sources(params.variant)[task], pieces, search)
        shards += _spans(params, f"{task} features", _sources(params.variant)[task], pieces, embed | rule)
    shards += _spans(params, "duplicates", images_of("train"), params.shards, {})
    runs, settings = run_samples_of(params.variant), {"neighbors": params.neighbors}
    return shards + (_spans(params, "runs", runs, params.shards, settings) if runs.exists() else [])


def _spans(params: Params, task: str, source: Path, pieces: int, settings: dict[str, Any]) -> list[Shard]:
    """The images of `source` in `pieces`. Variants share the results on held-out and on training images: these shards
    do not have the variant's name."""
    cuts = spans(len(read_images(source)), pieces)
    own = {
        "samples": params.variant,
        "samples features": f"{params.variant} features",
        "runs": f"{params.variant} runs",
    }
    inputs = (source, images_of("train"), *([images_of("holdout")] if "within" in settings else []))
    return span_shards("filter", task, own.get(task, task), cuts, settings, inputs, ".npz")


def _sources(variant: str) -> dict[str, Path]:
    return {"samples": samples_of(variant), "holdout": images_of("holdout")}


def _check(params: Params, train: ImageTable, samples: ImageTable, holdout: ImageTable) -> None:
    """Raise InputError where the metrics cannot be computed: too few images, or images of different shapes."""
    if params.neighbors > len(train):
        raise InputError(
            f"filter.neighbors: {params.neighbors} nearest training images were asked for, {images_of('train')} has "
            f"{len(train)}: lower it or raise ingest.train"
        )
    if params.carlini.n > len(train) - 1:
        raise InputError(
            f"filter.carlini.n: {params.carlini.n} nearest were asked for, "
            f"{len(train)} training images leave {len(train) - 1} to each: lower it"
        )
    for table, path, key in (
        (samples, samples_of(params.variant), "sample.count"),
        (holdout, images_of("holdout"), "ingest.holdout"),
    ):
        if len(table) == 0:
            raise InputError(f"{path} holds no images: raise {key}")
        if table is holdout and len(table) == 1:
            raise InputError(f"{path} holds one image, its halves calibrate each other: raise {key}")
        if table.images.shape[1:] != train.images.shape[1:]:
            shapes = f"{table.images.shape[1:]}, {images_of('train')} of shape {train.images.shape[1:]}"
            raise InputError(f"{path} holds images of shape {shapes}: rerun the stages from ingest on")


def work(shard: Shard) -> Path:
    """Search images start..stop, or take the features of those with the lowest ρ.

    Training images are only searched for their own neighbours, and samples of runs for what `run_metrics` needs.
    """
    from stages.memorization.matching import match, whole_reference
    from stages.memorization.neighbors import BUDGET, own_neighbors
    from stages.memorization.run_metrics import search

    settings = shard.settings
    table, train = read_images(shard.inputs[0]), read_images(shard.inputs[1])
    span = slice(settings["start"], settings["stop"])
    if shard.task == "runs":
        return write_arrays(shard.path, search(table.flat[span], whole_reference(train.images), settings["neighbors"]))
    if shard.task == "duplicates":
        return write_arrays(shard.path, own_neighbors(train.flat, span.start, span.stop, BUDGET))
    images = table.images[span]
    if shard.task.endswith(" features"):
        return write_arrays(shard.path, _features(shard, images, train))
    found = match(images, whole_reference(train.images), settings["neighbors"], settings["own_neighbors"])
    return write_arrays(shard.path, found)


def _features(shard: Shard, images: "np.ndarray", train: ImageTable) -> "Arrays":
    """Return the features of the images with the lowest ρ, their rows in the set, and how the features were made."""
    import numpy as np

    from stages.features.encoders import load_encoder
    from stages.memorization.embedded import embedded, highest_threshold, squared_distances
    from stages.memorization.ratios import lowest, rho

    settings = shard.settings
    squared = squared_distances(images, train.images, settings["neighbors"])
    if "lowest" in settings:
        rows = lowest(rho(squared), settings["lowest"])
    else:
        rule = settings["neighbors"], settings["percentile"], settings["within"]
        threshold = highest_threshold(read_images(shard.inputs[2]).images, train.images, *rule)
        rows = embedded(squared, threshold, settings["start"])
    encoder = load_encoder(EncoderParams(**settings["encoder"]), settings["device"])
    made = np.array([json.dumps(encoder.metadata, sort_keys=True)])
    return {"feature": encoder(images[rows]), "feature_row": rows + settings["start"], "feature_made": made}


def gather(params: Params, parts: Parts) -> None:
    """Verdicts, the table of pairs, their picture, and every metric beside its control."""
    from stages.memorization import filter_results as results
    from stages.memorization.candidates import NAME, offer
    from stages.memorization.group_rates import class_rates
    from stages.memorization.run_metrics import run_rows

    train, images, held = (read_images(path) for path in (images_of("train"), *_sources(params.variant).values()))
    reference = results.grouped_reference(parts["duplicates"], train)
    kept, leaks = results.unseen(parts["holdout"], held, reference, train, params.repeated_within)
    common = (reference, train, params.rules, results.first_stage(parts["holdout"], kept, params.rules))
    samples = results.measure(parts["samples"], parts["samples features"], images, *common)
    holdout = results.measure(parts["holdout"], parts["holdout features"], held, *common).only(kept)
    ratios, pixels = (params.ratios.copy_below, params.ratios.near_copy_below), (images.images, train.images)
    found = results.Comparison(samples, holdout, params.rules, ratios[1])
    pairs = found.pairs(ratios, images.ids, train.ids)
    out = DATA / "filter" / params.variant
    write_parquet(out / "pairs.parquet", pairs, {"variant": params.variant})
    write_parquet(
        out / "neighbors.parquet", results.first_neighbors(parts["samples features"], samples.searched.matches)
    )
    results.draw(out / "pairs.png", pairs, *pixels, (params.grid.rows, params.grid.columns), params.variant)
    confirmed = found.flags["two_stage"][pairs["sample_index"].to_numpy()]
    following, metadata = samples.searched.matches.index[:, 1:], {"variant": params.variant, "samples": len(images)}
    asked = offer(out / NAME, pairs, "rho", confirmed, following, *pixels, params.candidates, metadata)
    summary = {"variant": params.variant, "count": len(images), "headline": params.headline}
    if (images.labels >= 0).all():
        control = found.holdout.flags(found.thresholds, params.rules)[params.headline]
        held_labels = held.labels[kept]
        summary["classes"] = class_rates(images.labels, found.flags[params.headline], held_labels, control)
    summary["leaks"] = [dataclasses.asdict(leak) for leak in leaks]
    summary |= found.summary(params.encoder.name, params.quality) | results.verdict_counts(pairs)
    write_json(out / "filter.json", {**summary, "verified": _verified(params, samples.searched, pairs, *asked)})
    (out / "runs.tsv").unlink(missing_ok=True)  # of an earlier run, when it was a network
    if "runs" in parts:
        source, near = run_samples_of(params.variant), found.nearness[1]
        rows = run_rows(source, parts["runs"], reference, near, params.rules)
        write_tsv(out / "runs.tsv", rows)


def _verified(
    params: Params, samples: "Searched", pairs: "pa.Table", suspected: "np.ndarray", offered: "np.ndarray"
) -> dict[str, Any] | None:
    """What people decided about the pairs; None where params.yaml names no verdicts for this variant."""
    from stages.memorization.verified import verified_summary
    from stages.search.pixel_distance import squared_radius

    if params.variant not in params.verdicts:
        return None
    radius = squared_radius(params.repeated_within, samples.matches.dimension)
    repeated = samples.matches.own_squared[pairs["sample_index"].to_numpy(), 0] <= radius
    summary = verified_summary(params.verdicts[params.variant], pairs, suspected, offered, repeated)
    return {**summary, "repeated_within": params.repeated_within}


if __name__ == "__main__":
    main("filter")
