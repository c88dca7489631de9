"""Files in folders and archives: which are images, by name or by content, and which classes their folders name."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.images.decode import SUFFIXES
from stages.images.sources.base import printable, unlabelled

HEAD = 16  # bytes that tell an image
# The first bytes of formats. TIFF is not told by content: cameras' raw files begin like it and hold a small preview.
SIGNATURES = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  \r\n\x87\n",
    b"\xff\x4f\xff\x51",
)


def sort_out(names: Iterable[str], head: Callable[[str], bytes]) -> tuple[list[str], list[str]]:
    """Return the names of images and of other files. Hidden files and macOS's resource forks (__MACOSX) are neither.

    head: a name -> the first HEAD bytes of the file; asked for where the suffix is not an image's.
    """
    images, others = [], []
    for name in names:
        if not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")):
            found = Path(name).suffix.lower() in SUFFIXES or is_image(head(name))
            (images if found else others).append(name)
    return images, others


def is_image(head: bytes) -> bool:
    """Whether the first HEAD bytes of a file are an image's."""
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith(SIGNATURES) or bitmap or webp or head[4:12] in (b"ftypavif", b"ftypavis")


def skipped_words(names: list[str]) -> str:
    """Tell of files that are not images: "7 files are not images and were skipped: 5 .txt, 2 without ending".

    Names that are "" are counted only.
    """
    endings = Counter(Path(name).suffix.lower() or "without ending" for name in names if name).most_common()
    shown = ", ".join(f"{count:,} {printable(ending)}" for ending, count in endings[:5])
    more = ", …" if len(endings) > 5 else ""
    one = len(names) == 1
    said = f"{len(names):,} {'file is not an image and was' if one else 'files are not images and were'} skipped"
    return f"{said}: {shown}{more}" if endings else said


def classes_of(source: str, names: list[str]) -> tuple[list[str] | None, np.ndarray]:
    """Class names and labels (int64) of images from their relative paths, whose folders separate with "/".

    The classes are the folders of the first level that has several. Without such a level, and where an image lies
    outside them, there are no classes. No names at all raise InputError with `source`, the specification.
    """
    if not names:
        raise InputError(f"image source {source} holds no images ({', '.join(sorted(SUFFIXES))})")
    parts = [name.split("/") for name in names]
    while all(len(path) > 1 for path in parts) and len({path[0] for path in parts}) == 1:
        parts = [path[1:] for path in parts]
    if any(len(path) == 1 for path in parts):
        return None, unlabelled(len(names))
    classes = sorted({path[0] for path in parts})
    index = {name: label for label, name in enumerate(classes)}
    return [printable(name) for name in classes], np.array([index[path[0]] for path in parts], np.int64)
