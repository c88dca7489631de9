"""Neighbour tables: the K nearest training images of every training image, in one Arrow file.

Layout (Arrow IPC, memory-mapped, one record batch):
    id           string                     the image's id
    neighbor     fixed_size_list<int32>[K]  rows of the training table, nearest first, self excluded, ties by row
    distance     fixed_size_list<float32>[K]
    nn_distance  float32, optional          raw feature distance to the nearest other image
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.files.arrow import read_metadata, with_metadata
from stages.files.artifacts import atomic_path


@dataclasses.dataclass(frozen=True)
class NeighborTable:
    """K neighbours per image.

    Attributes:
        neighbors: int32 (N, K), rows of the training table, nearest first.
        distances: float32 (N, K), in the unit that metadata names.
        ids: N strings.
        nn_distance: float32 (N,) or None.
        metadata: JSON values from the file's schema.
    """

    neighbors: np.ndarray
    distances: np.ndarray
    ids: list[str]
    nn_distance: np.ndarray | None = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


def _lists(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def write_neighbors(path: Path | str, table: NeighborTable) -> Path:
    """Write a neighbour table atomically."""
    if table.neighbors.shape != table.distances.shape or len(table.neighbors) != len(table):
        raise ValueError(f"neighbors {table.neighbors.shape}, distances {table.distances.shape}, {len(table)} ids")
    columns = {
        "id": pa.array(table.ids, pa.string()),
        "neighbor": _lists(table.neighbors.astype(np.int32, copy=False)),
        "distance": _lists(table.distances.astype(np.float32, copy=False)),
    }
    if table.nn_distance is not None:
        columns["nn_distance"] = pa.array(table.nn_distance, pa.float32())
    arrow = with_metadata(pa.table(columns), table.metadata)
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), arrow.schema) as writer:
        writer.write_table(arrow)
    return Path(path)


def read_neighbors(path: Path | str) -> NeighborTable:
    """Memory-map a neighbour table; a missing, truncated or foreign file raises InputError."""
    try:
        arrow = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: run the stage that writes it (dvc repro)") from error
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not an Arrow neighbour table ({error}): delete it and rerun its stage") from error
    if arrow.column_names[:3] != ["id", "neighbor", "distance"]:
        raise InputError(
            f"{path} is not a neighbour table: its columns are {arrow.column_names}, not id, neighbor, distance"
        )
    own = arrow.column("nn_distance").to_numpy() if "nn_distance" in arrow.column_names else None
    neighbors, distances = _matrix(arrow, "neighbor", np.int32), _matrix(arrow, "distance", np.float32)
    return NeighborTable(neighbors, distances, arrow.column("id").to_pylist(), own, read_metadata(arrow.schema))


def join_neighbors(tables: list[NeighborTable]) -> NeighborTable:
    """One table of the rows of several, in their order; metadata is the first one's."""
    own = None if tables[0].nn_distance is None else np.concatenate([table.nn_distance for table in tables])
    neighbors = np.concatenate([table.neighbors for table in tables])
    distances = np.concatenate([table.distances for table in tables])
    ids = [name for table in tables for name in table.ids]
    return NeighborTable(neighbors, distances, ids, own, tables[0].metadata)


def _matrix(arrow: pa.Table, column: str, dtype: type) -> np.ndarray:
    """A fixed-size list column as an array (N, K), zero-copy where the file has one batch."""
    width = arrow.schema.field(column).type.list_size
    flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in arrow.column(column).chunks]
    values = flat[0] if len(flat) == 1 else np.concatenate([np.zeros(0, dtype), *flat])
    return values.reshape(arrow.num_rows, width)
