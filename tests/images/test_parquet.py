"""Hugging Face's image layout: columns, shards, labels, damage."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import STRUCT, png, values, write_shard

from stages.errors import InputError
from stages.images.sources.open import open_source


@pytest.mark.parametrize("kind", [STRUCT, pa.binary(), pa.large_binary()], ids=str)
def test_parquet_layouts(kind: pa.DataType, tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 5, kind)
    source = open_source(f"parquet:{path}")
    assert values(f"parquet:{path}") == [0, 1, 2, 3, 4]
    assert source.labels.tolist() == [0, 1, 2, 0, 1]
    assert source.classes is None
    assert source.where(3) == f"{path}#3"


def test_parquet_shards_by_folder_and_glob(tmp_path: Path) -> None:
    write_shard(tmp_path / "b-1.parquet", 100, 150, row_group_size=70)
    write_shard(tmp_path / "a-0.parquet", 0, 100, row_group_size=33)
    everything = list(range(250))
    for spec in (f"parquet:{tmp_path}", f"parquet:{tmp_path}/*.parquet", f"parquet:{tmp_path}/?-?.parquet"):
        assert values(spec) == everything
    rows = [0, 32, 33, 99, 100, 169, 170, 249]
    assert values(f"parquet:{tmp_path}", rows) == rows
    source = open_source(f"parquet:{tmp_path}")
    assert source.files([5, 99]) == (str(tmp_path / "a-0.parquet"),)
    assert len(source.files([5, 100])) == 2
    assert source.where(100) == f"{tmp_path / 'b-1.parquet'}#0"


def test_parquet_class_names_options_and_nulls(tmp_path: Path) -> None:
    cells = pa.array([{"bytes": png(1), "path": None}, {"bytes": None, "path": "/etc/passwd"}, None], STRUCT)
    features = {"info": {"features": {"fine": {"names": ["ant", "bee"], "_type": "ClassLabel"}}}}
    table = pa.table({"img": cells, "fine": pa.array([1, 0, None])})
    path = tmp_path / "a.parquet"
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path)
    source = open_source(f"parquet:{path}?image=img&label=fine")
    assert source.classes == ["ant", "bee"]
    assert source.labels.tolist() == [1, 0, -1]
    assert [item.error for item in source] == [
        None,
        *["the table holds no bytes for this image, at most its path: store the bytes"] * 2,
    ]
    assert values(f"parquet:{path}")[0] == 1  # "img" is found without being named


@pytest.mark.parametrize("kind", [pa.uint8(), pa.uint64(), pa.int16()], ids=str)
def test_parquet_labels_of_any_integer_type(kind: pa.DataType, tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([png(1)] * 3, pa.binary()), "label": pa.array([2, None, 1], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    assert open_source(f"parquet:{tmp_path / 'a.parquet'}").labels.tolist() == [2, -1, 1]


def test_a_parquet_label_beyond_all_integers_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array([png(1)], pa.binary()), "label": pa.array([2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: label column 'label' holds no class numbers"):
        open_source(f"parquet:{tmp_path / 'a.parquet'}?label=label")


def test_damaged_parquet_pages_stop_the_reading(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "a.parquet", 0, 50, compression="snappy")
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)  # the first pages; the footer stays
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        values(f"parquet:{path}")
