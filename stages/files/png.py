"""An image as a PIL picture and as a PNG file's bytes."""

import io

import numpy as np
from PIL import Image


def as_picture(image: np.ndarray) -> Image.Image:
    """Return a uint8 image (H, W, 1 or 3) as a PIL picture."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode a uint8 image (H, W, 1 or 3) as PNG; equal images give equal bytes."""
    buffer = io.BytesIO()
    as_picture(image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
