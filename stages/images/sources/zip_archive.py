"""zip:PATH: image files in an archive, read in place; folders are classes; option split= as for folder:."""

import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from stages.errors import InputError
from stages.images.decode import MAX_BYTES, UnreadableImage
from stages.images.sources.base import Raw, Source, printable, regular_file
from stages.images.sources.image_names import HEAD, classes_of, sort_out
from stages.images.sources.splits import of_one_split

# RuntimeError: the entry is encrypted, or (NotImplementedError) its compression is unknown.
DAMAGE = (zipfile.BadZipFile, RuntimeError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError)


class ZipSource(Source):
    """Image files in a zip archive, sorted by name. Nothing is extracted to disk.

    Entries of more than MAX_BYTES, encrypted entries and those with a wrong checksum are unreadable images, and so are
    those packed with bzip2: Python unpacks a whole block of it, however little is asked for.
    """

    whole_files = True

    def __init__(self, path: str, split: str = ""):
        self.path = str(regular_file(path))
        try:
            with zipfile.ZipFile(self.path) as archive:
                entries, self.skipped = _images(archive)
        except DAMAGE as error:
            raise InputError(f"image source zip:{path} is not a readable zip archive ({error})") from error
        entries.sort(key=lambda entry: (entry.filename, entry.header_offset))
        places = of_one_split(f"zip:{path}", [entry.filename for entry in entries], split)
        self.entries = [entries[place] for place in places]
        self.classes, self.labels = classes_of(f"zip:{path}", [entry.filename for entry in self.entries])

    def where(self, row: int) -> str:
        return printable(f"{self.path}!{self.entries[row].filename}")

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return (self.path,)

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        with zipfile.ZipFile(self.path) as archive:
            yield from (_contents(archive, self.entries[row]) for row in rows)


def _images(archive: zipfile.ZipFile) -> tuple[list[zipfile.ZipInfo], tuple[str, ...]]:
    """The entries that are images, also where two have one name, and the names of the others."""
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    by_name = {entry.filename: entry for entry in entries}
    names, skipped = sort_out(by_name, lambda name: _head(archive, by_name[name]))
    wanted = set(names)
    return [entry for entry in entries if entry.filename in wanted], tuple(skipped)


def _head(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack whole blocks
        return b""
    try:
        with archive.open(entry) as file:
            return file.read(HEAD)
    except DAMAGE:
        return b""


def _contents(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Raw:
    if entry.file_size > MAX_BYTES:  # the declared size
        return UnreadableImage(f"{entry.file_size} bytes are more than {MAX_BYTES}")
    if entry.compress_type == zipfile.ZIP_BZIP2:
        return UnreadableImage("it is packed with bzip2, which unpacks without limit: pack it with deflate")
    try:
        with archive.open(entry) as file:
            return file.read(entry.file_size + 1)  # read() would unpack all, however little was declared
    except DAMAGE as error:
        return UnreadableImage.because(error)
