"""Stage index: the nearest training images of every training image, in pixels and in features.

Outs in data/index: pixel_neighbors.arrow and feature_neighbors.arrow (neighbour tables over the rows of
data/deduplicate/train.arrow), features.faiss and index.json. Both tables are exact for every kind of FAISS index:
features.faiss is written for other tools' queries, and index.json holds its recall. Feature neighbours are those of
index.encoder, or of embed.encoder where that is null; column nn_distance, which the filter reads, is embed.encoder's.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from stages.device import pick_device
from stages.errors import InputError
from stages.features.index_params import HnswParams, IvfParams, Kind
from stages.features.weights import EncoderParams
from stages.files.artifacts import atomic_path, write_json
from stages.files.features import FeatureTable, read_features
from stages.files.images import ImageTable, read_images
from stages.files.neighbors import NeighborTable, join_neighbors, read_neighbors, write_neighbors
from stages.files.paths import DATA, NEIGHBOR_FEATURES, features_of, images_of, neighbors_of
from stages.protocol import Parts, Shard, StageParams, main, spans
from stages.search.nearest import nearest

OUT = DATA / "index"
Search = Callable[[np.ndarray, np.ndarray, int, np.ndarray], tuple[np.ndarray, np.ndarray]]


class Params(StageParams):
    """The neighbour lists and the FAISS index."""

    SECTION: ClassVar[str] = "index"

    neighbors: int = Field(ge=1, description="K: neighbours listed per training image, itself not counted")
    encoder: EncoderParams | None = Field(description="encoder of the feature neighbours; null: embed's")
    within_class: bool = Field(description="list only neighbours of the image's own class")
    kind: Kind = Field(description="of features.faiss: flat (exact) | ivf | hnsw")
    ivf: IvfParams = Field(description="read when kind is ivf")
    hnsw: HnswParams = Field(description="read when kind is hnsw")
    recall_queries: int = Field(ge=1, description="images whose neighbours are looked up to measure recall")
    shards: int = Field(gt=0, description="pieces of each search; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of query rows in pixel space, the same in feature space, and the FAISS index."""
    images, features = str(images_of("train")), str(features_of("train"))
    searched = features if params.encoder is None else str(NEIGHBOR_FEATURES)
    table = read_images(images)
    _check_available(table, params.neighbors, params.within_class)
    common = {"neighbors": params.neighbors, "within_class": params.within_class}
    cuts, shards = spans(len(table), params.shards), []
    for space, inputs in (("pixel", (images,)), ("feature", tuple(dict.fromkeys((images, features, searched))))):
        for number, (start, stop) in enumerate(cuts, 1):
            settings = {**common, "start": start, "stop": stop}
            shards.append(Shard("index", space, f"{space} {number}/{len(cuts)}", settings, inputs))
    settings = {"kind": params.kind}  # what does not determine the index must not rebuild it
    if params.kind != "flat":
        settings[params.kind] = getattr(params, params.kind).model_dump()
    return [*shards, Shard("index", "faiss", f"faiss {params.kind}", settings, (searched,), ".faiss")]


def _check_available(table: ImageTable, k: int, within_class: bool) -> None:
    """Raise InputError when some image has fewer than k others to choose from."""
    asked = f"index.neighbors: {k} neighbours were asked for"
    if not within_class:
        if k > len(table) - 1:
            raise InputError(
                f"{asked}, the {len(table)} training images leave {max(len(table) - 1, 0)} to each: lower it or raise "
                "ingest.train"
            )
        return
    unlabelled = int((table.labels < 0).sum())
    if unlabelled:
        raise InputError(
            f"index.within_class: {unlabelled} of {len(table)} training images have no label: set it to false"
        )
    if len(table) == 0:
        raise InputError(f"{images_of('train')} holds no images: raise ingest.train")
    classes, sizes = np.unique(table.labels, return_counts=True)
    smallest = int(sizes.argmin())
    if k > sizes[smallest] - 1:
        raise InputError(
            f"{asked}, class {classes[smallest]} has {sizes[smallest]} training images: lower it or set "
            "index.within_class to false"
        )


def work(shard: Shard) -> Path:
    """One span's neighbours, or the FAISS index."""
    return {"pixel": _pixel_neighbors, "feature": _feature_neighbors, "faiss": _faiss_index}[shard.task](shard)


def _pixel_neighbors(shard: Shard) -> Path:
    table = read_images(shard.inputs[0])

    def find(queries, candidates, k, exclude):
        index, squared = nearest(table.flat[queries], _rows(table.flat, candidates), k, exclude=exclude)
        return index, np.sqrt(squared / table.dimension) / 255

    return _write_span(shard, table, find, {"distance": "l = |a-b|/sqrt(d), pixels in [0,1]"})


def _feature_neighbors(shard: Shard) -> Path:
    from stages.features.feature_search import nearest_features, normalized

    images = read_images(shard.inputs[0])
    table, device = _features_of_images(shard.inputs[1], images), pick_device("auto")
    searched = _features_of_images(shard.inputs[-1], images)
    unit = normalized(searched.features, searched.ids)

    def find(queries, candidates, k, exclude):
        return nearest_features(unit[queries], _rows(unit, candidates), k, exclude=exclude, device=device)

    rows = np.arange(shard.settings["start"], shard.settings["stop"])
    _, own = nearest_features(table.features[rows], table.features, 1, exclude=rows, device=device)
    metadata = {**searched.metadata, "distance": "L2 of normalized features"}
    return _write_span(shard, images, find, metadata, own[:, 0].astype(np.float32))


def _write_span(
    shard: Shard, table: ImageTable, find: Search, metadata: dict[str, Any], own: np.ndarray | None = None
) -> Path:
    """Write the neighbours of the span's rows by find(queries, candidates, k, exclude), class by class if asked.

    own: float32 (stop - start,), raw feature distance to the nearest other image.
    """
    k, start, stop = (shard.settings[key] for key in ("neighbors", "start", "stop"))
    within_class, rows = shard.settings["within_class"], np.arange(start, stop)
    groups = table.labels if within_class else np.zeros(len(table), np.int64)
    neighbors, distances = np.empty((stop - start, k), np.int32), np.empty((stop - start, k), np.float32)
    for group in np.unique(groups[rows]):
        queries, candidates = rows[groups[rows] == group], np.flatnonzero(groups == group)
        index, distance = find(queries, candidates, k, np.searchsorted(candidates, queries))
        neighbors[queries - start], distances[queries - start] = candidates[index], distance
    metadata = {**metadata, "within_class": within_class}
    return write_neighbors(shard.path, NeighborTable(neighbors, distances, table.ids[start:stop], own, metadata))


def _rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """values[rows], without a copy where that is all of them."""
    return values if len(rows) == len(values) else values[rows]


def _features_of_images(path: str, images: ImageTable) -> FeatureTable:
    table = read_features(path)
    if table.ids != images.ids:
        raise InputError(f"{path} does not hold the features of {images_of('train')}, row by row: rerun stage embed")
    return table


def _faiss_index(shard: Shard) -> Path:
    from stages.features.faiss_index import build_index, write_index
    from stages.features.feature_search import normalized

    table, settings = read_features(shard.inputs[0]), shard.settings
    ivf = IvfParams(**settings["ivf"]) if "ivf" in settings else None
    hnsw = HnswParams(**settings["hnsw"]) if "hnsw" in settings else None
    return write_index(shard.path, build_index(normalized(table.features, table.ids), settings["kind"], ivf, hnsw))


def gather(params: Params, parts: Parts) -> None:
    """Both neighbour tables, the FAISS index and its recall."""
    from stages.features.faiss_index import read_index, recall_at_k
    from stages.features.feature_search import normalized

    for space in ("pixel", "feature"):
        write_neighbors(neighbors_of(space), join_neighbors([read_neighbors(part) for part in parts[space]]))
    with atomic_path(OUT / "features.faiss") as temporary:
        shutil.copyfile(parts["faiss"][0], temporary)
    table = read_features(features_of("train") if params.encoder is None else NEIGHBOR_FEATURES)
    index = read_index(OUT / "features.faiss")
    recall = recall_at_k(index, normalized(table.features, table.ids), params.neighbors, params.recall_queries)
    summary = {"kind": params.kind, "count": len(table), "dimension": table.features.shape[1], "recall_at_k": recall}
    summary["encoder"] = table.metadata.get("encoder")
    write_json(OUT / "index.json", {**summary, "neighbors": params.neighbors, "within_class": params.within_class})


if __name__ == "__main__":
    main("index")
