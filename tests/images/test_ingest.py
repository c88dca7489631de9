"""Stage ingest: which images end up in which split, whatever the shards, and what happens to unreadable ones."""

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.cli import params
from stages import ingest
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import ImageTable, image_id, image_table, read_images, write_images
from stages.images.sources.open import open_source
from stages.protocol import run_plain

pytestmark = pytest.mark.usefixtures("project")

CIFAR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "cifar10-jpeg"
DEFAULTS = {
    "source": "folder:images",
    "holdout_source": None,
    "classes": None,
    "resolution": 4,
    "channels": 1,
    "interpolation": "lanczos",
    "train": 20,
    "test": 10,
    "holdout": 5,
    "seed": 42,
    "max_unreadable": 0.1,
    "shards": 2,
}
SPLITS = {"train": 20, "test": 10, "holdout": 5}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(count: int = 60, broken: tuple[int, ...] = (), root: str = "images") -> None:
    """Image number v shows the value v; it lies in class folder v % 3."""
    for value in range(count):
        path = Path(root) / f"class{value % 3}" / f"{value:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value)[: [30, -20][value % 2] if value in broken else None])


def run(**changes: Any) -> dict[str, ImageTable]:
    Path("params.yaml").write_text(yaml.safe_dump({"ingest": {**DEFAULTS, **changes}}))
    run_plain("ingest")
    return {split: read_images(f"data/ingest/{split}.arrow") for split in SPLITS}


def shown(table: ImageTable) -> list[int]:
    return table.images[:, 0, 0, 0].tolist()


def everything() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("data/ingest").iterdir()}


def rejected() -> list[dict[str, str]]:
    return pq.read_table("data/ingest/rejected.parquet").to_pylist()


def test_splits_are_disjoint_and_full() -> None:
    write_folder()
    tables = run()
    assert {split: len(table) for split, table in tables.items()} == SPLITS
    values = [value for table in tables.values() for value in shown(table)]
    assert len(set(values)) == 35
    for table in tables.values():
        assert table.labels.tolist() == [value % 3 for value in shown(table)]  # labels stay with their images
        assert table.ids == [image_id(image) for image in table.images]
        assert table.metadata["classes"] == ["class0", "class1", "class2"]
    summary = read_json("data/ingest/ingest.json")
    assert summary["counts"] == SPLITS
    assert summary["shape"] == [4, 4, 1]
    assert (summary["available"], summary["rejected"]) == (60, 0)
    assert rejected() == []


def test_the_seed_decides_and_nothing_else() -> None:
    write_folder()
    first = shown(run()["train"])
    assert shown(run()["train"]) == first
    assert shown(run(seed=43)["train"]) != first
    order = np.argsort(np.random.PCG64(42).random_raw(60), kind="stable")
    source = open_source("folder:images")
    assert [int(Path(source.where(row)).stem) for row in order[15:35]] == first


def test_a_smaller_training_set_begins_a_larger_one_and_leaves_the_others_alone() -> None:
    write_folder()
    small, large = run(train=7), run(train=30)
    assert shown(small["train"]) == shown(large["train"])[:7]
    for split in ("test", "holdout"):
        assert shown(small[split]) == shown(large[split])


@pytest.mark.parametrize("changes", [{}, {"train": None}, {"holdout_source": "folder:other"}])
def test_outs_do_not_depend_on_the_shards(changes: dict[str, Any]) -> None:
    write_folder(broken=(1, 5, 13))
    write_folder(count=20, broken=(3,), root="other")
    run(shards=1, **changes)
    one = everything()
    run(shards=7, **changes)
    assert everything() == one
    run(shards=100, **changes)
    assert everything() == one


def test_null_takes_all_that_are_left() -> None:
    write_folder(broken=(3,))
    tables = run(train=None)
    values = [value for table in tables.values() for value in shown(table)]
    assert sorted(values) == [value for value in range(60) if value != 3]


def test_unreadable_images_are_listed_and_spares_take_their_place() -> None:
    write_folder()
    before = run()
    lost = shown(before["train"])[3]
    write_folder(broken=(lost,))
    after = run()
    assert {split: len(table) for split, table in after.items()} == SPLITS
    assert shown(after["test"]) == shown(before["test"])
    assert shown(after["train"])[:-1] == [value for value in shown(before["train"]) if value != lost]
    (entry,) = rejected()
    assert entry["where"] == f"images/class{lost % 3}/{lost:03d}.png"
    assert "truncated" in entry["reason"] or "not an image" in entry["reason"]
    assert read_json("data/ingest/ingest.json")["rejected"] == 1


def test_too_many_unreadable_images_fail_by_name() -> None:
    write_folder(broken=tuple(range(0, 60, 4)))
    with pytest.raises(
        InputError, match=r"of 38 images of folder:images are unreadable, more than ingest.max_un"
    ) as caught:
        run()
    assert "not an image" in str(caught.value)
    assert len(rejected()) > 3  # the whole list is there, though the stage failed
    assert not Path("data/ingest/train.arrow").exists()
    run(max_unreadable=0.4)


def test_none_may_be_unreadable_when_the_share_is_zero() -> None:
    write_folder()
    lost = shown(run(max_unreadable=0.0)["train"])[0]
    assert read_json("data/ingest/ingest.json")["seen"] == 35  # no spares are decoded
    write_folder(broken=(lost,))
    with pytest.raises(InputError, match="1 of 35 images"):
        run(max_unreadable=0.0)


def test_too_few_images_are_an_error_with_the_numbers() -> None:
    write_folder(count=34)
    with pytest.raises(InputError, match=r"has 34 images, too few for 5 holdout \+ 10 test \+ 20 train"):
        run()
    with pytest.raises(InputError, match=r"too few for 20 holdout \+ 14 test \+ the rest for train"):
        run(train=None, test=14, holdout=20)
    write_folder(count=36, broken=(1, 2))
    with pytest.raises(InputError, match="has, without the unreadable ones, 34 images"):
        run()
    write_folder(count=36)
    run()


def test_classes_by_name_and_by_number() -> None:
    write_folder()
    tables = run(classes=["class2", "class0"], train=15)
    assert {value % 3 for table in tables.values() for value in shown(table)} == {0, 2}
    assert set(tables["train"].labels.tolist()) == {0, 2}
    with pytest.raises(InputError, match="no class 'class3', only class0, class1, class2"):
        run(classes=["class3"])
    stack = np.arange(60, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    write_images("a.arrow", image_table(stack, np.arange(60) % 3))
    tables = run(source="arrow:a.arrow", classes=[1], train=4)
    assert {value % 3 for table in tables.values() for value in shown(table)} == {1}


def test_classes_that_yaml_reads_as_booleans_are_an_error() -> None:
    write_folder()
    for classes in ([True, False], ["class0", True]):  # yes, no, on, off
        with pytest.raises(InputError, match=r"ingest\.classes: .*got true/false: write yes, no, on and off in quotes"):
            run(classes=classes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"source": "mnist"},
            r"params\.yaml: ingest\.source: .*unknown image source 'mnist': use one of mnist5k",
        ),
        ({"source": "folder:nowhere"}, r"params\.yaml: ingest\.source: .*nowhere does not exist"),
        ({"source": "folder:images?spilt=a"}, r"ingest\.source: .*unknown option spilt: it takes split"),
        ({"holdout_source": "zip:nowhere.zip"}, r"params\.yaml: ingest\.holdout_source: .*nowhere\.zip does not exist"),
        ({"sorce": "folder:images"}, r"unknown key ingest\.sorce: remove it or correct its spelling"),
    ],
)
def test_scoresmooth_params_finds_wrong_sources(change: dict[str, Any], says: str) -> None:
    write_folder()
    root, blocks = Path(__file__).parents[2], Path("stages/theory/blocks.yaml")
    blocks.parent.mkdir(parents=True)
    blocks.write_text((root / blocks).read_text())
    tree = yaml.safe_load((root / "params.yaml").read_text())
    tree["ingest"] |= change
    if "sorce" in change:
        del tree["ingest"]["source"]
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=says):
        params()
    tree["ingest"] |= {"source": "folder:images", "holdout_source": None}
    tree["ingest"].pop("sorce", None)
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    params(quiet=True)


def test_a_separate_source_for_the_held_out_images() -> None:
    write_folder(count=25)
    write_folder(count=20, root="other")
    tables = run(holdout_source="folder:other")
    assert {split: len(table) for split, table in tables.items()} == SPLITS
    assert len({*shown(tables["test"]), *shown(tables["holdout"])}) == 15
    assert tables["test"].metadata["source"] == "folder:other"
    Path("other/class2").rename("other/class9")
    with pytest.raises(InputError, match="classes of folder:other differ"):
        run(holdout_source="folder:other")


def test_held_out_images_inside_the_training_source_are_an_error() -> None:
    write_folder()
    for inside in ("folder:images", "folder:images/class1"):
        with pytest.raises(InputError, match=r"ingest\.holdout_source .* lies inside ingest\.source folder:images"):
            run(holdout_source=inside)


def test_what_was_changed_or_skipped_is_told(capsys: pytest.CaptureFixture) -> None:
    write_folder()
    for value in range(60):
        Image.new("LA", (4, 6), (value, 200)).save(f"images/class{value % 3}/{value:03d}.png")
    Path("images/class0/about.txt").write_text("about")
    run()
    notes = read_json(Path("data/ingest/ingest.json"))["notes"]
    printed = capsys.readouterr().out
    for said in ("were resized to 4 × 4", "are not square and were cropped", "have transparent pixels", "1 .txt"):
        assert any(said in note for note in notes), said
        assert said in printed


def test_a_shard_depends_on_its_own_files_and_names_only() -> None:
    write_folder()
    params = ingest.Params(**{**DEFAULTS, "shards": 4})
    shards = ingest.plan(params)
    files = [path for shard in shards for path in shard.inputs]
    assert len(files) == len(set(files)) == 38  # 35 and the spares for a tenth
    Path(shards[1].inputs[0]).rename(Path(shards[1].inputs[0]).with_suffix(".PNG"))
    again = ingest.plan(params)
    assert [a.settings == b.settings for a, b in zip(shards, again)] == [True, False, True, True]
    with pytest.raises(InputError, match="changed while it was being read"):
        ingest.work(shards[1].at("part.arrow"))


def test_sources_and_sizes_meet(tmp_path: Path) -> None:
    """A colour source of another size, cut to grey squares: the same as by hand."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 15, 3), dtype=np.uint8)
    np.savez("a.npz", pixels)
    tables = run(source="npz:a.npz", resolution=3, interpolation="box", train=25)
    by_hand = {}
    for image in pixels:
        grey = np.asarray(Image.fromarray(image).convert("L").crop((3, 0, 12, 9)).resize((3, 3), Image.Resampling.BOX))
        by_hand[image_id(grey[..., None])] = grey
    for table in tables.values():
        for name, image in zip(table.ids, table.images):
            assert np.array_equal(image[..., 0], by_hand[name])
        assert (table.labels == -1).all()


@given(st.integers(1, 5000), st.floats(0, 0.99))
def test_spares_suffice_and_are_fewest(needed: int, share: float) -> None:
    count = ingest._with_spares(needed, share)
    assert count - math.floor(share * count) >= needed
    assert count == needed or (count - 1) - math.floor(share * (count - 1)) < needed


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"resolution": 0}, "ingest.resolution"),
        ({"channels": 2}, "ingest.channels"),
        ({"train": 0}, "ingest.train"),
        ({"test": 0}, "ingest.test"),
        ({"max_unreadable": 1.0}, "ingest.max_unreadable"),
        ({"interpolation": "nearest"}, "ingest.interpolation"),
        ({"classes": []}, "ingest.classes"),
        ({"shards": 0}, "ingest.shards"),
        ({"sources": "mnist5k"}, "ingest.sources"),
        ({"source": "nowhere:x"}, "unknown image source"),
        ({"source": "folder:nowhere"}, "nowhere does not exist"),
    ],
)
def test_wrong_params_are_one_line_that_names_the_key(changes: dict[str, Any], key: str) -> None:
    write_folder(1)
    with pytest.raises(InputError, match=key) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)
    assert not Path("data").exists()


def test_the_default_digits() -> None:
    tables = run(source="mnist5k", resolution=16, train=200, test=1000, holdout=1000, max_unreadable=0.01)
    assert [table.images.shape for table in tables.values()] == [(200, 16, 16, 1), (1000, 16, 16, 1), (1000, 16, 16, 1)]
    assert (np.bincount(tables["train"].labels, minlength=10) >= 10).all()
    assert len({name for table in tables.values() for name in table.ids}) == 2200


@pytest.mark.skipif(not CIFAR.exists(), reason=f"{CIFAR} is absent")
def test_cifar_in_hugging_faces_layout() -> None:
    tables = run(source=f"parquet:{CIFAR / 'test.parquet'}", resolution=32, channels=3, interpolation="lanczos")
    stored = pq.read_table(CIFAR / "test.parquet")
    order = np.argsort(np.random.PCG64(42).random_raw(10_000), kind="stable")
    for split, start in (("test", 0), ("holdout", 10), ("train", 15)):
        row = int(order[start])
        expected = Image.open(io.BytesIO(stored["image"][row].as_py()["bytes"]))
        assert np.array_equal(tables[split].images[0], np.asarray(expected.convert("RGB")))
        assert tables[split].labels[0] == stored["label"][row].as_py()


def test_a_parquet_without_images_says_so() -> None:
    pq.write_table(pa.table({"text": ["a"]}), "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet has no column 'image', only text"):
        run(source="parquet:a.parquet")
