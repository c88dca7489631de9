"""The audit's mathematics against brute force."""

import dataclasses
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu

from stages.engine.products import single_threaded_products, spread
from stages.errors import InputError
from stages.features.coverage import precision_recall_density_coverage
from stages.features.encoders import load_encoder
from stages.features.kid import kernel_distance
from stages.files.arrays import read_arrays, write_arrays
from stages.files.images import image_table
from stages.images.common_size import common_shape, open_all
from stages.memorization import crops, planting
from stages.memorization.audit_settings import audit_params, encoder_params
from stages.memorization.copying_test import assign, cell_centres, cell_distances, copying_test, u_z_score
from stages.memorization.feature_stage import Questions, answer, compared_rows
from stages.memorization.groups import find_duplicates, halves
from stages.memorization.matching import (
    OUTSIDE,
    Matches,
    Reference,
    _moved,
    match,
    mirrored,
    outside,
    own_neighbors,
    whole_reference,
    with_groups,
)
from stages.memorization.reduced import reduce
from stages.memorization.scores import CROP_WEIGHT, Scores, scores
from stages.memorization.thresholds import CANDIDATE_CAP, COPY_CAP, Thresholds, calibrate, copies, cross_fitted
from stages.memorization.verdicts import Evidence, decide, rho_star_rules
from stages.reporting.audit_page import chosen
from stages.reporting.progress import SecondsBar
from stages.search import nearest_short as nearest_short_module
from stages.search.alignment import best_shift, best_window, tile_distance
from stages.search.nearest import nearest
from stages.search.nearest_short import nearest_short

BUDGET = 1 << 28


def duplicates(images: np.ndarray, near: float | None = None):
    table = image_table(images)
    return find_duplicates(table.ids, own_neighbors(table.flat, 0, len(table), BUDGET), table.dimension, near)


def pictures(count: int, side: int = 8, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), np.uint8)


def smooth(count: int, side: int, channels: int, seed: int = 0) -> np.ndarray:
    """Pictures that look alike when shifted a little, as natural ones do."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, channels)).astype(float)
    at = np.linspace(0, 4, side)
    low = np.minimum(at.astype(int), 3)
    part = at - low
    for axis in (1, 2):
        weight = part.reshape([-1 if i == axis else 1 for i in range(4)])
        coarse = np.take(coarse, low, axis) * (1 - weight) + np.take(coarse, low + 1, axis) * weight
    return np.rint(coarse).astype(np.uint8)


def shifted_mean(a: np.ndarray, b: np.ndarray, dy: int, dx: int) -> tuple[int, int]:
    """Sum of squared differences and count where a(y, x) meets b(y + dy, x + dx), by the definition."""
    total = count = 0
    for y, x in np.ndindex(a.shape[:2]):
        if 0 <= y + dy < b.shape[0] and 0 <= x + dx < b.shape[1]:
            total += int(np.square(a[y, x].astype(int) - b[y + dy, x + dx]).sum())
            count += a.shape[2]
    return total, count


@pytest.mark.parametrize("channels", [1, 3])
def test_the_best_shift_is_the_least_mean_over_all_candidates_and_shifts(channels):
    reference, queries = pictures(9, 6, channels), pictures(5, 6, channels, 1)
    queries[0, :5, 1:] = reference[4, 1:, :5]  # query (y, x) is reference (y + 1, x - 1)
    candidates = np.array([[8, 4, -1], [1, 1, 2], [0, 3, 5], [7, -1, -1], [-1, -1, -1]])
    found = best_shift(queries, reference, candidates, 2)
    for q in range(4):
        means = {
            (row, dy, dx): shifted_mean(queries[q], reference[row], dy, dx)
            for row in candidates[q][candidates[q] >= 0]
            for dy, dx in itertools.product(range(-2, 3), repeat=2)
        }
        least = min(total / count for total, count in means.values())
        total, count = means[(found.row[q], *found.shift[q])]
        assert (found.squared[q], found.count[q]) == (total, count)
        assert total / count == least
        assert found.distance[q] == pytest.approx(math.sqrt(least) / 255, rel=1e-12)
    assert (found.row[0], *found.shift[0], found.squared[0]) == (4, 1, -1, 0)
    assert found.row[4] == -1
    assert np.isinf(found.distance[4])


def test_of_equal_matches_the_lower_row_and_the_smaller_shift_win():
    reference = np.full((3, 5, 5, 1), 7, np.uint8)
    found = best_shift(reference[:1], reference, np.array([[2, 1]]), 2)
    assert (found.row[0], *found.shift[0]) == (1, 0, 0)


def test_a_shift_needs_images_larger_than_itself():
    with pytest.raises(InputError, match="a shift of 2 pixels needs images of more than 4 pixels a side"):
        best_shift(pictures(1, 4), pictures(1, 4), np.zeros((1, 1), np.int64), 2)


def window_mean(query: np.ndarray, image: np.ndarray, y: int, x: int) -> float:
    height, width = query.shape[:2]
    return np.square(query.astype(int) - image[y : y + height, x : x + width]).mean()


def test_the_best_window_is_the_least_mean_over_all_candidates_and_places():
    reference, queries = pictures(6, 7, 3), pictures(5, 5, 3, 1)
    queries[0] = reference[4, 2:, 1:6]
    queries[1], reference[0], reference[3] = 9, 9, 9
    candidates = np.array([[5, 4, -1], [3, 0, 3], [1, 2, 5], [4, -1, -1], [-1, -1, -1]])
    places = np.array(list(itertools.product(range(3), repeat=2)))
    found = best_window(queries, reference, candidates, places)
    for q in range(4):
        means = {
            (row, y, x): window_mean(queries[q], reference[row], y, x)
            for row in sorted(candidates[q][candidates[q] >= 0])
            for y, x in places
        }
        assert (found.row[q], *found.place[q]) == min(means, key=means.get)  # the first of equal ones
        assert found.distance[q] == pytest.approx(math.sqrt(min(means.values())) / 255, rel=1e-12)
    assert (found.row[0], *found.place[0], found.distance[0]) == (4, 2, 1, 0)
    assert (found.row[1], *found.place[1]) == (0, 0, 0)
    assert (found.row[4], found.distance[4]) == (-1, np.inf)
    with pytest.raises(InputError, match="windows .5, 5. do not all lie inside images .7, 7."):
        best_window(queries, reference, candidates, np.array([[0, 3]]))


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 5))
def test_every_window_near_the_middle_is_near_one_that_is_searched(room, tolerance):
    every, some = crops._places(room, 0), crops._places(room, tolerance)
    middle = range(max(0, room // 2 - crops.REACH), min(room, room // 2 + crops.REACH) + 1)
    assert every == list(itertools.product(middle, repeat=2))
    assert set(some) <= set(every)
    assert all(min(max(abs(y - a), abs(x - b)) for a, b in some) <= tolerance for y, x in every)
    assert len(some) == math.ceil(len(middle) / (2 * tolerance + 1)) ** 2


def test_the_best_crop_is_a_brute_force_s():
    """With so few reference images all of them are on the shortlist."""
    assert crops.window_sides(32, crops.SIDES) == [31, 30, 29, 28, 27, 26]
    assert crops.window_sides(8, crops.SIDES) == []
    reference, images = smooth(4, 16, 3), smooth(7, 16, 3, 1)
    for row in range(4):  # 14 of 16 pixels of each, enlarged
        part = Image.fromarray(reference[row, row % 3 :, 1:][:14, :14])
        images[row] = np.asarray(part.resize((16, 16), Image.Resampling.BICUBIC))
    found = crops.best_crop(images, reference, np.zeros((7, 1), np.int64), lambda w: reduce(reference, w), BUDGET)
    for q in range(7):
        small = {side: crops.shrunk(images[q : q + 1], side)[0] for side in (15, 14, 13)}
        means = {
            (row, y, x, side): window_mean(picture, reference[row], y, x)
            for side, picture in small.items()
            for row in range(4)
            for y, x in itertools.product(range(17 - side), repeat=2)
        }
        least = min(means.values())
        assert means[(found.row[q], *found.window[q])] == least
        assert found.distance[q] == pytest.approx(math.sqrt(least) / 255, rel=1e-12)
        if q < 4:
            assert (found.row[q], *found.window[q]) == (q, q % 3, 1, 14)
            assert found.distance[q] < 0.01


def test_images_too_small_for_a_crop_have_none():
    found = crops.best_crop(pictures(3), pictures(5), np.full((3, 2), 4), reduce, BUDGET)
    assert np.isnan(found.distance).all()
    assert found.row.tolist() == [4, 4, 4]


def test_the_tile_distance_is_the_least_of_the_largest_tiles():
    reference, queries = pictures(6, 9, 3), pictures(4, 9, 3, 1)
    candidates = np.array([[0, 1], [2, -1], [5, 3], [-1, -1]])
    found = tile_distance(queries, reference, candidates)
    edges = [0, 2, 4, 6, 9]
    for q in range(3):
        tiles = [
            max(
                np.square(queries[q, a:b, c:d].astype(float) - reference[row, a:b, c:d]).mean()
                for (a, b), (c, d) in itertools.product(itertools.pairwise(edges), repeat=2)
            )
            for row in candidates[q]
            if row >= 0
        ]
        assert found[q] == pytest.approx(math.sqrt(min(tiles)) / 255, rel=1e-12)
    assert np.isinf(found[3])


def test_the_kernel_distance_is_its_formula():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(7, 4)), generator.normal(0.5, 1, (9, 4))

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    within = [
        sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) / (len(x) * (len(x) - 1))
        for x in (a, b)
    ]
    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    assert kernel_distance(a, b) == pytest.approx(sum(within) - 2 * between, rel=1e-12)
    with pytest.raises(InputError, match="needs at least 2 images on each side, got 1"):
        kernel_distance(a, b[:1])


def test_precision_recall_density_and_coverage_are_their_definitions():
    generator = np.random.default_rng(0)
    real, made, k = generator.normal(size=(30, 3)), generator.normal(0.7, 1, (20, 3)), 3

    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    in_real = [[np.linalg.norm(real[i] - y) < radius(real, i) for i in range(30)] for y in made]
    in_made = [[np.linalg.norm(made[j] - x) < radius(made, j) for j in range(20)] for x in real]
    found = precision_recall_density_coverage(real, made, k)
    assert found == pytest.approx(
        {
            "precision": np.mean([any(row) for row in in_real]),
            "recall": np.mean([any(row) for row in in_made]),
            "density": np.sum(in_real) / (k * 20),
            "coverage": np.mean(np.any(in_real, axis=0)),
        }
    )
    assert 0 < found["precision"] < 1
    assert 0 < found["coverage"] < 1


def test_equal_sets_do_not_depend_on_rounding():
    """The k-th neighbour lies exactly on the rim; with itself, k − 1 others lie inside."""
    points = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    found = precision_recall_density_coverage(points, points, 4)
    assert found == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 1.0}


def test_z_of_u_is_the_paper_s_and_scipy_s():
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 9, 23).astype(float), generator.integers(1, 9, 31).astype(float)
    u = sum((x > y) + 0.5 * (x == y) for x in a for y in b)
    assert u == mannwhitneyu(a, b).statistic
    expected = (u - 23 * 31 / 2) / math.sqrt(23 * 31 * (23 + 31 + 1) / 12)
    assert u_z_score(a, b) == pytest.approx(expected, rel=1e-12)
    assert u_z_score(np.zeros(20), np.ones(20)) < -5  # nearer: copying


def test_c_t_is_the_mean_of_the_cells_that_hold_enough():
    generator = np.random.default_rng(0)
    a, b = generator.random(60), generator.random(90)
    cells_a, cells_b = np.repeat([0, 1, 2], [30, 25, 5]), np.repeat([0, 1, 2], [50, 20, 20])
    found = copying_test(a, cells_a, b, cells_b, 4, 10)
    z = [u_z_score(a[cells_a == cell], b[cells_b == cell]) for cell in (0, 1)]
    assert found.c_t == pytest.approx((50 * z[0] + 20 * z[1]) / 70)
    assert (found.cells_used, found.cells) == (2, 4)
    assert copying_test(a[:3], cells_a[:3], b, cells_b, 4, 10).c_t is None


def test_distances_within_a_cell_are_searched_where_the_list_has_none():
    reference, queries = pictures(40).reshape(40, -1), pictures(12, seed=1).reshape(12, -1)
    cells, own = np.arange(40) % 5, np.arange(12) % 4
    cells[cells == 4] = -1
    index, squared = nearest(queries, reference, 3)
    found = cell_distances(index, squared, queries, own, reference, cells)
    for q in range(12):
        inside = reference[cells == own[q]].astype(float)
        assert found[q] == pytest.approx(np.linalg.norm(queries[q] - inside, axis=1).min(), rel=1e-12)
    nowhere = cell_distances(index[:1], squared[:1], queries[:1], np.array([9]), reference, cells)
    assert np.isinf(nowhere[0])


def test_cells_are_k_means_and_reproducible():
    points = np.concatenate([np.full((20, 3), 10), np.full((30, 3), 200)]).astype(np.uint8)
    points[:, 0] += np.arange(50, dtype=np.uint8) % 3
    centres = cell_centres(points, 2, 0)
    cell = assign(points, centres)
    for number in (0, 1):
        np.testing.assert_allclose(centres[number], points[cell == number].mean(0), rtol=1e-12)
    assert len(np.unique(cell[:20])) == len(np.unique(cell[20:])) == 1
    np.testing.assert_array_equal(centres, cell_centres(points, 2, 0))
    assert len(cell_centres(np.zeros((9, 3), np.uint8), 4, 0)) == 1  # all-black images are one cell


def brute_outside(query, reference: Reference, count: int) -> list[int]:
    squared = np.square(query.astype(int) - reference.flat).sum(1)
    own = reference.group[np.argmin(squared)]
    found = sorted(squared[reference.group != own])[:count]
    return found + [-1] * (count - len(found))


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 60), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**16), st.sampled_from([0, 12, 1024]))
def test_the_next_images_outside_the_group_are_a_brute_force_s(count, groups, k, seed, wide):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 5, (count, 2, 2, 1), np.uint8)
    reference = whole_reference(images, generator.integers(0, groups, count))
    queries = generator.integers(0, 5, (4, 4), np.uint8)
    index, squared = nearest(queries, reference.flat, min(k, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.memorization.matching.WIDE", wide)
        found = outside(queries, index, squared, reference, 3)
    assert found.tolist() == [brute_outside(query, reference, 3) for query in queries]


def test_matches_are_a_brute_force_s():
    images, queries = smooth(70, 10, 3), smooth(6, 10, 3, 1)
    queries[0] = images[3]
    queries[1] = images[4][:, ::-1]
    queries[2, 2:, :8] = images[5][:8, 2:]  # sample (y, x) is training (y - 2, x + 2)
    group = np.arange(70)
    group[[3, 9]] = 3
    reference = whole_reference(images, group)
    found = Matches(**with_groups(match(queries, reference), queries, reference), dimension=300)
    for flat, index, squared, beyond in (
        (queries.reshape(6, -1), found.index, found.squared, found.outside),
        (mirrored(queries).reshape(6, -1), found.mirrored_index, found.mirrored_squared, found.mirrored_outside),
    ):
        exact = np.square(flat[:, None].astype(int) - reference.flat).sum(2)
        np.testing.assert_array_equal(index, np.argsort(exact, axis=1, kind="stable")[:, :50])
        np.testing.assert_array_equal(squared, np.sort(exact, axis=1)[:, :50])
        assert beyond.tolist() == [brute_outside(query, reference, OUTSIDE) for query in flat]
    own = np.square(reference.flat[found.index[:, 0]][:, None].astype(int) - reference.flat).sum(2)
    np.testing.assert_array_equal(found.own_squared, np.sort(own, axis=1)[:, 1:51])
    assert found.own_outside[0] == np.sort(np.delete(own[0], [3, 9]))[0]
    assert (found.mirrored_index[1, 0], found.mirrored_squared[1, 0]) == (4, 0)
    assert (found.shift_row[2], *found.shift[2], found.shift_mirrored[2]) == (5, -2, 2, False)
    assert found.shift_distance[2] == 0
    got = scores(found)
    scale = np.sqrt(found.outside / found.dimension).mean(1) / 255
    np.testing.assert_allclose(got.rho[3:, 0], np.sqrt(found.squared[3:, 0] / 300) / 255 / scale[3:], rtol=1e-12)
    cropped = np.where(found.crop_mirrored, np.sqrt(found.mirrored_outside / 300).mean(1) / 255, scale)
    np.testing.assert_allclose(got.rho[:, 3], CROP_WEIGHT * found.crop_distance / cropped, rtol=1e-12)
    np.testing.assert_array_equal(got.transform[:3], [0, 1, 2])
    np.testing.assert_array_equal(got.best[:3], 0)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 70), st.integers(1, 300), st.sampled_from([1, 3, 64, 192]), st.integers(1, 13),
    st.sampled_from(["any", "two values", "extreme", "equal"]), st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_the_nearest_short_vectors_are_a_brute_force_s(queries, count, d, k, kind, tight, seed):
    """Ties by row, whatever the blocks; all distances equal, and as large as bytes allow."""
    generator = np.random.default_rng(seed)
    levels = {"any": range(256), "two values": (7, 8), "extreme": (0, 255), "equal": (3,)}[kind]
    a, b = (generator.choice(levels, (n, d)).astype(np.uint8) for n in (queries, count))
    k = min(k, count)
    squared = np.square(a[:, None].astype(np.int64) - b).sum(2)
    expected = np.argsort(squared, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        if tight:
            patch.setattr(nearest_short_module, "COLUMNS", 7)
            patch.setattr(nearest_short_module, "ROWS", 5)
        assert np.array_equal(nearest_short(a, b, k), expected)


def test_the_nearest_short_vectors_of_a_large_search_are_those_of_the_other_one():
    """Blocks that take the int8 product, and more than one of them along either side."""
    images = smooth(5000, 8, 3)
    reduced = images.reshape(len(images), -1)
    assert np.array_equal(nearest_short(reduced[:900], reduced, 12), nearest(reduced[:900], reduced, 12)[0])


@pytest.mark.parametrize("threads", ["1", "3"])
def test_products_take_one_thread_each_within_and_as_many_as_before_afterwards(monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), single_threaded_products():
            spread(lambda a, b: seen.append((torch.get_num_threads(), a, b)), 3)
            raise ZeroDivisionError
        assert sorted(seen) == ([(1, 0, 3)] if threads == "1" else [(1, 0, 1), (1, 1, 2), (1, 2, 3)])
        assert torch.get_num_threads() == 2
        images = pictures(40)
        expected = nearest_short(images.reshape(40, -1), images.reshape(40, -1), 5)
        assert np.array_equal(expected, nearest(images.reshape(40, -1), images.reshape(40, -1), 5)[0])
    finally:
        torch.set_num_threads(before)


def test_overlapping_searches_leave_the_number_of_threads_as_it_was():
    """The one that began first ends first: the other must not take what it found, one, for what was before."""
    before, inside, first_is_done = torch.get_num_threads(), threading.Barrier(2), threading.Event()
    torch.set_num_threads(2)

    def search(first):
        with single_threaded_products():
            inside.wait()
            assert first or first_is_done.wait(20)
        first_is_done.set()
        return torch.get_num_threads()

    try:
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(search, True)
            other = pool.submit(search, False)
            assert [one.result(), other.result()] == [2, 2]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_vectors_that_are_too_long_for_the_scan_are_refused():
    with pytest.raises(InputError, match=r"the 1 nearest of \(2, 4097\) to \(1, 4097\): at most 4096 values each"):
        nearest_short(np.zeros((1, 4097), np.uint8), np.zeros((2, 4097), np.uint8), 1)


def test_a_reduced_window_is_the_window_reduced():
    images = pictures(5, 20, 3)
    assert np.array_equal(reduce(images, (3, 1, 13)), reduce(np.ascontiguousarray(images[:, 3:16, 1:14])))


def test_reduced_images_are_kept_while_there_is_room():
    reference = whole_reference(pictures(50, 16))
    first = reference.reduced((1, 2, 13))
    assert np.array_equal(first, reduce(reference.images, (1, 2, 13)))
    assert reference.reduced((1, 2, 13)) is first
    reference = dataclasses.replace(reference, budget=4 * (2 * first.nbytes - 1))
    second = reference.reduced()
    assert np.array_equal(second, reduce(reference.images))
    assert list(reference.kept) == [(1, 2, 13)]


def test_reduced_images_are_rounded_cell_means():
    images = pictures(3, 18, 3)
    reduced = reduce(images).reshape(3, 8, 8, 3)
    edges = np.arange(9) * 18 // 8
    for y, x in np.ndindex(8, 8):
        cell = images[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]].astype(float)
        np.testing.assert_allclose(reduced[:, y, x], cell.mean((1, 2)), atol=0.5 + 1e-9)
    np.testing.assert_array_equal(_moved(images, 1, -2)[:, 1:, :-2], images[:, :-1, 2:])


def test_thresholds_let_the_stated_share_of_the_control_pass():
    values = np.random.default_rng(0).permutation(np.linspace(0.2, 1, 2000))
    found = calibrate(values, 2.0)
    assert (values < found.copy).sum() == 10  # a quarter of 2 % of 2000
    assert (values < found.candidate).sum() == 40
    assert calibrate(values + 1, 1.0).copy == COPY_CAP  # unseen images are all far away
    assert calibrate(values + 1, 1.0).candidate == CANDIDATE_CAP
    few = calibrate(values[:10], 1.0)
    assert (values[:10] < few.candidate).sum() == 0
    assert calibrate(np.array([np.nan]), 1.0).copy == COPY_CAP


def test_the_control_is_judged_under_the_other_half_s_threshold():
    best = np.linspace(0.1, 0.9, 20)
    best[0] = 0.01  # alone far below: its own half would have set its threshold there
    flags = cross_fitted(best, 10.0)
    assert flags[0]
    assert not copies(best, calibrate(best, 1.0))[0]
    assert flags.sum() == 1


def test_near_duplicates_are_grouped_by_either_distance():
    """Noise is far from everything: twins with a tenth of that distance are found by what is usual around them."""
    images = pictures(60, 8)
    images[1] = np.clip(images[0].astype(int) + np.random.default_rng(1).integers(-30, 31, (8, 8, 1)), 0, 255)
    images[5] = images[7]
    found = duplicates(images)
    assert (found.groups, found.images) == (2, 4)
    assert found.group[0] == found.group[1] == 0
    assert found.group[5] == found.group[7] == 5
    flat = images.reshape(60, -1).astype(float)
    distance = np.linalg.norm(flat[:, None] - flat, axis=2) / 8 / 255 + 9 * np.eye(60)
    assert found.near == pytest.approx(0.25 * np.median(distance.min(1)), rel=0.01)
    wide = duplicates(images, 0.99)
    assert (wide.groups, wide.images) == (1, 60)


def test_neighbours_that_are_known_need_no_search():
    images = pictures(70)
    found = own_neighbors(images.reshape(70, -1), 0, 70, BUDGET)
    plain = whole_reference(images)
    known = whole_reference(images, None, (found["index"], found["squared"]))
    rows = np.array([3, 50, 69])
    for a, b in zip(plain.neighbors(rows), known.neighbors(rows)):
        np.testing.assert_array_equal(a, b)


def test_one_image_has_no_duplicates():
    found = duplicates(pictures(1))
    assert (found.groups, found.images, found.near) == (0, 0, 0.0)


def test_halves_keep_groups_together():
    group = np.array([0, 1, 2, 0, 4, 5, 5, 7, 8, 8, 8, 11])
    for seed in range(20):
        left, right = halves(group, seed)
        assert sorted([*left, *right]) == list(range(12))
        assert not set(group[left]) & set(group[right])
        assert 3 <= len(left) <= 6


def test_planted_copies_are_what_their_names_say():
    images = pictures(4, 16, 3)
    assert np.array_equal(planting.plant(images, "exact", 0), images)
    assert np.array_equal(planting.plant(images, "mirrored", 0), images[:, :, ::-1])
    noisy = planting.plant(np.full((4, 32, 32, 3), 128, np.uint8), "noise", 0)
    assert np.std(noisy / 255) == pytest.approx(planting.NOISE, rel=0.05)
    for made, image in zip(planting.plant(images, "shifted", 3), images):
        fitting = [
            shift
            for shift in itertools.product(range(-2, 3), repeat=2)
            if shifted_mean(made[3:-3, 3:-3], image[3:-3, 3:-3], *shift)[0] == 0
        ]
        assert len(fitting) == 1
        assert fitting != [(0, 0)]
    for kind in planting.WORDS:
        np.testing.assert_array_equal(planting.plant(images, kind, 5), planting.plant(images, kind, 5))
        assert planting.plant(images[..., :1], kind, 5).shape == (4, 16, 16, 1)


def test_arrays_are_read_as_they_were_written(tmp_path):
    arrays = {"a": np.arange(5), "b": np.ones((2, 2), bool), "c": np.array(["{}"])}
    found = read_arrays(write_arrays(tmp_path / "x.npz", arrays))
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_a_memory_budget_is_an_amount_of_memory():
    base = {"train": "a", "samples": "b", "out": "c"}
    assert audit_params(**base, memory_budget="5GiB").budget == 2 << 30
    assert audit_params(**base, memory_budget="3GB").budget == (3 * 10**9 - (1 << 30)) // 2
    with pytest.raises(InputError, match="--memory-budget 'much' is not an amount of memory: write e.g. 4GiB"):
        audit_params(**base, memory_budget="much")
    with pytest.raises(InputError, match="--memory-budget 1GiB is too little: give at least 1.25GiB"):
        audit_params(**base, memory_budget="1GiB")
    with pytest.raises(InputError, match="--fail-above: Input should be less than or equal to 1"):
        audit_params(**base, fail_above=2.0)
    with pytest.raises(InputError, match="--out: Field required"):
        audit_params(train="a", samples="b")


@pytest.mark.parametrize("known", [60, 7])
def test_the_feature_spacing_is_the_least_over_the_compared_images(known):
    """With the pixels as features: over all images where all are known, else over those and the nearest by pixels."""
    images = pictures(60)
    group = np.arange(60)
    group[[4, 9]] = 4
    images[9] = np.clip(images[4].astype(int) + 1, 0, 255)
    reference = whole_reference(images, group)
    encoder = load_encoder(encoder_params("pixels", None, 8), "cpu")
    rows = np.arange(60)[:known]
    questions = Questions(np.array([0, 1, 0]), np.array([False, True, False]), np.array([4, 30, 12]))
    samples = pictures(2, seed=5)
    shown = np.stack([samples[0], samples[1][:, ::-1], samples[0]])
    compared = compared_rows(np.unique(questions.row), reference)
    distance, spacing, grouped = answer(
        questions, encoder(shown), reference, lambda some: encoder(images[some]), compared, rows
    )
    flat = images.reshape(60, -1) / 255
    own = np.linalg.norm(flat[:, None] - flat, axis=2)
    for place, row in enumerate(questions.row):
        assert distance[place] == pytest.approx(np.linalg.norm(shown[place].reshape(-1) / 255 - flat[row]), rel=1e-6)
        # the nearest by pixels are compared in any case, so with pixels as features the least is always found
        assert spacing[place] == pytest.approx(np.delete(own[row], row).min(), rel=1e-6)
        assert grouped[place] == pytest.approx(own[row][group != group[row]].min(), rel=1e-6)
    assert spacing[0] < 0.1 < grouped[0]


def test_the_bar_never_runs_over_and_ends_full():
    progress = SecondsBar(quiet=True)
    task = progress.bar.tasks[0]
    progress.expect(3.0)
    shown = []
    for seconds in (1.0, 1.5, 2.0):
        progress.advance(seconds)
        shown.append((task.completed, task.total))
    assert shown == [(1.0, 3.0), (2.5, 3.0), (4.5, 4.5)]
    progress.expect(2.0)
    progress.advance(1.0)
    assert (task.completed, task.total) == (5.5, 6.5)
    progress.finish()
    assert task.finished
    assert task.completed == task.total == 5.5


def test_an_encoder_is_ours_or_one_of_timm():
    assert (encoder_params("resnet18", None, 32).name, encoder_params("resnet18", None, 32).resize) == ("resnet18", 112)
    assert encoder_params("resnet18", None, 256).resize is None
    assert encoder_params("vit_small_patch14_dinov2", None, 32).name == "timm:vit_small_patch14_dinov2"
    assert encoder_params("timm:resnet18", None, 32).name == "timm:resnet18"
    with pytest.raises(InputError, match="--encoder timm:no name: there is no encoder 'timm:no name': use eff"):
        encoder_params("no name", None, 32)
    with pytest.raises(InputError, match="--encoder pixels: encoder pixels takes the images as they are"):
        encoder_params("pixels", "weights.pth", 32)


def test_a_group_of_everything_leaves_nothing_to_compare_with():
    images = pictures(4)
    reference = whole_reference(images, np.zeros(4, np.int64))
    encoder = load_encoder(encoder_params("pixels", None, 8), "cpu")
    questions = Questions(np.array([0]), np.array([False]), np.array([2]))
    compared = compared_rows(questions.row, reference)
    _, spacing, grouped = answer(
        questions, encoder(images[:1]), reference, lambda rows: encoder(images[rows]), compared, np.zeros(0, np.int64)
    )
    assert np.isinf(grouped[0])
    assert np.isfinite(spacing[0])


def test_each_verdict_has_its_rule():
    rho = np.array(
        [[0, 0, 0], [0.9, 0, 0.1], [0.2, 0.9, 0.2], [0.45, 0.5, 0.5], [0.5, 0.9, 0.45], [0.8] * 3, [0.8] * 3, [0.9] * 3]
    )
    rho = np.concatenate([rho, np.full((1, 3), np.nan)])
    candidate = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    confirmed = np.array([0, 0, 0, 1, 0, 1, 0, 0, 0], bool)
    identical, nothing = np.arange(9) == 0, np.zeros(9, bool)
    evidence = Evidence(identical, rho[:, 0], nothing, candidate, confirmed)
    found, reason = decide(rho_star_rules(evidence, Scores(rho[:, 0], rho[:, 0], rho), Thresholds(0.3, 0.6)))
    assert found == ["copy", "copy", "copy", "near_copy", "unsure", "same_content", "novel", "novel", "novel"]
    assert reason[:5] == [
        "equals a training image byte for byte",
        "equals a training image byte for byte after mirroring",
        "rho* 0.20 is below 0.30: so near no unseen image should come",
        "rho* 0.45 is below 0.60, and the features agree",
        "shifted, rho* 0.45 is below 0.60, but the features do not agree",
    ]


def test_the_page_shows_some_of_every_verdict():
    verdicts = ["copy"] * 50 + ["unsure"] * 3 + ["novel"] * 100
    rows = chosen(verdicts, 30)
    assert len(rows) == 30
    assert [sum(verdicts[row] == name for row in rows) for name in ("copy", "unsure", "novel")] == [17, 3, 10]
    assert rows.tolist() == [*range(17), 50, 51, 52, *range(53, 63)]
    assert chosen(["novel"] * 4, 30).tolist() == [0, 1, 2, 3]


def test_the_common_size_is_the_smallest_of_the_usual_ones(tmp_path):
    for role, sides in (("train", (30, 30, 12, 30)), ("samples", (24, 40, 24))):
        (tmp_path / role).mkdir()
        for row, side in enumerate(sides):
            Image.new("RGB" if (role, row) == ("samples", 1) else "L", (side + 3, side)).save(
                tmp_path / role / f"{row}.png"
            )
    sources = open_all({role: f"folder:{tmp_path / role}" for role in ("train", "samples")})
    shape = common_shape(sources, None)
    assert (shape.resolution, shape.channels) == (24, 3)
    assert shape.native == {
        "train": "33 × 30 and other sizes, grey",
        "samples": "27 × 24 and other sizes, grey and colour",
    }
    assert common_shape(sources, 16).resolution == 16
