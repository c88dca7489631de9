"""Images of a source, decoded at one size into an image table; unreadable images are left out and listed."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stages.files.images import ImageTable, image_id, scratch_pixels, write_images
from stages.images.decode import UnreadableImage, is_grey, to_pixels
from stages.images.sources.base import Source


def write_decoded(
    path: Path, source: Source, rows: np.ndarray, resolution: int, channels: int, interpolation: str = "lanczos"
) -> Path:
    """Decode `rows`, which must ascend, with `to_pixels` and write the readable ones as an image table.

    Its metadata: rejected, [row, where, reason] of every unreadable image; resized, the number of images of another
    size; recoloured, the number of grey images among colour ones (channels 3) or the reverse (channels 1).
    """
    ids: list[str] = []
    labels: list[int] = []
    rejected: list[list[Any]] = []
    changed = Counter(resized=0, recoloured=0)
    with scratch_pixels(path.parent, (len(rows), resolution, resolution, channels)) as pixels:
        for item in source.read(rows):
            try:
                picture = item.picture()
                pixels[len(ids)] = to_pixels(picture, resolution, channels, interpolation)
            except UnreadableImage as error:
                rejected.append([item.row, item.where, str(error)])
                continue
            ids.append(image_id(pixels[len(ids)]))
            labels.append(item.label)
            changed["resized"] += picture.size != (resolution, resolution)
            changed["recoloured"] += is_grey(picture) != (channels == 1)
        metadata = {"rejected": rejected, **changed}
        return write_images(path, ImageTable(pixels[: len(ids)], ids, np.array(labels, np.int64), metadata))
