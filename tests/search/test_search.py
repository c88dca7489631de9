"""Exact search against the brute-force definitions, on every path and under tiny memory budgets."""

import tracemalloc

import numpy as np
import pytest
import torch
from adversarial import KINDS, draw_images
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.errors import InputError
from stages.files.neighbors import NeighborTable, join_neighbors, read_neighbors, write_neighbors
from stages.search import brute_force, nearest_device
from stages.search import nearest as nearest_module
from stages.search import range_search as range_module
from stages.search.alignment import TILES_PER_SIDE, best_shift, best_window, tile_distance
from stages.search.nearest import nearest
from stages.search.nearest_float import min_distance, prepare
from stages.search.nearest_short import Prepared, nearest_short
from stages.search.range_search import pairs_within

FIXED_BYTES = 20 << 20  # what fitting the directions takes, whatever the budget
DEPTHS = (1, 3, 17, 40, 200, 600)


@pytest.fixture(params=["plain", "bound", "dense", "mixed"])
def path(request, monkeypatch):
    """Each way through the search: one product; the bound only; int8 products only; the choice between these two."""
    if request.param != "plain":
        monkeypatch.setattr(nearest_module, "SMALL_SEARCH", 0)
        monkeypatch.setattr(nearest_module, "GIVE_UP_SHARE", {"bound": 2.0, "dense": 0.0, "mixed": 0.2}[request.param])
    return request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_nearest_is_brute_force(path, kind, seed):
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    d, count = DEPTHS[seed], int(rng.integers(2, 250))
    reference = draw_images(kind, rng, count, d)
    queries = np.concatenate([draw_images(kind, rng, 8, d), reference[rng.integers(0, count, 8)]])
    exclude = rng.integers(-1, count, len(queries)) if seed % 2 else None
    k = int(rng.integers(1, count - seed % 2 + 1))
    expected = brute_force.nearest(queries, reference, k, exclude)
    for budget in (1 << 30, 20_000):
        found = nearest(queries, reference, k, exclude=exclude, memory_budget=budget)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS), other=st.sampled_from(KINDS), hard=st.sampled_from([0.0, 0.1, 2.0]))
def test_nearest_property(data, kind, other, hard):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    d, count = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 80))
    queries, reference = draw_images(kind, rng, data.draw(st.integers(0, 12)), d), draw_images(other, rng, count, d)
    k, budget = data.draw(st.integers(1, count)), data.draw(st.sampled_from([1, 5_000, 1 << 30]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_module, "SMALL_SEARCH", data.draw(st.sampled_from([0, 1 << 33])))
        patch.setattr(nearest_module, "GIVE_UP_SHARE", hard)
        index, squared = nearest(queries, reference, k, memory_budget=budget)
    expected = brute_force.nearest(queries, reference, k)
    np.testing.assert_array_equal(index, expected[0])
    np.testing.assert_array_equal(squared, expected[1])


@st.composite
def integer_images(draw):
    """Two sets of one width, adversarial by construction: few distinct bytes, equal rows, queries among the rows."""
    d = draw(st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 300, 513])))
    few = [(0, 255), (128,), (0, 1), (127, 128, 129), tuple(range(0, 256, 5))]
    values = st.sampled_from(draw(st.sampled_from(few)))
    count = draw(st.integers(1, 40))
    reference = draw(arrays(np.uint8, (count, d), elements=values, fill=values))
    own = reference[draw(st.lists(st.integers(0, count - 1), max_size=4))]
    queries = draw(arrays(np.uint8, (draw(st.integers(0, 4)), d), elements=st.integers(0, 255), fill=values))
    repeats = draw(st.sampled_from([1, 1, 3, 9]))
    return np.concatenate([own, queries]), np.repeat(reference, repeats, axis=0)


@settings(max_examples=120, deadline=None)
@given(images=integer_images(), data=st.data())
def test_nearest_and_pairs_of_arbitrary_integers(images, data):
    """Equal images, no variance, residuals of length zero, extremes, ties: every path is the brute force."""
    queries, reference = images
    k = data.draw(st.integers(1, len(reference)))
    expected = brute_force.nearest(queries, reference, k)
    radius = data.draw(st.integers(0, 255**2 * reference.shape[1]))
    expected_pairs = brute_force.pairs_within(reference, radius)
    for small, hard, directions in ((0, 2.0, 256), (0, 0.1, 256), (0, 2.0, 5), (1 << 33, 0.1, 256)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nearest_module, "SMALL_SEARCH", small)
            patch.setattr(nearest_module, "GIVE_UP_SHARE", hard)
            patch.setattr(nearest_module, "DIRECTIONS", directions)
            patch.setattr(range_module, "SMALL_SEARCH", small)
            found = nearest(queries, reference, k)
            pairs = pairs_within(reference, radius)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(np.stack(pairs), expected_pairs)


def test_nearest_of_more_than_one_block_holds(path):
    """k larger than a block of the reference: the list of the best is filled over several blocks."""
    rng = np.random.default_rng(0)
    for count, d, k in ((154, 17, 131), (390, 40, 161), (260, 200, 259)):
        queries, reference = (draw_images("noise", rng, n, d) for n in (9, count))
        expected = brute_force.nearest(queries, reference, k)
        found = nearest(queries, reference, k, memory_budget=1)  # blocks of one tile, 128 references
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_on_a_device_is_brute_force(kind, emulated, monkeypatch):
    """The accelerator's way, on CPU tensors: odd shapes, blocks, excluded rows, and without exact int8 products."""
    if emulated:
        monkeypatch.setattr("stages.search.nearest_device.int8_pays", lambda: False)
    rng = np.random.default_rng(KINDS.index(kind))
    for d, count in zip(DEPTHS, (3, 40, 77, 120, 33, 64)):
        reference = draw_images(kind, rng, count, d)
        queries = np.concatenate([draw_images(kind, rng, 5, d), reference[:2]])
        exclude, k = rng.integers(-1, count, len(queries)), int(rng.integers(1, count))
        expected = brute_force.nearest(queries, reference, k, exclude)
        for budget in (1 << 30, 30_000, 1):
            found = nearest(queries, reference, k, exclude=exclude, memory_budget=budget, device="cpu:0")
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_the_device_sums_deep_products_in_int64():
    deep = np.zeros((2, 140_000), np.uint8)  # 128² · 140000 > 2³¹
    inner = nearest_device._inner(*[nearest_device._prepared(deep, torch.device("cpu"))[0]] * 2)
    np.testing.assert_array_equal(inner[:2, :2], np.full((2, 2), 128 * 128 * 140_000))


def test_nearest_keeps_to_its_memory_budget():
    """The traced peak of a large search, less the inputs and the result, under budgets far below what it would take."""
    rng = np.random.default_rng(0)
    reference, queries = (draw_images("noise", rng, count, 1024) for count in (20_000, 500))
    nearest(queries, reference, 5)  # the first one imports and compiles
    for budget in (16 << 20, 4 << 20):
        tracemalloc.start()
        nearest(queries, reference, 5, memory_budget=budget)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < budget + FIXED_BYTES


def test_nearest_at_the_real_dimension(path):
    """d = 3072 with extremes: squared distances up to 2e8, where float32 cannot tell neighbours apart."""
    rng = np.random.default_rng(0)
    reference = np.full((60, 3072), 255, np.uint8)
    reference[np.arange(60), rng.integers(0, 3072, 60)] -= rng.integers(0, 3, 60).astype(np.uint8)
    queries = np.zeros((5, 3072), np.uint8)
    queries[np.arange(5), np.arange(5)] = 1
    index, squared = nearest(queries, reference, 20)
    expected = brute_force.nearest(queries, reference, 20)
    np.testing.assert_array_equal(index, expected[0])
    np.testing.assert_array_equal(squared, expected[1])


def test_nearest_refuses_wrong_input():
    images = np.zeros((4, 9), np.uint8)
    with pytest.raises(InputError, match=r"5 nearest .* 4 reference images"):
        nearest(images, images, 5)
    with pytest.raises(InputError, match=r"4 nearest .* 3 reference images"):
        nearest(images, images, 4, exclude=np.arange(4))
    with pytest.raises(InputError, match=r"uint8"):
        nearest(images.astype(np.float32), images, 1)
    with pytest.raises(InputError, match=r"8 values per image, reference images 9"):
        nearest(images[:, :8], images, 1)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_within_is_brute_force(large, kind, monkeypatch):
    if large:
        monkeypatch.setattr(range_module, "SMALL_SEARCH", 0)
    rng = np.random.default_rng(KINDS.index(kind))
    for d in DEPTHS:
        images = draw_images(kind, rng, int(rng.integers(1, 120)), d)
        squared = brute_force.squared_distances(images, images)
        for radius in (-1, 0, int(np.quantile(squared, 0.02)), int(np.median(squared)), 2**40):
            expected = brute_force.pairs_within(images, radius)
            for budget in (1 << 30, 30_000):
                found = pairs_within(images, radius, budget)
                np.testing.assert_array_equal(np.stack(found), expected)


def test_pairs_within_of_nothing():
    assert [len(part) for part in pairs_within(np.zeros((0, 5), np.uint8), 10)] == [0, 0, 0]


@pytest.mark.parametrize("sigma", [0.0, 1e-4, 1e-2, 1.0, 50.0])
@pytest.mark.parametrize("kind", KINDS)
def test_min_distance_is_brute_force(kind, sigma):
    rng = np.random.default_rng(KINDS.index(kind))
    images = draw_images(kind, rng, 90, 300)
    start = images[rng.integers(0, 90, 12)] / np.float32(255)
    x = torch.from_numpy((start + sigma * rng.standard_normal(start.shape)).astype(np.float32))
    squared = np.square(x.numpy()[:, None].astype(np.float64) - images[None] / 255.0).sum(-1)
    index, distance = min_distance(x, images)
    np.testing.assert_allclose(distance.numpy(), np.sqrt(squared.min(1)), rtol=1e-12)
    chosen = squared[np.arange(12), index.numpy()]
    np.testing.assert_allclose(chosen, squared.min(1), rtol=1e-13)
    if kind == "duplicates":  # the first of equal images
        assert (index.numpy() % 3 == 0).all()


def test_min_distance_where_float32_cannot_tell():
    """Near-white images with half of the pixels darker by 1, seen from white: they differ by less than h is rounded."""
    rng = np.random.default_rng(3)
    images = np.full((200, 3072), 255, np.uint8)
    for image in images:
        image[rng.permutation(3072)[:1536]] -= 1
    x = torch.from_numpy((1 + 4e-4 * rng.standard_normal((40, 3072))).astype(np.float32))
    squared = np.stack([np.square(row.astype(np.float64) - images / 255.0).sum(-1) for row in x.numpy()])
    index, distance = min_distance(x, images)
    np.testing.assert_array_equal(index.numpy(), squared.argmin(1))
    np.testing.assert_allclose(distance.numpy(), np.sqrt(squared.min(1)), rtol=1e-12)


def test_min_distance_of_a_row_ignores_the_others(monkeypatch):
    rng = np.random.default_rng(0)
    images = draw_images("noise", rng, 50, 5000)
    x = torch.from_numpy(rng.random((9, 5000), dtype=np.float32))
    index, distance = min_distance(x, images)
    monkeypatch.setattr("stages.search.nearest_float.BLOCK_BYTES", 1 << 16)
    for row in range(9):
        one = min_distance(x[row : row + 1], torch.from_numpy(images))
        assert one[0][0] == index[row]
        assert one[1][0] == distance[row]  # bit for bit


def test_min_distance_stays_certified_at_lower_matmul_precision():
    rng = np.random.default_rng(0)
    images = draw_images("near", rng, 200, 400)
    x = torch.from_numpy((images[:20] / 255 + 1e-4 * rng.standard_normal((20, 400))).astype(np.float32))
    expected = min_distance(x, images)
    torch.set_float32_matmul_precision("medium")
    try:
        found = min_distance(x, images)
    finally:
        torch.set_float32_matmul_precision("highest")
    for other in (found, min_distance(x, prepare(images))):
        assert torch.equal(other[0], expected[0])
        assert torch.equal(other[1], expected[1])


@pytest.mark.filterwarnings("error")
def test_min_distance_takes_a_memory_map():
    images = draw_images("noise", np.random.default_rng(0), 5, 7)
    images.flags.writeable = False
    index, distance = min_distance(torch.from_numpy(images[3:4] / np.float32(255)), images)
    assert index.tolist() == [3]
    assert distance.item() < 1e-6


def test_min_distance_refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        min_distance(torch.tensor([[float("nan"), 0.0]]), np.zeros((2, 2), np.uint8))


def test_neighbor_table_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    table = NeighborTable(
        rng.integers(0, 9, (6, 4), dtype=np.int32), rng.random((6, 4), dtype=np.float32), list("abcdef"),
        rng.random(6, dtype=np.float32), {"distance": "l"},
    )  # fmt: skip
    back = read_neighbors(write_neighbors(tmp_path / "n.arrow", table))
    np.testing.assert_array_equal(back.neighbors, table.neighbors)
    np.testing.assert_array_equal(back.distances, table.distances)
    np.testing.assert_array_equal(back.nn_distance, table.nn_distance)
    assert (back.ids, back.metadata) == (table.ids, table.metadata)
    halves = [
        NeighborTable(
            table.neighbors[a:b], table.distances[a:b], table.ids[a:b], table.nn_distance[a:b], table.metadata
        )
        for a, b in ((0, 2), (2, 6))
    ]
    joined = read_neighbors(write_neighbors(tmp_path / "j.arrow", join_neighbors(halves)))
    assert (tmp_path / "j.arrow").read_bytes() == (tmp_path / "n.arrow").read_bytes()
    assert joined.ids == table.ids
    bare = NeighborTable(table.neighbors, table.distances, table.ids)
    assert read_neighbors(write_neighbors(tmp_path / "m.arrow", bare)).nn_distance is None


def test_neighbor_table_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.arrow is missing"):
        read_neighbors(tmp_path / "none.arrow")
    (tmp_path / "bad.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(InputError, match=r"bad\.arrow is not an Arrow neighbour table"):
        read_neighbors(tmp_path / "bad.arrow")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), kind=st.sampled_from(KINDS))
def test_nearest_short_property(data, kind):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    d, count = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 200))
    queries, reference = draw_images("noise", rng, data.draw(st.integers(0, 12)), d), draw_images(kind, rng, count, d)
    k, budget = data.draw(st.integers(1, count)), data.draw(st.sampled_from([1, 5_000, 1 << 30]))
    expected = brute_force.nearest(queries, reference, k)[0]
    known = Prepared.of(reference)
    np.testing.assert_array_equal(nearest_short(queries, known, k, budget), expected)
    plain = known._replace(packed=None, norms=known.norms.ravel()[:count])  # without VNNI
    np.testing.assert_array_equal(nearest_short(queries, plain, k, budget), expected)


@settings(max_examples=40, deadline=None)
@given(data=st.data(), grey=st.booleans())
def test_alignment_property(data, grey):
    """Shifts, windows and tiles of few distinct bytes, so that many matches tie."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    h, w, reach = data.draw(st.integers(5, 9)), data.draw(st.integers(5, 9)), data.draw(st.integers(0, 2))
    shape = (h, w, 1 if grey else 3)
    queries, reference = (rng.integers(0, 2, (count, *shape)).astype(np.uint8) * 200 for count in (3, 4))
    candidates = rng.integers(-1, 4, (3, 4))
    steps = range(-reach, reach + 1)
    shifts = sorted(((y, x) for y in steps for x in steps), key=lambda s: (abs(s[0]) + abs(s[1]), s))
    small = queries[:, : h - 2, : w - 1]
    places = [(y, x) for y in range(3) for x in range(2)]
    tiles = tile_distance(queries, reference, candidates)
    for found, left, offsets in (
        (best_shift(queries, reference, candidates, reach), queries, shifts),
        (best_window(small, reference, candidates, np.array(places)), small, places),
    ):
        for q in range(3):
            rows = sorted(set(candidates[q]) - {-1})
            matches = {(row, *at): brute_force.overlap(left[q], reference[row], *at) for row in rows for at in offsets}
            if not rows:
                assert (found.row[q], found.distance[q], tiles[q]) == (-1, np.inf, np.inf)
                continue
            best = min(matches, key=lambda match: matches[match][0] / matches[match][1])  # the first of equal ones
            assert (found.row[q], *found.shift[q]) == best
            assert (found.squared[q], found.count[q]) == matches[best]
            least = min(brute_force.tile_distance(queries[q], reference[row], TILES_PER_SIDE) for row in rows)
            assert tiles[q] == pytest.approx(least, rel=1e-12)
