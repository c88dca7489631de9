"""parquet:PATH: Hugging Face's image layout in a file, a folder or a glob of shards; options image=, label= and split=.

A column struct<bytes, path> (or binary) holds the encoded images, an integer column their labels.
"""

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import InputError, one_line
from stages.images.decode import UnreadableImage
from stages.images.sources.base import (
    Raw,
    Source,
    class_names,
    existing,
    listed,
    printable,
    regular_file,
    unlabelled,
)
from stages.images.sources.splits import of_one_split

BATCH_ROWS = 64


class ParquetSource(Source):
    """The images of Parquet files, file after file.

    Only row groups that hold wanted rows are read, in small batches, so that memory does not grow with the file.
    """

    whole_files = True

    def __init__(self, path: str, image: str = "", label: str = "", split: str = ""):
        self.paths = _of_split(path, _paths(path), split)
        schema, counts = _heads(self.paths)
        self.image, self.columns = image_column(self.paths[0], schema, image), schema.names
        self.edges = np.concatenate([[0], np.cumsum(counts)])
        found = labels_of(self.paths[0], schema, label, self.edges[-1], lambda name: _labels(self.paths, name, counts))
        self.labels, self.classes, self.notes = found

    def _file_of(self, rows: Any) -> Any:
        """The number of the file that holds each row."""
        return np.searchsorted(self.edges, rows, side="right") - 1

    def column(self, name: str) -> list[str]:
        if name not in self.columns or (name == "label" and self.classes):
            return super().column(name)
        return texts(pq.read_table(path, columns=[name]).column(0) for path in self.paths)

    def where(self, row: int) -> str:
        number = self._file_of(row)
        return printable(f"{self.paths[number]}#{row - self.edges[number]}")

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return tuple(self.paths[number] for number in np.unique(self._file_of(np.asarray(rows, np.int64))))

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        for number, local in _by_part(np.asarray(rows, np.int64), self.edges):
            path = self.paths[number]
            try:
                yield from _read(path, self.image, local)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise InputError(f"image source: {path} is damaged ({one_line(error)}): get it again") from error


def _by_part(rows: np.ndarray, edges: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(part, its rows counted from its start) for every part that holds some; part i is [edges[i], edges[i + 1])."""
    cuts = np.searchsorted(rows, edges)
    for part, (start, stop) in enumerate(zip(cuts, cuts[1:])):
        if stop > start:
            yield part, rows[start:stop] - edges[part]


def _read(path: str, column: str, rows: np.ndarray) -> Iterator[Raw]:
    """The images of `rows` (ascending) of one file, batch by batch from the row groups that hold some."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        for group, inside in _by_part(rows, np.concatenate([[0], np.cumsum(sizes)])):
            position = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group], columns=[column]):
                chosen = inside[(inside >= position) & (inside < position + len(batch))] - position
                cells = batch.column(0).take(pa.array(chosen))
                # the bytes alone: a damaged `path` beside them is of no interest
                found = pc.struct_field(cells, "bytes") if pa.types.is_struct(cells.type) else cells
                yield from map(image_bytes, found.to_pylist())
                position += len(batch)
            if position != sizes[group]:
                raise OSError(f"{position} of {sizes[group]} rows are left")


def image_bytes(value: bytes | None) -> Raw:
    """A cell as an image before decoding."""
    return (
        UnreadableImage("the table holds no bytes for this image, at most its path: store the bytes")
        if value is None
        else value
    )


def texts(columns: Iterable[pa.ChunkedArray]) -> list[str]:
    """The values of a column of several files as text; "" where there is none."""
    return ["" if value is None else str(value) for column in columns for value in column.to_pylist()]


def _paths(path: str) -> list[str]:
    if any(mark in path for mark in "*?[") and not Path(path).exists():
        found, problem = sorted(glob.glob(path, recursive=True)), f"no file matches (looked from {Path.cwd()})"
    elif existing(path).is_dir():
        names = [str(folder / file) for folder, files in listed(path) for file in files]
        found, problem = sorted(n for n in names if n.endswith(".parquet")), "the folder holds no *.parquet files"
    else:
        return [path]
    if not found:
        raise InputError(f"image source parquet:{path}: {problem}")
    return found


def _of_split(path: str, paths: list[str], split: str) -> list[str]:
    if len(paths) == 1 and not split:
        return paths
    root = os.path.commonpath([os.path.dirname(file) for file in paths])
    names = [Path(os.path.relpath(file, root)).as_posix() for file in paths]
    return [paths[place] for place in of_one_split(f"parquet:{path}", names, split)]


def _heads(paths: list[str]) -> tuple[pa.Schema, list[int]]:
    """The first file's schema and every file's row count; all files must have the same columns."""
    schemas, counts = [], []
    for path in paths:
        try:
            with pq.ParquetFile(regular_file(path)) as file:
                schemas.append(file.schema_arrow)
                counts.append(file.metadata.num_rows)
                if counts[-1] != sum(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)):
                    raise OSError("its parts do not add up to its rows")
                names = file.schema_arrow.names  # UnicodeDecodeError
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, RecursionError) as error:
            reason = one_line(error)
            raise InputError(f"image source: {path} is not a readable Parquet file ({reason}): get it again") from error
        if (names, schemas[-1].types) != (schemas[0].names, schemas[0].types):
            raise InputError(f"image source: {path} has other columns than {paths[0]}: give shards of one data set")
    return schemas[0], counts


def image_column(path: str, schema: pa.Schema, name: str) -> str:
    """The name of the column that holds encoded images: `name`, or the usual ones. InputError without one."""
    column = next((c for c in ((name,) if name else ("image", "img")) if c in schema.names), None)
    if column is None:
        columns = ", ".join(schema.names)
        raise InputError(f"{path} has no column {name or 'image'!r}, only {columns}: name it with ?image=COLUMN")
    kind = schema.field(column).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(f"{path}: column {column!r} is {kind}, not struct<bytes, path> or binary")
    return column


def labels_of(
    path: str, schema: pa.Schema, name: str, count: int, read: Callable[[str], np.ndarray]
) -> tuple[np.ndarray, list[str] | None, tuple[str, ...]]:
    """Return labels, class names and notes of `count` images.

    name: the column that was asked for, or "": then labels that are not class numbers are not used, with a note. read:
    a column's name -> int64 (count,).
    """
    try:
        column = _label_column(path, schema, name)
        labels = unlabelled(count) if column is None else read(column)
    except InputError as error:
        if name:
            raise
        return unlabelled(count), None, (f"its labels are not used: {error}",)
    classes, notes = class_names(labels, _class_names(schema, column))
    return labels, classes, notes


def _label_column(path: str, schema: pa.Schema, name: str) -> str | None:
    if not name and "label" not in schema.names:
        return None
    name = name or "label"
    if name not in schema.names:
        raise InputError(f"{path} has no column {name!r}, only {', '.join(schema.names)}: correct ?label=")
    if not pa.types.is_integer(schema.field(name).type):
        raise InputError(f"{path}: label column {name!r} is {schema.field(name).type}, not an integer")
    return name


def _labels(paths: list[str], name: str, counts: list[int]) -> np.ndarray:
    try:  # cast first: an unsigned column cannot hold -1
        columns = [pq.read_table(path, columns=[name]).column(0).cast(pa.int64()) for path in paths]
        if [len(column) for column in columns] != counts:
            raise OSError("some are missing")
    except (pa.ArrowException, OSError) as error:
        reason = one_line(error)
        raise InputError(f"{paths[0]}: label column {name!r} holds no class numbers ({reason}): correct it") from error
    return np.concatenate([column.fill_null(-1).to_numpy() for column in columns])


def _class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """The class names that Hugging Face's datasets library keeps in the schema, or None."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [printable(str(name)) for name in features[label]["names"]]
    except (LookupError, TypeError, ValueError, RecursionError):  # binary, or nested without end
        return None
