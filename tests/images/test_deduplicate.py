"""Stage deduplicate: pairs against brute force, groups against union-find, and which images stay."""

import io
import math
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import ImageTable, JoinedTables, image_table, read_images, write_images
from stages.images import duplicates
from stages.images.decode import to_pixels
from stages.images.duplicates import Pairs, connected_groups, feature_pairs, first_rows, near_pairs
from stages.images.sources.open import open_source
from stages.protocol import run_plain
from stages.search.pixel_distance import squared_radius

pytestmark = pytest.mark.usefixtures("project")

SPLITS = ("train", "test", "holdout")
PIXELS = {"name": "pixels", "weights": None, "sha256": None, "resize": None}


def distances(pixels: np.ndarray) -> np.ndarray:
    """||a - b||² on the 0..255 scale between all images, int64, by differences."""
    flat = pixels.reshape(len(pixels), -1).astype(np.int64)
    return np.square(flat[:, None] - flat[None]).sum(2)


def write_splits(*splits: np.ndarray, labels: bool = False) -> None:
    for split, pixels in zip(SPLITS, splits):
        table = image_table(pixels, np.arange(len(pixels)) if labels else None, {"split": split})
        write_images(f"data/ingest/{split}.arrow", table)


def run(**changes: Any) -> dict[str, ImageTable]:
    section = {"exact": True, "near": None, "feature": None, "shards": 2, **changes}
    Path("params.yaml").write_text(yaml.safe_dump({"deduplicate": section}))
    run_plain("deduplicate")
    return {split: read_images(f"data/deduplicate/{split}.arrow") for split in SPLITS}


def groups() -> list[dict[str, Any]]:
    return pq.read_table("data/deduplicate/groups.parquet").to_pylist()


def summary() -> dict[str, Any]:
    return read_json("data/deduplicate/deduplicate.json")


def grey(*values: int) -> np.ndarray:
    """Constant images 2 x 2: the distance l of two is their difference / 255."""
    return np.array(values, np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)


# ---------------------------------------------------------------- distances and pairs


@given(st.integers(0, 4000), st.integers(1, 200_000))
def test_squared_radius_is_the_decimals_floor(thousandths: int, dimension: int) -> None:
    distance = thousandths / 4000
    radius = squared_radius(distance, dimension)
    limit = Fraction(str(distance)) ** 2
    assert Fraction(radius, dimension * 255**2) <= limit < Fraction(radius + 1, dimension * 255**2)


@pytest.mark.parametrize("fifths", range(5))
def test_a_decimal_is_not_its_binary_neighbour(fifths: int) -> None:
    assert squared_radius(fifths / 5, 4) == (51 * fifths) ** 2 * 4  # 0.6 is stored a little lower than it says


def test_the_threshold_itself_counts() -> None:
    write_splits(grey(0, 51), grey(103), grey(255))
    run(near=0.2)
    assert [(row["row"], row["distance"]) for row in groups()] == [(0, 0.0), (1, 0.2)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 40),
    spread=st.sampled_from([1, 3, 40, 255]),
    share=st.floats(0, 1),
    shards=st.integers(1, 6),
)
def test_near_pairs_are_brute_forces(seed: int, count: int, spread: int, share: float, shards: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = (rng.integers(0, spread + 1, (count, 3, 3, 1)) + rng.integers(0, 256 - spread)).astype(np.uint8)
    images = JoinedTables([image_table(pixels[: count // 2]), image_table(pixels[count // 2 :])])
    rows = np.unique(first_rows(images.ids))
    squared = distances(pixels[rows])
    radius = int(np.quantile(squared, share))
    cuts = np.linspace(0, count, shards + 1).astype(int)
    found = Pairs.union([near_pairs(images, rows, radius, a, b) for a, b in zip(cuts, cuts[1:])])
    i, j = np.nonzero(np.triu(squared <= radius, 1))
    assert found.i.tolist() == rows[i].tolist()
    assert found.j.tolist() == rows[j].tolist()
    assert np.array_equal(found.distance, np.sqrt(squared[i, j] / 9) / 255)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 0.99))
def test_feature_pairs_are_brute_forces(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (30, 2, 2, 1), dtype=np.uint8)
    pixels[7] = 0  # a feature of length zero is like nothing
    images, flat = JoinedTables([image_table(pixels)]), pixels.reshape(30, -1).astype(np.float64)
    rows = np.unique(first_rows(images.ids))
    flat = flat[rows]
    lengths = np.maximum(np.linalg.norm(flat, axis=1), 1e-300)
    cosine = 1 - flat @ flat.T / lengths / lengths[:, None]
    found = feature_pairs(images, rows, threshold, lambda x: x.reshape(len(x), -1).astype(np.float32))
    expected = set(zip(*(rows[axis].tolist() for axis in np.nonzero(np.triu(cosine <= threshold, 1)))))
    doubtful = set(zip(*(rows[axis].tolist() for axis in np.nonzero(np.abs(cosine - threshold) < 1e-12))))
    assert set(zip(found.i.tolist(), found.j.tolist())) - doubtful == expected - doubtful


def test_feature_pairs_across_blocks() -> None:
    """More images than one block of the product, one duplicate far away from its original."""
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 4, 4, 1), dtype=np.uint8)
    pixels[2400] = pixels[3] // 2  # half as bright: the same direction
    images = JoinedTables([image_table(pixels)])
    rows = np.unique(first_rows(images.ids))
    found = feature_pairs(images, rows, 1e-3, lambda x: x.reshape(len(x), -1).astype(np.float32))
    assert list(zip(found.i.tolist(), found.j.tolist())) == [(3, 2400)]


def test_a_threshold_that_joins_everything_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    write_splits(grey(*range(10)), grey(20), grey(21))
    with pytest.raises(InputError, match="deduplicate.near joins more than 10 pairs"):
        run(near=0.5)
    with pytest.raises(InputError, match="deduplicate.feature.threshold joins more than 10 pairs"):
        run(feature={"threshold": 0.5, "encoder": PIXELS})


# ---------------------------------------------------------------- groups


def union_find(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """The lowest member of every row's group."""
    parent = list(range(count))

    def root(row: int) -> int:
        while parent[row] != row:
            row = parent[row]
        return row

    for i, j in edges:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    return [root(row) for row in range(count)]


EDGES = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=15)


@settings(max_examples=100, deadline=None)
@given(st.tuples(EDGES, EDGES, EDGES))
def test_groups_are_union_finds(layers: tuple[list[tuple[int, int]], ...]) -> None:
    names = ("exact", "near", "feature")
    arrays = {name: np.array(edges, np.int64).reshape(-1, 2).T for name, edges in zip(names, layers)}
    result = connected_groups(20, {name: (i, j) for name, (i, j) in arrays.items()})
    levels = [union_find(20, list(chain(*layers[: depth + 1]))) for depth in range(3)]
    lowest = levels[-1]
    members = sorted((lowest[row], row) for row in range(20) if lowest.count(lowest[row]) > 1)
    assert list(zip(result.representative.tolist(), result.row.tolist())) == members
    assert result.group.tolist() == [sorted({first for first, _ in members}).index(first) for first, _ in members]
    for (first, row), reason in zip(members, result.reason):
        reached = [name for name, level in zip(names, levels) if level[row] == first]
        assert reason == (None if row == first else reached[0])


def test_no_layer_is_no_group() -> None:
    assert len(connected_groups(5, {}).row) == 0
    assert len(connected_groups(0, {}).row) == 0


# ---------------------------------------------------------------- the stage


def test_equal_images_leave_one_and_never_a_leak() -> None:
    write_splits(grey(10, 20, 10, 30), grey(20, 40, 50), grey(60, 50, 10))
    kept = run()
    assert {split: table.images[:, 0, 0, 0].tolist() for split, table in kept.items()} == {
        "train": [10, 20, 30],
        "test": [40, 50],
        "holdout": [60],
    }
    assert [(row["group"], row["split"], row["row"], row["kept"], row["reason"]) for row in groups()] == [
        (0, "train", 0, True, None),
        (0, "train", 2, False, "exact"),
        (0, "holdout", 2, False, "exact"),
        (1, "train", 1, True, None),
        (1, "test", 0, False, "exact"),
        (2, "test", 2, True, None),
        (2, "holdout", 1, False, "exact"),
    ]
    result = summary()
    assert result["counts"]["train"] == {"before": 4, "after": 3}
    assert result["pairs_by_reason"] == {"exact": 3 + 1 + 1, "near": 0, "feature": 0}
    assert (result["groups"], result["images_in_groups"], result["removed"]) == (3, 7, 4)
    assert kept["test"].metadata == {"split": "test"}


def test_chains_are_one_group_and_the_distance_is_the_representatives() -> None:
    write_splits(grey(100, 0, 102), grey(104, 200), grey(106, 106, 230))
    run(near=0.01)  # 2.55 of 255
    assert [(row["split"], row["row"], row["reason"]) for row in groups()] == [
        ("train", 0, None),
        ("train", 2, "near"),
        ("test", 0, "near"),
        ("holdout", 0, "near"),
        ("holdout", 1, "near"),
    ]
    assert [round(row["distance"] * 255) for row in groups()] == [0, 2, 4, 6, 6]
    assert summary()["pairs_by_reason"] == {"exact": 1, "near": 1 + 1 + 2, "feature": 0}
    assert summary()["largest_distance"] == pytest.approx(6 / 255)


def test_each_relation_can_be_switched_off() -> None:
    write_splits(grey(10, 10, 11, 90), grey(150), grey(200))
    counts = {}
    for exact in (False, True):
        for near in (None, 0.0, 0.004):
            run(exact=exact, near=near)
            counts[exact, near] = (summary()["removed"], summary()["pairs_by_reason"])
    nothing = {"exact": 0, "near": 0, "feature": 0}
    assert counts[False, None] == (0, nothing)
    assert counts[True, None] == (1, {**nothing, "exact": 1})
    assert counts[True, 0.0] == (1, {**nothing, "exact": 1})
    assert counts[False, 0.0] == (1, {**nothing, "near": 1})  # equal pixels are within any distance
    assert counts[False, 0.004] == (2, {**nothing, "near": 3})
    assert counts[True, 0.004] == (2, {"exact": 1, "near": 2, "feature": 0})


def test_features_find_what_pixels_do_not() -> None:
    """Encoder `pixels`: an image of half the contrast has the same direction."""
    rng = np.random.default_rng(0)
    train = rng.integers(100, 256, (6, 4, 4, 3), dtype=np.uint8)
    train[:, :2] //= 9
    test = rng.integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    test[1] = train[4] // 2
    write_splits(train, test, rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8))
    run(near=0.02)
    assert groups() == []
    kept = run(near=0.02, feature={"threshold": 1e-3, "encoder": PIXELS})
    assert [(row["split"], row["row"], row["reason"]) for row in groups()] == [
        ("train", 4, None),
        ("test", 1, "feature"),
    ]
    assert len(kept["test"]) == 2
    assert summary()["pairs_by_reason"] == {"exact": 0, "near": 0, "feature": 1}
    assert groups()[1]["distance"] > 0.02


def test_labels_that_disagree_are_counted() -> None:
    write_splits(grey(10, 10, 20), grey(20, 30), grey(40), labels=True)
    run()
    assert summary()["label_conflicts"] == 2  # 0 and 1, 2 and 0


@pytest.mark.parametrize("channels", [1, 3])
def test_outs_do_not_depend_on_the_shards_and_match_brute_force(channels: int) -> None:
    rng = np.random.default_rng(channels)
    pixels = rng.integers(0, 60, (90, 3, 3, channels), dtype=np.uint8)
    for copy, original in enumerate(range(30, 65)):
        noise = rng.integers(0, 3, pixels[0].shape) * (copy % 4)
        pixels[original] = pixels[copy % 25] + noise
    write_splits(pixels[:40], pixels[40:70], pixels[70:])
    results = []
    for shards in (1, 2, 7, 50):
        run(near=0.015, shards=shards)
        results.append({path.name: path.read_bytes() for path in Path("data/deduplicate").iterdir()})
    assert all(result == results[0] for result in results)
    limit = Fraction("0.015") ** 2 * 255**2 * 9 * channels
    i, j = np.nonzero(np.triu(distances(pixels) <= math.floor(limit), 1))
    lowest = union_find(90, list(zip(i.tolist(), j.tolist())))
    edges = {"train": 0, "test": 40, "holdout": 70}
    rows = {edges[row["split"]] + row["row"]: row for row in groups()}
    assert {row for row in range(90) if lowest.count(lowest[row]) > 1} == set(rows)
    assert {row for row in rows if lowest[row] == row} == {row for row in rows if rows[row]["kept"]}
    assert 10 < summary()["removed"] == sum(low != row for row, low in enumerate(lowest))
    assert sum(summary()["pairs_by_reason"].values()) == len(i)


def test_a_split_that_vanishes_is_an_error() -> None:
    write_splits(grey(1, 2), grey(2, 1), grey(3))
    with pytest.raises(InputError, match="no test image is left of 2"):
        run()
    with pytest.raises(InputError, match="train.arrow is missing"):
        Path("data/ingest/train.arrow").unlink()
        run()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"near": -0.1}, "deduplicate.near"),
        ({"near": 1.0}, "deduplicate.near"),
        ({"exact": "perhaps"}, "deduplicate.exact"),
        ({"shards": 0}, "deduplicate.shards"),
        ({"feature": {"threshold": 2, "encoder": PIXELS}}, "deduplicate.feature.threshold"),
        ({"feature": {"threshold": 0.1}}, "missing key deduplicate.feature.encoder"),
        ({"feature": {"threshold": 0.1, "encoder": {**PIXELS, "name": "x"}}}, "deduplicate.feature.encoder.name"),
    ],
)
def test_wrong_params_are_one_line_that_names_the_key(changes: dict[str, Any], key: str) -> None:
    write_splits(grey(1), grey(2), grey(3))
    with pytest.raises(InputError, match=key) as caught:
        run(**changes)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the default threshold


DEFAULT_NEAR = 0.02


def test_the_default_threshold_knows_recompressed_digits_from_other_ones() -> None:
    """The most alike of the digits are ones; no two of them are as near as a digit and its JPEG copy."""
    source = open_source("mnist5k")
    ones = [item.image for item in source.read(np.flatnonzero(source.labels == 1))]
    pixels = np.stack([to_pixels(image, 16, 1) for image in ones])
    copies = []
    for image in pixels[:50]:
        buffer = io.BytesIO()
        Image.fromarray(image[..., 0]).save(buffer, "JPEG", quality=92)
        copies.append(to_pixels(Image.open(buffer), 16, 1))
    write_splits(pixels, np.concatenate([np.stack(copies), grey(9).repeat(8, 1).repeat(8, 2)]), pixels[:1] // 2)
    kept = run(near=DEFAULT_NEAR)
    assert {split: len(table) for split, table in kept.items()} == {"train": 500, "test": 1, "holdout": 1}
    assert sorted(row["row"] for row in groups() if row["split"] == "test") == list(range(50))


def test_the_default_threshold_is_the_tested_one() -> None:
    tree = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    assert tree["deduplicate"]["near"] == DEFAULT_NEAR
