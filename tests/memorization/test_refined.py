"""Crops and shrunk copies measured at full resolution: against the change that made them, and by definition."""

import numpy as np
import pytest
from pictures import smooth
from PIL import Image

from stages.memorization import refined
from stages.memorization.crops import Cropped, best_crop, shrunk
from stages.memorization.nuisances import KINDS, ROUNDING, VIEWS


def detailed(count: int, side: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Pictures with fine detail, which interpolation loses."""
    noise = np.random.default_rng(seed).normal(0, 25, (count, side, side, channels))
    return np.clip(smooth(count, side, channels, seed) + noise, 0, 255).astype(np.uint8)


def enlarged(image: np.ndarray, box: tuple[float, ...]) -> np.ndarray:
    made = Image.fromarray(image.squeeze()).resize(image.shape[1::-1], Image.Resampling.BICUBIC, box=box)
    return np.asarray(made, np.uint8).reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_between_pixels_is_found_at_its_box(channels):
    reference = detailed(6, 32, channels)
    boxes = [(1.3, 2.6, 28.1, 29.4), (0.2, 4.9, 26.3, 31.0), (4.4, 0.7, 31.9, 28.2)]
    images = np.stack([enlarged(reference[n], box) for n, box in enumerate(boxes)])
    coarse = best_crop(images, reference, np.tile(np.arange(6), (3, 1)))
    assert coarse.row.tolist() == [0, 1, 2]
    distance = refined.measured_crops(images, reference, coarse, np.ones(3))
    assert (distance < 0.35 * coarse.distance).all()
    exact = refined._best_boxes(images[:1], reference[:1], np.array([((2.6 + 29.4) / 2, (1.3 + 28.1) / 2, 26.8)]))
    assert exact == 0


@pytest.mark.parametrize("channels", [1, 3])
def test_the_box_is_that_of_a_search_with_pillow(channels):
    """Along one direction after the other a step while that helps, then half the step."""
    reference, images = detailed(5, 16, channels), detailed(5, 16, channels, seed=1)
    images[0] = enlarged(reference[0], (1.3, 0.6, 14.1, 13.4))
    boxes = np.array([(7.5, 8.5, 13.0), (8.0, 8.0, 15.0), (6.0, 6.0, 12.0), (9.5, 8.0, 13.0), (7.0, 7.0, 14.0)])

    def squared(n: int, box: np.ndarray) -> int:
        side = min(box[2], 16)
        top, left = (min(max(0.0, at - side / 2), 16 - side) for at in box[:2])
        made = enlarged(reference[n], (left, top, left + side, top + side)).astype(int)
        return np.square(made - images[n]).sum()

    for n, distance in enumerate(refined._best_boxes(images, reference, boxes)):
        box, best, step = boxes[n], squared(n, boxes[n]), 16 / refined.STEPS_PER_SIDE
        while step >= refined.FINEST:
            before = best
            for direction in refined.DIRECTIONS:
                if squared(n, box + step * direction) < best:
                    box = box + step * direction
                    best = squared(n, box)
            step = step if best < before else step / 2
        assert distance == np.sqrt(best / images[n].size) / 255


def test_distances_never_grow_and_those_of_far_images_stay():
    reference, images = detailed(5, 32), detailed(4, 32, seed=1)
    coarse = best_crop(images, reference, np.tile(np.arange(5), (4, 1)))
    usual = np.array([10, 10, coarse.distance[2] * 1.49, 10])
    distance = refined.measured_crops(images, reference, coarse, usual)
    assert (distance <= coarse.distance).all()
    assert distance[2] == coarse.distance[2]  # above two thirds of what is usual
    none = Cropped(coarse.row, coarse.window, np.full(4, np.nan))
    assert np.isnan(refined.measured_crops(images, reference, none, usual)).all()


def found_of(rows: np.ndarray, view: int, near: float, last: float) -> dict[str, np.ndarray]:
    """What `nuisances.explain` returns, with these matches (N, S) under the shrunk views alone."""
    shape = (len(rows), len(KINDS), rows.shape[1])
    found = {"row": np.full(shape, -1), "view": np.zeros(shape, np.int64)}
    found |= {name: np.full(shape, np.inf) for name in ("residual", "relative")}
    found["row"][:, refined.SHRUNK] = rows
    found["view"][:, refined.SHRUNK] = view
    found["relative"][:, refined.SHRUNK] = [near] + [last] * (rows.shape[1] - 1)
    found["residual"][:, refined.SHRUNK] = 1e4
    return found


@pytest.mark.parametrize(("side", "size"), [(32, 24), (32, 23), (32, 25), (32, 19), (200, 150), (300, 226)])
def test_a_shrunk_copy_under_other_colours_is_explained_whole(side, size):
    reference = detailed(2, side)
    images = np.full_like(reference, 90)
    at = (side - size) // 2
    small = shrunk(reference, size)[..., ::-1]  # its channels exchanged, and darker
    images[:, at : at + size, at : at + size] = np.rint(0.8 * small + 10)
    views = [abs(view.scale - size / side) for view in VIEWS["shrunk"]]
    found = found_of(np.array([[0, 1], [1, 0]]), int(np.argmin(views)), 0.4, 0.6)
    measured = refined.measured_shrunk(images, reference, found)
    assert (measured["relative"][:, refined.SHRUNK, 0] < 0.05).all()
    assert (measured["residual"][:, refined.SHRUNK, 0] < 1).all()
    others = np.delete(np.arange(len(KINDS)), refined.SHRUNK)
    for name in found:
        np.testing.assert_array_equal(measured[name][:, others], found[name][:, others])
        np.testing.assert_array_equal(measured[name][:, :, 1:], found[name][:, :, 1:])


def test_the_match_that_full_resolution_brings_nearest_comes_first():
    reference = detailed(4, 32)
    images = np.full_like(reference[:1], 90)
    images[:, 4:28, 4:28] = shrunk(reference[2:3], 24)
    found = found_of(np.array([[1, 2, 3]]), 3, 0.4, 0.6)
    found["relative"][0, refined.SHRUNK] = [0.4, 0.42, 0.6]
    measured = refined.measured_shrunk(images, reference, found)
    assert measured["row"][0, refined.SHRUNK].tolist() == [2, 1, 3]


def test_shrunk_matches_that_are_far_or_absent_stay():
    reference = detailed(2, 32)
    for found in (found_of(np.array([[0, 1], [1, 0]]), 3, 0.59, 0.6), found_of(np.full((2, 2), -1), 3, np.inf, np.inf)):
        measured = refined.measured_shrunk(detailed(2, 32, seed=1), reference, found)
        for name in found:
            np.testing.assert_array_equal(measured[name], found[name])


def test_the_residual_is_the_least_over_colours_and_offsets():
    """Against least squares with the ridge as further rows."""
    images, others = detailed(3, 8), detailed(3, 8, seed=1)
    found = refined._colours(images, others)
    for n in range(3):
        own, other = images[n].reshape(-1, 3).astype(float), others[n].reshape(-1, 3).astype(float)
        own, other = own - own.mean(0), other - other.mean(0)
        rows = np.concatenate([other, np.sqrt(ROUNDING * len(own)) * np.eye(3)])
        wanted = np.concatenate([own, np.zeros((3, 3))])
        colours = np.linalg.lstsq(rows, wanted, rcond=None)[0]
        residual = np.square(wanted - rows @ colours).sum() / own.size
        assert found[n, 0] == pytest.approx(residual, rel=1e-9)
        relative = np.sqrt((residual + ROUNDING) / (np.square(own).sum() / own.size + ROUNDING))
        assert found[n, 1] == pytest.approx(relative, rel=1e-9)
