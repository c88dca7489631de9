"""Stage ingest: images of a source, cropped and resized, in three disjoint splits.

The source's rows (those of `classes`) are put in a seeded order. The first `test` readable images are the test split,
the next `holdout` the held-out split, the next `train` the training set. So test and held-out images stay the same
when `train` changes, and a smaller training set is the beginning of a larger one. With `holdout_source`, test and
held-out images come from there, and the training set starts at the first row of `source`.

About needed / (1 - max_unreadable) images are decoded, so that the splits are full as long as the share of unreadable
images is allowed. rejected.parquet lists every image that could not be read.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from stages.errors import InputError
from stages.files.arrow import write_parquet
from stages.files.artifacts import sha256_json, write_json
from stages.files.images import JoinedTables, read_images, write_selection
from stages.files.paths import DATA, ingested
from stages.images.decode import CHANGES
from stages.images.decoded import changed_words, write_decoded
from stages.images.sources.base import Source, check_apart
from stages.images.sources.image_names import skipped_words
from stages.images.sources.open import check_place, open_source, parse
from stages.protocol import Parts, Shard, StageParams, main, spans

OUT = DATA / "ingest"


class Params(StageParams):
    """Section `ingest` of params.yaml."""

    SECTION: ClassVar[str] = "ingest"

    source: str = Field(min_length=1, description="where images come from (stages/images/sources/open.py)")
    holdout_source: str | None = Field(min_length=1, description="where test and held-out images come from, or null")
    classes: list[str | int] | None = Field(min_length=1, description="names of the classes to use; null for all")
    resolution: int = Field(ge=1, le=4096, description="side of the square images, in pixels")
    channels: Literal[1, 3] = Field(description="1 grey, 3 RGB")
    interpolation: Literal["lanczos", "bicubic", "bilinear", "box"] = Field(description="antialiased resizing filter")
    train: int | None = Field(gt=0, description="training images; null for all remaining ones")
    test: int = Field(ge=2, description="images that the Fréchet distance compares with")
    holdout: int = Field(ge=2, description="held-out images, the control of every copy rate")
    seed: int = Field(ge=0, lt=2**63, description="seed of the order in which images are drawn")
    max_unreadable: float = Field(ge=0, lt=1, description="share of unreadable images above which the stage fails")
    shards: int = Field(gt=0, le=4096, description="pieces of the decoding; changes no result")

    @field_validator("source", "holdout_source")
    @classmethod
    def _known(cls, spec: str | None) -> str | None:
        if spec is not None:
            parse(spec)
        return spec

    def check_places(self) -> None:
        """InputError where a source names a file or folder that does not exist. `scoresmooth params` asks."""
        for key, spec in (("source", self.source), ("holdout_source", self.holdout_source)):
            try:
                if spec is not None:
                    check_place(spec)
            except InputError as error:
                raise InputError(f"params.yaml: ingest.{key}: {error}") from error


@dataclasses.dataclass(frozen=True)
class Draw:
    """The images drawn from one source.

    Attributes:
        source: the opened source.
        rows: int64 (m,): the rows to decode, in the order in which they are used.
        counts: split -> its number of images, in the order in which they are taken; None for all remaining ones.
        settings: the values that determine `rows` and their pixels, given the source.
        key: the key of params.yaml that names the source; the task of its shards.
    """

    source: Source
    rows: np.ndarray
    counts: dict[str, int | None]
    settings: dict[str, Any]
    key: str


def plan(params: Params) -> list[Shard]:
    """Shards over the rows to decode, in the sources' order of storage."""
    shards = []
    for draw in _draws(params):
        rows = np.sort(draw.rows)
        cuts = spans(len(rows), params.shards)
        for number, (start, stop) in enumerate(cuts, 1):
            own, name = rows[start:stop], f"{draw.source.spec} {number}/{len(cuts)}"
            settings = {**draw.settings, "start": start, "stop": stop, "names_sha256": _names_digest(draw.source, own)}
            shards.append(Shard("ingest", draw.key, name, settings, draw.source.files(own)))
    return shards


def work(shard: Shard) -> Path:
    """Decode one span of rows into an image table; its metadata lists the unreadable images."""
    settings = shard.settings
    source = open_source(settings["source"])
    drawn = _order(source, settings["classes"], settings["seed"])[: settings["decoded"]]
    rows = np.sort(drawn)[settings["start"] : settings["stop"]]
    if _names_digest(source, rows) != settings["names_sha256"]:
        raise InputError(f"image source {source.spec} changed while it was being read: run ingest again")
    size = settings["resolution"], settings["channels"], settings["interpolation"]
    return write_decoded(shard.path, source, rows, *size)


def gather(params: Params, parts: Parts) -> None:
    """Write the splits, rejected.parquet and ingest.json. InputError where too few images are readable."""
    counts: dict[str, int] = {}
    rejected: list[list[Any]] = []
    notes: list[str] = []
    draws = _draws(params)
    for draw in draws:
        images = JoinedTables([read_images(part) for part in parts[draw.key]])
        lost = [entry for table in images.tables for entry in table.metadata["rejected"]]
        rejected += lost
        notes += _notes(draw, images)
        _write_rejected(rejected)  # before any check, so that a failing stage leaves the whole list
        _check_unreadable(draw, lost, params.max_unreadable)
        counts |= _write_splits(draw, images, [row for row, _, _ in lost])
    summary = {
        "source": params.source,
        "holdout_source": params.holdout_source,
        "shape": [params.resolution, params.resolution, params.channels],
        "counts": counts,
        "available": sum(len(draw.source) for draw in draws),
        "seen": sum(len(draw.rows) for draw in draws),
        "rejected": len(rejected),
        "classes": draws[0].source.classes,
        "notes": notes,
    }
    for note in notes:
        print(f"note: {note}")
    write_json(OUT / "ingest.json", summary)


def _notes(draw: Draw, images: JoinedTables) -> list[str]:
    """A sentence for everything that was done to a source's images or left out, besides unreadable ones."""
    size = draw.settings["resolution"], draw.settings["channels"]
    words = changed_words(*size, "crop", "of other sizes")
    counts = {name: sum(table.metadata[name] for table in images.tables) for name in CHANGES}
    said = [f"{count:,} of {len(images):,} images {words[name]}" for name, count in counts.items() if count]
    said += [skipped_words(draw.source.skipped)] if draw.source.skipped else []
    return [f"{draw.source.spec}: {sentence}" for sentence in (*said, *draw.source.notes)]


def _draws(params: Params) -> list[Draw]:
    """One draw, or two with a `holdout_source`. InputError where a source has too few images."""
    held_out = {"test": params.test, "holdout": params.holdout}
    if params.holdout_source is None:
        return [_draw(params, "source", {**held_out, "train": params.train})]
    draws = [_draw(params, "source", {"train": params.train}), _draw(params, "holdout_source", held_out)]
    check_apart(draws[1].source, draws[0].source, ("ingest.holdout_source", "ingest.source"))
    _check_classes(draws)
    return draws


def _draw(params: Params, key: str, counts: dict[str, int | None]) -> Draw:
    spec = getattr(params, key)
    source = open_source(spec)
    order = _order(source, params.classes, params.seed)
    needed = _require_enough(spec, counts, len(order), "has")
    decoded = len(order)
    if None not in counts.values():
        decoded = min(decoded, _with_spares(needed, params.max_unreadable))
    own = params.model_dump(include={"classes", "seed", "resolution", "channels", "interpolation"})
    settings = {**own, "source": spec, "decoded": decoded}
    return Draw(source, order[:decoded], counts, settings, key)


def _with_spares(needed: int, unreadable: float) -> int:
    """The smallest number of images of which `needed` are left when the allowed share cannot be read."""
    count = max(needed, math.floor((needed - 1) / (1 - unreadable)) - 1)
    while count - math.floor(unreadable * count) < needed:
        count += 1
    return count


def _order(source: Source, classes: list[str | int] | None, seed: int) -> np.ndarray:
    """The rows of `classes` in seeded order, int64, by PCG64's raw bits, which are the same in every NumPy version."""
    rows = np.arange(len(source))
    if classes is not None:
        rows = rows[np.isin(source.labels, _labels(source, classes))]
    return rows[np.argsort(np.random.PCG64(seed).random_raw(len(rows)), kind="stable")]


def _labels(source: Source, classes: list[str | int]) -> list[int]:
    """The labels of these class names; in a source without class names, a label's name is its number."""
    labels = range(len(source.classes)) if source.classes else np.unique(source.labels[source.labels >= 0]).tolist()
    names = source.classes or [str(label) for label in labels]
    unknown = [name for name in classes if str(name) not in names]
    if unknown:
        known = f"only {', '.join(names[:20])}{', …' if len(names) > 20 else ''}" if names else "it has no labels"
        raise InputError(f"ingest.classes: {source.spec} has no class {unknown[0]!r}, {known}")
    return [label for label, name in zip(labels, names) if name in map(str, classes)]


def _names_digest(source: Source, rows: np.ndarray) -> str:
    return sha256_json([source.where(row) for row in rows])


def _write_rejected(rejected: list[list[Any]]) -> None:
    columns = {"where": [where for _, where, _ in rejected], "reason": [reason for _, _, reason in rejected]}
    schema = pa.schema([("where", pa.string()), ("reason", pa.string())])
    write_parquet(OUT / "rejected.parquet", pa.table(columns, schema=schema))


def _check_unreadable(draw: Draw, lost: list[list[Any]], allowed: float) -> None:
    if len(lost) <= allowed * len(draw.rows):
        return
    first = "; ".join(f"{where} ({reason})" for _, where, reason in lost[:3]) + ("; …" if len(lost) > 3 else "")
    raise InputError(
        f"{len(lost)} of {len(draw.rows)} images of {draw.source.spec} are unreadable, more than "
        f"ingest.max_unreadable = {allowed} allows: {first}: repair or remove them "
        f"(all are listed in {OUT / 'rejected.parquet'}) or raise ingest.max_unreadable"
    )


def _write_splits(draw: Draw, images: JoinedTables, lost: list[int]) -> dict[str, int]:
    """Write this draw's splits and return their sizes. images: the readable ones, in the order of the source's rows."""
    readable = draw.rows[~np.isin(draw.rows, lost)]
    _require_enough(draw.source.spec, draw.counts, len(readable), "has, without the unreadable ones,")
    stored, sizes = np.sort(readable), {}
    for split, count in draw.counts.items():
        count = len(readable) if count is None else count
        rows, readable = readable[:count], readable[count:]
        metadata = {"source": draw.source.spec, "split": split, "classes": draw.source.classes}
        picks = np.searchsorted(stored, rows)
        write_selection(ingested(split), images, picks, draw.source.labels[rows], metadata)
        sizes[split] = len(rows)
    return sizes


def _require_enough(spec: str, counts: dict[str, int | None], available: int, verb: str) -> int:
    """The number of images that `counts` needs, None counting as one; InputError where fewer are available."""
    needed = sum(count or 1 for count in counts.values())
    if needed > available:
        wanted = " + ".join(f"{count or 'the rest for'} {split}" for split, count in sorted(counts.items()))
        raise InputError(
            f"{spec} {verb} {available} images, too few for {wanted}: lower ingest.{', ingest.'.join(sorted(counts))} "
            "or give a larger source"
        )
    return needed


def _check_classes(draws: list[Draw]) -> None:
    """Labels of both sources must mean the same."""
    names = [draw.source.classes for draw in draws if draw.source.classes is not None]
    if any(other != names[0] for other in names[1:]):
        raise InputError(
            f"the classes of {draws[1].source.spec} differ from those of {draws[0].source.spec}: "
            "give a holdout_source of the same data set, or null"
        )


if __name__ == "__main__":
    main("ingest")
