"""The image table: uint8 pixels, ids and labels in one memory-mapped Arrow file.

Layout (Arrow IPC, one record batch, so that reading is zero-copy):
    id     string                                   sha256 of shape and pixels
    label  int64                                    -1 where the source has none
    image  fixed_shape_tensor<uint8, (H, W, C)>     C is 1 (grey) or 3 (RGB)
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.errors import InputError
from stages.files.arrow import column_array, fixed_lists, open_table, write_table
from stages.files.artifacts import read_metadata


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
    """A zeroed uint8 array of `shape` on disk in `folder`, gone afterwards (also when the process is killed).

    What is too large for memory is put together here before `write_images`.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder, prefix=".pixels.") as file:
        if 0 in shape:  # an empty file cannot be mapped
            yield np.zeros(shape, np.uint8)
            return
        file.truncate(int(np.prod(shape, dtype=np.int64)))
        yield np.memmap(file, np.uint8, "r+", shape=shape)


def write_selection(
    path: Path | str,
    tables: Sequence[ImageTable],
    picks: np.ndarray,
    labels: np.ndarray | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write rows of several image tables as one table, without holding their pixels in memory.

    Args:
        path: the new table's file.
        tables: image tables of one image shape.
        picks: int64 (N, 2): for each new row, which table and which of its rows.
        labels: int64 (N,); the tables' own labels where None.
        metadata: JSON values for the file's schema.
    """
    picks = np.asarray(picks, dtype=np.int64).reshape(-1, 2)
    ids = [tables[table].ids[row] for table, row in picks]
    if labels is None:
        labels = np.array([tables[table].labels[row] for table, row in picks], np.int64)
    with scratch_pixels(Path(path).parent, (len(picks), *tables[0].images.shape[1:])) as pixels:
        for new, (table, row) in enumerate(picks):
            pixels[new] = tables[table].images[row]
        return write_images(path, ImageTable(pixels, ids, labels, metadata or {}))


def read_images(path: Path | str) -> ImageTable:
    """Memory-map an image table; a missing, truncated or foreign file raises InputError."""
    arrow = open_table(path, "image table", ("id", "label", "image"))
    return ImageTable(
        images=column_array(arrow, "image"),
        ids=arrow.column("id").to_pylist(),
        labels=arrow.column("label").to_numpy(),
        metadata=read_metadata(arrow.schema),
    )
