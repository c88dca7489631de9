"""Stage fid@variant: the Fréchet distance of a variant's samples to real images, beside that of held-out images.

Out in data/fid/VARIANT: fid.json and, for networks, runs.tsv: the same measures for the samples of every run, seed by
seed and step by step. The fewer images, the more the Fréchet distance is biased upwards, and the fewer test images they
cover. So every distance is reported with its counts, `floor` is the distance of as many held-out real images, and a
closed form is measured a second time on as many samples as a run has (`first`), which compares with networks' runs.
Beside the distance stand, with the same held-out images as control:

- recall and coverage: the share of test images inside the ball of some sample, and with some sample inside their own;
- the Vendi score, a number of different images;
- sharpness: the mean total variation, as a multiple of that of all held-out images.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.errors import InputError
from stages.features.embedding import embed_span, embedding_settings
from stages.features.weights import EncoderParams
from stages.files.artifacts import write_json, write_tsv
from stages.files.features import FeatureTable, concatenate, read_features, require_same_encoder
from stages.files.held_out import reported
from stages.files.images import class_sizes, read_images, require_rows
from stages.files.paths import DATA, features_of, images_of, run_samples_of, samples_of
from stages.files.runs import rows_of_runs
from stages.images.sharpness import relative_sharpness
from stages.protocol import Parts, Shard, StageParams, main, span_shards, spans

FD = ("fd", "fd_low", "fd_high")


class Params(StageParams):
    """The reference images of the Fréchet distance; the encoder is embed's."""

    SECTION: ClassVar[str] = "fid"
    SHARED: ClassVar[dict[str, str]] = {
        "encoder": "embed.encoder",
        "device": "embed.device",
        "checkpoint": "sample.checkpoint",
        "choice_images": "sample.choice_images",
        "curve_count": "sample.curve_count",
    }
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    encoder: EncoderParams
    device: Literal["auto", "cpu", "cuda"]
    checkpoint: Literal["last", "best_fid"]
    choice_images: int
    curve_count: int
    reference: Literal["test", "test+holdout"] = Field(description="real images beside train; the floor's are test's")
    reference_count: int | None = Field(ge=2, description="images drawn of train and of the reference; null: all")
    per_class: bool = Field(description="draw the same number of reference images from every class")
    samples: int | None = Field(ge=2, description="the first samples, which are measured; null: all")
    seed: int = Field(ge=0, lt=2**63, description="seed of the draw of reference and floor images")
    neighbors: int = Field(
        ge=1, description="k: recall's and coverage's balls reach to the k-th nearest of their own set"
    )
    shards: int = Field(gt=0, description="pieces of the embedding of the samples; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of the samples, then of the runs' samples. Too few images on either side raise InputError here."""
    source, runs = samples_of(params.variant), run_samples_of(params.variant)
    count = min(len(read_images(source)), params.samples or sys.maxsize)
    counts = {source: (count, "sample.count")}
    counts |= {features_of(split): (len(t), f"ingest.{split}") for split, t in _references(params, count).items()}
    for path, (number, key) in counts.items():
        if number <= params.neighbors:
            raise InputError(
                f"{path}: recall and coverage need more than {params.neighbors} images on each side (fid.neighbors), "
                f"got {number}: raise {key}, or lower fid.neighbors"
            )
    settings = embedding_settings(params.encoder, params.device)
    shards = span_shards("fid", "samples", params.variant, spans(count, params.shards), settings, [source])
    if runs.exists():
        cuts = spans(len(read_images(runs)), params.shards)
        shards += span_shards("fid", "runs", f"{params.variant} runs", cuts, settings, [runs])
    return shards


def work(shard: Shard) -> Path:
    """The features of one span of samples."""
    return embed_span(shard)


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images with their features, row by row: uint8 (N, H, W, C)."""

    features: FeatureTable
    pixels: np.ndarray

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: np.ndarray | range) -> "ImageSet":
        """These rows, in this order."""
        return ImageSet(self.features.take(rows), self.pixels[rows])


def gather(params: Params, parts: Parts) -> None:
    """Write the distances of the samples to train and test, the other measures beside held-out ones, and the runs'."""
    from stages.features.set_measures import distance_with_interval

    samples = _computed(parts["samples"], samples_of(params.variant))
    references = _references(params, len(samples))
    for split, table in references.items():
        require_same_encoder(samples.features, table, f"{samples_of(params.variant)} and {features_of(split)}")
    train, beside, _ = references.values()
    fewer = params.checkpoint == "best_fid"  # those that chose are missing, so that there may be fewer than asked for
    test = beside if params.reference == "test" else _drawn(params, params.reference, params.reference_count, fewer)
    held_out = _held_out(params)
    floor = held_out.take(_rows(params, "holdout", len(samples), at_most=True))
    sides = {"samples": (samples, test), "holdout": (floor, beside)}  # the floor's sides never share an image
    measured = {name: _measure(params, *side, held_out) for name, side in sides.items()}
    result = {
        "name": "FID" if params.encoder.name == "inception_v3" else f"FD-{params.encoder.name}",
        "encoder": params.encoder.name,
        "features": samples.features.metadata,
        "dimension": test.features.shape[1],
        "samples": len(samples),
        "per_class": params.per_class,
        "reference": params.reference,
        "held_out_for_the_choice": len(read_features(features_of("holdout"))) - len(held_out),
        "train": _entry(distance_with_interval(samples.features.features, train.features), len(train)),
        "test": _entry([measured["samples"][key] for key in FD], len(test)),
        "floor": _entry([measured["holdout"][key] for key in FD], len(floor)),
        **{key: {name: own[key] for name, own in measured.items()} for key in measured["samples"] if key not in FD},
    }
    few = min(params.curve_count, len(samples))
    control = held_out.take(_rows(params, "holdout", few, at_most=True))
    result["first_holdout"] = {"count": len(control), **_measure(params, control, beside, held_out)}
    out = DATA / "fid" / params.variant
    (out / "runs.tsv").unlink(missing_ok=True)  # of an earlier run, when it was a network
    if "runs" in parts:
        write_tsv(out / "runs.tsv", _run_rows(params, parts["runs"], test, held_out))
    else:
        result["first"] = {"count": few, **_measure(params, samples.take(range(few)), test, held_out)}
    write_json(out / "fid.json", result)


def _run_rows(params: Params, parts: list[Path], test: FeatureTable, held_out: ImageSet) -> list[dict[str, Any]]:
    """Return the measures of every run's samples."""
    source = run_samples_of(params.variant)
    samples = _computed(parts, source)
    require_same_encoder(samples.features, test, f"{source} and {features_of('test')}")
    return [
        {**key, "count": len(rows), **_measure(params, samples.take(rows), test, held_out)}
        for key, rows in rows_of_runs(read_images(source), source)
    ]


def _computed(parts: list[Path], source: Path) -> ImageSet:
    """Return the images of `source` with the features in the shards' results."""
    features = concatenate(parts, str(source))
    return ImageSet(features, read_images(source).images[: len(features)])


def _measure(params: Params, own: ImageSet, test: FeatureTable, held_out: ImageSet) -> dict[str, float | None]:
    from stages.features.set_measures import set_measures  # imports torch

    found = set_measures(own.features.features, test.features, params.neighbors)
    return {**found, "sharpness": relative_sharpness(own.pixels, held_out.pixels)}


def _entry(interval: Sequence[float], count: int) -> dict[str, float]:
    return {**dict(zip(("distance", "low", "high"), interval)), "count": count}


def _held_out(params: Params) -> ImageSet:
    """Return the held-out images that are reported: all but those that chose the network."""
    images, features = read_images(images_of("holdout")), read_features(features_of("holdout"))
    require_rows(features.ids, features_of("holdout"), images, images_of("holdout"), "embed")
    held_out = ImageSet(features, images.images)
    return held_out.take(range(reported(len(held_out), params.checkpoint, params.choice_images)))


def _references(params: Params, samples: int) -> dict[str, FeatureTable]:
    """The features of the reference images of train and test, and of the floor: as many held-out images as samples.

    Of test there may be fewer than asked for where the samples' reference has the held-out images as well.
    """
    counts = {"train": params.reference_count, "test": params.reference_count, "holdout": samples}
    both = params.reference != "test"
    return {
        split: _drawn(params, split, n, split == "holdout" or (both and split == "test")) for split, n in counts.items()
    }


def _drawn(params: Params, splits: str, count: int | None, at_most: bool = False) -> FeatureTable:
    """Return the features of `count` drawn images of the splits ("test+holdout")."""
    table = concatenate([features_of(split) for split in splits.split("+")], splits)
    rows = _rows(params, splits, count, at_most)
    return table if len(rows) == len(table) else table.take(rows)


def _rows(params: Params, splits: str, count: int | None, at_most: bool) -> np.ndarray:
    """Return the rows of the reference images of the splits, which follow each other."""
    ids = {split: read_features(features_of(split)).ids for split in splits.split("+")}
    available = sum(len(own) for split, own in ids.items() if split != "holdout")
    if "holdout" in ids:  # the last of the splits, and of its rows the first are reported
        available += reported(len(ids["holdout"]), params.checkpoint, params.choice_images)
    if not params.per_class:
        return drawn_rows(available, count, params.seed, splits, at_most)
    images = {split: read_images(images_of(split)) for split in ids}
    for split, own in images.items():
        require_rows(ids[split], features_of(split), own, images_of(split), "embed")
    labels = np.concatenate([own.labels for own in images.values()])[:available]
    return balanced_rows(labels, count, params.seed, splits, at_most)


def drawn_rows(available: int, count: int | None, seed: int, split: str, at_most: bool = False) -> np.ndarray:
    """`count` of `available` rows, ascending, drawn with `seed`; None: all.

    Too few rows raise InputError, or are all taken with `at_most`.
    """
    if count is None or (at_most and count > available):
        count = available
    if count > available:
        raise InputError(
            f"fid.reference_count: {count} {split} images were asked for, there are {available}: "
            "lower it or set it to null"
        )
    if count == available:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).permutation(available)[:count])


def balanced_rows(labels: np.ndarray, count: int | None, seed: int, split: str, at_most: bool = False) -> np.ndarray:
    """Rows with the same number of every class, ascending: count // classes each (None: the smallest class's size).

    Unlabelled images raise InputError, and so do too few images in a class, unless `at_most` lowers the number.
    """
    classes, sizes = class_sizes(labels, "fid.per_class", split)
    smallest = int(sizes.min())
    each = smallest if count is None else count // len(classes)
    if at_most:
        each = max(1, min(each, smallest))
    if not 1 <= each <= smallest:
        raise InputError(
            f"fid.per_class: {each} {split} images per class were asked for, the smallest of {len(classes)} classes "
            f"has {smallest}: change fid.reference_count or set per_class to false"
        )
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:each] for label in classes]
    return np.sort(np.concatenate(drawn))


if __name__ == "__main__":
    main("fid")
