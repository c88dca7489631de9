"""Image files in folders and archives: their order, their classes, and damaged ones."""

import os
import warnings
import zipfile
from pathlib import Path

import pytest
from image_files import png, tree_spec, values, write_tree, write_zip

from stages.images.sources import zip_archive
from stages.images.sources.open import open_source

TREE = {"cat/2.png": 2, "cat/10.png": 10, "ant/x/7.PNG": 7, "bee/1.png": 1}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_sorted_paths_and_class_folders(kind: str, tmp_path: Path) -> None:
    noise = {"cat/.hidden.png": 9, "__MACOSX/cat/2.png": 9, ".git/3.png": 9}
    spec = tree_spec(kind, tmp_path, {**TREE, **noise})
    source = open_source(spec)
    assert source.spec == spec
    assert source.classes == ["ant", "bee", "cat"]
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert values(spec) == [7, 1, 10, 2]
    assert [Path(source.where(row)).name for row in range(4)] == ["7.PNG", "1.png", "10.png", "2.png"]
    assert [item.label for item in source] == [0, 1, 2, 2]


@pytest.mark.parametrize("kind", ["folder", "zip"])
@pytest.mark.parametrize(
    ("names", "classes", "labels"),
    [
        (["a.png", "b.png"], None, [-1, -1]),
        (["a.png", "cat/b.png"], None, [-1, -1]),
        (["all/a.png", "all/b.png"], None, [-1, -1]),
        (["all/cat/a.png", "all/dog/b.png"], ["cat", "dog"], [0, 1]),
    ],
    ids=["flat", "some outside", "one folder is no class", "wrapped"],
)
def test_when_folders_are_classes(
    kind: str, names: list[str], classes: list[str] | None, labels: list[int], tmp_path: Path
) -> None:
    source = open_source(tree_spec(kind, tmp_path, {name: 1 for name in names}))
    assert (source.classes, source.labels.tolist()) == (classes, labels)


def test_folder_follows_links_once(tmp_path: Path) -> None:
    elsewhere = write_tree(tmp_path / "elsewhere", {"1.png": 1})
    root = write_tree(tmp_path / "root", {"cat/2.png": 2})
    (root / "bee").symlink_to(elsewhere)
    (root / "cat" / "up").symlink_to(root)  # a loop
    assert values(f"folder:{root}") == [1, 2]
    assert open_source(f"folder:{root}").classes == ["bee", "cat"]


def test_unreadable_files_are_items_with_a_reason(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"a.png": 1, "c.png": 3})
    (root / "b.png").write_bytes(png(2)[:-25])
    (root / "d.png").symlink_to(root / "nowhere")
    items = list(open_source(f"folder:{root}"))
    assert [item.image is None for item in items] == [False, True, False, True]
    assert "truncated" in items[1].error
    assert "No such file" in items[3].error
    assert items[1].where == str(root / "b.png")


def test_what_cannot_be_opened_is_no_input_file_and_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"a.png": 1})
    (root / "b.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "c.png")
    source = open_source(f"folder:{root}")
    assert source.files([0, 1, 2]) == (str(root / "a.png"),)
    assert [item.error for item in source][1:] == ["No such file or directory", "not a regular file"]


def test_a_name_that_is_not_unicode_is_printable(tmp_path: Path) -> None:
    try:
        (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(png(4))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert values(f"folder:{tmp_path}") == [4]
    open_source(f"folder:{tmp_path}").where(0).encode("utf-8")


def test_zip_refuses_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": 1, "c.png": 3})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.bmp", bytes(5_000_000))
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("c.png")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len(entry.filename) + entry.compress_size // 2] ^= 255
    path.write_bytes(data)
    monkeypatch.setattr(zip_archive, "MAX_BYTES", 1_000_000)
    first, second, third = open_source(f"zip:{path}")
    assert first.error is None
    assert second.error == "5000000 bytes are more than 1000000"
    assert third.error is not None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.zip"]  # nothing was extracted


def test_both_entries_of_one_name_are_read(tmp_path: Path) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        warnings.simplefilter("ignore")  # Python's own, of the second name
        for name, value in (("a.png", 1), ("a.png", 2), ("b.png", 3)):
            archive.writestr(name, png(value))
    assert values(f"zip:{tmp_path / 'a.zip'}") == [1, 2, 3]


def test_zip_lists_encrypted_entries(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": 1})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the local and the central header's "encrypted" flag
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in values(f"zip:{path}")[0]
