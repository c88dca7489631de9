"""FAISS indices over features, with or without a GPU, and their recall against the exact search."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from stages.errors import InputError, missing
from stages.features.feature_search import nearest_features
from stages.features.index_params import HnswParams, IvfParams, Kind
from stages.files.artifacts import atomic_path

TRAINING_ROWS_PER_LIST = 39  # below this FAISS warns that the cells are poor


def build_index(features: np.ndarray, kind: Kind, ivf: IvfParams | None, hnsw: HnswParams | None) -> Any:
    """A trained and filled faiss index over float32 (N, D) rows, squared L2. Deterministic on one kind of machine.

    ivf and hnsw are read for their own kind only. Too few rows for the cells of an IVF index raise InputError.
    """
    rows = np.ascontiguousarray(features, dtype=np.float32)
    count, dimension = rows.shape
    if kind == "flat":
        index = faiss.IndexFlatL2(dimension)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dimension, hnsw.links)
        index.hnsw.efConstruction, index.hnsw.efSearch = hnsw.ef_construction, hnsw.ef_search
    else:
        index = _ivf(dimension, count, ivf)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # with more threads the order of insertion into the graph varies
    try:
        index.train(rows)
        index.add(rows)
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def _ivf(dimension: int, count: int, ivf: IvfParams) -> Any:
    lists = ivf.lists or max(1, min(round(count**0.5), count // TRAINING_ROWS_PER_LIST))
    if count < lists:
        raise InputError(f"index.ivf.lists: {lists} cells cannot be made of {count} images: lower it or set it to null")
    if ivf.probes > lists:
        raise InputError(f"index.ivf.probes: {ivf.probes} cells cannot be searched, there are {lists}: lower it")
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dimension), dimension, lists)
    index.nprobe = ivf.probes
    index.cp.min_points_per_centroid = 1  # FAISS would warn on stderr about the user's choice
    if faiss.get_num_gpus() > 0:
        index.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatL2(dimension))
    return index


def accelerated(index: Any) -> Any:
    """The index on all GPUs if there are any and FAISS supports its kind there (flat, IVF), else the index itself."""
    on_gpu = isinstance(faiss.downcast_index(index), faiss.IndexFlat | faiss.IndexIVFFlat)
    return faiss.index_cpu_to_all_gpus(index) if on_gpu and faiss.get_num_gpus() > 0 else index


def write_index(path: Path | str, index: Any) -> Path:
    """Write a faiss index atomically."""
    with atomic_path(path) as temporary:
        faiss.write_index(index, str(temporary))
    return Path(path)


def read_index(path: Path | str) -> Any:
    """Read a faiss index; a missing or damaged file raises InputError naming it."""
    if not Path(path).is_file():
        raise missing(path)
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f"{path} is not a FAISS index ({reason}): delete it and rerun stage index") from error


def recall_at_k(index: Any, features: np.ndarray, k: int, queries: int) -> dict[str, Any]:
    """The share of the exact k nearest other rows that the index finds, for `queries` evenly spaced rows, at most N.

    features: the float64 or float32 (N, D) rows of the index, in its order. Every row that is as near as the k-th
    exact neighbour counts as found. Returns k, the number of queries and the recall.
    """
    rows = np.unique(np.linspace(0, len(features) - 1, min(queries, len(features))).astype(np.int64))
    _, exact = nearest_features(features[rows], features, k, exclude=rows)
    _, found = accelerated(index).search(np.ascontiguousarray(features[rows], dtype=np.float32), k + 1)
    hits = 0
    for row, candidates, radius in zip(rows, found, exact[:, -1]):
        others = candidates[(candidates != row) & (candidates >= 0)][:k]
        distances = np.sqrt(np.square(np.asarray(features[row], np.float64) - features[others]).sum(axis=1))
        hits += int((distances <= radius).sum())
    return {"k": k, "queries": len(rows), "recall": hits / (k * len(rows))}
