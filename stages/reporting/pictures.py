"""Images as data URIs, so that the page opens without a network or a folder beside it."""

import base64
import io
from pathlib import Path

import numpy as np


def png_uri(image: np.ndarray) -> str:
    """A uint8 image (H, W, 1 or 3) as a PNG data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue())


def file_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return _uri(path.read_bytes())


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
