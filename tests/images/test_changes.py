"""What decoding changes or leaves out: counted; and metadata that stop no pixels."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, write_tree
from PIL import Image

from stages.files.images import read_images
from stages.images.decode import CHANGES, UnreadableImage, changes, decode, to_pixels
from stages.images.decoded import write_decoded
from stages.images.sources.open import open_source

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (8, 8, 3), np.uint8)


def changed(data: bytes | Image.Image, resolution: int = 8, channels: int = 3) -> set[str]:
    return {name for name, value in changes(decode(data), resolution, channels).items() if value}


def test_every_change_is_told() -> None:
    grey16 = Image.fromarray(RANDOM.integers(0, 65536, (8, 8), np.uint16))
    grey12 = Image.fromarray(RANDOM.integers(0, 4096, (8, 8), np.uint16))
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    clear = Image.fromarray(np.dstack([COLOUR, np.full((8, 8), 254, np.uint8)]))
    opaque = Image.fromarray(np.dstack([COLOUR, np.full((8, 8), 255, np.uint8)]))
    assert changed(encoded(Image.fromarray(COLOUR))) == set()
    assert changed(encoded(Image.fromarray(COLOUR)), resolution=4) == {"resized"}
    assert changed(encoded(Image.fromarray(COLOUR[:6]))) == {"resized", "reshaped"}
    assert changed(encoded(grey16), channels=1) == set()
    assert changed(encoded(grey12), channels=1) == {"dim"}
    assert changed(encoded(grey12), channels=3) == {"dim", "recoloured"}
    assert changed(encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])) == {"frames"}
    assert changed(encoded(pages[0], "GIF", save_all=True, append_images=pages[1:])) >= {"frames"}
    assert changed(encoded(clear)) == {"flattened"}
    assert changed(encoded(opaque)) == set()


def test_changes_are_counted_by_table(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "images", {"a.png": 10})
    clear = np.dstack([COLOUR, np.zeros((8, 8), np.uint8)])
    (root / "b.png").write_bytes(encoded(Image.fromarray(clear)))
    (root / "c.tif").write_bytes(encoded(Image.fromarray(COLOUR), "TIFF", save_all=True, append_images=[clear_page()]))
    source = open_source(f"folder:{root}")
    metadata = read_images(write_decoded(tmp_path / "t.arrow", source, np.arange(3), 8, 3)).metadata
    assert {name: metadata[name] for name in CHANGES} == {
        "resized": 1, "reshaped": 0, "recoloured": 0, "flattened": 1, "frames": 1, "dim": 0,
    }  # fmt: skip


def clear_page() -> Image.Image:
    return Image.new("RGB", (8, 8))


@pytest.mark.parametrize("size", [(12, 8), (8, 12), (8, 8), (31, 7)])
def test_three_ways_to_a_square(size: tuple[int, int]) -> None:
    image = Image.fromarray(RANDOM.integers(1, 256, (*size[::-1], 3), np.uint8))
    squashed = np.asarray(image.resize((6, 6), Image.Resampling.LANCZOS))
    assert np.array_equal(to_pixels(image, 6, 3, fit="squash"), squashed)
    padded = to_pixels(image, 12, 3, "box", "pad")
    inside = padded.any(axis=2)
    height, width = (round(12 * length / max(size)) for length in size[::-1])
    assert inside.sum() == height * width
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert abs(rows[0] - (11 - rows[-1])) <= 1
    assert abs(columns[0] - (11 - columns[-1])) <= 1
    if size == (8, 8):
        assert all(np.array_equal(to_pixels(image, 6, 3, fit=fit), squashed) for fit in ("crop", "pad"))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data) & 0xFFFFFFFF)


LONG = zlib.compress(b"A" * 2_000_000)
METADATA = {
    "compressed text": chunk(b"zTXt", b"workflow\0\0" + LONG),
    "profile": chunk(b"iCCP", b"p\0\0" + zlib.compress(os.urandom(1000) * 1500)),
    "international text": chunk(b"iTXt", b"parameters\0\1\0\0\0" + LONG),
    "exif": chunk(b"eXIf", b"\0\x08\0\x02\x01\x12\0\x03junkjunk"),
    "text profile": chunk(b"tEXt", b'Raw profile type exif\0\nexif\n      10\n"b\'Exif\\x00"'),
    "checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
}


@pytest.mark.parametrize("extra", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after them"])
def test_metadata_that_cannot_be_read_leave_the_pixels(extra: bytes, after: bool) -> None:
    data = encoded(Image.fromarray(COLOUR))
    place = data.rindex(b"IEND") - 4 if after else 33
    assert np.array_equal(np.asarray(decode(data[:place] + extra + data[place:])), COLOUR)


def test_the_orientation_stays_beside_metadata_that_cannot_be_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(COLOUR), exif=exif)
    found = decode(data[:33] + METADATA["compressed text"] + data[33:])
    assert np.array_equal(np.asarray(found), np.rot90(COLOUR, -1))


def test_damaged_pixels_stay_unreadable_beside_metadata() -> None:
    data = encoded(Image.fromarray(COLOUR))
    with pytest.raises(UnreadableImage):
        decode(data[:33] + METADATA["profile"] + data[33:-40])


@pytest.mark.parametrize("kind", ["transparent", "16 bits"])
def test_every_reader_gives_the_same_pixels(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    (tmp_path / "t" / "a").mkdir(parents=True)
    if kind == "transparent":
        pixels = np.dstack([COLOUR, RANDOM.integers(0, 2, (8, 8), np.uint8) * 255])
    else:
        pixels = RANDOM.integers(0, 65536, (8, 8), np.uint16)
    Image.fromarray(pixels).save(tmp_path / "t" / "a" / "0.png")
    one, two = (
        to_pixels(next(iter(open_source(spec))).picture(), 8, 3)
        for spec in (f"folder:{tmp_path / 't'}", f"torchvision:ImageFolder?root={tmp_path / 't'}")
    )
    assert np.array_equal(one, two)
    if kind == "16 bits":
        assert np.array_equal(one[..., 0], np.rint(pixels / 257))
