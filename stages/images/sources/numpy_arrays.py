"""npz:PATH: uint8 arrays (N, H, W) or (N, H, W, C) in .npz or .npy; options images= and labels= name the keys."""

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from stages.errors import InputError
from stages.images.decode import MAX_PIXELS
from stages.images.sources.base import ArraySource, Raw, Source, printable, regular_file, unlabelled

PACKED_IMAGES, PACKED_RATIO = 100_000, 200
"""An archive with more images than this may unpack to this many times its size. Each image costs memory, even a black
one; packed digits unpack to 5 times their size."""


PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What NumPy writes. The others unpack whole blocks, however little is asked for."""

# What damaged archives and headers raise; RuntimeError: an encrypted entry; NumPy parses headers as Python literals.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, tokenize.TokenError, SyntaxError,
    TypeError, OverflowError, MemoryError,
)  # fmt: skip


class NpzSource(ArraySource):
    """The array `key` of an .npz, streamed: only the wanted images are in memory, also from a compressed archive."""

    def __init__(self, path: str, key: str, labels: str):
        self.path, self.name = path, path
        with _opened(path) as archive:
            self.member = _member(path, archive, key, ("arr_0", "images"), "images")
            with archive.open(self.member) as file:
                shape, fortran, kind = _header(file)
                self.offset = file.tell()
            _check_images(f"{path}[{self.member.removesuffix('.npy')}]", shape, kind, fortran)
            if archive.getinfo(self.member).file_size < self.offset + math.prod(shape):
                raise InputError(f"{path} is truncated: write it again")
            packed = archive.getinfo(self.member).compress_size
            if shape[0] > PACKED_IMAGES and math.prod(shape) > PACKED_RATIO * packed:
                reason = f"{shape[0]} images from {packed} bytes, more than {PACKED_RATIO} times its size"
                raise InputError(f"{path} unpacks to {reason}: save it unpacked (np.savez)")
            self.labels, self.notes = _labels_or_note(path, archive, labels, shape[0])
        self.shape = shape[1:]

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        size = math.prod(self.shape)
        with _opened(self.path) as archive, archive.open(self.member) as file:
            for row in rows:
                file.seek(self.offset + row * size)  # forward, because `rows` ascend
                data = file.read(size)
                if len(data) != size:
                    raise InputError(f"{self.path} is truncated: write it again")
                yield np.frombuffer(data, np.uint8).reshape(self.shape)


def open_npz(path: str, images: str = "", labels: str = "") -> Source:
    """A source over an .npz, or over an .npy, which has no keys."""
    if regular_file(path).suffix != ".npy":
        return NpzSource(path, images, labels)
    if images or labels:
        raise InputError(f"image source npz:{path}: a .npy file has no keys: drop images= and labels=")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        reason = "damaged, or Python objects, which are never unpickled"
        raise InputError(f"image source npz:{path} is not a readable .npy file of numbers: {reason}") from error
    _check_images(path, array.shape, array.dtype)
    return ArraySource(path, array)


@contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """The archive at `path`; damage found while it is open raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            odd = {entry.filename for entry in archive.infolist() if entry.compress_type not in PACKINGS}
            if odd:
                raise InputError(f"{path}: {printable(min(odd))} is packed as NumPy never does: save it with np.savez")
            yield archive
    except InputError:
        raise
    except DAMAGE as error:
        reason = f"is damaged or not a readable .npz file ({error})"
        raise InputError(f"image source npz:{path} {reason}: write it again") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, Fortran order, dtype) of the .npy at the start of `file`, which is left at the first value."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _member(path: str, archive: zipfile.ZipFile, asked: str, usual: tuple[str, ...], option: str) -> str:
    """The archive's file of the key that was asked for, or else of the first usual key."""
    keys = [name.removesuffix(".npy") for name in archive.namelist()]
    found = [key for key in ((asked,) if asked else usual) if key in keys]
    if not found:
        wanted = asked or " or ".join(usual)
        raise InputError(f"{path} has no array {wanted}, only {', '.join(keys)}: name it with ?{option}=KEY")
    return f"{found[0]}.npy"


def _labels_or_note(path: str, archive: zipfile.ZipFile, asked: str, count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels; where nobody asked for them and they are not class numbers, none and a note."""
    try:
        return _labels(path, archive, asked, count), ()
    except InputError as error:
        if asked:
            raise
        return unlabelled(count), (f"its labels are not used: {error}",)


def _labels(path: str, archive: zipfile.ZipFile, asked: str, count: int) -> np.ndarray:
    if not asked and "labels.npy" not in archive.namelist():
        return unlabelled(count)
    member = _member(path, archive, asked, ("labels",), "labels")
    where = f"{path}[{member.removesuffix('.npy')}]"
    with archive.open(member) as file:
        shape, _, kind = _header(file)  # before anything is unpacked
    if kind.hasobject:
        raise InputError(f"{where} cannot be read without pickle: save integers")
    if shape not in ((count,), (count, 1)) or kind.kind not in "iu":
        raise InputError(f"{where} must be {count} integers, not {kind} {shape}")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False).astype(np.int64).reshape(count)


def _check_images(where: str, shape: tuple[int, ...], kind: np.dtype, fortran: bool = False) -> None:
    if kind != np.uint8:
        raise InputError(f"{where} is {kind}: convert the images to uint8 in 0..255")
    if not (len(shape) == 3 or (len(shape) == 4 and shape[3] in (1, 3, 4))) or shape[0] < 0 or min(shape[1:]) < 1:
        raise InputError(f"{where} has shape {shape}: images are (N, H, W) or (N, H, W, C) with C 1, 3 or 4")
    if shape[1] * shape[2] > MAX_PIXELS:
        raise InputError(f"{where} has images of {shape[1]} x {shape[2]} pixels: more than {MAX_PIXELS} are refused")
    if fortran:
        raise InputError(f"{where} is in Fortran order: save np.ascontiguousarray(images)")
