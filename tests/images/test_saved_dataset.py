"""hf: reads what the datasets library saved, and exactly that."""

import json

import numpy as np
import pytest
from PIL import Image

from stages.errors import InputError
from stages.images.sources.open import open_source

datasets = pytest.importorskip("datasets")
IMAGES = np.random.default_rng(0).integers(0, 256, (10, 5, 5, 3), np.uint8)


@pytest.fixture(scope="module")
def rows():
    """A Dataset of 10 images with two classes and a prompt."""
    kinds = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "prompt": datasets.Value("string"),
    }
    values = {"image": list(map(Image.fromarray, IMAGES)), "label": [0, 1] * 5, "prompt": [f"a {i}" for i in range(10)]}
    return datasets.Dataset.from_dict(values, datasets.Features(kinds))


def pixels(spec: str) -> np.ndarray:
    return np.stack([np.asarray(item.picture()) for item in open_source(spec)])


def test_a_saved_data_set_in_shards_and_in_a_chosen_order(rows, tmp_path):
    order = [7, 3, 9, 0, 5]
    rows.select(order).save_to_disk(tmp_path / "saved", num_shards=3)
    source = open_source(f"hf:{tmp_path}/saved")
    assert np.array_equal(pixels(f"hf:{tmp_path}/saved"), IMAGES[order])
    assert source.labels.tolist() == [row % 2 for row in order]
    assert source.classes == ["cat", "dog"]
    assert source.column("prompt") == [f"a {row}" for row in order]
    assert source.column("label") == [["cat", "dog"][row % 2] for row in order]


def test_images_in_files_are_embedded_by_the_library(tmp_path):
    for row in range(3):
        Image.fromarray(IMAGES[row]).save(tmp_path / f"{row}.png")
    paths = [str(tmp_path / f"{row}.png") for row in range(3)]
    datasets.Dataset.from_dict({"image": paths}).cast_column("image", datasets.Image()).save_to_disk(tmp_path / "saved")
    for path in paths:
        (tmp_path / path).unlink()
    assert np.array_equal(pixels(f"hf:{tmp_path}/saved"), IMAGES[:3])


def test_only_the_files_that_the_state_names_are_read(rows, tmp_path):
    rows.select(range(4)).save_to_disk(tmp_path / "saved")
    rows.save_to_disk(tmp_path / "older")
    (tmp_path / "older" / "data-00000-of-00001.arrow").rename(tmp_path / "saved" / "data-00000-of-00009.arrow")
    assert len(open_source(f"hf:{tmp_path}/saved")) == 4


def test_a_split_of_any_name_must_be_named(rows, tmp_path):
    splits = datasets.DatasetDict({"train": rows.select([1, 2]), "generated": rows.select([3])})
    splits.save_to_disk(tmp_path / "saved")
    assert np.array_equal(pixels(f"hf:{tmp_path}/saved?split=generated"), IMAGES[3:4])
    for spec in ("", "?split=test", "?split=.."):
        with pytest.raises(InputError, match=r"has the splits train, generated: name one with \?split="):
            open_source(f"hf:{tmp_path}/saved{spec}")
    datasets.DatasetDict({"own": rows.select([4])}).save_to_disk(tmp_path / "one")
    assert np.array_equal(pixels(f"hf:{tmp_path}/one"), IMAGES[4:5])


def test_what_is_no_saved_data_set_is_refused(rows, tmp_path):
    with pytest.raises(InputError, match="holds neither state.json nor dataset_dict.json"):
        open_source(f"hf:{tmp_path}")
    rows.save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="is one data set without splits"):
        open_source(f"hf:{tmp_path}/saved?split=train")
    state = tmp_path / "saved" / "state.json"
    for files, words in (
        ([], "names no files of its folder"),
        ([{"filename": "../x.arrow"}], "names no files of its folder"),
        ([{"filename": "lost.arrow"}], "lost.arrow does not exist"),
        (None, "has no list '_data_files'"),
    ):
        state.write_text(json.dumps({"_data_files": files}))
        with pytest.raises(InputError, match=words):
            open_source(f"hf:{tmp_path}/saved")
