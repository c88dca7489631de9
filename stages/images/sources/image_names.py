"""File names in folders and archives: which are images, and which classes their folders name."""

from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.images.decode import SUFFIXES
from stages.images.sources.base import printable, unlabelled


def is_image(name: str) -> bool:
    """Whether the suffix is an image's; False for hidden files and for macOS's resource forks (__MACOSX)."""
    parts = name.split("/")
    return Path(name).suffix.lower() in SUFFIXES and not any(p.startswith(".") or p == "__MACOSX" for p in parts)


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
