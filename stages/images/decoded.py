"""Images of a source, decoded at one size into an image table; unreadable images are left out and listed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stages.files.images import ImageTable, image_id, scratch_pixels, write_images
from stages.images.decode import CHANGES, FITS, UnreadableImage, changes, to_pixels
from stages.images.sources.base import Source


def write_decoded(
    path: Path,
    source: Source,
    rows: np.ndarray,
    resolution: int,
    channels: int,
    interpolation: str = "lanczos",
    fit: str = "crop",
) -> Path:
    """Decode `rows`, which must ascend, with `to_pixels` and write the readable ones as an image table.

    Its metadata: rejected, [row, where, reason] of every unreadable image; and by CHANGES, how many were changed so.
    """
    ids: list[str] = []
    labels: list[int] = []
    rejected: list[list[Any]] = []
    changed = Counter(dict.fromkeys(CHANGES, 0))
    with scratch_pixels(path.parent, (len(rows), resolution, resolution, channels)) as pixels:
        for item in source.read(rows):
            try:
                picture = item.picture()
                pixels[len(ids)] = to_pixels(picture, resolution, channels, interpolation, fit)
                found = changes(picture, resolution, channels)
            except UnreadableImage as error:
                rejected.append([item.row, item.where, str(error)])
                continue
            ids.append(image_id(pixels[len(ids)]))
            labels.append(item.label)
            changed.update(found)
        metadata = {"rejected": rejected, **changed}
        return write_images(path, ImageTable(pixels[: len(ids)], ids, np.array(labels, np.int64), metadata))


def changed_words(resolution: int, channels: int, fit: str, native: str) -> dict[str, str]:
    """Return what was done to images, by CHANGES: the end of a sentence that begins with their number."""
    others = " or ".join(name for name in FITS if name != fit)
    how = {"crop": "cropped to the centred square", "squash": "squashed to a square", "pad": "padded to a square"}[fit]
    return {
        "resized": f"({native}) were resized to {resolution} × {resolution}",
        "reshaped": f"are not square and were {how}: images that were brought to a square in another way are not "
        f"found (fit: {fit}; the others are {others})",
        "recoloured": f"were turned to {'colour' if channels == 3 else 'grey'}",
        "flattened": "have transparent pixels, which were laid over white",
        "frames": "come from files of several frames or pages, of which the first was read",
        "dim": "have 16-bit pixels below 4,096, as cameras of 12 bits save them, and are almost black: scale them",
    }
