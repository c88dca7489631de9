"""Images in memory as sources of an audit: they are written to files, losslessly, and read like any other source."""

import contextlib
import csv
import io
import json
import operator
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from stages.errors import InputError
from stages.files.artifacts import atomic_path
from stages.images.sources.open import READERS
from stages.images.sources.saved_dataset import SPLITS, STATE

Layout = Literal["NHWC", "NCHW"]
"""The axes of an array of images: number, height, width, channels."""

Images = Any
"""What `audit` takes; its docstring lists the kinds. The libraries that define them need not be installed."""

SUFFIXES = {".zip": "zip", ".parquet": "parquet", ".npz": "npz", ".npy": "npz", ".arrow": "arrow"}
BATCH = 1_000  # images that are written together
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
MEMBERS = ("image", "img")  # of items that are mappings, as the columns of parquet:


def as_source(role: str, images: Images, layout: Layout | None, folder: Path) -> str:
    """Return the source string of `images`. What is in memory is written into `folder`, as ROLE.npy or ROLE.parquet.

    layout: the axes of arrays with channels, or None where there are none. InputError names the argument `role`.
    """
    if layout not in (None, *get_args(Layout)):
        raise InputError(f"layout={layout!r}: it is one of {', '.join(get_args(Layout))}")
    if isinstance(images, str | os.PathLike):
        return _named(images)
    folder.mkdir(parents=True, exist_ok=True)
    array = _array(images)
    if array is not None:
        return _saved(folder / f"{role}.npy", _last_channels(role, array, layout, 4))
    return _written(role, images, layout, folder / f"{role}.parquet")


def write_groups(groups: Sequence[Any], column: str, path: Path) -> Path:
    """Write the groups of the samples, in order, as the column of a CSV file of the option --groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("row", column), *enumerate(map(str, groups))])
    return path


def _named(images: str | os.PathLike[str]) -> str:
    """The source of a path by what lies there; a string that begins with the name of a source is one."""
    name = os.fspath(images)
    if isinstance(images, str) and images.partition(":")[0] in READERS:
        return images
    saved = any((Path(name) / state).is_file() for state in (SPLITS, STATE))
    kind = "hf" if saved else "folder" if Path(name).is_dir() else SUFFIXES.get(Path(name).suffix.lower(), "folder")
    return f"{kind}:{name}"


def _library(name: str) -> Any:
    """A module that somebody else has imported, or None: nobody has an object of a module that is not imported."""
    return sys.modules.get(name)


def _array(images: Any) -> np.ndarray | None:
    """A NumPy array or a tensor as an array; None for anything else."""
    torch = _library("torch")
    if torch is not None and isinstance(images, torch.Tensor):
        return np.asarray(images.detach().cpu())
    return images if isinstance(images, np.ndarray) else None


def _last_channels(role: str, images: np.ndarray, layout: Layout | None, axes: int) -> np.ndarray:
    """`images` with the channels last; with one axis less than `axes` they have none and are grey."""
    if images.dtype != np.uint8:
        raise InputError(f"{role}: its images are {images.dtype}: convert them to uint8 in 0..255")
    if images.ndim == axes - 1:
        return images
    if images.ndim != axes:
        raise InputError(f"{role}: an array of shape {images.shape} holds no images: give (N, H, W) or {_forms()}")
    if layout is None:
        raise InputError(f"{role}: an array of shape {images.shape} needs layout=: {' or '.join(get_args(Layout))}")
    turned = np.moveaxis(images, -3, -1) if layout == "NCHW" else images
    if turned.shape[-1] not in (1, 3, 4):
        raise InputError(f"{role}: shape {images.shape} has {turned.shape[-1]} channels as {layout}: correct layout=")
    return turned


def _forms() -> str:
    return " or ".join(f"({', '.join(layout)})" for layout in get_args(Layout))


def _saved(path: Path, images: np.ndarray) -> str:
    with atomic_path(path) as temporary:
        np.save(temporary, np.ascontiguousarray(images))
    return f"npz:{path}"


def _written(role: str, images: Any, layout: Layout | None, path: Path) -> str:
    """A Parquet file of the encoded images, their labels and the names of the classes."""
    cells, classes = _dataset(role, images) or (_items(role, images, layout), getattr(images, "classes", None))
    known = {"info": {"features": {"label": {"names": list(map(str, classes or []))}}}}
    metadata = {b"huggingface": json.dumps(known).encode()} if classes else None
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind, "label": pa.int64()}, metadata)
    count = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as file:
        while rows := list(islice(cells, BATCH)):
            values = {"image": [{"bytes": data} for data, _ in rows], "label": [label for _, label in rows]}
            file.write_table(pa.Table.from_pydict(values, schema))
            count += len(rows)
    if count == 0:
        raise InputError(f"{role}: it holds no images")
    return f"parquet:{path}"


Cells = Iterator[tuple[bytes | None, int]]
"""The encoded bytes and the label (−1: none) of each image."""


def _dataset(role: str, images: Any) -> tuple[Cells, list[str] | None] | None:
    """The stored images of a `datasets.Dataset`, as they are, with the names of its classes; None for anything else."""
    datasets = _library("datasets")
    if datasets is None or not isinstance(images, datasets.Dataset | datasets.DatasetDict):
        return None
    if isinstance(images, datasets.DatasetDict):
        raise InputError(f"{role}: it holds the splits {', '.join(images)}: give one of them")
    found = [name for name, kind in images.features.items() if isinstance(kind, datasets.Image)]
    if len(found) != 1:
        raise InputError(f"{role}: its image columns are {found}: select_columns leaves one")
    labels = images.features.get("label")
    columns = found + ["label"] * isinstance(labels, datasets.ClassLabel)
    stored = images.with_format(None).select_columns(columns).cast_column(found[0], datasets.Image(decode=False))
    cells = ((_stored(row[found[0]]), _label(row.get("label"))) for row in stored)
    return cells, getattr(labels, "names", None)


def _stored(cell: dict[str, Any] | None) -> bytes | None:
    data: bytes | None = cell["bytes"] if cell else None
    return Path(cell["path"]).read_bytes() if cell and data is None and cell["path"] else data


def _items(role: str, images: Iterable[Any], layout: Layout | None) -> Cells:
    """The items of a sequence or of a data set of PyTorch: pictures, (picture, label, …) or mappings with both."""
    items: Iterable[Any] = images
    with contextlib.suppress(TypeError):  # PyTorch's data sets have a length, and not all of them end an iteration
        items = (images[row] for row in range(len(images)))  # type: ignore[arg-type, index]
    for row, item in enumerate(items):
        name, label = f"{role}[{row}]", None
        if isinstance(item, Mapping):
            label = item.get("label")
            item = next((item[member] for member in MEMBERS if member in item), None)
        elif isinstance(item, Sequence) and not isinstance(item, str | bytes) and item:
            item, label = item[0], item[1] if len(item) > 1 else None
        yield _png(name, item, layout), _label(label)


def _label(label: Any) -> int:
    """A class number; −1 for anything else."""
    try:
        return operator.index(label)
    except TypeError:
        return -1


def _png(name: str, item: Any, layout: Layout | None) -> bytes:
    """A picture as PNG, upright. item: of PIL, or uint8 with the axes of `layout` after the first."""
    array = _array(item)
    if array is not None:
        pixels = _last_channels(name, array, layout, 3)
        item = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    if not isinstance(item, Image.Image):
        raise InputError(f"{name} is {type(item).__name__}, no picture of PIL and no array: convert it")
    if item.mode not in PNG_MODES:
        raise InputError(f"{name} is a picture of mode {item.mode}: convert it to RGB or L")
    buffer = io.BytesIO()
    ImageOps.exif_transpose(item).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
