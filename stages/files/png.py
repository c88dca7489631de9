"""An image as a PNG file's bytes."""

import io

import numpy as np


def png_bytes(image: np.ndarray) -> bytes:
    """A uint8 image (H, W, 1 or 3) as PNG, the same bytes every time."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
