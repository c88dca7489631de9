"""Splits below one place: never counted together by mistake."""

import pytest
from image_files import tree_spec, values, write_shard

from stages.errors import InputError
from stages.images.sources.open import open_source
from stages.images.sources.splits import split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train/cat/1.png", "train"),
        ("DIV2K_valid_HR/1.png", "validation"),
        ("cat/Test/1.png", "test"),
        ("train-00000-of-00002.parquet", "train"),
        ("plain_text/dev/0000.parquet", "validation"),
        ("test_7.png", "test"),
        ("steam train 7.png", ""),
        ("trainer/7.png", ""),
        ("contest/7.png", ""),
    ],
)
def test_the_split_of_a_path(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_of_several_splits_is_refused_or_one_is_taken(kind, tmp_path):
    tree = {"train/cat/a.png": 10, "train/dog/b.png": 20, "test/cat/a.png": 30, "readme/c.png": 40}
    spec = tree_spec(kind, tmp_path, tree)
    refusal = r"holds test \(1 files\), train \(2 files\): name one with \?split=test, or \?split=all for all"
    with pytest.raises(InputError, match=refusal):
        open_source(spec)
    assert values(f"{spec}?split=train") == [10, 20]
    assert open_source(f"{spec}?split=train").classes == ["cat", "dog"]
    assert values(f"{spec}?split=test") == [30]
    assert len(open_source(f"{spec}?split=all")) == 4
    with pytest.raises(InputError, match="holds test .*: name one with"):
        open_source(f"{spec}?split=val")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_class_called_train_is_a_class(kind, tmp_path):
    spec = tree_spec(kind, tmp_path, {"train/a.png": 10, "car/b.png": 20})
    assert open_source(spec).classes == ["car", "train"]


@pytest.mark.parametrize("place", ["", "/*.parquet"])
def test_parquet_shards_of_several_splits_are_refused_or_one_is_taken(place, tmp_path):
    for name, start in (("train-00000-of-00002", 0), ("train-00001-of-00002", 10), ("test-00000-of-00001", 20)):
        write_shard(tmp_path / "data" / f"{name}.parquet", start, 4)
    spec = f"parquet:{tmp_path / 'data'}{place}"
    with pytest.raises(InputError, match=r"holds test \(1 files\), train \(2 files\): name one"):
        open_source(spec)
    assert values(f"{spec}?split=train") == [0, 1, 2, 3, 10, 11, 12, 13]
    assert values(f"{spec}?split=test") == [20, 21, 22, 23]
    assert len(open_source(f"{spec}?split=all")) == 12
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    assert len(open_source(spec)) == 8
