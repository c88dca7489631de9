"""Exact search against int64 brute force, on every path and under tiny memory budgets."""

import functools
import os
import platform
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.engine import products as products_module
from stages.engine.byte_products import inner_bytes
from stages.engine.products import centred, products, squared_norms
from stages.engine.projection import Coordinates, Layout, coordinates, fit_projection, layout, slack
from stages.engine.tile_scores import processor_features, score_function
from stages.engine.tiled import LOWEST, pack
from stages.errors import InputError
from stages.files.neighbors import NeighborTable, read_neighbors, write_neighbors
from stages.search import nearest as nearest_module
from stages.search import nearest_device
from stages.search import range_search as range_module
from stages.search.nearest import nearest
from stages.search.nearest_float import min_distance, prepare
from stages.search.range_search import pairs_within

FIXED_BYTES = 20 << 20  # what fitting the directions takes, whatever the budget
DEPTHS = (1, 3, 17, 40, 200, 600)
KINDS = ("noise", "extreme", "constant", "near", "duplicates", "low-rank", "outliers")


def draw_images(kind: str, rng: np.random.Generator, count: int, d: int) -> np.ndarray:
    """Images that break searches: ties everywhere, extremes, subspaces that leave no residual."""
    images = {
        "noise": lambda: rng.integers(0, 256, (count, d)),
        "extreme": lambda: 255 * rng.integers(0, 2, (count, d)),
        "constant": lambda: np.full((count, d), rng.integers(0, 256)),
        "near": lambda: rng.integers(0, 256, (1, d)) + rng.integers(-2, 3, (count, d)),
        "duplicates": lambda: np.repeat(rng.integers(0, 256, (-(-count // 3), d)), 3, axis=0)[:count],
        # int8 coordinates are made for the many pale images, and cut the few others off
        "outliers": lambda: 128 + rng.integers(-1, 2, (count, d)) * np.where(rng.random((count, 1)) < 0.05, 127, 1),
        "low-rank": lambda: 128 + 40 * rng.standard_normal((count, 5)) @ rng.standard_normal((5, d)),
    }[kind]()
    return np.clip(images, 0, 255).astype(np.uint8)


def all_squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.square(a[:, None].astype(np.int64) - b[None].astype(np.int64)).sum(-1)


def brute_force(queries, reference, k, exclude=None):
    squared = all_squared(queries, reference)
    if exclude is not None:
        some = np.flatnonzero(exclude >= 0)
        squared[some, exclude[some]] = np.iinfo(np.int64).max
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(squared, order, 1)


@pytest.fixture(params=["plain", "bound", "dense", "mixed"])
def path(request, monkeypatch):
    """Each way through the search: one product; the bound only; int8 products only; the choice between these two."""
    if request.param != "plain":
        monkeypatch.setattr(nearest_module, "SMALL", 0)
        monkeypatch.setattr(nearest_module, "HARD", {"bound": 2.0, "dense": 0.0, "mixed": 0.2}[request.param])
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
    expected = brute_force(queries, reference, k, exclude)
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
        patch.setattr(nearest_module, "SMALL", data.draw(st.sampled_from([0, 1 << 33])))
        patch.setattr(nearest_module, "HARD", hard)
        index, squared = nearest(queries, reference, k, memory_budget=budget)
    expected = brute_force(queries, reference, k)
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
    expected = brute_force(queries, reference, k)
    radius = data.draw(st.integers(0, 255**2 * reference.shape[1]))
    squared = all_squared(reference, reference)
    i, j = np.nonzero(np.triu(squared <= radius, 1))
    for small, hard, directions in ((0, 2.0, 256), (0, 0.1, 256), (0, 2.0, 5), (1 << 33, 0.1, 256)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nearest_module, "SMALL", small)
            patch.setattr(nearest_module, "HARD", hard)
            patch.setattr(nearest_module, "DIRECTIONS", directions)
            patch.setattr(range_module, "SMALL", small)
            found = nearest(queries, reference, k)
            pairs = pairs_within(reference, radius)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_array_equal(np.stack(pairs), np.stack([i, j, squared[i, j]]))


def test_nearest_of_more_than_one_block_holds(path):
    """k larger than a block of the reference: the list of the best is filled over several blocks."""
    rng = np.random.default_rng(0)
    for count, d, k in ((154, 17, 131), (390, 40, 161), (260, 200, 259)):
        queries, reference = (draw_images("noise", rng, n, d) for n in (9, count))
        expected = brute_force(queries, reference, k)
        found = nearest(queries, reference, k, memory_budget=1)  # blocks of one tile, 128 references
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize("emulated", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_nearest_on_a_device_is_brute_force(kind, emulated, monkeypatch):
    """The accelerator's way, on CPU tensors: odd shapes, blocks, excluded rows, and without exact int8 products."""
    if emulated:
        monkeypatch.setattr("stages.search.nearest_device.int8_is_exact", lambda: False)
    rng = np.random.default_rng(KINDS.index(kind))
    for d, count in zip(DEPTHS, (3, 40, 77, 120, 33, 64)):
        reference = draw_images(kind, rng, count, d)
        queries = np.concatenate([draw_images(kind, rng, 5, d), reference[:2]])
        exclude, k = rng.integers(-1, count, len(queries)), int(rng.integers(1, count))
        expected = brute_force(queries, reference, k, exclude)
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
    nearest(queries[:40], reference[:300], 5)
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
    expected = brute_force(queries, reference, 20)
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


@pytest.mark.parametrize("d", [1, 322, 1025, 5000])
def test_products_are_exact_on_both_paths(d):
    rng = np.random.default_rng(d)
    a = np.concatenate([rng.integers(-128, 128, (6, d)), np.full((2, d), -128), np.full((2, d), 127)]).astype(np.int8)
    expected = a.astype(np.int64) @ a.T.astype(np.int64)
    np.testing.assert_array_equal(products_module._float_products(a, a), expected)
    np.testing.assert_array_equal(products(a, a), expected)
    if products_module.int8_is_exact():
        np.testing.assert_array_equal(products_module._int8_products(a, a), expected)


def test_products_beyond_int32(monkeypatch):
    a = np.full((2, 140_000), -128, np.int8)  # 128² · 140000 > 2³¹
    np.testing.assert_array_equal(products(a, a), np.full((2, 2), 128 * 128 * 140_000))
    images = np.full((1, 140_000), 0, np.uint8)
    assert squared_norms(images)[0] == 128 * 128 * 140_000
    assert centred(images)[0, 0] == -128


def scores(x: Coordinates, y: Coordinates, shape: Layout) -> list[np.ndarray]:
    """The scores of queries x and references y at every level, int64 (X, Y), from what `Level` says of the rows."""
    total, found = np.zeros((len(x.coarse), len(y.coarse)), np.int64), []
    for level in shape.levels:
        left, right = (side.fine if found else side.coarse for side in (x, y))
        bytes_x = left[:, level.at : level.shorts].astype(np.int64)
        bytes_y = right[:, level.at : level.shorts].view(np.int8).astype(np.int64)
        stop = level.end - 4 if found else level.end
        shorts = (rows[:, level.shorts : stop].view(np.int16).astype(np.int64) for rows in (left, right))
        added = right[:, stop : level.end].copy().view(np.int32)[:, 0] if found else y.added
        if found:
            assert not left[:, stop : level.end].any()
        total = total + (bytes_x @ bytes_y.T << 2 * level.shift) + next(shorts) @ next(shorts).T + added
        found.append(total)
        assert np.abs(total).max() < 2**31
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [5, 48])
def test_the_bound_is_a_bound(kind, size):
    """scale² squared_x − 2 (score + slack) never exceeds the true scale² distance, at every level."""
    rng = np.random.default_rng(7)
    reference, queries = draw_images(kind, rng, 80, 96), draw_images("noise", rng, 30, 96)
    projection = fit_projection(reference, size)
    shape = layout(projection, (8, 20))
    y = coordinates(projection, reference, shape)

    def bounds(images: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        x = coordinates(projection, images, shape)
        found = scores(x.as_queries(shape), y, shape)
        return [x.scale**2 * x.squared[:, None] - 2 * score for score in found], 2 * slack(x, y)[:, None]

    levels, margin = bounds(queries)
    true = y.scale**2 * all_squared(queries, reference)
    assert all((bound - margin <= true).all() for bound in levels)
    own, margin = bounds(reference)  # and no looser than it says: it leaves nothing between an image and itself
    # a length is rounded up by 1.25 at most; a coordinate by half a unit, unless it was cut off
    off = 0.5 * np.sqrt(size) * sum(1 << level.shift for level in shape.levels)
    longest = y.scale * np.sqrt(y.squared.max()) + 2
    rounding = (6.0 * len(shape.levels[0].edges) + 4 * off) * longest + 2 * margin.max()
    assert kind == "outliers" or all(np.abs(np.diag(bound)).max() <= rounding for bound in own)
    if kind == "low-rank" and size == 48:  # and it is worth having: what 48 directions leave out is small
        true = y.scale**2 * all_squared(reference, reference)
        assert np.abs(own[-1] - true).max() < 0.02 * true.max()


@pytest.mark.parametrize("d", [1, 255, 256, 300, 3072, 16_384, 40_000])
def test_byte_products_are_exact(d):
    """Each way through `inner_bytes`, with the products that overflow int16 and the sums that overflow int32."""
    rng = np.random.default_rng(d)
    a = np.stack([rng.integers(0, 256, d), np.full(d, 255), np.zeros(d)]).astype(np.uint8)
    b = np.stack([rng.integers(-128, 128, d), np.full(d, -128), np.full(d, 127)]).astype(np.int8)
    for x in a:
        for y in b:
            assert inner_bytes(x, y) == int(x.astype(np.int64) @ y.astype(np.int64))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor")
def test_byte_products_without_the_instruction(tmp_path):
    """A processor without VNNI takes the loop: the branch that this one compiles away."""
    code = """
import numpy as np
from stages.engine.byte_products import FAST, inner_bytes
rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, 3100).astype(np.uint8), rng.integers(-128, 128, 3100).astype(np.int8)
print(FAST, inner_bytes(a, b) == int(a.astype(np.int64) @ b.astype(np.int64)))
"""
    cpu = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **cpu}, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_directions_never_lengthen(kind):
    """PᵀP ≼ 1, whatever the data: ‖P x‖ ≤ ‖x‖ of the directions' own combinations, the worst case."""
    rng = np.random.default_rng(KINDS.index(kind))
    images = draw_images(kind, rng, 60, 48)
    projection = fit_projection(images, 20)
    p = projection.factor[:, None] * projection.rows[:-1].astype(np.float64)
    largest = np.linalg.svd(p, compute_uv=False)[0]
    assert largest <= 1
    assert largest > 0.99 or kind == "constant"  # nothing to see there


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_scores_of_tiles_are_products(data):
    """Every instruction set that this processor has, against NumPy in int64."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, n_bytes, n_shorts = (data.draw(st.integers(least, most)) for least, most in ((1, 300), (0, 9), (0, 9)))
    shift = 2 * data.draw(st.integers(0, 6))
    x, y = (rng.integers(-5000, 5001, (n, 2 * n_shorts)).astype(np.int16) for n in (6, count))
    bytes_x, bytes_y = rng.integers(0, 256, (6, 4 * n_bytes)), rng.integers(-128, 128, (count, 4 * n_bytes))
    half = rng.integers(-(2**29), 1, count).astype(np.int32)
    words = np.concatenate([bytes_y.astype(np.int8).view(np.int32), y.view(np.int32)], 1)
    packed, added = pack(words, half)
    tiles = len(packed)
    expected = np.full((6, tiles * 128), LOWEST, np.int64)
    expected[:, :count] = (bytes_x @ bytes_y.T << shift) + x.astype(np.int64) @ y.T.astype(np.int64) + half
    expected = expected.astype(np.int32)  # what leaves an int32 wraps around: bounds never do
    left = np.ascontiguousarray(np.concatenate([bytes_x.astype(np.uint8).view(np.int32), x.view(np.int32)], 1))
    for score_tiles in score_functions():
        scores, maxima = np.zeros((6, tiles, 4, 32), np.int16), np.zeros((6, tiles * 32), np.int16)
        score_tiles(left, packed, added, n_bytes, n_shorts, shift, scores, maxima, 0)
        np.testing.assert_array_equal(scores.swapaxes(2, 3).reshape(6, -1), expected >> 16)
        np.testing.assert_array_equal(maxima, (expected >> 16).reshape(6, -1, 4).max(2))


@functools.cache
def score_functions() -> list:
    there = processor_features()
    sets = [set(), {"avx2"}, {"avx512bw"}, {"avx512bw", "avx512vnni"}]
    return [score_function(features) for features in sets if features <= there]


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_pairs_within_is_brute_force(large, kind, monkeypatch):
    if large:
        monkeypatch.setattr(range_module, "SMALL", 0)
    rng = np.random.default_rng(KINDS.index(kind))
    for d in DEPTHS:
        images = draw_images(kind, rng, int(rng.integers(1, 120)), d)
        squared = all_squared(images, images)
        for radius in (-1, 0, int(np.quantile(squared, 0.02)), int(np.median(squared)), 2**40):
            i, j = np.nonzero(np.triu(squared <= radius, 1))
            for budget in (1 << 30, 30_000):
                found = pairs_within(images, radius, budget)
                np.testing.assert_array_equal(np.stack(found), np.stack([i, j, squared[i, j]]))


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
    bare = NeighborTable(table.neighbors, table.distances, table.ids)
    assert read_neighbors(write_neighbors(tmp_path / "m.arrow", bare)).nn_distance is None


def test_neighbor_table_names_the_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.arrow is missing"):
        read_neighbors(tmp_path / "none.arrow")
    (tmp_path / "bad.arrow").write_bytes(b"ARROW1 but no more")
    with pytest.raises(InputError, match=r"bad\.arrow is not an Arrow neighbour table"):
        read_neighbors(tmp_path / "bad.arrow")
