"""Tables on disk, and the metadata in their schemas.

Arrow IPC files are written with one record batch, memory-mapped and checked when they are read.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import InputError, missing
from stages.files.artifacts import atomic_path


def write_table(path: Path | str, columns: dict[str, pa.Array], metadata: dict[str, Any]) -> Path:
    """Write columns with `metadata` (JSON values) in the schema, atomically."""
    table = with_metadata(pa.table(columns), metadata)
    with atomic_path(path) as temporary, pa.ipc.new_file(str(temporary), table.schema) as writer:
        writer.write_table(table)
    return Path(path)


def open_table(path: Path | str, what: str, columns: Sequence[str], optional: Sequence[str] = ()) -> pa.Table:
    """Memory-map a table of exactly these columns, those of `optional` present or not.

    what: the kind of table, for the message ("image table"). A missing, truncated or foreign file raises InputError.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError as error:
        raise missing(path) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path} is not an Arrow {what} ({error}): delete it and rerun its stage") from error
    names = table.column_names
    if [name for name in names if name not in optional] != list(columns):
        raise InputError(f"{path} has columns {names}, not {', '.join(columns)}: it is not an Arrow {what}")
    return table


def write_parquet(path: Path | str, table: pa.Table, metadata: dict[str, Any] | None = None) -> Path:
    """Write a Parquet table atomically; `metadata` values are stored as JSON in the schema."""
    with atomic_path(path) as temporary:
        pq.write_table(with_metadata(table, metadata or {}), temporary)
    return Path(path)


def with_metadata(table: pa.Table, metadata: dict[str, Any]) -> pa.Table:
    """The table with `metadata` (JSON-encoded values) added to its schema."""
    encoded = {key.encode(): json.dumps(value, sort_keys=True).encode() for key, value in metadata.items()}
    return table.replace_schema_metadata({**(table.schema.metadata or {}), **encoded})


def read_metadata(schema: pa.Schema) -> dict[str, Any]:
    """The metadata that `with_metadata` added to a schema, without Arrow's own entries."""
    own = (item for item in (schema.metadata or {}).items() if not item[0].startswith((b"ARROW:", b"pandas")))
    return {key.decode(): json.loads(value) for key, value in own}


def fixed_lists(values: np.ndarray) -> pa.Array:
    """An array (N, K) as a column of fixed-size lists, without a copy where it is contiguous."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])


def column_array(table: pa.Table, name: str) -> np.ndarray:
    """A column of fixed-size lists or fixed-shape tensors as an array (N, ...), zero-copy where it has one chunk."""
    kind, chunks = table.schema.field(name).type, table.column(name).chunks
    if isinstance(kind, pa.FixedShapeTensorType):
        chunks, shape = [chunk.storage for chunk in chunks], kind.shape
    else:
        shape = [kind.list_size]
    flat = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in chunks]
    values = flat[0] if len(flat) == 1 else np.concatenate([np.zeros(0, kind.value_type.to_pandas_dtype()), *flat])
    return values.reshape(table.num_rows, *shape)
