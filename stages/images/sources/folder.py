"""folder:PATH: image files; sub-folders are classes; option split= where there are several."""

import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.images.decode import MAX_BYTES, UnreadableImage
from stages.images.sources.base import Raw, Source, existing, listed, printable
from stages.images.sources.image_names import HEAD, classes_of, sort_out
from stages.images.sources.splits import of_one_split

_KINDS = {".zip": "zip", ".parquet": "parquet", ".npz": "npz", ".npy": "npz", ".arrow": "arrow"}


class FolderSource(Source):
    """Image files below a folder, sorted by path. Links to folders are followed, each folder once."""

    whole_files = True

    def __init__(self, path: str, split: str = ""):
        self.root = existing(path)
        if not self.root.is_dir():
            kind = _KINDS.get(self.root.suffix.lower())
            remedy = f"use {kind}:{path}" if kind else "name the folder that holds the image files"
            raise InputError(f"image source folder:{path} is not a folder: {remedy}")
        names, skipped = sort_out(_files(self.root), lambda name: _head(self.root / name))
        names.sort()
        self.skipped = tuple(skipped)
        self.names = [names[place] for place in of_one_split(f"folder:{path}", names, split)]
        self.classes, self.labels = classes_of(f"folder:{path}", self.names)

    def where(self, row: int) -> str:
        return printable(str(self.root / self.names[row]))

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        # a file that cannot be opened has no bytes to depend on; once it can be, it is a further file
        paths = (self.root / self.names[row] for row in rows)
        return tuple(str(path) for path in paths if _reason(path) is None and _may_read(path))

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        yield from (file_contents(self.root / self.names[row]) for row in rows)


def file_contents(path: Path) -> Raw:
    """The bytes of an image file, or why there are none."""
    if reason := _reason(path):
        return UnreadableImage(reason)
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        return UnreadableImage(error.strerror or str(error))


def _may_read(path: Path) -> bool:
    return os.access(path, os.R_OK, effective_ids=os.access in os.supports_effective_ids)


def _reason(path: Path) -> str | None:
    """Why there is nothing to read at `path`; None for a regular file."""
    try:
        # opening a pipe would wait for a writer
        return None if stat.S_ISREG(os.stat(path).st_mode) else "not a regular file"
    except OSError as error:
        return error.strerror or str(error)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") if _reason(path) is None else io.BytesIO() as file:
            return file.read(HEAD)
    except OSError:
        return b""


def _files(root: Path) -> Iterator[str]:
    """Paths relative to `root`, with slashes, in no particular order."""
    for folder, files in listed(root):
        relative = folder.relative_to(root)
        yield from ((relative / file).as_posix() for file in files)
