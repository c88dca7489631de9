"""Stage deduplicate: finds groups of equal and nearly equal images and keeps one image of each.

Two images are duplicates if their pixels are equal (`exact`), if their pixel distance is at most `near`, or if the
cosine distance of their features is at most `feature.threshold`; each relation can be switched off. Groups are the
connected components of all relations together, over all splits: a test or held-out image that duplicates a training
image would be a leak. The first image of a group is kept, in the order train, test, holdout and then by row.
"""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages.errors import InputError
from stages.features.weights import EncoderParams, pinned
from stages.files.arrow import write_parquet
from stages.files.artifacts import write_json
from stages.files.images import JoinedTables, read_images, write_selection
from stages.files.paths import DATA, SPLITS, SPREAD, images_of, ingested
from stages.images.duplicates import (
    Groups,
    Pairs,
    connected_groups,
    feature_pairs,
    first_rows,
    near_pairs,
)
from stages.images.spread import spread
from stages.protocol import Parts, Section, Shard, StageParams, main, span_shards, spans
from stages.search.pixel_distance import pixel_distance, squared_radius

OUT = DATA / "deduplicate"
INPUTS = tuple(str(ingested(split)) for split in SPLITS)


class FeatureParams(Section):
    """Duplicates in an encoder's feature space."""

    threshold: float = Field(ge=0, lt=1, description="largest cosine distance, 1 - cos, of duplicates")
    encoder: EncoderParams = Field(description="the encoder of the features; the keys of embed.encoder")


class Params(StageParams):
    """Section `deduplicate` of params.yaml."""

    SECTION: ClassVar[str] = "deduplicate"

    exact: bool = Field(description="group images with equal pixels")
    near: float | None = Field(ge=0, lt=1, description="largest pixel distance l of duplicates, or null")
    feature: FeatureParams | None = Field(description="duplicates in feature space, or null")
    shards: int = Field(gt=0, le=4096, description="pieces of the range search; changes no result")


def plan(params: Params) -> list[Shard]:
    """Shards of the pixel range search, and one for the features."""
    shards = []
    if params.near is not None:
        images = _images()
        radius = squared_radius(params.near, images.dimension)
        cuts, settings = spans(len(images), params.shards), {"squared_radius": radius}
        shards += span_shards("deduplicate", "near", "near", cuts, settings, INPUTS, ".parquet")
    if params.feature is not None:
        encoder = pinned(params.feature.encoder)  # found before any work starts
        settings = {"threshold": params.feature.threshold, "encoder": encoder.model_dump()}
        shards.append(Shard("deduplicate", "feature", f"feature {encoder.name}", settings, INPUTS, ".parquet"))
    return shards


def work(shard: Shard) -> Path:
    """Pairs of different images that one search finds: columns i, j (rows over all splits) and distance."""
    images, settings = JoinedTables([read_images(path) for path in shard.inputs]), shard.settings
    rows = np.unique(first_rows(images.ids))
    if shard.task == "near":
        pairs = near_pairs(images, rows, settings["squared_radius"], settings["start"], settings["stop"])
    else:
        from stages.features.encoders import load_encoder

        pairs = feature_pairs(images, rows, settings["threshold"], load_encoder(EncoderParams(**settings["encoder"])))
    return write_parquet(shard.path, pa.table({"i": pairs.i, "j": pairs.j, "distance": pairs.distance}))


def gather(params: Params, parts: Parts) -> None:
    """Write the kept images, groups.parquet, deduplicate.json and, of the kept training images, spread.json."""
    images = _images()
    pairs = {task: Pairs.union([_read_pairs(part) for part in parts.get(task, ())]) for task in ("near", "feature")}
    first = first_rows(images.ids)
    groups = connected_groups(len(images), _layers(params, first, pairs))
    kept = np.ones(len(images), bool)
    kept[groups.row[groups.row != groups.representative]] = False
    counts = _write_kept(images, kept)
    distance = _distance_to_representative(images, groups)
    _write_groups(images, groups, distance, params)
    summary = {
        "counts": counts,
        "groups": len(np.unique(groups.group)),
        "images_in_groups": len(groups.row),
        "largest_group": int(np.bincount(groups.group).max()) if len(groups.row) else 0,
        "largest_distance": float(distance.max(initial=0.0)),
        "label_conflicts": int((images.labels[groups.row] != images.labels[groups.representative]).sum()),
        "removed": int((~kept).sum()),
        "pairs_by_reason": _count_pairs(params, first, pairs),
    }
    write_json(OUT / "deduplicate.json", summary)
    write_json(SPREAD, spread(read_images(images_of("train")).images))


def _images() -> JoinedTables:
    """The images of all splits."""
    return JoinedTables([read_images(path) for path in INPUTS])


def _read_pairs(part: Path) -> Pairs:
    table = pq.read_table(part)
    return Pairs(*(table.column(name).to_numpy() for name in ("i", "j", "distance")))


def _enabled(params: Params) -> list[str]:
    """The relations in use, strictest first."""
    used = {"exact": params.exact, "near": params.near is not None, "feature": params.feature is not None}
    return [name for name, on in used.items() if on]


def _layers(params: Params, first: np.ndarray, pairs: dict[str, Pairs]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reason -> edges (i, j). Equal images are duplicates by the strictest relation in use."""
    again = np.flatnonzero(first != np.arange(len(first)))
    layers = {}
    for position, name in enumerate(_enabled(params)):
        i, j = (pairs[name].i, pairs[name].j) if name in pairs else (np.zeros(0, np.int64),) * 2
        if position == 0:
            i, j = np.concatenate([i, first[again]]), np.concatenate([j, again])
        layers[name] = (i, j)
    return layers


def _count_pairs(params: Params, first: np.ndarray, pairs: dict[str, Pairs]) -> dict[str, int]:
    """Relation -> number of pairs of images, each pair counted under the strictest relation that it satisfies."""
    copies = np.bincount(first, minlength=len(first)).astype(np.int64)
    keys = {name: found.i * len(first) + found.j for name, found in pairs.items()}
    new = ~np.isin(keys["feature"], keys["near"])
    counts = {
        "exact": 0,
        "near": int((copies[pairs["near"].i] * copies[pairs["near"].j]).sum()),
        "feature": int((copies[pairs["feature"].i] * copies[pairs["feature"].j])[new].sum()),
    }
    for name in _enabled(params)[:1]:
        counts[name] += int((copies * (copies - 1) // 2).sum())
    return counts


def _distance_to_representative(images: JoinedTables, groups: Groups) -> np.ndarray:
    """l of every grouped image to its representative, float64 (R,), from integer squares."""
    distances = [np.zeros(0)]
    for start in range(0, len(groups.row), 1024):
        block = slice(start, start + 1024)
        a, b = (images.pixels(rows[block]).astype(np.int32) for rows in (groups.row, groups.representative))
        squared = np.square(a - b).reshape(len(a), -1).sum(1, dtype=np.int64)
        distances.append(pixel_distance(squared, images.dimension))
    return np.concatenate(distances)


def _write_kept(images: JoinedTables, kept: np.ndarray) -> dict[str, dict[str, int]]:
    counts = {}
    for number, (split, table) in enumerate(zip(SPLITS, images.tables)):
        first, end = images.edges[number : number + 2]
        rows = first + np.flatnonzero(kept[first:end])
        if len(rows) == 0:
            raise InputError(
                f"deduplicate: no {split} image is left of {len(table)}, all duplicate others: "
                "lower deduplicate.near or deduplicate.feature.threshold, or give another source"
            )
        write_selection(images_of(split), images, rows, metadata=table.metadata)
        counts[split] = {"before": len(table), "after": len(rows)}
    return counts


def _write_groups(images: JoinedTables, groups: Groups, distance: np.ndarray, params: Params) -> None:
    table, row = images.locate(groups.row)
    columns = {
        "group": pa.array(groups.group, pa.int32()),
        "id": pa.array([images.ids[row] for row in groups.row], pa.string()),
        "split": pa.array([SPLITS[number] for number in table], pa.string()),
        "row": pa.array(row, pa.int64()),
        "kept": pa.array(groups.row == groups.representative, pa.bool_()),
        "reason": pa.array(groups.reason, pa.string()),
        "distance": pa.array(distance, pa.float64()),
    }
    metadata = params.model_dump(include={"exact", "near", "feature"})
    write_parquet(OUT / "groups.parquet", pa.table(columns), metadata)


if __name__ == "__main__":
    main("deduplicate")
