"""candidates.parquet: what is chosen, that the pictures are the pixels, and that foreign tables are refused."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.errors import InputError
from stages.files.arrow import read_metadata
from stages.memorization.candidates import NAME, choose, read_candidates, write_candidates


def pixels(content: bytes, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture).reshape(picture.height, picture.width, channels)


def images(count: int, channels: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 7, channels)).astype(np.uint8)


def pairs() -> pa.Table:
    return pa.table(
        {
            "sample_index": pa.array([3, 0], pa.int32()),
            "sample_id": ["s3", "s0"],
            "train_index": [4, 4],
            "train_id": ["t4", "t4"],
            "distance": [0.1, 0.2],
            "ratio": [0.3, 0.4],
            "verdict": ["copy", "unsure"],
            "reason": ["a", "b"],
            "spacing": [1.0, 2.0],
        }
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_pixels(tmp_path, channels):
    samples, train = images(4, channels, 0), images(9, channels, 1)
    following = np.array([[0, 1, 2, 3, 5], [8, 7, -1, -1, -1]])
    path = write_candidates(tmp_path / NAME, pairs(), following, samples, train, {"variant": "v"})
    table = read_candidates(path)
    assert read_metadata(table.schema) == {"variant": "v"}
    for row, sample, near in zip(table.to_pylist(), (3, 0), ((0, 1, 2, 3), (8, 7))):
        assert row["sample_index"] == sample
        np.testing.assert_array_equal(pixels(row["sample_png"], channels), samples[sample])
        np.testing.assert_array_equal(pixels(row["train_png"], channels), train[4])
        shown = np.stack([pixels(picture, channels) for picture in row["next_pngs"]])
        np.testing.assert_array_equal(shown, train[list(near)])
    assert table["spacing"].to_pylist() == [1.0, 2.0]  # a writer's own column


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_candidates(tmp_path / name, pairs(), np.zeros((2, 1), int), images(4, 3, 0), images(9, 3, 1))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_candidates_are_a_table_too(tmp_path):
    none = pairs().slice(0, 0)
    write_candidates(tmp_path / NAME, none, np.zeros((0, 4), int), images(1, 1, 0), images(1, 1, 1))
    assert read_candidates(tmp_path / NAME).num_rows == 0


def test_a_limit_keeps_the_confirmed_ones_and_sorts_by_rho():
    rho = np.array([0.5, 0.1, 0.3, 0.3, 0.2, 0.9])
    confirmed = np.array([True, False, False, True, False, False])
    suspected = np.array([False, True, True, True, True, False])
    assert choose(rho, confirmed, suspected, 10).tolist() == [1, 4, 2, 3, 0]
    assert choose(rho, confirmed, suspected, 3).tolist() == [1, 3, 0]  # both confirmed, then the lowest rho
    assert choose(rho, confirmed, suspected, 1).tolist() == [3]
    assert choose(rho, confirmed & False, suspected & False, 3).tolist() == []


@pytest.mark.parametrize("name", ["sample_id", "ratio", "next_pngs"])
def test_a_foreign_table_is_named(tmp_path, name):
    path = write_candidates(tmp_path / NAME, pairs(), np.zeros((2, 1), int), images(4, 3, 0), images(9, 3, 1))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(name), tmp_path / "without")
    with pytest.raises(InputError, match=f"without has no column {name}: it is not a table of candidates"):
        read_candidates(tmp_path / "without")
    column = table.column_names.index(name)
    pq.write_table(table.set_column(column, name, pa.array([1, 2], pa.int8())), tmp_path / "other")
    with pytest.raises(InputError, match=f"column {name} holds int8"):
        read_candidates(tmp_path / "other")
    empty = pa.nulls(2, table.schema.field(name).type)
    pq.write_table(table.set_column(column, name, empty), tmp_path / "empty")
    with pytest.raises(InputError, match=f"column {name} has empty cells"):
        read_candidates(tmp_path / "empty")


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"candidates\.parquet is missing: run the filter stage or the audit"):
        read_candidates(tmp_path / NAME)
    Path(tmp_path / NAME).write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=r"candidates\.parquet is not a Parquet table"):
        read_candidates(tmp_path / NAME)


def test_rows_without_their_neighbours_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 rows of following training images for 2 pairs"):
        write_candidates(tmp_path / NAME, pairs(), np.zeros((1, 4), int), images(4, 3, 0), images(9, 3, 1))
    with pytest.raises(ValueError, match="pairs lack the column ratio"):
        short = pairs().drop_columns("ratio")
        write_candidates(tmp_path / NAME, short, np.zeros((2, 4), int), images(4, 3, 0), images(9, 3, 1))
