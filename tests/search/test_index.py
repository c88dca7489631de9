"""Exact feature neighbours against brute force, FAISS indices and their recall, and the index stage."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import index
from stages.embed import features_of, images_of
from stages.errors import InputError
from stages.features.faiss_index import (
    HnswParams,
    IvfParams,
    accelerated,
    build_index,
    read_index,
    recall_at_k,
    write_index,
)
from stages.features.feature_search import nearest_features, normalized
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, write_images
from stages.files.neighbors import read_neighbors
from stages.files.paths import NEIGHBOR_FEATURES
from stages.protocol import by_task

IVF = {"lists": 8, "probes": 2}
HNSW = {"links": 8, "ef_construction": 40, "ef_search": 32}


def brute_force(queries, reference, k, exclude):
    """Direct differences in extended precision, ties by index."""
    index_, distance = [], []
    for query, left_out in zip(queries.astype(np.longdouble), exclude):
        squared = np.square(query - reference.astype(np.longdouble)).sum(axis=1)
        order = [row for row in np.argsort(squared, kind="stable") if row != left_out][:k]
        index_.append(order)
        distance.append(np.sqrt(squared[order]))
    return np.array(index_), np.array(distance, dtype=np.float64)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 6), st.booleans(), st.booleans())
def test_nearest_features_is_brute_force(seed, count, dimension, leave_self_out, on_a_grid):
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=(count, dimension)).astype(np.float32)
    if on_a_grid:  # many exact ties and duplicates
        reference = np.round(reference)
    exclude = np.arange(count) if leave_self_out else np.full(count, -1)
    k = int(rng.integers(1, count))
    budget = int(rng.integers(1, 20_000))  # blocks of one row up to all
    expected = brute_force(reference, reference, k, exclude)
    found = nearest_features(reference, reference, k, exclude=exclude, memory_budget=budget)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-14)


def test_distances_that_a_product_cannot_see_are_exact():
    # |a|² ~ 1e12 and differences of 1e-3: |a|²+|b|²−2ab has an error of 1e-4 in float64 on a squared distance of 1e-6
    rng = np.random.default_rng(0)
    reference = 1e6 + 1e-3 * rng.integers(0, 50, size=(60, 3)).astype(np.float64)
    exclude = np.arange(60)
    found, expected = (
        nearest_features(reference, reference, 5, exclude=exclude),
        brute_force(reference, reference, 5, exclude),
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)


def test_duplicates_have_distance_zero_and_are_listed_in_row_order():
    reference = np.repeat(np.random.default_rng(0).normal(size=(4, 300)), 30, axis=0)
    found, distance = nearest_features(reference[[35]], reference, 29, exclude=np.array([35]))
    assert found[0].tolist() == [row for row in range(30, 60) if row != 35]
    assert not distance.any()


def test_more_neighbours_than_there_are_is_refused():
    rows = np.eye(5)
    with pytest.raises(InputError, match="5 nearest neighbours were asked for, 4 reference features are available"):
        nearest_features(rows, rows, 5, exclude=np.arange(5))


def test_a_zero_feature_has_no_cosine():
    with pytest.raises(InputError, match="image b is zero"):
        normalized(np.array([[1.0, 0], [0, 0]]), ["a", "b"])
    assert np.square(normalized(np.random.default_rng(0).normal(size=(9, 50)), ["x"] * 9)).sum(1) == pytest.approx(1)


# FAISS


@pytest.fixture(scope="module")
def rows():
    return normalized(np.random.default_rng(0).normal(size=(1000, 24)), ["x"] * 1000)


def built(rows, kind, ivf=IVF, hnsw=HNSW):
    return build_index(rows, kind, IvfParams(**ivf), HnswParams(**hnsw))


def test_flat_finds_all_and_approximate_kinds_find_what_an_own_count_says(rows):
    exact = brute_force(rows[::50], rows, 5, np.arange(0, 1000, 50))[0]
    for kind in ("flat", "ivf", "hnsw"):
        found = built(rows, kind).search(rows[::50].astype(np.float32), 6)[1]
        own = np.mean([len({*a} & {*b}) / 5 for a, b in zip(found, exact)])  # found lists the query itself too
        recall = recall_at_k(built(rows, kind), rows, 5, 1000)
        assert recall["queries"] == 1000
        assert recall["recall"] == pytest.approx(own, abs=0.12)
        assert (recall["recall"] == 1) == (kind == "flat")


def test_recall_rises_to_one_with_the_effort(rows):
    shares = [recall_at_k(built(rows, "ivf", {"lists": 8, "probes": n}), rows, 10, 300)["recall"] for n in (1, 3, 8)]
    assert shares[0] < shares[1] < shares[2] == 1
    ef = [recall_at_k(built(rows, "hnsw", hnsw={**HNSW, "ef_search": n}), rows, 10, 300)["recall"] for n in (11, 400)]
    assert ef[0] < ef[1]
    assert ef[1] > 0.999


def test_recall_counts_ties_as_found_and_duplicates_do_not_hide_the_query(rows):
    copies = np.repeat(rows[:20], 6, axis=0)
    assert recall_at_k(built(copies, "flat"), copies, 3, 120)["recall"] == 1


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_the_file_is_the_same_twice_and_reads_back(tmp_path, rows, kind):
    import faiss

    threads = faiss.omp_get_max_threads()
    first = write_index(tmp_path / "a.faiss", built(rows, kind)).read_bytes()
    faiss.omp_set_num_threads(2)
    second = write_index(tmp_path / "b.faiss", built(rows, kind)).read_bytes()
    faiss.omp_set_num_threads(threads)
    assert first == second
    a, b = (
        accelerated(i).search(rows[:9].astype(np.float32), 4)
        for i in (built(rows, kind), read_index(tmp_path / "a.faiss"))
    )
    np.testing.assert_array_equal(a[1], b[1])


def test_wrong_indices_are_refused(tmp_path, rows):
    with pytest.raises(InputError, match="2000 cells cannot be made of 1000 images"):
        built(rows, "ivf", {"lists": 2000, "probes": 1})
    with pytest.raises(InputError, match="9 cells cannot be searched, there are 8"):
        built(rows, "ivf", {"lists": 8, "probes": 9})
    with pytest.raises(InputError, match="is missing"):
        read_index(tmp_path / "no.faiss")
    path = write_index(tmp_path / "cut.faiss", built(rows, "flat"))
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"cut\.faiss is not a FAISS index"):
        read_index(path)


def test_faiss_works_without_a_gpu(monkeypatch, rows):
    import faiss

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    assert recall_at_k(built(rows, "flat"), rows, 4, 50)["recall"] == 1


# The stage

CLASSES = np.arange(60) % 3


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(60, 4, 4, 1), dtype=np.uint8)
    images[7] = images[50]  # a duplicate: distance 0
    table = image_table(images, CLASSES)
    write_images(images_of("train"), table)
    features = np.abs(rng.normal(size=(60, 10))).astype(np.float32)
    features[20] = 3 * features[33]  # the same direction: cosine distance 0, raw distance not
    write_features(features_of("train"), FeatureTable(features, table.ids, {"encoder": "test"}))
    return tmp_path, images.reshape(60, -1), features


def parameters(**changes):
    return index.Params(**{"neighbors": 5, "encoder": None, "within_class": False, "kind": "flat", "ivf": IVF,
                           "hnsw": HNSW, "recall_queries": 1000, "shards": 1} | changes)  # fmt: skip


def run(folder, **changes):
    params = parameters(**changes)
    shards = index.plan(params)
    results = [index.work(shard.at(folder / f"part{i}{shard.suffix}")) for i, shard in enumerate(shards)]
    index.gather(params, by_task(shards, results))
    out = folder / "data/index"
    return read_neighbors(out / "pixel_neighbors.arrow"), read_neighbors(out / "feature_neighbors.arrow")


def test_the_neighbours_encoder_orders_them_and_the_filters_scale_stays_that_of_embed(project):
    folder, *_ = project
    _, before = run(folder)
    other = np.random.default_rng(1).normal(size=(60, 7)).astype(np.float32)
    write_features(NEIGHBOR_FEATURES, FeatureTable(other, before.ids, {"encoder": "other"}))
    _, found = run(folder, encoder={"name": "resnet18", "weights": None, "sha256": None, "resize": None})
    unit = other / np.linalg.norm(other.astype(np.longdouble), axis=1, keepdims=True)
    np.testing.assert_array_equal(found.neighbors, brute_force(unit, unit, 5, np.arange(60))[0])
    np.testing.assert_array_equal(found.nn_distance, before.nn_distance)
    assert found.metadata["encoder"] == "other"
    assert json.loads((folder / "data/index/index.json").read_text())["dimension"] == 7


@pytest.mark.parametrize("within_class", [False, True])
def test_stage_is_brute_force(project, within_class):
    folder, images, features = project
    pixel, feature = run(folder, within_class=within_class)
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    for table, values, scale in ((pixel, images, 255 * 4), (feature, unit, 1)):
        for row in range(60):
            allowed = np.flatnonzero(CLASSES[row] == CLASSES) if within_class else np.arange(60)
            allowed = allowed[allowed != row]
            found, distance = brute_force(values[[row]], values[allowed], 5, [-1])
            np.testing.assert_array_equal(table.neighbors[row], allowed[found[0]])
            np.testing.assert_allclose(table.distances[row], distance[0] / scale, rtol=1e-6, atol=1e-7)
    nearest_other = brute_force(features, features, 1, np.arange(60))[1][:, 0]  # of any class, not normalized
    np.testing.assert_allclose(feature.nn_distance, nearest_other, rtol=1e-6)
    assert pixel.nn_distance is None
    assert pixel.metadata["within_class"] is within_class


def test_stage_sees_duplicates_and_equal_directions(project):
    pixel, feature = run(project[0])
    assert pixel.neighbors[7, 0] == 50
    assert pixel.distances[7, 0] == 0
    assert feature.neighbors[20, 0] == 33
    assert feature.distances[20, 0] < 1e-7
    assert feature.nn_distance[20] > 0.1
    summary = json.loads((project[0] / "data/index/index.json").read_text())
    assert summary == {"kind": "flat", "count": 60, "dimension": 10, "encoder": "test", "neighbors": 5,
                       "within_class": False, "recall_at_k": {"k": 5, "queries": 60, "recall": 1.0}}  # fmt: skip


def test_stage_is_the_same_for_any_number_of_shards(project):
    outs = []
    for shards in (1, 7):
        run(project[0], shards=shards, kind="hnsw", within_class=True)
        outs.append({path.name: path.read_bytes() for path in (project[0] / "data/index").iterdir()})
    assert len(outs[0]) == 4
    assert outs[0] == outs[1]


def test_more_neighbours_than_images_is_refused_before_any_work(project):
    with pytest.raises(InputError, match="60 neighbours were asked for, the 60 training images leave 59 to each"):
        index.plan(parameters(neighbors=60))
    assert index.plan(parameters(neighbors=59))
    with pytest.raises(InputError, match=r"20 neighbours were asked for, class 0 has 20 training images"):
        index.plan(parameters(neighbors=20, within_class=True))
    assert index.plan(parameters(neighbors=19, within_class=True))


def test_within_class_needs_labels(project):
    write_images(images_of("train"), image_table(project[1].reshape(60, 4, 4, 1)))
    with pytest.raises(InputError, match="60 of 60 training images have no label"):
        index.plan(parameters(within_class=True))


def test_features_of_other_images_are_refused(project):
    write_features(features_of("train"), FeatureTable(project[2], [str(i) for i in range(60)], {}))
    with pytest.raises(InputError, match="rerun stage embed"):
        run(project[0])


def test_only_what_determines_a_shard_is_in_its_settings(project):
    flat, ivf = (index.plan(parameters(kind=kind, shards=3)) for kind in ("flat", "ivf"))
    assert [shard.settings for shard in flat[:-1]] == [shard.settings for shard in ivf[:-1]]
    assert set(flat[-1].settings) == {"kind"}
    assert set(ivf[-1].settings) == {"kind", "ivf"}
    assert all(features_of("train").as_posix() not in shard.inputs for shard in flat if "pixel" in shard.name)
