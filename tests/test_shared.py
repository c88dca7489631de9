"""Files exchanged by content: nothing is copied twice, damage is found, half-written copies are never taken."""

import os
from pathlib import Path

import pytest

from pipeline.shared import SharedPlace
from stages.artifacts import sha256_file
from stages.errors import InputError


@pytest.fixture
def place(tmp_path):
    return SharedPlace((tmp_path / "place").as_uri())


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "place" / "files").iterdir())


def test_a_folder_travels_and_equal_files_are_stored_once(place, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name, content in (("a", b"one"), ("deep/b", b"two"), ("deep/c", b"one")):
        (folder / name).write_bytes(content)
    tree = place.put_tree(folder)
    assert sorted(tree) == ["a", "deep/b", "deep/c"]
    assert [path.name for path in stored(tmp_path)] == sorted({tree["a"], tree["deep/b"]})
    place.get_tree(tree, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in tree} == {
        "a": b"one",
        "deep/b": b"two",
        "deep/c": b"one",
    }


def test_what_is_there_is_not_stored_or_fetched_again(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    tree = place.put_tree(file)
    (kept,) = stored(tmp_path)
    os.utime(kept, (1, 1))
    place.put_tree(file)
    assert kept.stat().st_mtime == 1
    place.get_tree(tree, tmp_path / "copy")
    os.utime(tmp_path / "copy", (1, 1))
    place.get_tree(tree, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime == 1
    (tmp_path / "copy").write_bytes(b"changed")
    place.get_tree(tree, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_damage_in_the_place_is_found_and_a_cut_copy_replaced(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    digest = place.put(file)
    assert digest == sha256_file(file)
    (kept,) = stored(tmp_path)
    kept.write_bytes(b"CONTENT")
    with pytest.raises(OSError, match=f"{digest} is damaged"):
        place.get(digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    kept.write_bytes(b"cont")  # another size: it is stored anew
    place.put(file)
    place.get(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        place.get("0" * 64, tmp_path / "other")


def test_other_protocols_and_unknown_ones(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    memory = SharedPlace("memory://scoresmooth-test")
    memory.get(memory.put(file), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(InputError, match="execution.shared: nowhere://x: Protocol not known: nowhere"):
        SharedPlace("nowhere://x")
