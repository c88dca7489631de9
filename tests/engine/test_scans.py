"""Compiled scans that offer candidates to lists of the nearest, and means of cells, against their references."""

import numpy as np
import reference
from adversarial import KINDS, draw_images
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.engine.alignment_kernels import cell_means, keep_lowest
from stages.engine.products import centred, products, squared_norms
from stages.engine.search_kernels import dense_block
from stages.engine.sizes import NO_KEY
from stages.search.brute_force import squared_distances


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(1, 200), st.integers(1, 40))
def test_lists_of_the_nearest_property(seed, kind, count, d):
    rng = np.random.default_rng(seed)
    queries, images = draw_images("noise", rng, 4, d), draw_images(kind, rng, count, d)
    k = int(rng.integers(1, count + 1))
    inner, norms, own = products(centred(queries), centred(images)), squared_norms(images), squared_norms(queries)
    expected = reference.nearest_of(squared_distances(queries, images), k)
    found, exclude = np.full((4, k), NO_KEY), np.full(4, -1)
    dense_block(inner, own, norms, np.arange(count), count, exclude, found)
    np.testing.assert_array_equal(found, expected)
    found = np.full((4, k), NO_KEY)
    keep_lowest(inner, norms.astype(np.int32), 0, count, found)
    np.testing.assert_array_equal(found + (own * count)[:, None], expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9), st.integers(1, 4))
def test_cell_means_property(seed, height, width, cells):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, height, width, 2), dtype=np.uint8)
    rows, columns = (np.arange(min(cells, n) + 1) * n // min(cells, n) for n in (height, width))
    means = np.empty((3, (len(rows) - 1) * (len(columns) - 1) * 2), np.uint8)
    cell_means(images, rows, columns, means)
    np.testing.assert_array_equal(means, reference.cell_means(images, rows, columns))
