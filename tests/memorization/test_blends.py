"""The hull distance against exhaustive active sets, SciPy and planted blends."""

import itertools
import time

import numpy as np
import pytest
from planted_images import blended, colour_fields, digits
from scipy.optimize import minimize, nnls

from stages.memorization.blends import NEIGHBORS, hull_distance, is_blend, simplex_weights
from stages.search.nearest import nearest


def images(count: int, d: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, d), dtype=np.uint8)


def rows(count: int, k: int) -> np.ndarray:
    """Neighbour lists that all name the reference's first k rows."""
    return np.broadcast_to(np.arange(k), (count, k)).copy()


def pixel_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(a.astype(float) - b).mean(axis=-1)) / 255


def exhaustive(points: np.ndarray) -> float:
    """The least norm in the hull: over all subsets, the affine minimum where it has no negative weight."""
    best = np.inf
    for size in range(1, len(points) + 1):
        for subset in map(list, itertools.combinations(range(len(points)), size)):
            base, edges = points[subset[0]], points[subset[1:]] - points[subset[0]]
            steps = np.linalg.lstsq(edges.T, -base, rcond=None)[0] if len(edges) else np.zeros(0)
            if (steps >= -1e-12).all() and steps.sum() <= 1 + 1e-12:
                best = min(best, float(np.linalg.norm(base + steps @ edges)))
    return best


@pytest.mark.parametrize(("k", "d"), [(1, 5), (2, 1), (3, 2), (5, 3), (6, 4), (7, 64), (8, 3)])
def test_the_distance_is_the_exhaustive_searchs(k, d):
    """In few dimensions x often lies inside the hull, where the distance is 0."""
    queries, reference = images(40, d, seed=1), images(k, d, seed=2)
    hull = hull_distance(queries, reference, rows(40, k))
    expected = [exhaustive(reference.astype(float) - query) / 255 / np.sqrt(d) for query in queries]
    assert hull.distance == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("k", [8, 16])
def test_the_distance_is_scipys(k):
    queries, reference = images(20, 48, seed=3), images(200, 48, seed=4)
    index, _ = nearest(queries, reference, k)
    hull = hull_distance(queries, reference, index)
    for n, query in enumerate(queries):
        points = (reference[index[n]].astype(float) - query) / 255 / np.sqrt(48)
        gram = points @ points.T
        found = minimize(
            lambda w, gram=gram: w @ gram @ w, np.full(k, 1 / k), jac=lambda w, gram=gram: 2 * gram @ w,
            bounds=[(0, 1)] * k, constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        assert hull.distance[n] == pytest.approx(np.sqrt(found.fun), rel=1e-6)
        assert hull.distance[n] <= np.sqrt(found.fun) * (1 + 1e-9)
        # non-negative least squares with the sum as one heavy equation solves the same problem
        weights, _ = nnls(np.vstack([points.T, np.full((1, k), 1e5)]), np.append(np.zeros(48), 1e5))
        assert hull.weights[n] == pytest.approx(weights, abs=1e-6)


def test_weights_lie_on_the_simplex_and_give_the_distance_and_the_gap_certifies_it():
    queries, reference = images(500, 32, seed=5), images(300, 32, seed=6)
    index, squared = nearest(queries, reference, NEIGHBORS)
    hull = hull_distance(queries, reference, index)
    assert (hull.weights >= 0).all()
    assert hull.weights.sum(axis=1) == pytest.approx(np.ones(500), abs=1e-12)
    mixtures = np.einsum("nk,nkd->nd", hull.weights, reference[index].astype(float))
    assert hull.distance == pytest.approx(pixel_distance(mixtures, queries), rel=1e-12)
    assert (hull.gap <= 1e-9 * hull.distance).all()
    assert (hull.distance <= np.sqrt(squared[:, 0] / 32) / 255 * (1 + 1e-12)).all()


def test_memory_cuts_change_nothing():
    queries, reference = images(50, 32, seed=5), images(300, 32, seed=6)
    index, _ = nearest(queries, reference, NEIGHBORS)
    whole, cut = (hull_distance(queries, reference, index, budget) for budget in (1 << 26, 1))
    assert np.array_equal(whole.distance, cut.distance)


def test_a_copy_has_distance_0_and_effective_number_1():
    reference = images(100)
    index, _ = nearest(reference, reference, NEIGHBORS)
    hull = hull_distance(reference, reference, index)
    assert (hull.distance == 0).all()
    assert (hull.gap == 0).all()
    assert (hull.effective_number == 1).all()
    assert (hull.weights[:, 0] == 1).all()


@pytest.mark.parametrize("changed", [1, 10])
def test_a_near_copy_has_effective_number_1(changed):
    """Distances of one grey level beside distances of thousands: the Gram matrix is badly scaled."""
    reference = images(100, 512)
    queries = reference.copy()
    queries[:, :changed] ^= 1
    index, _ = nearest(queries, reference, NEIGHBORS)
    hull = hull_distance(queries, reference, index)
    assert (hull.distance > 0).all()
    assert (hull.distance <= pixel_distance(queries, reference)).all()
    assert hull.effective_number == pytest.approx(np.ones(100), abs=1e-3)


def test_the_mean_of_eight_has_effective_number_8():
    reference = images(80, 256) // 8 * 8  # so that means of eight are whole numbers
    parts = reference.reshape(10, 8, 256)
    queries = parts.astype(int).mean(axis=1).astype(np.uint8)
    hull = hull_distance(queries, reference, np.arange(80).reshape(10, 8))
    assert (hull.distance < 1e-14).all()
    assert hull.effective_number == pytest.approx(np.full(10, 8), rel=1e-9)


def test_planted_points_of_the_hull_are_found_with_their_weights():
    planted = np.array([0.5, 0, 0.25, 0.125, 0, 0, 0.125, 0])
    reference = images(8, 256) // 8 * 8
    query = (planted @ reference).astype(np.uint8)[None]
    hull = hull_distance(query, reference, rows(1, 8))
    assert hull.distance[0] < 1e-14
    assert hull.weights[0] == pytest.approx(planted, abs=1e-12)
    assert hull.effective_number[0] == pytest.approx(1 / np.square(planted).sum())


def test_equal_neighbours_make_no_difference():
    queries, reference = images(30, 64, seed=7), images(5, 64, seed=8)
    doubled = np.concatenate([reference, reference[:3]])
    alone, twice = hull_distance(queries, reference, rows(30, 5)), hull_distance(queries, doubled, rows(30, 8))
    assert twice.distance == pytest.approx(alone.distance, rel=1e-9)
    merged = twice.weights[:, :5].copy()
    merged[:, :3] += twice.weights[:, 5:]
    assert merged == pytest.approx(alone.weights, abs=1e-9)


def test_eight_times_the_same_image_is_one_point():
    queries, reference = images(10, 64, seed=9), np.repeat(images(1, 64, seed=10), 8, axis=0)
    hull = hull_distance(queries, reference, rows(10, 8))
    assert hull.distance == pytest.approx(pixel_distance(queries, reference[0]), rel=1e-12)
    assert (hull.effective_number == 1).all()


def test_one_neighbour_is_the_nearest_distance():
    queries, reference = images(10, 64, seed=9), images(50, 64, seed=10)
    index, squared = nearest(queries, reference, 1)
    hull = hull_distance(queries, reference, index)
    assert hull.distance == pytest.approx(np.sqrt(squared[:, 0] / 64) / 255, rel=1e-12)
    assert (hull.effective_number == 1).all()


def test_points_on_a_line_and_a_singular_gram_matrix():
    """Eight collinear points in the plane, whose Gram matrix has rank 2."""
    reference = np.array([[10 * j, 100] for j in range(1, 9)], np.uint8)
    queries = np.array([[35, 20], [5, 100], [90, 104], [42, 100]], np.uint8)
    hull = hull_distance(queries, reference, rows(4, 8))
    expected = np.array([80, 5, np.hypot(10, 4), 0]) / 255 / np.sqrt(2)
    assert hull.distance == pytest.approx(expected, abs=1e-12)


def test_an_image_inside_the_hull_needs_no_further_point():
    """Five of the points hold the image; by rounding the others would seem to lie below: a singular corral."""
    points = [[94, 7, 18, 109], [94, 7, 17, 109], [169, 9, 149, 18], [37, 125, 36, 142], [28, 71, 42, 13]]
    reference = np.array([*points, [22, 92, 126, 218], [94, 7, 17, 109]], np.uint8)
    hull = hull_distance(np.array([[90, 12, 23, 114]], np.uint8), reference, rows(1, 7))
    assert hull.distance[0] < 1e-12


@pytest.mark.parametrize("seed", range(60))
def test_degenerate_sets_are_certified_too(seed):
    """Near duplicates, collinear points, pixels of few values, points of the hull, from 1 dimension to 768."""
    rng = np.random.default_rng(seed)
    d, k, count, every = int(rng.choice([1, 2, 3, 4, 8, 64, 768])), int(rng.integers(1, 17)), 100, 60
    base = rng.integers(0, 256, (5, d))
    flips = rng.integers(-1, 2, (every, d)) * (rng.random((every, d)) < 0.1)
    near = np.clip(base[rng.integers(0, 5, every)] + flips, 0, 255)
    line = base[0] // 2 + rng.integers(0, 2, (every, 1)) * (base[1] // 3) + (rng.random((every, d)) < 0.02)
    few, extreme = rng.integers(0, 3, (every, d)), 255 * rng.integers(0, 2, (every, d))
    reference = [near, line, few, extreme][seed % 4].astype(np.uint8)
    index = np.argsort(rng.random((count, every)), axis=1)[:, :k]
    mixture = np.einsum("nk,nkd->nd", rng.dirichlet(np.full(k, 0.3), count), reference[index].astype(float)).round()
    changed = np.clip(reference[index[:, 0]].astype(int) + rng.integers(-1, 2, (count, d)), 0, 255)
    queries = [rng.integers(0, 256, (count, d)), changed, mixture][seed % 3].astype(np.uint8)
    hull = hull_distance(queries, reference, index)
    nearest_distance = pixel_distance(reference[index], queries[:, None]).min(axis=1)
    certified = hull.gap <= 1e-9 * nearest_distance
    assert (certified | (hull.distance <= 1e-6 * nearest_distance)).all()
    assert hull.weights.sum(axis=1) == pytest.approx(np.ones(count), abs=1e-9)
    assert hull.weights.min() >= 0
    few_points = slice(0, 5 if k < 9 else 0)
    expected = [exhaustive(reference[i].astype(float) - q) for i, q in zip(index[few_points], queries)]
    assert hull.distance[: len(expected)] * 255 * np.sqrt(d) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_no_neighbours_and_wrong_shapes_are_errors():
    for index in (np.zeros((3, 0), int), np.zeros((2, 4), int), np.zeros((3, 17), int)):
        with pytest.raises(ValueError, match="do not fit"):
            hull_distance(images(3), images(20), index)


def test_no_images_give_no_distances():
    hull = hull_distance(images(0), images(8), rows(0, 8))
    assert hull.distance.shape == (0,)
    assert hull.weights.shape == (0, 8)


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("make", [digits, colour_fields])
def test_means_of_neighbours_are_blends_and_copies_and_held_out_images_are_not(make, parts):
    """METHODS §6: of the means of an image and its 7 nearest, 95 % lie below the held-out 1 % quantile, none copies."""
    train, held_out = make()[:1000], make()[1000:2400]
    blends, control, copies = (_measured(some, train) for some in (blended(train, 200, parts), held_out, train[:50]))
    limit = float(np.quantile(control[0], 0.01, method="lower"))
    flagged = is_blend(blends[0], limit, blends[1])
    assert flagged.mean() > 0.9
    assert is_blend(control[0], limit, control[1]).mean() <= 0.01
    assert not is_blend(copies[0], limit, copies[1]).any()
    assert blends[1].mean() < 0.1
    assert (copies[2] == 1).all()
    assert 0.8 * parts < np.median(blends[2]) < 1.2 * parts


def _measured(queries: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """d_hull, whether r₁/r₂ < 0.7, and n_eff."""
    queries, train = queries.reshape(len(queries), -1), train.reshape(len(train), -1)
    index, squared = nearest(queries, train, 8)
    hull = hull_distance(queries, train, index)
    return hull.distance, np.sqrt(squared[:, 0]) < 0.7 * np.sqrt(squared[:, 1]), hull.effective_number


def test_a_singular_problem_ends():
    gram = np.zeros((3, 4, 4))
    weights = simplex_weights(gram)
    assert (weights.sum(axis=1) == 1).all()


def test_five_thousand_images_take_seconds():
    queries, reference = images(5000, 256, seed=1), images(2000, 256, seed=2)
    index = np.random.default_rng(0).integers(0, 2000, (5000, 8))
    start = time.process_time()
    hull_distance(queries, reference, index)
    assert time.process_time() - start < 10
