"""One image: from encoded bytes to uint8 pixels (resolution, resolution, channels).

An image that cannot be used raises `UnreadableImage` with the reason, so that the caller can list it and continue.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageMode, UnidentifiedImageError

from stages.errors import one_line

# Raster formats that Pillow itself decodes. EPS and PDF are excluded: Pillow runs other programs for them.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}
)
MAX_BYTES = 1 << 28  # of one encoded image
MAX_PIXELS = 89_478_485  # of one decoded image: above it Pillow warns of decompression bombs

INTERPOLATIONS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}

# What Pillow's decoders raise on damaged data (UnidentifiedImageError and "truncated" are OSErrors).
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
    EOFError,
    Image.DecompressionBombError,
)

# EXIF orientation -> the operation that turns the stored picture upright.
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):
    """An image that cannot be used; the message is the reason, in one line."""

    @classmethod
    def because(cls, error: Exception) -> "UnreadableImage":
        """With the message of a decoder's exception."""
        return cls(one_line(error))


def decode(raw: bytes | np.ndarray | Image.Image) -> Image.Image:
    """A loaded, upright Pillow image from encoded bytes, from pixels or from an opened Pillow image.

    Pixels are uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). EXIF orientation is applied; an animation gives its
    first frame. Damaged or truncated data, unknown formats and more than MAX_PIXELS raise UnreadableImage.
    """
    try:
        image = _opened(raw)
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
        image.load()
        return _upright(image)
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise UnreadableImage(f"not an image, or cut off in its header ({', '.join(FORMATS)} are read)") from error
    except DAMAGE as error:
        raise UnreadableImage.because(error) from error


def _opened(raw: bytes | np.ndarray | Image.Image) -> Image.Image:
    if isinstance(raw, Image.Image):
        return raw
    if isinstance(raw, np.ndarray):
        return Image.fromarray(raw[..., 0] if raw.ndim == 3 and raw.shape[2] == 1 else raw)
    if not raw:
        raise UnreadableImage("the file is empty")
    if len(raw) > MAX_BYTES:
        raise UnreadableImage(f"{len(raw)} bytes are more than {MAX_BYTES}")
    return Image.open(io.BytesIO(raw), formats=FORMATS)


def _upright(image: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def is_grey(image: Image.Image) -> bool:
    """Whether the image has one channel of brightness, besides transparency. A palette counts as colour."""
    return ImageMode.getmode(image.mode).basemode == "L"


def to_pixels(image: Image.Image, resolution: int, channels: int, interpolation: str = "lanczos") -> np.ndarray:
    """Crop the largest centred square and resize it with antialiasing: uint8 (resolution, resolution, channels).

    This equals "shorter side to `resolution`, then centre crop" without rounding the longer side; the filter also reads
    the pixels beyond the crop. channels 1 is ITU-R 601 luma, 3 is RGB (grey is repeated). Transparent pixels are
    composited over white; 16-bit grey is scaled to 8 bits; a palette is resolved before resizing. Pixels without a
    defined range raise UnreadableImage.
    """
    try:
        image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        if image.size != (resolution, resolution):
            square = (left, top, left + side, top + side)
            image = image.resize((resolution, resolution), INTERPOLATIONS[interpolation], box=square)
    except DAMAGE as error:
        raise UnreadableImage.because(error) from error
    return np.asarray(image, dtype=np.uint8).reshape(resolution, resolution, channels)


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in an opaque mode of 8 bits per channel."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range: save it as 8- or 16-bit")
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in ("P", "PA"):
        return image.convert("RGB")
    return image


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage(f"integer pixels {values.min()}..{values.max()} are not 16-bit: save it as 8- or 16-bit")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
