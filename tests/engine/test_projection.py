"""The certified bound: its proof on images that break bounds, and the compiled scan of it."""

import functools

import numpy as np
import pytest
import reference
from adversarial import KINDS, draw_images
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.engine.projection import coordinates, fit_projection
from stages.engine.search_kernels import score_function
from stages.engine.simd import processor_features
from stages.engine.sizes import FILLER_SUM
from stages.engine.tiled import pack
from stages.search.brute_force import squared_distances


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "leading"), [(5, 8), (48, 8), (48, 19), (48, 48)])
def test_the_bound_is_a_bound(kind, size, leading):
    """scale² squared_x − 2 (sum + slack) never exceeds the true scale² distance, at both levels."""
    rng = np.random.default_rng(7)
    images, queries = draw_images(kind, rng, 80, 96), draw_images("noise", rng, 30, 96)
    projection = fit_projection(images, size, leading)
    y = coordinates(projection, images)

    def bounds(rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        x = coordinates(projection, rows).as_queries(y)
        found = reference.sums(x, y)
        assert all(np.abs(sums).max() < 2**31 for sums in found)
        return [x.scale**2 * x.squared[:, None] - 2 * sums for sums in found], 2 * x.slack[:, None]

    levels, margin = bounds(queries)
    true = y.scale**2 * squared_distances(queries, images)
    assert all((bound - margin <= true).all() for bound in levels)
    own, margin = bounds(images)  # and no looser than it says: it leaves nothing between an image and itself
    # a length is rounded up by 1.25 at most, a coordinate by half a unit
    longest = y.scale * np.sqrt(y.squared.max()) + 2
    rounding = (12 + 2 * np.sqrt(size)) * longest + 2 * margin.max()
    assert all(np.abs(np.diag(bound)).max() <= rounding for bound in own)
    if kind == "low-rank" and size == 48:  # and it is worth having: what 48 directions leave out is small
        true = y.scale**2 * squared_distances(images, images)
        assert np.abs(own[-1] - true).max() < 0.02 * true.max()


@pytest.mark.parametrize("kind", KINDS)
def test_directions_never_lengthen(kind):
    """PᵀP ≼ 1, whatever the data: ‖P x‖ ≤ ‖x‖ of the directions' own combinations, the worst case."""
    rng = np.random.default_rng(KINDS.index(kind))
    projection = fit_projection(draw_images(kind, rng, 60, 48), 20, 20)
    p = projection.factor[:, None] * projection.rows[:-1].astype(np.float64)
    largest = np.linalg.svd(p, compute_uv=False)[0]
    assert largest <= 1
    assert largest > 0.99 or kind == "constant"  # nothing to see there


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_scores_of_tiles_are_products(data):
    """Every instruction set that this processor has, against NumPy in int64."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, words = data.draw(st.integers(1, 300)), data.draw(st.integers(0, 12))
    x, y = (rng.integers(-5000, 5001, (n, 2 * words)).astype(np.int16) for n in (6, count))
    half = rng.integers(-(2**29), 1, count).astype(np.int32)
    packed, added = pack(y.view(np.int32), half)
    tiles = len(packed)
    filled, alone = np.zeros((tiles * 128, 2 * words), np.int16), np.full(tiles * 128, FILLER_SUM, np.int64)
    filled[:count], alone[:count] = y, half
    expected = reference.score_tiles(x, filled, alone)
    for score_tiles in score_functions():
        scores, maxima = np.zeros((6, tiles, 4, 32), np.int16), np.zeros((6, tiles * 32), np.int16)
        score_tiles(x.view(np.int32), packed, added, scores, maxima, 0)
        np.testing.assert_array_equal(scores.swapaxes(2, 3).reshape(6, -1), expected[0])
        np.testing.assert_array_equal(maxima, expected[1])


@functools.cache
def score_functions() -> list:
    there = processor_features()
    sets = [set(), {"avx2"}, {"avx512bw"}, {"avx512bw", "avx512vnni"}]
    return [score_function(features) for features in sets if features <= there]
