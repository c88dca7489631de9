"""The image table on disk."""

from pathlib import Path

import numpy as np
import pytest

from stages.errors import InputError
from stages.files.images import (
    ImageTable,
    JoinedTables,
    image_table,
    read_images,
    scratch_pixels,
    write_images,
    write_selection,
)
from stages.images.sources.open import open_source

STACK = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


def test_a_folder_is_no_image_table(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder holds no .*arrow files"):
        open_source(f"arrow:{tmp_path}")


def test_write_selection_is_take(tmp_path: Path) -> None:
    tables = JoinedTables([image_table(STACK[:3], np.arange(3)), image_table(STACK[3:], np.arange(3, 7))])
    rows = np.array([6, 0, 3, 2, 0])
    table = read_images(write_selection(tmp_path / "a.arrow", tables, rows, metadata={"a": 1}))
    expected = image_table(STACK, np.arange(7)).take(rows)
    assert np.array_equal(table.images, expected.images)
    assert (table.ids, table.labels.tolist()) == (expected.ids, expected.labels.tolist())
    assert table.metadata == {"a": 1}
    relabelled = write_selection(tmp_path / "b.arrow", tables, rows, labels=np.arange(5))
    assert read_images(relabelled).labels.tolist() == list(range(5))


def test_an_empty_table_round_trips(tmp_path: Path) -> None:
    empty = ImageTable(np.zeros((0, 4, 4, 1), np.uint8), [], np.zeros(0, np.int64))
    table = read_images(write_images(tmp_path / "a.arrow", empty))
    assert table.images.shape == (0, 4, 4, 1)


def test_scratch_pixels_leave_nothing(tmp_path: Path) -> None:
    with scratch_pixels(tmp_path, (3, 2, 2, 1)) as pixels:
        assert pixels.shape == (3, 2, 2, 1)
        assert not pixels.any()
        pixels[1] = 7
        assert pixels.sum() == 28
        assert list(tmp_path.iterdir()) == []  # unlinked from the start
    with scratch_pixels(tmp_path, (0, 2, 2, 1)) as pixels:
        assert pixels.shape == (0, 2, 2, 1)
