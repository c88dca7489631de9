"""Distances between sets of images, by their definitions: kernel distance, precision and recall, C_T."""

import math

import numpy as np
import pytest
from pictures import pictures
from scipy.stats import mannwhitneyu

from benchmarks.intervals import distance_coverage
from stages.errors import InputError
from stages.features.coverage import precision_recall_density_coverage
from stages.features.growing_error import quantile
from stages.features.kid import UPWARDS, kernel_distance, kernel_interval
from stages.memorization.copying_test import BLOCK, assign, cell_centres, cell_distances, copying_test, u_z_score
from stages.search.nearest import nearest


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


def test_the_interval_of_the_kernel_distance_is_the_jackknife_and_covers():
    """Against leaving one sample out by hand; then 1,000 repetitions with a known truth."""
    generator = np.random.default_rng(0)
    reference = generator.normal(size=(60, 6))
    a = generator.normal(0.4, 1, (40, 6))
    value, low, high = kernel_interval(a, reference)
    without = np.array([kernel_distance(np.delete(a, i, 0), reference) for i in range(40)])
    half = quantile(without) * math.sqrt(39 / 40 * np.square(without - without.mean()).sum())
    assert (value, low) == pytest.approx((kernel_distance(a, reference), value - half), rel=1e-9)
    assert high == pytest.approx(value + UPWARDS * half, rel=1e-9)
    assert value == kernel_distance(a, reference)
    few = generator.normal(size=(12, 6))
    laws = {
        "shifted": lambda count: generator.normal(0.4, 1, (count, 6)),
        "copies": lambda count: few[generator.integers(12, size=count)] + 0.2 * generator.normal(size=(count, 6)),
    }
    for name, draw in laws.items():
        truth = kernel_distance(draw(6000), reference)
        ends = np.array([kernel_interval(draw(60), reference)[1:] for _ in range(1000)])
        covered = ((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean()
        assert covered >= 0.93, name


@pytest.mark.parametrize("law", [0, 1])
def test_the_interval_of_the_kernel_distance_covers_where_its_kernel_has_no_variance(law):
    """Student's t with 5 degrees of freedom: the cube of a product of two has no finite variance."""
    covered, _, _ = distance_coverage("student", 60, 24, 1000, law, kernel=True)
    assert covered >= 0.93


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


@pytest.mark.parametrize("threads", ["1", "2", "5"])
@pytest.mark.parametrize("count", [0, 1, BLOCK, 2 * BLOCK + 7])
def test_the_cell_is_that_of_the_nearest_centre(count, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    generator = np.random.default_rng(count)
    images, centres = generator.integers(0, 256, (count, 5), np.uint8), generator.uniform(0, 255, (4, 5))
    exact = [np.argmin([np.square(image - centre).sum() for centre in centres]) for image in images.astype(float)]
    np.testing.assert_array_equal(assign(images, centres), np.array(exact, np.int64))
