"""Stage fid@variant: the Fréchet distance of a variant's samples to real images, beside that of held-out images.

Out in data/fid/VARIANT: fid.json and, where train kept snapshots, curve.tsv: the distance of each snapshot's samples
to the test images. The fewer images, the more the Fréchet distance is biased upwards. So every distance is reported
with its counts, and `floor` is the distance of as many held-out real images: compare a distance with the floor.
The Vendi score, a number of different images, stands beside that of the same held-out images.
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from stages.errors import InputError
from stages.features.diversity import vendi_score
from stages.features.embedding import embed_span, embedding_settings
from stages.features.frechet import frechet_from_features
from stages.features.weights import EncoderParams
from stages.files.artifacts import write_json, write_tsv
from stages.files.features import FeatureTable, concatenate, read_features, require_same_encoder
from stages.files.images import class_sizes, read_images, require_rows
from stages.files.paths import DATA, curve_of, features_of, images_of, samples_of
from stages.protocol import Parts, Shard, StageParams, main, span_shards, spans


class Params(StageParams):
    """The reference images of the Fréchet distance; the encoder is embed's."""

    SECTION: ClassVar[str] = "fid"
    SHARED: ClassVar[dict[str, str]] = {"encoder": "embed.encoder", "device": "embed.device"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    encoder: EncoderParams
    device: Literal["auto", "cpu", "cuda"]
    reference_count: int | None = Field(ge=2, description="images drawn from train and from test; null: all of each")
    per_class: bool = Field(description="draw the same number of reference images from every class")
    seed: int = Field(ge=0, lt=2**63, description="seed of the draw of reference and floor images")
    shards: int = Field(gt=0, description="pieces of the embedding of the samples; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of the samples, then of the snapshots' samples. Too few images on either side raise InputError here."""
    source, curve = samples_of(params.variant), curve_of(params.variant)
    count = len(read_images(source))
    if count < 2:
        raise InputError(f"{source}: a Fréchet distance needs at least 2 samples, got {count}: raise sample.count")
    for split, table in _references(params, count).items():
        if len(table) < 2:
            raise InputError(
                f"{features_of(split)}: a Fréchet distance needs at least 2 images on each side, {split} gives "
                f"{len(table)}: raise ingest.{split}"
            )
    settings = embedding_settings(params.encoder, params.device)
    shards = span_shards("fid", "samples", params.variant, spans(count, params.shards), settings, [source])
    if curve.exists():
        cuts = spans(len(read_images(curve)), params.shards)
        shards += span_shards("fid", "curve", f"{params.variant} curve", cuts, settings, [curve])
    return shards


def work(shard: Shard) -> Path:
    """The features of one span of samples."""
    return embed_span(shard)


def gather(params: Params, parts: Parts) -> None:
    """The distances of the samples to train and test, of the held-out images to test, and of the snapshots' samples."""
    samples = concatenate(parts["samples"], str(samples_of(params.variant)))
    references = _references(params, len(samples))
    for split, table in references.items():
        require_same_encoder(samples, table, f"{samples_of(params.variant)} and {features_of(split)}")
    train, test, floor = references.values()
    result = {
        "name": "FID" if params.encoder.name == "inception_v3" else f"FD-{params.encoder.name}",
        "encoder": params.encoder.name,
        "features": samples.metadata,
        "dimension": samples.features.shape[1],
        "samples": len(samples),
        "per_class": params.per_class,
        "train": {"distance": _distance(samples, train), "count": len(train)},
        "test": {"distance": _distance(samples, test), "count": len(test)},
        "floor": {"distance": _distance(floor, test), "count": len(floor)},
        "vendi": {"samples": _vendi(samples), "holdout": _vendi(floor)},
    }
    out = DATA / "fid" / params.variant
    write_json(out / "fid.json", result)
    (out / "curve.tsv").unlink(missing_ok=True)  # left by an earlier run that had snapshots
    if "curve" in parts:
        write_tsv(out / "curve.tsv", _curve(params, parts["curve"], test))


def _curve(params: Params, parts: list[Path], test: FeatureTable) -> list[dict[str, float]]:
    """The distance of each snapshot's samples to the test images."""
    source = curve_of(params.variant)
    table, steps = concatenate(parts, str(source)), read_images(source).metadata["steps"]
    require_same_encoder(table, test, f"{source} and {features_of('test')}")
    rows = np.arange(len(table)).reshape(len(steps), -1)
    own = ((step, table.take(part)) for step, part in zip(steps, rows))
    return [{"step": step, "count": len(part), "fd": _distance(part, test)} for step, part in own]


def _distance(a: FeatureTable, b: FeatureTable) -> float:
    """The Fréchet distance to 9 digits: further ones depend on LAPACK's number of threads."""
    return float(f"{frechet_from_features(a.features, b.features):.9g}")


def _vendi(table: FeatureTable) -> float | None:
    """The Vendi score to 9 digits; None where an image's features are all 0, so that it has no direction."""
    return float(f"{vendi_score(table.features):.9g}") if table.features.any(axis=1).all() else None


def _references(params: Params, samples: int) -> dict[str, FeatureTable]:
    """The features of the reference images of train and test, and of the floor: as many held-out images as samples."""
    counts = {"train": params.reference_count, "test": params.reference_count, "holdout": samples}
    return {split: _drawn(params, split, count, at_most=split == "holdout") for split, count in counts.items()}


def _drawn(params: Params, split: str, count: int | None, at_most: bool) -> FeatureTable:
    table = read_features(features_of(split))
    if params.per_class:
        images = read_images(images_of(split))
        require_rows(table.ids, features_of(split), images, images_of(split), "embed")
        rows = balanced_rows(images.labels, count, params.seed, split, at_most)
    else:
        rows = drawn_rows(len(table), count, params.seed, split, at_most)
    return table if len(rows) == len(table) else table.take(rows)


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
