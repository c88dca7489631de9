"""Files that somebody made to harm: each is an error of one line or a rejected image, in bounded memory and time."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png, values, write_shard, write_tree, write_zip

from stages.errors import InputError
from stages.files.images import image_table, read_images, write_images
from stages.images.sources import base, folder, numpy_arrays
from stages.images.sources.open import open_source
from stages.images.sources.parquet import ParquetSource

HUGE = 200_000_000
SUFFIXES = {"zip": "zip", "npz": "npz", "parquet": "parquet", "arrow": "arrow"}


def declared_as(path: Path, size: int) -> Path:
    """Let every entry of an archive declare `size` bytes, in both of its headers."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = 0
        while (start := data.find(mark, start)) >= 0:
            struct.pack_into("<I", data, start + offset, size)
            start += 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["ZIP_DEFLATED", "ZIP_LZMA", "ZIP_BZIP2"])
def test_a_zip_entry_that_declares_less_than_it_unpacks_to(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, kind)) as archive:
        archive.writestr("a.png", bytes(HUGE))
    declared_as(path, 1000)
    source = open_source(f"zip:{path}")
    tracemalloc.start()
    try:
        (item,) = source
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert item.image is None
    assert "\n" not in item.error
    assert peak < HUGE / 2


@pytest.mark.parametrize("kind", ["ZIP_STORED", "ZIP_DEFLATED", "ZIP_LZMA"])
def test_an_honest_zip_is_read_to_its_end(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", getattr(zipfile, kind)) as archive:
        archive.writestr("a.png", png(7, 300))
    assert values(f"zip:{tmp_path / 'a.zip'}") == [7]


def npy(shape: tuple[int, ...], body: bytes, kind: str = "|u1") -> bytes:
    """An array file with this header, whatever follows it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + body


GOOD = npy((5, 4, 4), bytes(80))
ARCHIVES = {
    "negative count": {"arr_0.npy": npy((-5, 4, 4), bytes(80))},
    "negative sides": {"arr_0.npy": npy((5, -4, -4), bytes(80))},
    "negative channels": {"arr_0.npy": npy((-5, 4, 4, -3), bytes(240))},
    "cut header": {"arr_0.npy": b"\x93NUMPY\x01\x00\xff\xff"},
    "endless header": {"arr_0.npy": b"\x93NUMPY\x01\x00\xff\x00" + b"(" * 255},
    "no header": {"arr_0.npy": b"\x93NUM"},
    "short labels": {"arr_0.npy": GOOD, "labels.npy": npy((5,), bytes(8), "<i8")},
    "few labels": {"arr_0.npy": GOOD, "labels.npy": npy((4,), bytes(32), "<i8")},
    "negative labels": {"arr_0.npy": GOOD, "labels.npy": npy((-5,), bytes(40), "<i8")},
    "labels without a header": {"arr_0.npy": GOOD, "labels.npy": b""},
    "pickled labels": {"arr_0.npy": GOOD, "labels.npy": npy((5,), b"cos\nsystem\n", "|O")},
}


@pytest.mark.parametrize("entries", ARCHIVES.values(), ids=ARCHIVES)
def test_a_damaged_npz_is_one_line(entries: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match=r"a\.npz") as caught:
        values(f"npz:{path}{'?labels=labels' if 'labels.npy' in entries else ''}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"x", npy((5, -4, -4), bytes(80)), npy((5, 4, 4), b""), npy((-1, 4, 4), b"")])
def test_a_damaged_npy_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.npy"):
        values(f"npz:{tmp_path / 'a.npy'}")


def test_millions_of_images_from_a_small_npz_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numpy_arrays, "PACKED_IMAGES", 1000)
    path = tmp_path / "a.npz"
    np.savez_compressed(path, np.zeros((1001, 28, 28), np.uint8))
    with pytest.raises(InputError, match=r"a\.npz unpacks to 1001 images from \d+ bytes, more than 200 times"):
        open_source(f"npz:{path}")
    np.savez_compressed(path, np.zeros((1000, 28, 28), np.uint8))  # few
    assert len(open_source(f"npz:{path}")) == 1000
    np.savez(path, np.zeros((1001, 28, 28), np.uint8))  # not packed
    assert len(open_source(f"npz:{path}")) == 1001


@pytest.mark.parametrize("kind", ["ZIP_LZMA", "ZIP_BZIP2"])
def test_an_npz_packed_without_bounds_is_refused(kind: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", getattr(zipfile, kind)) as archive:
        archive.writestr("arr_0.npy", GOOD)
    with pytest.raises(InputError, match=r"a\.npz: arr_0\.npy is packed as NumPy never does"):
        open_source(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("what", ["pipe", "zero", "proc", "folder", "empty", "loop", "nowhere"])
def test_only_regular_files_are_opened(kind: str, what: str, tmp_path: Path) -> None:
    """In a process of its own, which would hang."""
    path = tmp_path / f"a.{SUFFIXES[kind]}"
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.touch()
    else:
        target = {"zero": "/dev/zero", "proc": "/proc/self/status", "loop": path, "nowhere": tmp_path / "nothing"}
        path.symlink_to(target[what])
    code = "import sys; from stages.images.sources.open import open_source; list(open_source(sys.argv[1]))"
    command = [sys.executable, "-c", code, f"{kind}:{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stages.errors.InputError: "), done.stderr
    assert path.name in last


DEEP = b'{"info": ' * 100_000


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", DEEP, b"[]", b'{"info": {"features": {"label": {"names": 3}}}}'])
def test_foreign_metadata_of_a_parquet_names_no_classes(content: bytes, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 3)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"huggingface": content}), path)
    source = open_source(f"parquet:{path}")
    assert source.classes is None
    assert values(f"parquet:{path}") == [0, 1, 2]


def test_flipped_bytes_of_a_parquet_are_one_line_or_rejected_images(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 20)
    good, draws = path.read_bytes(), np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(good)
        for place in draws.integers(0, len(good), 4):
            data[place] = draws.integers(0, 256)
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            values(f"parquet:{path}")


COLUMNS = {
    "text": pa.array(["a"]),
    "lists": pa.array([[1]], pa.list_(pa.uint8(), 1)),
    "floats": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (1, 1, 1)), pa.array([[1.0]], pa.list_(pa.float32(), 1))
    ),
    "flat": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.uint8(), (1,)), pa.array([[1]], pa.list_(pa.uint8(), 1))
    ),
}


@pytest.mark.parametrize("image", COLUMNS.values(), ids=COLUMNS)
def test_an_arrow_file_of_other_columns_is_one_line(image: pa.Array, tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(["a"]), "label": pa.array([1], pa.int64()), "image": image})
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"a\.arrow is not an Arrow image table"):
        open_source(f"arrow:{tmp_path / 'a.arrow'}")


@pytest.mark.parametrize("content", [b"\xff", DEEP, b"no JSON"])
def test_foreign_metadata_of_an_arrow_file_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.arrow", image_table(np.zeros((2, 4, 4, 1), np.uint8)))
    table = pa.ipc.open_file(str(path)).read_all().replace_schema_metadata({b"classes": content})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(InputError, match=r"a\.arrow is not an Arrow image table"):
        read_images(path)


@contextlib.contextmanager
def another_user(place: Path) -> Iterator[None]:
    """Work in `place` without root's rights, which no mode of a file limits."""
    place.chmod(0o755)
    before, user = Path.cwd(), os.geteuid()
    os.chdir(place)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        os.chdir(before)


@pytest.mark.parametrize("mode", [0o000, 0o444])
def test_files_and_folders_that_may_not_be_read(mode: int, tmp_path: Path) -> None:
    root = write_tree(tmp_path / "images", {"a/1.png": 1, "b/2.png": 2})
    path = write_zip(tmp_path / "a.zip", {"a.png": 1})
    parquet = write_shard(tmp_path / "c" / "a.parquet", 0, 3)
    (root / "b" / "2.png").chmod(0o000)
    path.chmod(0o000)
    with another_user(tmp_path):
        assert values("folder:images") == [1, "Permission denied"]
        assert open_source("folder:images").files([0, 1]) == ("images/a/1.png",)
        with pytest.raises(InputError, match=r"a\.zip"):
            open_source("zip:a.zip")
    (root / "b").chmod(mode)
    parquet.parent.chmod(mode)
    with another_user(tmp_path):
        if mode == 0o000:  # nothing tells that it holds images
            with pytest.raises(InputError, match="images/b cannot be read .Permission denied.: make it readable"):
                open_source("folder:images")
            with pytest.raises(InputError, match="c cannot be read .Permission denied.: make it readable"):
                ParquetSource("c")
        else:  # its names can be read, and nothing behind them
            assert values("folder:images") == [1, "Permission denied"]
            with pytest.raises(InputError, match=r"c/a\.parquet"):
                ParquetSource("c")
        with pytest.raises(InputError, match="c/a.parquet"):
            open_source("parquet:c/a.parquet")
    (root / "b").chmod(0o755)
    parquet.parent.chmod(0o755)


def test_a_file_on_a_failing_disk_is_a_rejected_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, {"a.png": 1, "b.png": 2})

    def fail(path: Path, mode: str) -> io.IOBase:
        if path.name == "b.png":
            raise OSError(5, "Input/output error")
        return open(path, mode)

    monkeypatch.setattr(folder.Path, "open", fail)
    assert values(f"folder:{tmp_path}") == [1, "Input/output error"]


def test_names_that_would_change_a_terminal_or_a_page(tmp_path: Path) -> None:
    tree = {"\x1b[2Jcat/a\u202egnp.png": 1, "dog/b\u2028\u200f.png": 2}
    for spec in (f"folder:{write_tree(tmp_path / 'images', tree)}", f"zip:{write_zip(tmp_path / 'a.zip', tree)}"):
        source = open_source(spec)
        assert source.classes == ["\\x1b[2Jcat", "dog"]
        names = [source.where(row) for row in range(2)]
        assert names[0].endswith("\\x1b[2Jcat/a\\u202egnp.png")
        assert names[1].endswith("dog/b\\u2028\\u200f.png")
        assert values(spec) == [1, 2]
    for plain in ("Ölbild 7.png", "猫/ねこ.png", "a b+c=d(1).png"):
        assert base.printable(plain) == plain
