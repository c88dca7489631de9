"""Changed copies: views, closed forms, matches and ρ under a change against brute force; planted copies are found."""

import dataclasses

import numpy as np
import pytest
from pictures import smooth
from PIL import Image

from stages.engine import nuisance_kernels
from stages.memorization import nuisances, planting
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.mixtures import COVERED_WEIGHT, changed_rho
from stages.memorization.nuisances import CELLS, KINDS, PLAIN, ROUNDING, VIEWS, Pixels, Reduced, View
from stages.memorization.scores import TRANSFORMS, mixed, scores

BUDGET = 1 << 28


def residual(query: np.ndarray, row: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Residual and total per value by least squares, with the ridge as further equations. (C, P) each."""
    y, x = (some[:, mask > 0].T.astype(float) for some in (query, row))
    n, channels = y.shape
    y, x = y - y.mean(0), x - x.mean(0)
    ridge = np.sqrt(n * ROUNDING) * np.eye(channels)
    left, right = np.concatenate([x, ridge]), np.concatenate([y, np.zeros_like(ridge)])
    solution = np.linalg.lstsq(left, right, rcond=None)[0]
    return np.square(right - left @ solution).sum() / y.size, np.square(y).sum() / y.size


@pytest.mark.parametrize("channels", [1, 3])
def test_residuals_are_those_of_least_squares(channels):
    generator = np.random.default_rng(0)
    queries, reference = (generator.integers(0, 256, (2, n, channels, 36), np.uint8) for n in (3, 5))
    reference = reference[0]
    reference[4] = 7  # explains nothing
    masks = (generator.random((4, 36)) < 0.6).astype(np.int16)
    which, rows = np.array([0, 1, 1, 0]), generator.integers(-1, 5, (3, 6))
    rows[:, 0], rows[:, 1] = 4, -1
    views, found = generator.integers(0, 4, rows.shape), np.empty((*rows.shape, 2))
    nuisance_kernels.residuals(queries, which, masks, views, reference, rows, ROUNDING, found)
    for q, s in np.ndindex(*rows.shape):
        if rows[q, s] < 0:
            assert np.isinf(found[q, s]).all()
            continue
        view = views[q, s]
        expected = residual(queries[which[view], q], reference[rows[q, s]], masks[view])
        np.testing.assert_allclose(found[q, s], expected, rtol=1e-10)


def test_colours_are_explained_whatever_they_were_changed_to():
    """Grey, exchanged channels, gains and offsets are maps of colours: what remains is rounding."""
    image = smooth(1, 32, 3)[0]
    changed = [np.repeat(np.asarray(Image.fromarray(image).convert("L"))[..., None], 3, 2), image[..., [2, 0, 1]]]
    changed += [np.rint(image * [0.6, 0.9, 0.3] + [50, 3, 90]).astype(np.uint8)]
    cells, own = Pixels.of(image[None]).seen(PLAIN), Pixels.of(np.stack(changed)).seen(PLAIN)
    found, rows = np.empty((3, 1, 2)), np.zeros((3, 1), np.int64)
    mask = np.ones((1, CELLS**2), np.int16)
    nuisance_kernels.residuals(own[None], np.zeros(1, int), mask, rows, cells, rows, ROUNDING, found)
    assert (found[:, 0, 0] < 1).all()
    assert (found[:, 0, 1] > 100).all()


def test_correlations_are_those_of_the_cells_in_the_mask():
    generator = np.random.default_rng(1)
    grey, reference = (generator.integers(0, 256, (n, 49), np.uint8) for n in (3, 4))
    reference[3] = 9
    mask = (generator.random(49) < 0.5).astype(np.int16)
    rows = np.array([[0, 1, -1], [2, 3, 0], [1, 1, 2]])
    found = nuisances._correlations(nuisances._centred(grey, mask), mask, reference, rows)
    for q, s in np.ndindex(3, 3):
        a, b = grey[q, mask > 0], reference[rows[q, s], mask > 0]
        expected = -2 if rows[q, s] < 0 else 0 if rows[q, s] == 3 else np.corrcoef(a, b)[0, 1]
        assert found[q, s] == pytest.approx(expected, abs=1e-6)


def test_correlations_outside_boxes_are_those_of_the_masks():
    """Bit for bit, with ties, plain images and missing candidates."""
    generator, views = np.random.default_rng(2), VIEWS["covered"]
    grey, reference = (generator.integers(0, 256, (n, CELLS**2), np.uint8) for n in (5, 6))
    grey[1], reference[4], grey[2] = 7, 9, 255 - reference[2]
    grey[3, 100:], reference[5] = reference[0, 100:], reference[0]
    rows = np.array([[0, 1, -1, 4], [2, 3, 0, 1], [2, 1, 5, -1], [0, 5, 3, 2], [-1, -1, -1, -1]])
    masks = np.stack([nuisances.operator(view, 32)[1] for view in views])
    expected = nuisances._correlated([grey], np.zeros(len(views), np.int64), masks, rows, reference)
    found = nuisances._covered(grey, np.array([view.hidden for view in views]), rows, reference)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("side", [8, 14, 28, 32])
def test_cells_are_bilinear_means(side):
    images = smooth(3, side, 3)
    found = Pixels.of(images).seen(PLAIN).reshape(3, 3, CELLS, CELLS)
    at = np.clip(((np.arange(2 * CELLS) + 0.5) / (2 * CELLS)) * side - 0.5, 0, side - 1)
    low = np.minimum(at.astype(int), side - 2)
    weight = np.zeros((2 * CELLS, side))
    weight[np.arange(2 * CELLS), low], weight[np.arange(2 * CELLS), low + 1] = 1 - (at - low), at - low
    mean = weight.reshape(CELLS, 2, side).mean(1)
    expected = np.einsum("yi,nijc,xj->ncyx", mean, images.astype(float), mean)
    np.testing.assert_allclose(found, expected, atol=0.51)


def undone(image: np.ndarray, changed: np.ndarray, view: View) -> float:
    """Root mean squared difference inside the mask between an image's cells and those of its copy under the view."""
    plain, own = (Pixels.of(some[None]) for some in (image, changed))
    mask = nuisances.operator(view, own.side)[1] > 0
    difference = plain.seen(PLAIN)[0].astype(float) - own.seen(view)[0]
    return float(np.sqrt(np.square(difference[:, mask]).mean()))


@pytest.mark.parametrize("side", [32, 64])
def test_views_undo_the_changes(side):
    image = smooth(1, side, 3)[0]
    picture, part = Image.fromarray(image), side // 4
    small = np.zeros_like(image)
    small[part // 2 : side - part // 2, part // 2 : side - part // 2] = picture.resize((side - part,) * 2)
    crop = np.asarray(picture.resize((side, side), box=(part, part / 2, side, side - part / 2)))
    moved = np.roll(image, (part // 2, -part // 4), (0, 1))
    pairs = {
        "turned": (np.asarray(picture.rotate(8, Image.Resampling.BICUBIC)), View("", angle=8)),
        "turned back": (np.asarray(picture.rotate(-8, Image.Resampling.BICUBIC)), View("", angle=-8)),
        "shrunk": (small, View("", 0.75)),
        "enlarged": (crop, View("", 4 / 3, offset=(0, -1 / 6))),
        "moved": (moved, View("", offset=(1 / 8, -1 / 16))),
    }
    for name, (changed, view) in pairs.items():
        assert undone(image, changed, view) < 6, name
        assert undone(image, changed, View("", view.scale, -view.angle, (0.1, 0.1))) > 12, name
    assert nuisances.operator(View("", angle=8), 32)[1].sum() < CELLS**2  # the corners lie outside
    assert nuisances.operator(View("", hidden=(2, 6, 3, 4)), 32)[1].sum() == CELLS**2 - 4


def test_what_is_hidden_holds_every_box_and_third():
    """A box of 3/8 of the side anywhere, and each third, lies inside a hidden part, whatever the pixels it cuts."""
    hidden = [view.hidden for view in VIEWS["covered"]]
    boxes = [(y / 2, (y + 12) / 2, x / 2, (x + 12) / 2) for y, x in np.ndindex(21, 21)]
    thirds = [(a, b, 0, CELLS) for a, b in ((0, 5.5), (5.5, 10.5), (10.5, CELLS))]
    for top, bottom, left, right in [*boxes, *thirds, *((0, CELLS, a, b) for a, b, _, _ in thirds)]:
        assert any(a <= top and bottom <= b and c <= left and right <= d for a, b, c, d in hidden)


def test_matches_are_a_brute_force_s():
    """Every reference image is on the shortlist: the view of most correlation, then the order of the distances."""
    reference, images = smooth(9, 32, 3), smooth(4, 32, 3, 1)
    images[0] = reference[3][:, :, [1, 2, 0]]
    found, _ = nuisances.explain(images, Reduced.of(reference), BUDGET)
    cells, pixels = Pixels.of(reference).seen(PLAIN), Pixels.of(images)
    for kind, name in enumerate(KINDS):
        masks = [nuisances.operator(view, 32)[1] for view in VIEWS[name]]
        own = [pixels.seen(view) for view in VIEWS[name]]
        for q in range(4):
            distance = {}
            for row in range(9):
                grey = [(nuisances.brightness(some)[q], nuisances.brightness(cells)[row]) for some in own]
                correlation = [np.corrcoef(a[m > 0], b[m > 0])[0, 1] for (a, b), m in zip(grey, masks)]
                view = found["view"][q, kind, found["row"][q, kind] == row][0]
                assert correlation[view] > max(correlation) - 1e-6
                least, total = residual(own[view][q], cells[row], masks[view])
                distance[row] = (np.sqrt((least + ROUNDING) / (total + ROUNDING)), least)
            rows = sorted(distance, key=distance.get)
            assert found["row"][q, kind, :9].tolist() == rows
            np.testing.assert_allclose(found["relative"][q, kind, :9], [distance[r][0] for r in rows], rtol=1e-9)
            np.testing.assert_allclose(found["residual"][q, kind, :9], [distance[r][1] for r in rows], rtol=1e-9)
            assert (found["row"][q, kind, 9:] == -1).all()
    assert found["row"][0, 0, 0] == 3


def test_rho_under_a_change_leaves_the_match_s_group_out():
    images, queries = smooth(30, 32, 3), smooth(5, 32, 3, 1)
    images[7] = np.clip(images[4].astype(int) + 2, 0, 255)
    queries[0] = images[4][:, ::-1, [2, 0, 1]]
    group = np.arange(30)
    group[7] = 4
    reference = whole_reference(images, group)
    m = Matches(**with_groups(match(queries, reference), queries, reference), dimension=3072)
    found, rho = scores(m), changed_rho(m.changed_row, m.changed_group, m.changed_relative)
    assert found.rho.shape == (5, len(TRANSFORMS))
    for q, kind in np.ndindex(5, len(KINDS)):
        rows, relative = m.changed_row[q, kind], m.changed_relative[q, kind]
        known = [(r, d) for r, d in zip(rows, relative) if r >= 0]
        foreign = [d for r, d in known if group[r] != group[known[0][0]]][:10]
        weight = COVERED_WEIGHT if KINDS[kind] == "covered" else 1
        expected = weight * known[0][1] / np.mean(foreign)
        assert rho[q, kind] == pytest.approx(expected, rel=1e-12)
        assert np.isnan(found.rho[q, 4 + kind]) if mixed(m)[q, kind] else found.rho[q, 4 + kind] == rho[q, kind]
        assert (np.diff(relative[: len(known)]) >= 0).all()
        assert len(set(rows[: len(known)])) == len(known)
    assert m.changed_mirrored[0, 0, 0]
    assert set(m.changed_row[0, 0, :2]) == {4, 7}


def test_of_entries_with_one_row_the_nearer_stays():
    arrays = {"row": [[5, 3, 5, -1]], "relative": [[0.3, 0.2, 0.1, np.inf]], "view": [[0, 1, 2, 3]]}
    found = nuisances.best_first({name: np.array(values) for name, values in arrays.items()})
    assert found["row"].tolist() == [[5, 3, -1, -1]]
    assert found["view"][0, :2].tolist() == [2, 1]


def test_a_plain_image_is_explained_by_nothing():
    reference, flat = smooth(20, 32, 3), np.full((1, 32, 32, 3), 200, np.uint8)
    found, _ = nuisances.explain(flat, Reduced.of(reference), BUDGET)
    assert (found["relative"][..., 0] > 0.99).all()


@pytest.mark.parametrize(("side", "channels"), [(32, 3), (48, 3), (32, 1)])
def test_every_planted_kind_is_found(side, channels):
    """Also where it has another strength, in images of another size, and in grey ones."""
    images = smooth(150, side, channels)
    reference = whole_reference(images)
    changed = [
        (kind, strength)
        for kind in planting.WORDS
        for strength in planting.STRENGTHS.get(kind, (None,))[:1]
        if kind != "duplicated"
    ]
    made = np.concatenate([planting.plant(images[:20], kind, 1, strength) for kind, strength in changed])
    m = Matches(**with_groups(match(made, reference), made, reference), dimension=images[0].size)
    unseen = smooth(100, side, channels, 7)
    control = Matches(**with_groups(match(unseen, reference), unseen, reference), dimension=images[0].size)
    threshold = min(1 / 3, np.quantile(scores(control).best, 0.01))
    found = (scores(m).best < threshold).reshape(len(changed), 20).mean(1)
    missed = {f"{kind} {strength}": share for (kind, strength), share in zip(changed, found) if share < 0.95}
    assert not missed


def test_a_strength_is_said_in_words():
    assert planting.describe("shrunk") == "shrunk to 75% of the side inside a border"
    assert planting.describe("gamma", 2.2) == "with gamma 2.2"
    images = smooth(3, 32, 3)
    for kind, strengths in planting.STRENGTHS.items():
        for strength in strengths:
            assert planting.plant(images, kind, 0, strength).shape == images.shape
    box = (planting.plant(images, "boxed", 0) != images).any(3).sum((1, 2))
    assert (box <= 144).all()
    assert (box > 100).all()
    assert dataclasses.is_dataclass(View)
