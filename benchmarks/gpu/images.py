"""The images that the parts work on."""

from pathlib import Path

import numpy as np

from benchmarks.gpu.setup import Scale
from stages.images.sources.open import open_source


def load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and labels (N,) of an npz, or of the parquet's first 50,000 rows."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return file["images"], file["labels"]
    source = open_source(f"parquet:{path}")
    rows = np.arange(min(len(source), 50_000))
    read = [item for item in source.read(rows) if item.error is None]
    return np.stack([item.image for item in read]), np.array([item.label for item in read])


def two_classes(size: Scale, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and held-out images of classes 3 and 5 (cat and dog in CIFAR-10), in the file's order."""
    many, few = size.small[2]
    rest = size.small[3]
    rows = [np.flatnonzero(labels == label) for label in (3, 5)]
    if len(rows[0]) < many + rest or len(rows[1]) < few:
        raise SystemExit(
            f"error: {len(rows[0])} and {len(rows[1])} images of labels 3 and 5: need {many + rest}, {few}"
        )
    factor = images.shape[1] // size.side
    if factor > 1:  # means of factor x factor pixels
        n, h, w, c = images.shape
        blocks = images.reshape(n, h // factor, factor, w // factor, factor, c).astype(np.float32)
        images = blocks.mean((2, 4)).round().astype(np.uint8)
    chosen = np.concatenate([rows[0][:many], rows[1][:few]])
    return images[chosen], images[rows[0][many : many + rest]]
