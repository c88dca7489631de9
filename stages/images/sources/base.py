"""What every image source offers: a lazily read sequence of images with labels."""

import dataclasses
import os
import stat
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stages.errors import InputError, one_line
from stages.images.decode import UnreadableImage, decode

Raw = bytes | np.ndarray | Image.Image | UnreadableImage
"""An image before decoding: its encoded bytes, its pixels, an opened picture, or the reason why it cannot be read."""


UNPRINTABLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Unicode's categories of controls, formats (direction marks), unassigned characters and line separators."""


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image as a source holds it.

    Attributes:
        row: its row in the source.
        where: the name by which a person finds it again ("cats/7.png", "train.parquet#12").
        label: class index; -1 without a label.
        image: the decoded, upright picture; None where it is unreadable.
        error: the reason why it is unreadable, or None.
    """

    row: int
    where: str
    label: int
    image: Image.Image | None
    error: str | None

    def picture(self) -> Image.Image:
        """The decoded picture; UnreadableImage with the reason where it is unreadable."""
        if self.image is None:
            raise UnreadableImage(self.error)
        return self.image


class Source(ABC):
    """A sequence of images with labels. Opening reads no pixels; iterating decodes one image at a time.

    Attributes:
        spec: the specification it was opened with.
        labels: int64 (N,), known without decoding; -1 without a label.
        classes: the classes' names, indexed by label, or None.
        skipped: the names of files at its place that are not images.
        notes: what else of it was not used, a sentence each.
        whole_files: whether all images of its files are its own: two such sources of one file share images.
    """

    spec: str
    labels: np.ndarray
    classes: list[str] | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    whole_files: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[SourceImage]:
        return self.read(range(len(self)))

    def read(self, rows: Sequence[int] | np.ndarray) -> Iterator[SourceImage]:
        """Decode the images of `rows`, which must ascend, one by one."""
        rows = [int(row) for row in rows]
        if any(b <= a for a, b in zip(rows, rows[1:])) or (rows and not 0 <= rows[0] <= rows[-1] < len(self)):
            raise ValueError(f"rows must ascend within 0..{len(self) - 1}")
        for row, raw in zip(rows, self._raw(rows), strict=True):
            image, error = _decoded(raw)
            yield SourceImage(row, self.where(row), int(self.labels[row]), image, error)

    def column(self, name: str) -> list[str]:
        """What the column `name` says of each image, as text. `label` is the class. InputError without this column."""
        if name != "label" or (len(self) and self.labels.max() < 0):
            raise InputError(
                f"image source {self.spec} has no column {name!r}: name one of its table, or give --groups"
            )
        return [self.classes[label] if self.classes and label >= 0 else str(label) for label in self.labels.tolist()]

    @abstractmethod
    def where(self, row: int) -> str:
        """The name of this row's image for a person. Together with the bytes of `files` it determines the image."""

    @abstractmethod
    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        """The files whose bytes determine the images of `rows`, each once, in order."""

    @abstractmethod
    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        """The stored form of each of `rows`, in order."""


def _decoded(raw: Raw) -> tuple[Image.Image | None, str | None]:
    try:
        if isinstance(raw, UnreadableImage):
            raise raw
        return decode(raw), None
    except UnreadableImage as error:
        return None, str(error)


class ArraySource(Source):
    """Images as one uint8 array (N, H, W) or (N, H, W, C), in memory or memory-mapped.

    path: the file that holds the array. name: what `where` calls it.
    """

    def __init__(
        self,
        path: str,
        images: np.ndarray,
        labels: np.ndarray | None = None,
        classes: list[str] | None = None,
        name: str = "",
    ):
        self.path, self.images, self.name, self.classes = path, images, name or path, classes
        self.labels = unlabelled(len(images)) if labels is None else labels

    def where(self, row: int) -> str:
        return f"{self.name}#{row}"

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return (self.path,)

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        yield from (np.asarray(self.images[row]) for row in rows)


def check_apart(unseen: Source, train: Source, keys: tuple[str, str]) -> None:
    """InputError where unseen images come from the files of the training images.

    keys: the options or keys of params.yaml that name the two sources.
    """
    shared = [] if unseen.spec != train.spec else [unseen.spec]
    if not shared and unseen.whole_files and train.whole_files:
        known = {os.path.realpath(path) for path in train.files(range(len(train)))}
        shared = [path for path in unseen.files(range(len(unseen))) if os.path.realpath(path) in known]
    if shared:
        raise InputError(
            f"{keys[0]} {unseen.spec} lies inside {keys[1]} {train.spec}: both read {printable(shared[0])}"
            f"{f' and {len(shared) - 1:,} more files' if len(shared) > 1 else ''}: give images that the model was not "
            "trained on"
        )


def unlabelled(count: int) -> np.ndarray:
    """The labels of `count` images without labels: int64 (count,), all -1."""
    return np.full(count, -1, np.int64)


def class_names(labels: np.ndarray, classes: list[str] | None) -> tuple[list[str] | None, tuple[str, ...]]:
    """The names where every label has one, else None; and a note where names are dropped."""
    most = int(labels.max(initial=-1))
    if classes is None or most < len(classes):
        return classes, ()
    return None, (f"label {most} has no name among the {len(classes)} class names: the names are not used",)


def existing(path: str) -> Path:
    """`path`, or InputError where nothing has this name."""
    try:
        os.stat(path)
    except FileNotFoundError:
        raise InputError(f"image source: {path} does not exist (looked from {Path.cwd()})") from None
    except (OSError, ValueError) as error:  # no permission, a loop of links, a zero byte in the name
        raise InputError(f"image source: {path!r} cannot be opened ({one_line(error)}): correct the path") from error
    return Path(path)


def regular_file(path: str | Path) -> Path:
    """`path`, or InputError unless it is a file with contents: reading a pipe, a device or /proc need not end."""
    status = os.stat(existing(str(path)))
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        kind = "is empty" if stat.S_ISREG(status.st_mode) else "is not a regular file"
        raise InputError(f"image source: {path} {kind}: name a file that holds images")
    return Path(path)


def listed(folder: Path | str) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `folder`, links followed and each folder once, with its files' names.

    A folder that cannot be listed raises InputError: its images would be left out silently.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"image source: {error.filename} cannot be read ({error.strerror}): make it readable")

    seen = set()
    for place, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link back up would never end
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below.sort()
        yield Path(place), files


def printable(path: str) -> str:
    """A path as text that changes no terminal and no page: file names can be any bytes.

    Control characters and those that reorder text (ESC, right-to-left marks) are written as \\x1b, \\u202e.
    """
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(_escaped(letter) if unicodedata.category(letter) in UNPRINTABLE else letter for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
