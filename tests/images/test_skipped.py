"""Files that are images by content, and files that are none: read, or named with their count."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, png, tree_spec, values, write_tree
from PIL import Image, features

from stages.errors import InputError
from stages.images.sources.image_names import skipped_words
from stages.images.sources.open import open_source

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
ENDINGS = {
    "a.jfif": "JPEG", "b.jpe": "JPEG", "d.dib": "DIB", "e.apng": "PNG", "f.j2k": "JPEG2000", "g": "PNG",
    "h.download": "WEBP", "i.image": "BMP", "j.txt": "GIF",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_images_of_any_ending_are_read_and_other_files_are_named(kind: str, tmp_path: Path) -> None:
    contents = {name: encoded(PICTURE, form) for name, form in ENDINGS.items()}
    if features.check("avif"):
        contents["c.avif"] = encoded(PICTURE, "AVIF")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a.png", png(1))
    others = {"part.zip": inner.getvalue(), "about.txt": b"about", "b.txt": b"BMW", "LICENSE": b"", ".hidden": b"x"}
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, content in {**contents, **others}.items():
                archive.writestr(name, content)
        source = open_source(f"zip:{tmp_path / 'a.zip'}")
    else:
        for name, content in {**contents, **others}.items():
            (tmp_path / name).write_bytes(content)
        os.mkfifo(tmp_path / "pipe")
        source = open_source(f"folder:{tmp_path}")
    assert len(source) == len(contents)
    assert [item.error for item in source] == [None] * len(contents)
    expected = {"part.zip", "about.txt", "b.txt", "LICENSE"} | ({"pipe"} if kind == "folder" else set())
    assert set(source.skipped) == expected


def test_skipped_files_in_words() -> None:
    words = skipped_words(["a.txt", "b.TXT", "c", "d.zip"])
    assert words == "4 files are not images and were skipped: 2 .txt, 1 without ending, 1 .zip"
    assert skipped_words(["a.txt"]) == "1 file is not an image and was skipped: 1 .txt"


def test_camera_raw_files_are_not_taken_for_the_preview_inside(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "photo.dng").write_bytes(encoded(PICTURE, "TIFF"))
    source = open_source(f"folder:{tmp_path}")
    assert (len(source), source.skipped) == (1, ("photo.dng",))


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_tree(tmp_path / "root", {"a/1.png": 1, "b/2.png": 2})
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"/b cannot be read \(Permission denied\): make it readable"):
        open_source(f"folder:{root}")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_the_home_folder_is_expanded(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    spec = tree_spec(kind, tmp_path, {"a.png": 5}).replace(str(tmp_path), "~")
    assert spec.startswith(f"{kind}:~/")
    assert values(spec) == [5]
    assert open_source(spec).spec == spec
