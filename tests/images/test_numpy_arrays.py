"""Arrays of images in .npz, .npy and image tables."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import pictures

from stages.errors import InputError
from stages.files.images import (
    image_table,
    write_images,
)
from stages.images.sources import numpy_arrays
from stages.images.sources.open import open_source

STACK = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_is_what_numpy_loads(save: object, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    save(path, STACK)
    assert np.array_equal(pictures(f"npz:{path}"), np.load(path)["arr_0"])
    assert np.array_equal(pictures(f"npz:{path}", [1, 2, 6]), STACK[[1, 2, 6]])
    save(path, images=STACK[..., 0], labels=np.arange(7, dtype=np.uint8), faces=STACK[..., :1])
    assert np.array_equal(pictures(f"npz:{path}"), STACK[..., 0])
    assert np.array_equal(pictures(f"npz:{path}?images=faces"), STACK[..., 0])
    assert open_source(f"npz:{path}").labels.tolist() == list(range(7))


def test_npy_and_arrow(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.asfortranarray(STACK))
    assert np.array_equal(pictures(f"npz:{tmp_path / 'a.npy'}"), STACK)
    write_images(tmp_path / "a.arrow", image_table(STACK, np.arange(7), {"classes": list("abcdefg")}))
    source = open_source(f"arrow:{tmp_path / 'a.arrow'}")
    assert np.array_equal(pictures(source.spec), STACK)
    assert (source.classes, source.labels.tolist()) == (list("abcdefg"), list(range(7)))


def test_arrays_that_would_unpack_to_too_much_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "labels.npz", STACK, labels=np.zeros(10**6, np.int64))
    np.savez(tmp_path / "images.npz", STACK)
    np.save(tmp_path / "images.npy", STACK)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 4, 4)})
    with zipfile.ZipFile(tmp_path / "promises.npz", "w") as archive:
        archive.writestr("arr_0.npy", header.getvalue() + bytes(64))
    with pytest.raises(InputError, match="promises.npz is truncated"):
        open_source(f"npz:{tmp_path}/promises.npz")

    def never(*_: object, **__: object) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(np.lib.format, "read_array", never)
    with pytest.raises(InputError, match="must be 7 integers, not int64 .1000000,."):
        open_source(f"npz:{tmp_path}/labels.npz?labels=labels")
    monkeypatch.setattr(numpy_arrays, "MAX_PIXELS", 29)
    for name in ("images.npz", "images.npy"):
        with pytest.raises(InputError, match="has images of 5 x 6 pixels: more than 29 are refused"):
            open_source(f"npz:{tmp_path}/{name}")


def test_a_damaged_npz_stops_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, np.zeros((400, 32, 32, 3), np.uint8))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255  # wrong checksum
    path.write_bytes(data)
    with pytest.raises(InputError, match="damaged"):
        pictures(f"npz:{path}")
