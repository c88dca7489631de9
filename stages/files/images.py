"""The image table: uint8 pixels, ids and labels in one memory-mapped Arrow file.

Layout (Arrow IPC, one record batch, so that reading is zero-copy):
    id     string                                   sha256 of shape and pixels
    label  int64                                    -1 where the source has none
    image  fixed_shape_tensor<uint8, (H, W, C)>     C is 1 (grey) or 3 (RGB)
"""

import dataclasses
import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import InputError, one_line
from stages.files.arrow import column_array, fixed_lists, open_table, read_metadata, write_table

BLOCK_ROWS = 1024  # rows that are copied together


def image_id(image: np.ndarray) -> str:
    """Hex sha256 of an image's shape and pixels. image: uint8 (H, W, C)."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """Images with their ids and labels, row by row.

    Attributes:
        images: uint8 (N, H, W, C), a read-only view of the memory-mapped file where it was read.
        ids: N strings; equal ids are equal images.
        labels: int64 (N,); -1 means unlabelled.
        metadata: JSON values from the file's schema.
    """

    images: np.ndarray
    ids: list[str]
    labels: np.ndarray
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """d = H·W·C."""
        return int(np.prod(self.images.shape[1:]))

    @property
    def flat(self) -> np.ndarray:
        """The pixels as uint8 (N, d)."""
        return self.images.reshape(len(self), self.dimension)

    def take(self, rows: np.ndarray) -> "ImageTable":
        """The table of these rows, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        return ImageTable(self.images[rows], [self.ids[row] for row in rows], self.labels[rows], self.metadata)


def image_table(
    images: np.ndarray, labels: np.ndarray | None = None, metadata: dict[str, Any] | None = None
) -> ImageTable:
    """A table of `images`, uint8 (N, H, W, C), with computed ids. labels: int64 (N,) or None."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}")
    labels = np.full(len(images), -1, dtype=np.int64) if labels is None else np.asarray(labels, dtype=np.int64)
    if labels.shape != (len(images),):
        raise InputError(f"labels must have shape ({len(images)},), not {labels.shape}")
    return ImageTable(images, [image_id(image) for image in images], labels, metadata or {})


def write_images(path: Path | str, table: ImageTable) -> Path:
    """Write an image table atomically. `table.images` may be a memory map larger than memory."""
    kind = pa.fixed_shape_tensor(pa.uint8(), table.images.shape[1:])
    columns = {
        "id": pa.array(table.ids, pa.string()),
        "label": pa.array(table.labels, pa.int64()),
        "image": pa.ExtensionArray.from_storage(kind, fixed_lists(table.flat)),
    }
    return write_table(path, columns, table.metadata)


@contextmanager
def scratch_pixels(folder: Path | str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A zeroed uint8 array of `shape` in a file of `folder` that vanishes afterwards, even if the process is killed.

    Images that are too many for memory are collected in it before `write_images`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".pixels.") as file:
        if 0 in shape:  # an empty file cannot be mapped
            yield np.zeros(shape, np.uint8)
            return
        try:  # a page without room would end the process with SIGBUS
            os.posix_fallocate(file.fileno(), 0, math.prod(shape))
        except OSError as error:
            size = f"{math.prod(shape):,} bytes"
            raise InputError(f"{folder} has no room for {size} of pixels ({error.strerror}): free some") from error
        yield np.memmap(file, np.uint8, "r+", shape=shape)


class JoinedTables:
    """Several image tables of one shape as one sequence of rows, table after table.

    Attributes: tables; ids (N strings); labels int64 (N,); shape (H, W, C); edges int64 (tables + 1,): first rows.
    """

    def __init__(self, tables: Sequence[ImageTable]):
        shapes = {table.images.shape[1:] for table in tables}
        if len(shapes) != 1:
            raise InputError(f"image tables have different shapes {sorted(shapes)}: run ingest again")
        self.tables, (self.shape,) = list(tables), shapes
        self.edges = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
        self.ids = [name for table in tables for name in table.ids]
        self.labels = np.concatenate([table.labels for table in tables])
        self.dimension = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The number of the table that holds each row, and the row's number within it."""
        table = np.searchsorted(self.edges, rows, side="right") - 1
        return table, rows - self.edges[table]

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """A copy of these rows' images, uint8 (len(rows), H, W, C)."""
        pixels = np.empty((len(rows), *self.shape), np.uint8)
        table, row = self.locate(rows)
        for number, source in enumerate(self.tables):
            pixels[table == number] = source.images[row[table == number]]
        return pixels


def write_selection(
    path: Path | str,
    images: JoinedTables,
    rows: np.ndarray,
    labels: np.ndarray | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write these rows, int64 (N,), as one image table, without holding their pixels in memory.

    labels: int64 (N,); the images' own where None. metadata: JSON values for the file's schema.
    """
    labels = images.labels[rows] if labels is None else labels
    with scratch_pixels(Path(path).parent, (len(rows), *images.shape)) as pixels:
        for start in range(0, len(rows), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            pixels[block] = images.pixels(rows[block])
        return write_images(path, ImageTable(pixels, [images.ids[row] for row in rows], labels, metadata or {}))


def read_images(path: Path | str) -> ImageTable:
    """Memory-map an image table; a missing, truncated or foreign file raises InputError."""
    arrow = open_table(path, "image table", ("id", "label", "image"))
    kinds, image = [arrow.schema.field(name).type for name in ("id", "label")], arrow.schema.field("image").type
    pixels = isinstance(image, pa.FixedShapeTensorType) and image.value_type == pa.uint8() and len(image.shape) == 3
    if kinds != [pa.string(), pa.int64()] or not pixels or any(column.null_count for column in arrow.columns):
        raise InputError(f"{path} is not an Arrow image table (its columns are of other types): write it again")
    try:
        ids, metadata = arrow.column("id").to_pylist(), read_metadata(arrow.schema)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested without end
        raise InputError(f"{path} is not an Arrow image table ({one_line(error)}): write it again") from error
    return ImageTable(column_array(arrow, "image"), ids, arrow.column("label").to_numpy(), metadata)


def require_rows(ids: list[str], path: Path | str, images: ImageTable, images_path: Path | str, stage: str) -> None:
    """Raise InputError unless the table at `path`, with these ids, has the images' rows; `stage` writes that table."""
    if ids != images.ids:
        raise InputError(f"{path} does not hold the rows of {images_path}: rerun stage {stage}")


def class_sizes(labels: np.ndarray, key: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The classes, ascending, and the number of images in each, int64. labels: int64 (N,) of a split's images.

    Unlabelled images raise InputError that names `key`, the parameter that needs labels.
    """
    unlabelled = int((labels < 0).sum())
    if unlabelled:
        raise InputError(f"{key}: {unlabelled} of {len(labels)} {split} images have no label: set it to false")
    return np.unique(labels, return_counts=True)
