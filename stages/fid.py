"""Stage fid@variant: the Fréchet distance of a variant's samples to real images, beside the same for real ones.

Out in data/fid/VARIANT: fid.json and, where train kept snapshots, curve.tsv: the distance of each one's samples to the
test images. The Fréchet distance falls with the number of images on either side (it is biased
upwards when they are few), so every distance carries its counts, and the floor says what as many held-out real images
score: a distance means something only against the floor.
"""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from stages.errors import InputError
from stages.features.encoders import EncoderParams, embed_rows, load_encoder, pinned
from stages.files.artifacts import write_json, write_tsv
from stages.files.features import FeatureTable, concatenate, read_features, require_same_encoder, write_features
from stages.files.images import read_images
from stages.files.paths import DATA, curve_of, features_of, images_of, samples_of
from stages.protocol import Parts, Shard, StageParams, main, spans

if TYPE_CHECKING:
    import numpy as np


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
    seed: int = Field(ge=0, lt=2**63, description="of the draw of reference and floor images")
    shards: int = Field(gt=0, description="pieces of the embedding of the samples; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of samples to embed, the snapshots' last. That the references suffice is checked before any work starts."""
    source, curve = samples_of(params.variant), curve_of(params.variant)
    count = len(read_images(source))
    if count < 2:
        raise InputError(f"{source}: a Fréchet distance needs at least 2 samples, got {count}: raise sample.count")
    for split in ("train", "test"):
        _require_two(_reference(params, split, params.reference_count), split)
    _require_two(_floor(params, count), "holdout")
    shards = _spans(params, "samples", source, params.variant)
    return shards + (_spans(params, "curve", curve, f"{params.variant} curve") if curve.exists() else [])


def _require_two(table: FeatureTable, split: str) -> None:
    if len(table) < 2:
        raise InputError(
            f"{features_of(split)}: a Fréchet distance needs at least 2 images on each side, {split} gives "
            f"{len(table)}: raise ingest.{split}"
        )


def _spans(params: Params, task: str, source: Path, name: str) -> list[Shard]:
    settings = {"encoder": pinned(params.encoder).model_dump(), "device": params.device}
    cuts = spans(len(read_images(source)), params.shards)
    return [
        Shard("fid", task, f"{name} {n}/{len(cuts)}", {**settings, "start": a, "stop": b}, (str(source),))
        for n, (a, b) in enumerate(cuts, 1)
    ]


def work(shard: Shard) -> Path:
    """The features of images start..stop of the shard's table."""
    settings = shard.settings
    encoder = load_encoder(EncoderParams(**settings["encoder"]), settings["device"])
    span, title = slice(settings["start"], settings["stop"]), f"{shard.stage} {shard.name}"
    return write_features(shard.path, embed_rows(encoder, read_images(shard.inputs[0]), span, title))


def gather(params: Params, parts: Parts) -> None:
    """The distances of the samples to train and test, and of as many held-out images to test; then the snapshots'."""
    samples = concatenate(parts["samples"], str(samples_of(params.variant)))
    train, test = (_reference(params, split, params.reference_count) for split in ("train", "test"))
    floor = _floor(params, len(samples))
    for table, split in ((train, "train"), (test, "test"), (floor, "holdout")):
        require_same_encoder(samples, table, f"{samples_of(params.variant)} and {features_of(split)}")
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
    }
    out = DATA / "fid" / params.variant
    write_json(out / "fid.json", result)
    (out / "curve.tsv").unlink(missing_ok=True)  # of an earlier run that had snapshots
    if "curve" in parts:
        write_tsv(out / "curve.tsv", _curve(params, parts["curve"], test))


def _curve(params: Params, parts: list[Path], test: FeatureTable) -> list[dict[str, float]]:
    """The distance of each snapshot's samples to the test images."""
    source = curve_of(params.variant)
    table, steps = concatenate(parts, str(source)), read_images(source).metadata["steps"]
    require_same_encoder(table, test, f"{source} and {features_of('test')}")
    each = len(table) // len(steps)
    starts = range(0, len(table), each)
    own = [FeatureTable(table.features[a : a + each], table.ids[a : a + each], table.metadata) for a in starts]
    return [{"step": step, "count": each, "fd": _distance(part, test)} for step, part in zip(steps, own)]


def _distance(a: FeatureTable, b: FeatureTable) -> float:
    """The Fréchet distance to 9 digits: what follows depends on the number of threads of LAPACK."""
    from stages.features.frechet import frechet_from_features

    return float(f"{frechet_from_features(a.features, b.features):.9g}")


def _reference(params: Params, split: str, count: int | None) -> FeatureTable:
    """`count` images' features drawn from a split (None: all), in equal numbers per class where asked."""
    table = read_features(features_of(split))
    if params.per_class:
        return _take(table, balanced_rows(_labels(split, table), count, params.seed, split))
    return _take(table, drawn_rows(len(table), count, params.seed, split))


def _floor(params: Params, samples: int) -> FeatureTable:
    """As many held-out images' features as there are samples, or as many as there are; drawn like the references."""
    import numpy as np

    table = read_features(features_of("holdout"))
    count = min(samples, len(table))
    if params.per_class:
        classes, sizes = np.unique(_labels("holdout", table), return_counts=True)
        count = len(classes) * min(max(1, count // len(classes)), int(sizes.min()))
    return _reference(params, "holdout", count)


def _labels(split: str, table: FeatureTable) -> "np.ndarray":
    images = read_images(images_of(split))
    if images.ids != table.ids:
        raise InputError(f"{features_of(split)} does not hold the features of {images_of(split)}: rerun stage embed")
    return images.labels


def _take(table: FeatureTable, rows: "np.ndarray") -> FeatureTable:
    if len(rows) == len(table):
        return table
    return FeatureTable(table.features[rows], [table.ids[row] for row in rows], table.metadata)


def drawn_rows(available: int, count: int | None, seed: int, split: str) -> "np.ndarray":
    """`count` of `available` rows, ascending, drawn with `seed`; None: all. Too many raise InputError."""
    import numpy as np

    if count is not None and count > available:
        raise InputError(
            f"fid.reference_count: {count} {split} images were asked for, there are {available}: "
            "lower it or set it to null"
        )
    if count is None or count == available:
        return np.arange(available)
    return np.sort(np.random.default_rng(seed).permutation(available)[:count])


def balanced_rows(labels: "np.ndarray", count: int | None, seed: int, split: str) -> "np.ndarray":
    """Rows with the same number of every class, ascending: count // classes each (None: as many as the smallest has).

    Raises InputError for unlabelled images, and where a class has too few.
    """
    import numpy as np

    if (labels < 0).any():
        raise InputError(f"fid.per_class: {int((labels < 0).sum())} {split} images have no label: set it to false")
    classes, sizes = np.unique(labels, return_counts=True)
    each = int(sizes.min()) if count is None else count // len(classes)
    if not 1 <= each <= sizes.min():
        raise InputError(
            f"fid.per_class: {each} {split} images per class were asked for, the smallest of {len(classes)} classes "
            f"has {int(sizes.min())}: change fid.reference_count or set per_class to false"
        )
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(np.flatnonzero(labels == label))[:each] for label in classes]
    return np.sort(np.concatenate(drawn))


if __name__ == "__main__":
    main("fid")
