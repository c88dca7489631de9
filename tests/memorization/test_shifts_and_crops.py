"""Shifts, windows, crops, tiles and reduced images against brute force."""

import itertools
import math

import numpy as np
import pytest
from pictures import pictures, shifted_mean, smooth
from PIL import Image

from stages.errors import InputError
from stages.memorization import crops
from stages.memorization.reduced import reduce
from stages.search.alignment import best_shift, best_window, tile_distance


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
        assert (found.row[q], *found.shift[q]) == min(means, key=means.get)  # the first of equal ones
        assert found.distance[q] == pytest.approx(math.sqrt(min(means.values())) / 255, rel=1e-12)
    assert (found.row[0], *found.shift[0], found.distance[0]) == (4, 2, 1, 0)
    assert (found.row[1], *found.shift[1]) == (0, 0, 0)
    assert (found.row[4], found.distance[4]) == (-1, np.inf)
    with pytest.raises(InputError, match="windows .5, 5. do not all lie inside images .7, 7."):
        best_window(queries, reference, candidates, np.array([[0, 3]]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "made"), [(32, 26), (32, 31), (32, 50), (16, 16), (8, 3), (64, 13), (33, 7)])
def test_images_are_made_smaller_as_pillow_does(side, made, channels):
    images = np.random.default_rng(side).integers(0, 256, (4, side, side, channels), np.uint8)
    images[0] = 255 * (images[0] > 127)  # overshoots
    images[1] = pictures(1, side, channels)[0]
    for image, small in zip(images, crops.shrunk(images, made)):
        expected = Image.fromarray(image.squeeze()).resize((made, made), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(small, np.asarray(expected).reshape(small.shape))


@pytest.mark.parametrize("room", [0, 1, 5, 6, 7, 40])
def test_every_window_near_the_middle_is_searched(room):
    middle = range(max(0, room // 2 - crops.REACH), min(room, room // 2 + crops.REACH) + 1)
    assert crops._places(room) == list(itertools.product(middle, repeat=2))


def test_the_best_crop_is_a_brute_force_s():
    assert crops.window_sides(32, crops.SIDES) == [31, 30, 29, 28, 27, 26]
    assert crops.window_sides(8, crops.SIDES) == []
    reference, images = smooth(4, 16, 3), smooth(7, 16, 3, 1)
    for row in range(4):  # 14 of 16 pixels of each, enlarged
        part = Image.fromarray(reference[row, row % 3 :, 1:][:14, :14])
        images[row] = np.asarray(part.resize((16, 16), Image.Resampling.BICUBIC))
    found = crops.best_crop(images, reference, np.tile(np.arange(4), (7, 1)))
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
    found = crops.best_crop(pictures(3), pictures(5), np.full((3, 2), 4))
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


def test_reduced_images_are_rounded_cell_means():
    images = pictures(3, 18, 3)
    reduced = reduce(images, 8).reshape(3, 8, 8, 3)
    edges = np.arange(9) * 18 // 8
    for y, x in np.ndindex(8, 8):
        cell = images[:, edges[y] : edges[y + 1], edges[x] : edges[x + 1]].astype(float)
        np.testing.assert_allclose(reduced[:, y, x], cell.mean((1, 2)), atol=0.5 + 1e-9)
