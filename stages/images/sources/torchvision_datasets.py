"""torchvision:NAME: a data set of torchvision.datasets; options root= and split=. Importing this imports torch."""

import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from PIL import Image

from stages.errors import InputError, one_line
from stages.images.decode import DAMAGE, SUFFIXES, UnreadableImage
from stages.images.sources.base import Raw, Source, printable, unlabelled
from stages.images.sources.folder import file_contents

DEFAULT_ROOT = ".scoresmooth/datasets"  # in the project's own cache folder


class TorchvisionSource(Source):
    """A data set of torchvision.datasets, downloaded where it is missing and torchvision can download it.

    Args:
        name: a class of torchvision.datasets that yields (picture, target): "CIFAR10", "CelebA", "ImageFolder".
        root: torchvision's `root`: the folder in which it looks for the data and puts downloads.
        split: the data set's own split ("train", "test", "valid"...); empty for its default, mostly train.

    Targets that are not one integer per image (CelebA's attributes) are not used as labels.
    """

    def __init__(self, name: str, root: str = "", split: str = ""):
        if name not in torchvision.datasets.__all__:
            known = ", ".join(sorted(torchvision.datasets.__all__))
            raise InputError(f"torchvision.datasets has no {name!r}: it has {known}")
        self.name, self.root = name, Path(root or DEFAULT_ROOT).expanduser()
        kind = getattr(torchvision.datasets, name)
        self.folder = _data_folder(kind, self.root)
        self.data = _open(kind, self.root, split, self.folder)
        self.paths = _image_paths(self.data, self.folder)
        self.whole_files = self.paths is not None
        self.labels = _labels(self.data)
        classes = getattr(self.data, "classes", None)
        has_names = (self.labels >= 0).any() and isinstance(classes, list)
        self.classes = [c if isinstance(c, str) else ", ".join(c) for c in classes] if has_names else None

    def where(self, row: int) -> str:
        return f"torchvision:{self.name}#{row}" if self.paths is None else printable(self.paths[row])

    def files(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        if self.paths is not None:
            return tuple(dict.fromkeys(self.paths[row] for row in rows))
        if "root" not in inspect.signature(type(self.data)).parameters:
            return ()  # FakeData has no files
        place = self.folder if self.folder.exists() else self.root
        return tuple(sorted(str(file) for file in place.rglob("*") if file.is_file()))

    def _raw(self, rows: list[int]) -> Iterator[Raw]:
        yield from (self._one(row) for row in rows)

    def _one(self, row: int) -> Raw:
        # torchvision's own loaders show what is hidden behind transparency and clip 16 bits to 8
        if self.paths is not None and Path(self.paths[row]).suffix.lower() in SUFFIXES:
            return file_contents(Path(self.paths[row]))
        try:
            picture = self.data[row][0]
        except DAMAGE as error:
            return UnreadableImage.because(error)
        if not isinstance(picture, (Image.Image, np.ndarray)):
            raise InputError(
                f"torchvision:{self.name} yields {type(picture).__name__}, not pictures: it cannot be used"
            )
        return picture


def _data_folder(kind: type, root: Path) -> Path:
    """The folder in which torchvision expects this data set's files."""
    if issubclass(kind, torchvision.datasets.MNIST):
        return root / kind.__name__ / "raw"
    base = getattr(kind, "base_folder", None)
    return root / base if isinstance(base, str) else root


def _open(kind: type, root: Path, split: str, folder: Path) -> Any:
    parameters = inspect.signature(kind).parameters
    arguments = {"root": str(root)} if "root" in parameters else {}
    arguments |= _split_arguments(kind.__name__, parameters, split)
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:  # a split it does not have, or an argument without a default
        raise InputError(f"torchvision:{kind.__name__}: {one_line(error)}") from error
    except (RuntimeError, OSError) as error:
        reason = error
    if "download" in parameters or issubclass(kind, torchvision.datasets.MNIST):
        try:
            root.mkdir(parents=True, exist_ok=True)
            return kind(**arguments, download=True)
        except (RuntimeError, OSError, ImportError) as error:
            reason = error
    raise InputError(
        f"torchvision:{kind.__name__} is not under {root} and could not be downloaded ({one_line(reason)}): "
        f"put its files into {os.path.abspath(folder)}, or name another place with ?root=PATH"
    ) from reason


def _split_arguments(name: str, parameters: Any, split: str) -> dict[str, Any]:
    if not split:
        return {}
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    allowed = "split=train or split=test" if "train" in parameters else "no split"
    raise InputError(f"torchvision:{name}?split={split}: this data set takes {allowed}")


def _image_paths(data: Any, folder: Path) -> list[str] | None:
    """The path of each image's file; None where the data set packs its images."""
    if isinstance(data, torchvision.datasets.CelebA):
        return [str(folder / "img_align_celeba" / name) for name in data.filename]
    for name in ("samples", "_samples", "_image_files", "_images"):
        found = getattr(data, name, None)
        if isinstance(found, list):
            return [str(entry[0] if isinstance(entry, tuple | list) else entry) for entry in found]
    return None


def _labels(data: Any) -> np.ndarray:
    """int64 (N,): one integer target per image, or -1. Read from the data set's table: no image is decoded."""
    for name in ("targets", "labels", "_labels"):
        labels = np.asarray(getattr(data, name, ()))
        if labels.shape == (len(data),) and labels.dtype.kind in "iu":
            return labels.astype(np.int64)
    return unlabelled(len(data))
