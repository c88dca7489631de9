"""Decoding and resizing one image, against Pillow and arithmetic."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, png
from PIL import Image, ImageOps

from stages.images import decode as decode_module
from stages.images.decode import UnreadableImage, decode, to_pixels

COLOUR = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


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
