"""The data sets of torchvision.datasets as image sources. Apart from the other sources because it imports torch."""

import inspect
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision.datasets
from PIL import Image

from stages.errors import InputError
from stages.images.decode import DAMAGE, UnreadableImage
from stages.images.sources import Raw, Source

DEFAULT_ROOT = ".scoresmooth/datasets"  # in the project's own cache folder


class TorchvisionSource(Source):
    """One data set of torchvision.datasets, downloaded where it is missing and torchvision knows how.

    Args:
        name: a class of torchvision.datasets that yields (picture, target): "CIFAR10", "CelebA", "ImageFolder".
        root: torchvision's `root`: the folder in which it looks for the data and puts downloads.
        split: the data set's own split ("train", "test", "valid"…); its default where empty, which is mostly train.

    Targets that are not one integer per image (CelebA's attributes) are no labels.
    """

    def __init__(self, name: str, root: str = "", split: str = ""):
        self.name, self.root = name, Path(root or DEFAULT_ROOT).expanduser()
        kind = _data_set_class(name)
        self.folder = _data_folder(kind, self.root)
        self.data = _open(kind, self.root, _split_arguments(kind, split), self.folder)
        self.paths = _image_paths(self.data, self.folder)
        self.labels = _labels(self.data)
        classes = getattr(self.data, "classes", None)
        has_names = (self.labels >= 0).any() and isinstance(classes, list)
        self.classes = [c if isinstance(c, str) else ", ".join(c) for c in classes] if has_names else None

    def where(self, row: int) -> str:
        return f"torchvision:{self.name}#{row}" if self.paths is None else self.paths[row]

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
        try:
            picture = self.data[row][0]
        except DAMAGE as error:
            return UnreadableImage.because(error)
        if not isinstance(picture, (Image.Image, np.ndarray)):
            raise InputError(
                f"torchvision:{self.name} yields {type(picture).__name__}, not pictures: it cannot be used"
            )
        return picture


def _data_set_class(name: str) -> type:
    if name not in torchvision.datasets.__all__:
        known = ", ".join(sorted(torchvision.datasets.__all__))
        raise InputError(f"torchvision.datasets has no {name!r}: it has {known}")
    return getattr(torchvision.datasets, name)


def _data_folder(kind: type, root: Path) -> Path:
    """Where torchvision expects this data set's files."""
    if issubclass(kind, torchvision.datasets.MNIST):
        return root / kind.__name__ / "raw"
    base = getattr(kind, "base_folder", None)
    return root / base if isinstance(base, str) else root


def _split_arguments(kind: type, split: str) -> dict[str, Any]:
    parameters = inspect.signature(kind).parameters
    if not split:
        return {}
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    allowed = "split=train or split=test" if "train" in parameters else "no split"
    raise InputError(f"torchvision:{kind.__name__}?split={split}: this data set takes {allowed}")


def _open(kind: type, root: Path, arguments: dict[str, Any], folder: Path) -> Any:
    parameters = inspect.signature(kind).parameters
    if "root" in parameters:
        arguments = {"root": str(root), **arguments}
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:  # a split it does not have, or an argument that has no default
        raise InputError(f"torchvision:{kind.__name__}: {_line(error)}") from error
    except (RuntimeError, OSError) as error:
        reason = error
    if "download" in parameters or issubclass(kind, torchvision.datasets.MNIST):
        try:
            root.mkdir(parents=True, exist_ok=True)
            return kind(**arguments, download=True)
        except (RuntimeError, OSError, ImportError) as error:
            reason = error
    raise InputError(
        f"torchvision:{kind.__name__} is not under {root} and could not be downloaded ({_line(reason)}): "
        f"put its files into {os.path.abspath(folder)}, or name another place with ?root=PATH"
    ) from reason


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _image_paths(data: Any, folder: Path) -> list[str] | None:
    """One file per image, where the data set is kept so; None where it packs them."""
    if isinstance(data, torchvision.datasets.CelebA):
        return [str(folder / "img_align_celeba" / name) for name in data.filename]
    for name in ("samples", "_samples"):
        if isinstance(getattr(data, name, None), list):
            return [str(sample[0]) for sample in getattr(data, name)]
    for name in ("_image_files", "_images"):
        if isinstance(getattr(data, name, None), list):
            return [str(path) for path in getattr(data, name)]
    return None


def _labels(data: Any) -> np.ndarray:
    """int64 (N,): one integer target per image, or -1. Read from the data set's table: no image is decoded."""
    for name in ("targets", "labels", "_labels"):
        values = getattr(data, name, None)
        if values is None:
            continue
        labels = np.asarray(values)
        if labels.shape == (len(data),) and labels.dtype.kind in "iu":
            return labels.astype(np.int64)
    return np.full(len(data), -1, np.int64)
