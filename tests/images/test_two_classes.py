"""benchmarks.two_classes: two folders of a source's two classes, which share no image."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.two_classes import main
from stages.images.sources.open import open_source


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (90, 4, 4, 3), dtype=np.uint8)
    np.savez("set.npz", images=images, labels=np.arange(90) % 3)
    return images


def pixels(folder):
    return {np.asarray(Image.open(path)).tobytes() for path in folder.glob("*.png")}


def test_the_folders_hold_images_of_the_two_classes_alone_and_share_none(source, tmp_path, capsys):
    main(["npz:set.npz", "0", "2", "--counts", "20", "4", "--held-out", "10"])
    counts = {"two-classes/0": 20, "two-classes/2": 4, "two-classes-more/0": 10, "two-classes-more/2": 2}
    found = {name: pixels(tmp_path / name) for name in counts}
    assert {name: len(own) for name, own in found.items()} == counts
    for name, own in found.items():
        assert own <= {image.tobytes() for image in source[int(name[-1]) :: 3]}
    assert not found["two-classes/0"] & found["two-classes-more/0"]
    assert not found["two-classes/2"] & found["two-classes-more/2"]
    assert "ingest.holdout_source: folder:two-classes-more" in capsys.readouterr().out
    assert len(open_source("folder:two-classes")) == 24


def test_what_does_not_fit_is_one_line(source, tmp_path):
    with pytest.raises(SystemExit, match="error: npz:set.npz has no class '7': it has 0, 1, 2"):
        main(["npz:set.npz", "0", "7", "--counts", "2", "1", "--out", "a"])
    with pytest.raises(SystemExit, match="has 30 images of class 0, 1850 are needed: lower --counts"):
        main(["npz:set.npz", "0", "2", "--out", "b"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.npz"]
    (tmp_path / "b").mkdir()
    with pytest.raises(SystemExit, match="error: b exists: remove it"):
        main(["npz:set.npz", "0", "2", "--out", "b"])
