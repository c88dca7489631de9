"""Labels that are no class numbers: they stop nothing that does not need them, and that is said."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png

from stages.errors import InputError
from stages.files.images import image_table, write_images
from stages.images.sources.open import open_source

LABELS = {
    "text": ["cat", "dog", "cat"],
    "decimals": [0.0, 1.0, 0.0],
    "lists": [[0, 1], [1], []],
    "booleans": [True, False, True],
}


def write(path: Path, labels: list, names: list[str] | None = None) -> str:
    table = pa.table({"image": pa.array([png(v) for v in range(3)], pa.binary()), "label": pa.array(labels)})
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return f"parquet:{path}"


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_parquet_labels_that_are_no_class_numbers_are_dropped_with_a_note(labels: list, tmp_path: Path) -> None:
    spec = write(tmp_path / "a.parquet", labels)
    source = open_source(spec)
    assert source.labels.tolist() == [-1, -1, -1]
    assert len(list(source)) == 3
    (note,) = source.notes
    assert note.startswith("its labels are not used: ")
    with pytest.raises(InputError, match="not an integer"):  # somebody wants them
        open_source(f"{spec}?label=label")


def test_labels_beyond_the_names_keep_their_numbers_without_names(tmp_path: Path) -> None:
    source = open_source(write(tmp_path / "a.parquet", [0, 4, 1], ["a", "b"]))
    assert (source.labels.tolist(), source.classes) == ([0, 4, 1], None)
    assert source.notes == ("label 4 has no name among the 2 class names: the names are not used",)
    assert open_source(write(tmp_path / "b.parquet", [0, 1, 1], ["a", "b"])).notes == ()
    table = image_table(np.zeros((2, 4, 4, 1), np.uint8), np.array([0, 7]), {"classes": ["a"]})
    source = open_source(f"arrow:{write_images(tmp_path / 'a.arrow', table)}")
    assert (source.classes, len(source.notes)) == (None, 1)


def test_npz_labels_of_one_column_are_read_and_others_are_dropped_with_a_note(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    np.savez(tmp_path / "column.npz", images=images, labels=np.arange(3)[:, None])
    source = open_source(f"npz:{tmp_path / 'column.npz'}")
    assert (source.labels.tolist(), source.notes) == ([0, 1, 2], ())
    for name, labels in {"text": np.array(["a"] * 3), "decimals": np.zeros(3), "few": np.arange(2)}.items():
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
        source = open_source(f"npz:{tmp_path / name}.npz")
        assert source.labels.tolist() == [-1, -1, -1]
        assert source.notes[0].startswith("its labels are not used: ")
