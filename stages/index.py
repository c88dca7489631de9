"""Stage index: who is near whom in the training set, in pixels and in features.

Outs in data/index: pixel_neighbors.arrow and feature_neighbors.arrow (neighbour tables over the rows of
data/deduplicate/train.arrow), features.faiss and index.json. Both tables are exact, whatever the kind of the FAISS
index: that one is for other tools' queries, and its recall says what it misses.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from stages.errors import InputError
from stages.features.index_params import HnswParams, IvfParams, Kind
from stages.files.artifacts import atomic_path, write_json
from stages.files.features import FeatureTable, read_features
from stages.files.images import ImageTable, read_images
from stages.files.paths import DATA, features_of, images_of, neighbors_of
from stages.protocol import Parts, Shard, StageParams, main, spans

if TYPE_CHECKING:
    import numpy as np

OUT = DATA / "index"


class Params(StageParams):
    """The neighbour lists and the FAISS index."""

    SECTION: ClassVar[str] = "index"

    neighbors: int = Field(ge=1, description="K: neighbours listed per training image, itself not counted")
    within_class: bool = Field(description="list only neighbours of the image's own class")
    kind: Kind = Field(description="of features.faiss: flat (exact) | ivf | hnsw")
    ivf: IvfParams = Field(description="read when kind is ivf")
    hnsw: HnswParams = Field(description="read when kind is hnsw")
    recall_queries: int = Field(ge=1, description="images whose neighbours are looked up to measure recall")
    shards: int = Field(gt=0, description="pieces of each search; changes no result")


def plan(params: Params) -> list[Shard]:
    """Spans of query rows in pixel space, the same in feature space, and the FAISS index."""
    images, features = str(images_of("train")), str(features_of("train"))
    table = read_images(images)
    _check_available(table, params.neighbors, params.within_class)
    common = {"neighbors": params.neighbors, "within_class": params.within_class}
    shards = []
    for search, inputs in (("pixel", (images,)), ("feature", (images, features))):
        cuts = spans(len(table), params.shards)
        for number, (start, stop) in enumerate(cuts, 1):
            settings = {**common, "start": start, "stop": stop}
            shards.append(Shard("index", search, f"{search} {number}/{len(cuts)}", settings, inputs))
    settings = {
        "kind": params.kind,
        "ivf": params.ivf.model_dump(),
        "hnsw": params.hnsw.model_dump(),
    }
    for unused in {"ivf", "hnsw"} - {params.kind}:  # what does not determine the index must not rebuild it
        del settings[unused]
    return [*shards, Shard("index", "faiss", f"faiss {params.kind}", settings, (features,), ".faiss")]


def _check_available(table: ImageTable, k: int, within_class: bool) -> None:
    """Raise InputError when some image has fewer than k others to choose from."""
    import numpy as np

    if not within_class:
        if k > len(table) - 1:
            raise InputError(
                f"index.neighbors: {k} neighbours were asked for, the {len(table)} training images leave "
                f"{max(len(table) - 1, 0)} to each: lower it or raise ingest.train"
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
            f"index.neighbors: {k} neighbours were asked for, class {classes[smallest]} has {sizes[smallest]} training "
            "images: lower it or set index.within_class to false"
        )


def work(shard: Shard) -> Path:
    """One span's neighbours, or the FAISS index."""
    return {"pixel": _work_pixel, "feature": _work_feature, "faiss": _work_faiss}[shard.task](shard)


def _groups(labels: "np.ndarray", settings: dict[str, Any]) -> Iterator[tuple["np.ndarray", "np.ndarray"]]:
    """(query rows of the span, rows that are candidates for them): one pair, or one per class."""
    import numpy as np

    rows = np.arange(settings["start"], settings["stop"])
    if not settings["within_class"]:
        yield rows, np.arange(len(labels))
        return
    for label in np.unique(labels[rows]):
        yield rows[labels[rows] == label], np.flatnonzero(labels == label)


def _search(table: ImageTable, settings: dict[str, Any], find: Any) -> tuple["np.ndarray", "np.ndarray"]:
    """Neighbours and distances of the span's rows by find(queries, candidates, k, exclude), class by class if asked."""
    import numpy as np

    shape = (settings["stop"] - settings["start"], settings["neighbors"])
    neighbors, distances = np.empty(shape, np.int32), np.empty(shape, np.float64)
    for queries, candidates in _groups(table.labels, settings):
        index, distance = find(queries, candidates, settings["neighbors"], np.searchsorted(candidates, queries))
        neighbors[queries - settings["start"]] = candidates[index]
        distances[queries - settings["start"]] = distance
    return neighbors, distances.astype(np.float32)


def _work_pixel(shard: Shard) -> Path:
    import numpy as np

    from stages.files.neighbors import NeighborTable, write_neighbors
    from stages.search.nearest import nearest

    table, settings = read_images(shard.inputs[0]), shard.settings

    def find(queries, candidates, k, exclude):
        index, squared = nearest(table.flat[queries], _rows(table.flat, candidates), k, exclude=exclude)
        return index, np.sqrt(squared / table.dimension) / 255

    neighbors, distances = _search(table, settings, find)
    metadata = {"distance": "l = |a-b|/sqrt(d), pixels in [0,1]", "within_class": settings["within_class"]}
    ids = table.ids[settings["start"] : settings["stop"]]
    return write_neighbors(shard.path, NeighborTable(neighbors, distances, ids, metadata=metadata))


def _work_feature(shard: Shard) -> Path:
    import numpy as np

    from stages.device import pick_device
    from stages.features.feature_search import nearest_features, normalized
    from stages.files.neighbors import NeighborTable, write_neighbors

    images, settings = read_images(shard.inputs[0]), shard.settings
    table, device = _features_of_images(shard.inputs[1], images), pick_device("auto")
    unit = normalized(table.features, table.ids)

    def find(queries, candidates, k, exclude):
        return nearest_features(unit[queries], _rows(unit, candidates), k, exclude=exclude, device=device)

    neighbors, distances = _search(images, settings, find)
    rows = np.arange(settings["start"], settings["stop"])
    _, own = nearest_features(table.features[rows], table.features, 1, exclude=rows, device=device)
    metadata = {**table.metadata, "distance": "L2 of normalized features", "within_class": settings["within_class"]}
    ids = table.ids[settings["start"] : settings["stop"]]
    return write_neighbors(shard.path, NeighborTable(neighbors, distances, ids, own[:, 0].astype(np.float32), metadata))


def _rows(values: "np.ndarray", rows: "np.ndarray") -> "np.ndarray":
    """values[rows], without a copy where that is all of them."""
    return values if len(rows) == len(values) else values[rows]


def _features_of_images(path: str, images: ImageTable) -> FeatureTable:
    table = read_features(path)
    if table.ids != images.ids:
        raise InputError(f"{path} does not hold the features of {images_of('train')}, row by row: rerun stage embed")
    return table


def _work_faiss(shard: Shard) -> Path:
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
        _write_joined(neighbors_of(space), parts[space])
    with atomic_path(OUT / "features.faiss") as temporary:
        shutil.copyfile(parts["faiss"][0], temporary)
    table = read_features(features_of("train"))
    index = read_index(OUT / "features.faiss")
    recall = recall_at_k(index, normalized(table.features, table.ids), params.neighbors, params.recall_queries)
    summary = {"kind": params.kind, "count": len(table), "dimension": table.features.shape[1], "recall_at_k": recall}
    write_json(OUT / "index.json", {**summary, "neighbors": params.neighbors, "within_class": params.within_class})


def _write_joined(path: Path, parts: list[Path]) -> None:
    import numpy as np

    from stages.files.neighbors import NeighborTable, read_neighbors, write_neighbors

    tables = [read_neighbors(part) for part in parts]
    own = None if tables[0].nn_distance is None else np.concatenate([table.nn_distance for table in tables])
    joined = NeighborTable(
        np.concatenate([table.neighbors for table in tables]),
        np.concatenate([table.distances for table in tables]),
        [name for table in tables for name in table.ids],
        own,
        tables[0].metadata,
    )
    write_neighbors(path, joined)


if __name__ == "__main__":
    main("index")
