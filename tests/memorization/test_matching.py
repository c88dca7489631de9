"""Matches, duplicate groups and the searches behind them against brute force."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import pictures, smooth

from stages.engine.products import single_threaded_products, spread
from stages.errors import InputError
from stages.files.images import image_table
from stages.memorization.groups import find_duplicates, halves
from stages.memorization.matching import (
    OUTSIDE,
    Matches,
    Reference,
    match,
    mirrored,
    outside,
    whole_reference,
    with_groups,
)
from stages.memorization.neighbors import own_neighbors
from stages.memorization.scores import CROP_WEIGHT, scores
from stages.search import nearest_short as nearest_short_module
from stages.search.nearest import nearest
from stages.search.nearest_short import nearest_short

BUDGET = 1 << 28


def duplicates(images: np.ndarray, near: float | None = None):
    table = image_table(images)
    return find_duplicates(table.ids, own_neighbors(table.flat, 0, len(table), BUDGET), table.dimension, near)


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
            patch.setattr(nearest_short_module, "PRODUCT_COLUMNS", 7)
            patch.setattr(nearest_short_module, "PRODUCT_ROWS", 5)
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
    with pytest.raises(InputError, match="vectors of 4097 values are too long for a search"):
        nearest_short(np.zeros((1, 4097), np.uint8), np.zeros((2, 4097), np.uint8), 1)


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
