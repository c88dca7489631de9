"""What Hugging Face's `save_to_disk` wrote: Arrow streams, one file or a folder of shards."""

from pathlib import Path

import pyarrow as pa
import pytest
from image_files import STRUCT, png, values

from stages.errors import InputError
from stages.images.sources.open import open_source


def write(path: Path, start: int, count: int) -> Path:
    cells = pa.array([{"bytes": png(v), "path": None} for v in range(start, start + count)], STRUCT)
    table = pa.table({"image": cells, "label": pa.array([v % 3 for v in range(start, start + count)])})
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def test_a_stream_and_a_folder_of_streams(tmp_path: Path) -> None:
    first = write(tmp_path / "set" / "data-00000-of-00002.arrow", 0, 7)
    second = write(tmp_path / "set" / "data-00001-of-00002.arrow", 10, 4)
    write(tmp_path / "set" / "cache-1234.arrow", 0, 2)
    (tmp_path / "set" / "state.json").write_text("{}")
    assert values(f"arrow:{first}") == list(range(7))
    source = open_source(f"arrow:{tmp_path / 'set'}")
    assert source.labels.tolist() == [v % 3 for v in (*range(7), *range(10, 14))]
    assert values(f"arrow:{tmp_path / 'set'}", [2, 6, 7, 10]) == [2, 6, 10, 13]
    assert source.files([0, 8]) == (str(first), str(second))
    assert source.where(8) == f"{second}#1"


def test_a_saved_dictionary_of_splits_needs_its_split(tmp_path: Path) -> None:
    write(tmp_path / "train" / "data-00000-of-00001.arrow", 0, 5)
    write(tmp_path / "test" / "data-00000-of-00001.arrow", 20, 2)
    with pytest.raises(InputError, match=r"holds test \(1 files\), train \(1 files\)"):
        open_source(f"arrow:{tmp_path}")
    assert values(f"arrow:{tmp_path}?split=test") == [20, 21]


def test_no_advice_deletes_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "mine.arrow").write_bytes(b"my data")
    with pytest.raises(InputError, match="not an Arrow image table and no readable Arrow stream") as caught:
        open_source(f"arrow:{tmp_path / 'mine.arrow'}")
    assert "delete it" not in str(caught.value)


def test_a_stream_that_holds_paths_only_says_so_for_every_image(tmp_path: Path) -> None:
    cells = pa.array([{"bytes": None, "path": f"{v}.png"} for v in range(3)], STRUCT)
    table = pa.table({"image": cells})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert [item.error for item in open_source(f"arrow:{tmp_path / 'a.arrow'}")] == [
        "the table holds no bytes for this image, at most its path: store the bytes"
    ] * 3
