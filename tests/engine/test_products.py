"""Exact products of small integers, and loops over one or two rows, against their references."""

import os
import platform
import subprocess
import sys
import time

import numpy as np
import pytest
import reference
import torch
from adversarial import KINDS, draw_images
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.engine import products as products_module
from stages.engine.products import centred, compiled_norms, products, spread, squared_norms, weighted_sums
from stages.engine.row_kernels import inner_bytes, inner_shorts, squared_distance


@pytest.mark.parametrize("d", [1, 322, 1025, 5000])
def test_products_are_exact_on_both_paths(d):
    rng = np.random.default_rng(d)
    a = np.concatenate([rng.integers(-128, 128, (6, d)), np.full((2, d), -128), np.full((2, d), 127)]).astype(np.int8)
    expected = reference.products(a, a)
    np.testing.assert_array_equal(products_module._float_products(a, a.T), expected)
    np.testing.assert_array_equal(products(a, a), expected)
    if products_module.int8_is_exact():
        np.testing.assert_array_equal(products_module._int8_products(a, a.T), expected)
        np.testing.assert_array_equal(
            products_module._int8_products(a[:, ::3], a[:, ::3].T), reference.products(*2 * [a[:, ::3]])
        )
    for precision in ("highest", "medium"):  # whoever lets torch round the factors does not round ours
        torch.set_float32_matmul_precision(precision)
        try:
            np.testing.assert_array_equal(products_module._tiled_float_products(a, a.T), expected)
        finally:
            torch.set_float32_matmul_precision("highest")


def test_tiles_make_the_whole_product():
    a, b = (np.random.default_rng(count).integers(-128, 128, (count, 70), dtype=np.int8) for count in (259, 513))
    np.testing.assert_array_equal(products_module._tiled_float_products(a, b.T), reference.products(a, b))


def test_large_float_products_take_the_threads_that_a_search_leaves_them(monkeypatch):
    """NumPy's take all processors in each thread of a search: 19 s instead of 5 s on two cores."""
    taken = []

    def counted(a, b):
        taken.append(torch.get_num_threads())
        return a @ b

    monkeypatch.setattr(products_module, "int8_pays", lambda: False)
    monkeypatch.setattr(products_module, "_torch_product", counted)
    with products_module.single_threaded_products():
        products(np.ones((1024, 64), np.int8), np.ones((8192, 64), np.int8))
    assert set(taken) == {1}


def test_the_int8_product_is_taken_only_where_it_is_exact_and_not_slow(monkeypatch):
    """torch takes a plain loop on processors without int8 dot products: 26 times the time of float32."""

    exact = products_module._float_products

    def slow(a, b):
        time.sleep(0.05)
        return exact(a, b)

    pays = products_module.int8_pays.__wrapped__
    monkeypatch.setattr(products_module, "int8_is_exact", lambda: True)
    monkeypatch.setattr(products_module, "_int8_products", slow)
    assert not pays()
    monkeypatch.setattr(products_module, "_int8_products", lambda a, b: np.zeros((len(a), b.shape[1]), np.int32))
    monkeypatch.setattr(products_module, "_float_products", slow)
    assert pays()
    monkeypatch.setattr(products_module, "int8_is_exact", lambda: False)
    assert not pays()


def test_large_products_take_the_kernel_that_pays(monkeypatch):
    a, taken = np.ones((1024, 64), np.int8), []
    for name in ("_int8_products", "_tiled_float_products"):
        monkeypatch.setattr(products_module, name, lambda *_, name=name: taken.append(name))
    for pays in (True, False):
        monkeypatch.setattr(products_module, "int8_pays", lambda pays=pays: pays)
        products(a, np.ones((8192, 64), np.int8))
    assert taken == ["_int8_products", "_tiled_float_products"]


def test_products_beyond_int32():
    a = np.full((2, 140_000), -128, np.int8)  # 128² · 140000 > 2³¹
    np.testing.assert_array_equal(products(a, a), np.full((2, 2), 128 * 128 * 140_000))
    images = np.full((1, 140_000), 0, np.uint8)
    assert squared_norms(images)[0] == compiled_norms(images)[0] == 128 * 128 * 140_000
    assert centred(images)[0, 0] == -128


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS), st.integers(0, 9), st.sampled_from([1, 17, 300, 16_384, 40_000]))
def test_rows_property(seed, kind, count, d):
    """Norms, distances and products of rows, with sums that overflow int32 where they are not cut."""
    images = draw_images(kind, np.random.default_rng(seed), count, d)
    for norms in (squared_norms, compiled_norms):
        np.testing.assert_array_equal(norms(images), reference.squared_norms(images))
    for x, y in zip(images, images[::-1]):
        assert squared_distance(x, y) == np.square(x.astype(np.int64) - y).sum()
        assert inner_bytes(x, centred(y[None])[0]) == reference.products(x[None], centred(y[None]))[0, 0]


@pytest.mark.parametrize("d", [1, 255, 256, 300, 3072, 16_384, 40_000])
def test_byte_products_are_exact(d):
    """Each way through `inner_bytes`, with the products that overflow int16 and the sums that overflow int32."""
    rng = np.random.default_rng(d)
    a = np.stack([rng.integers(0, 256, d), np.full(d, 255), np.zeros(d)]).astype(np.uint8)
    b = np.stack([rng.integers(-128, 128, d), np.full(d, -128), np.full(d, 127)]).astype(np.int8)
    for x in a:
        for y in b:
            assert inner_bytes(x, y) == reference.products(x[None], y[None])[0, 0]


def test_products_of_shorts_wrap_around():
    rng = np.random.default_rng(0)
    for width in (0, 1, 31, 192):
        a, b = rng.integers(-32_000, 32_001, (2, width)).astype(np.int16)
        assert inner_shorts(a, b) == reference.products(a[None], b[None]).astype(np.int32)[0, 0]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names an x86 processor")
def test_byte_products_without_the_instruction(tmp_path):
    """A processor without VNNI takes the loop: the branch that this one compiles away."""
    code = """
import numpy as np
from stages.engine.row_kernels import HAS_BYTE_SUMS, inner_bytes
rng = np.random.default_rng(0)
a, b = rng.integers(0, 256, 3100).astype(np.uint8), rng.integers(-128, 128, 3100).astype(np.int8)
print(HAS_BYTE_SUMS, inner_bytes(a, b) == int(a.astype(np.int64) @ b.astype(np.int64)))
"""
    cpu = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2", "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **cpu}, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize("shape", [(3, 5, 7), (40, 4096, 2048)])
def test_weighted_sums_are_exact(shape):
    n, m, d = shape
    rng = np.random.default_rng(0)
    weights, images = (rng.integers(-128, 128, size, dtype=np.int8) for size in ((n, m), (m, d)))
    weights[0], images[:, 0] = -128, -128
    np.testing.assert_array_equal(weighted_sums(weights, images)[:2], reference.products(weights[:2], images.T))


@pytest.mark.parametrize("threads", ["1", "3"])
@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_work_is_spread_over_everything_once(threads, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    done = np.zeros(count, int)

    def work(a, b):
        done[a:b] += 1

    spread(work, count)
    assert (done == 1).all()


def test_a_span_within_a_span_takes_no_further_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    outer, inner = [], []

    def within(a: int, b: int) -> None:
        outer.append((a, b))
        spread(lambda c, d: inner.append((c, d)), 9)

    spread(within, 6)
    assert sorted(outer) == [(0, 2), (2, 4), (4, 6)]
    assert inner == [(0, 9)] * 3
    inner.clear()
    spread(lambda c, d: inner.append((c, d)), 9)
    assert sorted(inner) == [(0, 3), (3, 6), (6, 9)]
