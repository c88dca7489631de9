"""One image: from encoded bytes to uint8 pixels (resolution, resolution, channels).

An image that cannot be used raises `UnreadableImage` with the reason, so that the caller can list it and continue.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageMode, UnidentifiedImageError, features

from stages.errors import one_line

# Raster formats that Pillow itself decodes. EPS and PDF are excluded: Pillow runs other programs for them.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000")
FORMATS += ("AVIF",) if features.check("avif") else ()  # Pillow's wheels have it; some distributions' builds do not
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpx"}
)
MAX_BYTES = 1 << 28  # of one encoded image
MAX_PIXELS = 89_478_485  # of one decoded image: above it Pillow warns of decompression bombs

FITS = ("crop", "squash", "pad")
FRAMES = "scoresmooth frames"  # key of a decoded image's `info`: how many frames or pages the file holds
TWELVE_BITS = 4096

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


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


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
        return _upright(_loaded(raw))
    except UnidentifiedImageError as error:  # its own message contains a memory address
        raise UnreadableImage(f"not an image, or cut off in its header ({', '.join(FORMATS)} are read)") from error
    except DAMAGE as error:
        raise UnreadableImage.because(error) from error


def _loaded(raw: bytes | np.ndarray | Image.Image) -> Image.Image:
    """The loaded image; a PNG whose metadata Pillow refuses is read without them."""
    try:
        return _load(_opened(raw))
    except DAMAGE:
        bare = _without_metadata(raw) if isinstance(raw, bytes) else raw
        if bare is raw:
            raise
        return _load(_opened(bare))


def _load(image: Image.Image) -> Image.Image:
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}")
    frames = _frames(image)
    image.load()
    image.info[FRAMES] = frames
    return image


def _frames(image: Image.Image) -> int:
    try:
        return getattr(image, "n_frames", 1)
    except DAMAGE:  # of a later frame, which is not used
        return 1


def _without_metadata(png: bytes) -> bytes:
    """A PNG file with its pixels, transparency and orientation only; anything else as it is."""
    if not png.startswith(PNG_SIGNATURE):
        return png
    place, kept = len(PNG_SIGNATURE), [PNG_SIGNATURE]
    while place + 12 <= len(png):
        stop = place + 12 + int.from_bytes(png[place : place + 4])
        kind = png[place + 4 : place + 8]
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):  # upper case: the chunk is needed for the pixels
            kept.append(png[place:stop])
        place = stop
    return b"".join(kept)


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
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except DAMAGE:  # damaged EXIF data tell no orientation; the pixels are there
        return image
    return image if turn is None else image.transpose(turn)


def is_grey(image: Image.Image) -> bool:
    """Whether the image has one channel of brightness, besides transparency. A palette counts as colour."""
    return ImageMode.getmode(image.mode).basemode == "L"


def to_pixels(
    image: Image.Image, resolution: int, channels: int, interpolation: str = "lanczos", fit: str = "crop"
) -> np.ndarray:
    """Bring an image to a square with antialiasing: uint8 (resolution, resolution, channels).

    fit: crop, the largest centred square ("shorter side to `resolution`, then centre crop" without rounding the longer
    side; the filter also reads the pixels beyond the crop); squash, the whole image at another aspect ratio; pad, the
    whole image between black bars. channels 1 is ITU-R 601 luma, 3 is RGB (grey is repeated). Transparent pixels are
    composited over white; 16-bit grey is scaled to 8 bits; a palette is resolved before resizing. Pixels without a
    defined range raise UnreadableImage.
    """
    try:
        image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
        if image.size != (resolution, resolution):
            image = _fitted(image, resolution, INTERPOLATIONS[interpolation], fit)
    except DAMAGE as error:
        raise UnreadableImage.because(error) from error
    return np.asarray(image, dtype=np.uint8).reshape(resolution, resolution, channels)


def _fitted(image: Image.Image, resolution: int, interpolation: Image.Resampling, fit: str) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    if fit == "crop":
        return image.resize((resolution, resolution), interpolation, box=(left, top, left + side, top + side))
    if fit == "squash":
        return image.resize((resolution, resolution), interpolation)
    width, height = (max(1, round(resolution * length / max(image.size))) for length in image.size)
    square = Image.new(image.mode, (resolution, resolution))
    square.paste(image.resize((width, height), interpolation), ((resolution - width) // 2, (resolution - height) // 2))
    return square


def changes(image: Image.Image, resolution: int, channels: int) -> dict[str, bool]:
    """What `to_pixels` and `decode` change or leave out of an image, by name (CHANGES)."""
    return {
        "resized": image.size != (resolution, resolution),
        "reshaped": image.width != image.height,
        "recoloured": is_grey(image) != (channels == 1),
        "flattened": _is_transparent(image),
        "frames": image.info.get(FRAMES, 1) > 1,
        "dim": _is_sixteen_bit(image) and image.getextrema()[1] < TWELVE_BITS,
    }


CHANGES = ("resized", "reshaped", "recoloured", "flattened", "frames", "dim")
"""Of another size; not square; grey among colour or the reverse; with transparent pixels; a first frame or page of
several; 16-bit pixels that use 12 bits at most, so that the image is almost black."""


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _is_sixteen_bit(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;")


def _eight_bit(image: Image.Image) -> Image.Image:
    """The image in an opaque mode of 8 bits per channel."""
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels have no defined range: save it as 8- or 16-bit")
    if _is_sixteen_bit(image):
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
