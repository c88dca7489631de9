"""arrow:PATH: an image table of this project, or what Hugging Face's datasets library saved (`save_to_disk`)."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.errors import InputError, one_line
from stages.files.images import read_images
from stages.images.sources.base import ArraySource, Raw, Source, class_names, existing, listed, printable, regular_file
from stages.images.sources.parquet import image_bytes, image_column, labels_of, texts
from stages.images.sources.splits import of_one_split

TABLE = b"ARROW1"  # the first bytes of a table of this project; a stream has none


def open_arrow(path: str, image: str = "", label: str = "", split: str = "") -> Source:
    """The source at `path`: an image table, a stream of Hugging Face's columns, or a folder of such streams."""
    if existing(path).is_dir():
        return StreamSource(_streams(path, split), image, label)
    with regular_file(path).open("rb") as file:
        is_table = file.read(len(TABLE)) == TABLE
    return _image_table(path) if is_table else StreamSource([path], image, label)


def _image_table(path: str) -> Source:
    """The table as an array source, with its labels and the classes that its metadata names."""
    try:
        table = read_images(path)
    except InputError as error:
        raise InputError(f"image source: {path} is not an Arrow image table, or damaged: name another file") from error
    classes, notes = class_names(table.labels, table.metadata.get("classes"))
    source = ArraySource(path, table.images, table.labels, classes)
    source.whole_files, source.notes = True, notes
    return source


class StreamSource(Source):
    """The images of Arrow streams, file after file, memory-mapped. Columns are those of parquet:."""

    whole_files = True

    def __init__(self, paths: list[str], image: str = "", label: str = ""):
        self.paths = paths
        tables = [_stream(path) for path in paths]
        counts = [len(table) for table in tables]
        self.edges = np.concatenate([[0], np.cumsum(counts)])
        if any(table.schema.types != tables[0].schema.types for table in tables):
            raise InputError(f"image source: {paths[0]} and its neighbours have different columns: name one file")
        self.image = image_column(paths[0], tables[0].schema, image)

        def read(name: str) -> np.ndarray:
            return np.concatenate([_labels(path, table, name) for path, table in zip(paths, tables)])

        found = labels_of(paths[0], tables[0].schema, label, int(self.edges[-1]), read)
        self.labels, self.classes, self.notes = found

    def column(self, name: str) -> list[str]:
        tables = [_stream(path) for path in self.paths]
        if name not in tables[0].column_names or (name == "label" and self.classes):
            return super().column(name)
        return texts(table.column(name) for table in tables)

    def where(self, row: int) -> str:
        number = np.searchsorted(self.edges, row, side="right") - 1
        return printable(f"{self.paths[number]}#{row - self.edges[number]}")

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        numbers = np.unique(np.searchsorted(self.edges, np.asarray(rows, np.int64), side="right") - 1)
        return tuple(self.paths[number] for number in numbers)

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        opened, column = -1, None
        for row in rows:
            number = int(np.searchsorted(self.edges, row, side="right")) - 1
            if number != opened:
                opened, column = number, _stream(self.paths[number]).column(self.image)
            value = column[row - int(self.edges[number])].as_py()
            yield image_bytes(value.get("bytes") if isinstance(value, dict) else value)


def _streams(path: str, split: str) -> list[str]:
    names = sorted(str(folder / file) for folder, files in listed(path) for file in files)
    found = [name for name in names if name.endswith(".arrow") and not os.path.basename(name).startswith("cache-")]
    if not found:
        raise InputError(f"image source arrow:{path}: the folder holds no *.arrow files")
    places = of_one_split(f"arrow:{path}", [Path(name).relative_to(path).as_posix() for name in found], split)
    return [found[place] for place in places]


def _stream(path: str) -> pa.Table:
    try:
        with pa.memory_map(str(regular_file(path))) as file, pa.ipc.open_stream(file) as reader:
            return reader.read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"is not an Arrow image table and no readable Arrow stream ({one_line(error)})"
        raise InputError(f"image source: {path} {reason}: get it again, or name another file") from error


def _labels(path: str, table: pa.Table, name: str) -> np.ndarray:
    try:  # cast first: an unsigned column cannot hold -1
        return table.column(name).cast(pa.int64()).fill_null(-1).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"{path}: label column {name!r} holds no class numbers: correct it") from error
