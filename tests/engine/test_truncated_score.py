"""Closed-form scores over many centres against float64 sums over all of them: off by less than 1e-6, every one."""

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import reference
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.engine import fixed_point, many_centres, score_kernels
from stages.engine import truncated_score as truncated
from stages.engine.products import centred
from stages.errors import InputError

BOUND = 1e-6  # of the score's norm, proven for every sample


def power_of(d):
    """The exponent c of the shells (METHODS §1.3)."""
    return d - 2 if d > 2 else d


def errors(got, wanted):
    """|got - wanted| / |wanted|, (B,)."""
    return np.linalg.norm(got - wanted, axis=1) / np.linalg.norm(wanted, axis=1)


def draw(seed, count, d, sigma, groups):
    """Images in groups of near ones, as natural images are, and noised samples of some of them."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (groups, d))
    images = (base[rng.integers(0, groups, count)] + rng.normal(0, 30, (count, d))).clip(0, 255).astype(np.uint8)
    x = images[rng.integers(0, count, len(sigma))] / 255 + sigma[:, None] * rng.standard_normal((len(sigma), d))
    return images, x.astype(np.float32).astype(np.float64)


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 900), st.sampled_from([3, 16, 100]), st.integers(1, 4))
levels = st.lists(st.floats(-4, 4), min_size=1, max_size=5)


def near_a_plane(count):
    """Images uint8 (count, 192) near a space of 12 dimensions, as photographs are near one of few hundred."""
    rng = np.random.default_rng(4)
    images = (128 + rng.normal(0, 300, (count, 12)) @ np.linalg.qr(rng.normal(size=(192, 12)))[0].T).clip(0, 255)
    return (images + rng.normal(0, 2, images.shape)).clip(0, 255).astype(np.uint8)


@contextlib.contextmanager
def at_most(kept):
    """Blocks of 200 centres, of which this many are summed one by one, so that few images take every method."""
    small = {
        many_centres: {
            "CENTRE_BLOCK": 200,
            "PROJECTED_BLOCK": 300,
            "MIN_PROJECTED_CENTRES": 1,
            "PROJECTED_DIRECTIONS": 16,
        }
    }
    small[truncated] = {"MAX_CANDIDATES": {0: kept, 1: kept, 2: kept}}
    with contextlib.ExitStack() as stack:
        for module, values in small.items():
            stack.enter_context(mock.patch.multiple(module, **values))
        yield


@settings(max_examples=120, deadline=None)
@given(cases, levels, st.sampled_from([2, 30, 2048]))
def test_conditioning_is_the_sum_over_all_centres(case, exponents, kept):
    seed, count, d, groups = case
    sigma = np.exp(np.array(exponents))
    images, x = draw(seed, count, d, sigma, groups)
    with at_most(kept):
        got = truncated.conditioning(many_centres.make_many_centres(images), x, sigma)
    wanted = reference.softmax_sum(images, x, lambda r2, b: -r2 / (2 * sigma[b] ** 2), lambda r2, b: 1 / sigma[b] ** 2)
    assert (errors(got, wanted) < BOUND).all()


@settings(max_examples=120, deadline=None)
@given(cases, levels, st.sampled_from([1.0, 2.0, 7.0, 100.0]), st.booleans(), st.sampled_from([2, 30, 2048]))
@example((75, 312, 3, 2), [0.0, -4.0], 1.0, False, 39)  # pulls that cancel: the score is small beside one centre's
def test_shells_are_the_sum_over_all_centres(case, exponents, temperature, scheduled, kept):
    seed, count, d, groups = case
    sigma = np.exp(np.array(exponents))
    images, x = draw(seed, count, d, sigma, groups)
    power = power_of(d)
    t, level = np.full(len(x), temperature), sigma if scheduled else None
    with at_most(kept):
        got = truncated.unconditioning(many_centres.make_many_centres(images), x, t, power, level)
    precision = (lambda r2, b: 1 / sigma[b] ** 2) if scheduled else (lambda r2, b: power / r2)
    wanted = reference.softmax_sum(images, x, lambda r2, b: -power / (2 * temperature) * np.log(r2), precision)
    assert (errors(got, wanted) < BOUND).all()


KERNELS = {
    "conditioning": lambda level: truncated.Kernel(False, 1 / (2 * (255 * level) ** 2), False, 1 / level**2),
    "shells": lambda level: truncated.Kernel(
        True, np.full(len(level), 95.0), True, np.full(len(level), 190 * 255.0**2)
    ),
    "T = 20, scheduled": lambda level: truncated.Kernel(True, np.full(len(level), 4.75), False, 1 / level**2),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sigma", [0.02, 0.3, 1.0, 4.0, 50.0])
def test_every_methods_bound_is_above_its_error(sigma, name):
    """Every method with every number of digits, forced, against float64 sums by differences, at d = 192."""
    images, x = draw(1, 1500, 192, np.full(6, sigma), 3)
    points = fixed_point.fixed_point(x)
    kernel = KERNELS[name](np.full(6, sigma))
    precision = (
        (lambda r2, b: kernel.strength[b] / (255**2 * r2)) if kernel.inverse else (lambda r2, b: kernel.strength[b])
    )
    log_weight = (
        (lambda r2, b: -kernel.rate[b] * np.log(r2))
        if kernel.power_law
        else (lambda r2, b: -kernel.rate[b] * 255**2 * r2)
    )
    whole = 255 * reference.softmax_sum(images, x, log_weight, precision)
    size = np.linalg.norm(whole, axis=1)
    methods = [(truncated._sum_integers, n) for n in (2, 3, 4)]
    methods += [(truncated._sum_candidates, drop, n) for drop in (1.0, 9.0, 30.0) for n in (0, 1, 2)]
    bounds = []
    with at_most(10**9):
        centres = many_centres.make_many_centres(images)
        for method, *options in methods:
            got, bound = method(centres, points, kernel, *options)
            done = ~np.isnan(bound)
            assert (np.linalg.norm(got - whole, axis=1) <= bound + 1e-12 * size)[done].all(), options
            assert done.all() or options[1:] == [0]
            bounds.append(bound / size)
    if sigma > 0.1:
        assert bounds[2].max() < BOUND  # four digits suffice
    assert (errors(truncated._sum_all(centres, points, kernel), whole) < 1e-11).all()


@pytest.mark.parametrize("sigma", [0.001, 0.02, 0.1, 0.5])
def test_projected_coordinates_drop_no_centre_that_weighs(sigma):
    images, level, drop = near_a_plane(5000), np.full(40, sigma), 9.0
    x = images[:40] / 255 + sigma * np.random.default_rng(5).standard_normal((40, 192))
    points = fixed_point.fixed_point(x)
    with at_most(1000):
        centres = many_centres.make_many_centres(images)
        found = truncated.candidate_sets(centres, points, truncated.gaussian_kernel(level), drop, 0)
        few = fixed_point.fixed_point(x[3:5])
        same = truncated.candidate_sets(centres, few, truncated.gaussian_kernel(level[:2]), drop, 0)
    for b in range(40):
        weighs = reference.candidates(images, x[b], lambda r2: -r2 / (2 * sigma**2), drop)
        assert found.count[b] == -1 or set(weighs) <= set(found.rows[b, : found.count[b]])
    assert (found.count >= 0).all() == (sigma < 0.2)
    assert sigma > 0.05 or found.count.mean() < 20  # it is of use
    for b in range(2):
        n = same.count[b]
        assert n == found.count[3 + b]
        assert n == -1 or np.array_equal(same.lower[b, :n], found.lower[3 + b, :n])


@pytest.mark.parametrize("sigma", [0.02, 0.1, 20.0])
def test_candidates_hold_every_centre_that_weighs(sigma):
    level = np.full(5, sigma)
    images, x = draw(2, 9000, 27, level, 4)
    drop = 9.0
    points = fixed_point.fixed_point(x)
    kept = truncated.candidate_sets(
        many_centres.make_many_centres(images), points, truncated.gaussian_kernel(level), drop, 1
    )
    for b in range(5):
        weighs = reference.candidates(images, x[b], lambda r2: -r2 / (2 * sigma**2), drop)
        assert kept.count[b] == -1 or set(weighs) <= set(kept.rows[b, : kept.count[b]])
    assert (kept.count >= 0).all() == (sigma < 1)


def scores(centres):
    """Scores float64 (6, 10, 192) near the first images, for which every method is used."""
    x, noise = centres.images[:10] / 255, np.random.default_rng(5).standard_normal((10, 192))
    found = [truncated.conditioning(centres, x + s * noise, np.full(10, s)) for s in (0.001, 0.1, 0.5, 2.0, 50.0)]
    return np.stack([*found, truncated.unconditioning(centres, x + noise, np.full(10, 5.0), 190)])


def kept_blocks(centres):
    """What is kept of the centres, a block at a time."""
    counts = ((centres.squares, many_centres.CENTRE_BLOCK), (centres.projected.parts, many_centres.PROJECTED_BLOCK))
    return [blocks[n] for blocks, size in counts for n in range(-(-len(centres) // size))]


@pytest.mark.parametrize("budget", [0, 40_000, 100_000])
def test_what_is_kept_in_a_file_gives_the_same_bits(budget, monkeypatch):
    images = near_a_plane(5050)  # the last blocks are shorter
    with at_most(1000):
        whole = many_centres.make_many_centres(images)
        wanted = scores(whole)
        monkeypatch.setattr(many_centres, "MEMORY_BYTES", budget)
        centres = many_centres.make_many_centres(images)
        found = scores(centres)
        assert sum(map(len, kept_blocks(whole))) == 5050 * (8 + 16 + 2 * 16)
        assert all(map(np.array_equal, kept_blocks(whole), kept_blocks(centres)))
    in_memory = sum(map(len, centres.squares._memory + centres.projected.parts._memory))
    assert in_memory <= budget
    assert (in_memory > 0) == (budget > 0)
    assert np.array_equal(wanted, found)


def memory(images):
    """Bytes that Python and numpy hold at most while the centres are made, and for scores."""
    tracemalloc.start()
    centres = many_centres.make_many_centres(images)
    assert centres.projected is not None
    making = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    scores(centres)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return np.array([making, peak])


def test_memory_beyond_the_images_does_not_grow_with_their_number(monkeypatch):
    monkeypatch.setattr(many_centres, "MEMORY_BYTES", 1 << 16)
    monkeypatch.setattr(truncated, "CANDIDATE_BUFFER", 1000)
    spread = truncated.spread

    def without_names(loop, count):
        """Each call of a compiled loop leaves names of 57 bytes in the interpreter's cache of 4,096 attributes."""
        spread(loop, count)
        sys._clear_type_cache()

    monkeypatch.setattr(truncated, "spread", without_names)
    images = near_a_plane(1 << 14)
    with at_most(500):
        _, _, few, many = (memory(images[:count]) for count in 2 * (1 << 12, 1 << 14))  # the first import and compile
    # 56 bytes per image are kept on disk; one byte per image in memory would show
    assert (many - few < [0.1 * (len(images) - 4096), 0.9 * (len(images) - 4096)]).all()


def test_no_room_for_the_file_is_said(monkeypatch, tmp_path):
    images = near_a_plane(3000)
    monkeypatch.setattr(many_centres, "MEMORY_BYTES", 0)
    with monkeypatch.context() as folder, pytest.raises(InputError, match="TMPDIR"):
        folder.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
        many_centres.make_many_centres(images)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # a block of norms is cut off within
    try:
        with pytest.raises(InputError, match="TMPDIR"):
            many_centres.make_many_centres(images)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_samples_score_is_the_same_bits_in_every_batch():
    level = np.exp(np.linspace(-4, 4, 7))
    images, x = draw(3, 5000, 300, level, 2)
    centres = many_centres.make_many_centres(images)
    together = truncated.conditioning(centres, x, level)
    for b in range(7):
        assert np.array_equal(truncated.conditioning(centres, x[b : b + 1], level[b : b + 1])[0], together[b])


def test_on_a_centre_and_between_two_the_score_is_small_and_finite():
    images = np.zeros((2, 48), np.uint8)
    images[1] = 200
    centres = many_centres.make_many_centres(images)
    at = np.stack([images[0] / 255, images.mean(0) / 255])
    got = truncated.conditioning(centres, at, np.array([0.01, 0.05]))
    assert np.isfinite(got).all()
    assert np.abs(got[0]).max() < 1e-3  # rounding of x: 2^-24 over sigma^2
    assert np.abs(got[1]).max() < 0.39 / 0.05**2 * 1e-2  # of what one of the two would pull


def test_fixed_point_numbers_are_what_they_say():
    x = np.random.default_rng(0).normal(0, 30, (4, 50))
    points = fixed_point.fixed_point(x)
    grey = 255 * x - 128
    np.testing.assert_allclose(points.values, grey)
    np.testing.assert_allclose(points.squared, np.square(grey).sum(1))
    for n in (1, 2, 3, 4):
        found = reference.fixed_point(points.digits[:n], points.units[:, :n])
        np.testing.assert_allclose(points.rest[n - 1], np.linalg.norm(grey - found, axis=1), rtol=1e-6)
        assert (np.abs(grey - found) <= 0.503 * points.units[:, n - 1 : n]).all()
    assert (points.units[:, -1] <= np.abs(grey).max(1) * 2.0**-30).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_exponentials_are_exponentials(seed, count):
    x = np.random.default_rng(seed).uniform(-720, 0, count)
    wanted = np.where(x < -700, 0, np.exp(x))
    score_kernels.exponentials(x, np.empty(count, np.int64))
    np.testing.assert_allclose(x, wanted, rtol=3e-14)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 300), st.integers(1, 300))
def test_products_of_a_few_rows_property(seed, rows, count, d):
    rng = np.random.default_rng(seed)
    digits, weights = (rng.integers(-128, 128, (rows, n), dtype=np.int8) for n in (d, count))
    images = rng.integers(0, 256, (count, d), dtype=np.uint8)
    packed, out, sums = centred(images), np.empty((rows, count), np.int32), np.zeros((rows, d), np.int32)
    score_kernels.few_products(images, digits, out)
    score_kernels.few_sums(weights, images, sums)
    np.testing.assert_array_equal(out, reference.products(digits, packed))
    np.testing.assert_array_equal(sums, reference.products(weights, packed.T))


def test_the_bits_do_not_depend_on_who_compiled_the_loops(tmp_path):
    """One process compiles the loops, one finds them in the cache: reassociated sums have the same order."""
    code = """
import numpy as np
from stages.engine.many_centres import make_many_centres
from stages.engine.truncated_score import conditioning
rng = np.random.default_rng(0)
centres = make_many_centres(rng.integers(0, 256, (3000, 48), dtype=np.uint8))
x = rng.random((9, 48))
print([conditioning(centres, x, np.full(9, sigma)).tobytes().hex() for sigma in (0.1, 1.0, 10.0, 50.0)])
"""
    own = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    first, second = (subprocess.check_output([sys.executable, "-c", code], env=own, text=True) for _ in range(2))
    assert first == second
