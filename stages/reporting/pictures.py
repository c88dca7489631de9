"""Images as data URIs, so that the page opens without a network or a folder beside it."""

import base64
from pathlib import Path

import numpy as np

from stages.files.png import png_bytes


def png_uri(image: np.ndarray) -> str:
    """A uint8 image (H, W, 1 or 3) as a PNG data URI."""
    return _uri(png_bytes(image))


def file_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return _uri(path.read_bytes())


def _uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
