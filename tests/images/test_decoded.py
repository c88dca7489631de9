"""A source decoded into a table: the readable images, and the counts of what was changed or left out."""

from pathlib import Path

import numpy as np
from image_files import encoded, write_tree
from PIL import Image

from stages.files.images import read_images
from stages.images.decode import decode, to_pixels
from stages.images.decoded import write_decoded
from stages.images.sources.open import open_source

COLOUR = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)


def test_readable_images_in_order_with_what_was_changed(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "images", {"a/1.png": 10, "b/2.png": 20, "b/3.png": 30})
    (root / "b" / "2.png").write_bytes(b"damaged")
    (root / "b" / "4.png").write_bytes(encoded(Image.fromarray(COLOUR)))
    (root / "b" / "5.png").write_bytes(encoded(Image.new("L", (6, 6), 50)))
    source = open_source(f"folder:{root}")
    table = read_images(write_decoded(tmp_path / "t.arrow", source, np.arange(5), 6, 3))
    assert table.labels.tolist() == [0, 1, 1, 1]
    assert table.images[[0, 1, 3], 0, 0, 0].tolist() == [10, 30, 50]
    assert np.array_equal(table.images[2], to_pixels(decode(COLOUR), 6, 3))
    ((row, where, reason),) = table.metadata["rejected"]
    assert (row, where) == (1, str(root / "b" / "2.png"))
    assert "not an image" in reason
    assert (table.metadata["resized"], table.metadata["recoloured"]) == (1, 1)
    grey = read_images(write_decoded(tmp_path / "t.arrow", source, np.array([0, 3, 4]), 6, 1))
    assert grey.images.shape == (3, 6, 6, 1)
    assert grey.metadata["recoloured"] == 2
