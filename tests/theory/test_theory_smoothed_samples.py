"""Closed-form samplers on few points, and the measures of copies and diversity, by hand."""

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from stages.theory import product
from stages.theory import smoothed_samples as ss

TRAIN = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


def test_copies_by_hand():
    # r_1/r_2: 0.2/0.8, 1, and 0.3/0.7 < 0.7
    x = np.array([[0.2, 0.0], [0.5, 0.5], [0.0, 0.7]])
    assert ss.copy_share(x, TRAIN) == pytest.approx(2 / 3)


def test_vendi_score_by_hand():
    # three different directions count three, three equal ones count one, and two pairs of equal ones count two
    assert ss.vendi_score(np.eye(3)) == pytest.approx(3)
    assert ss.vendi_score(np.ones((3, 2))) == pytest.approx(1)
    assert ss.vendi_score(np.array([[1.0, 0], [2, 0], [0, 1], [0, 5]])) == pytest.approx(2)


def test_coverage_by_hand():
    # each reference's nearest neighbour is 1 away (the third: √… also 1): a sample at 0 covers all three
    assert ss.coverage(np.array([[0.0, 0.0]]), TRAIN, k=1) == pytest.approx(1)
    assert ss.coverage(np.array([[2.5, 0.0]]), TRAIN, k=1) == 0


def test_energy_distance_by_hand():
    # 0, 0 against 2, 4: 2 · 3 − 0 − 2
    assert ss.energy_distance(np.array([[0.0], [0.0]]), np.array([[2.0], [4.0]])) == pytest.approx(4)
    generator = np.random.default_rng(0)
    same = [ss.energy_distance(*generator.standard_normal((2, 200, 3))) for _ in range(10)]
    assert abs(np.mean(same)) < 4 * np.std(same) / math.sqrt(10)


def test_held_out_images_are_of_all_classes():
    images = np.repeat(np.arange(10.0), 30)[:, None]  # in the order of their classes
    train, rest = ss.split(images, 100, seed=0)
    assert np.sort(np.concatenate([train, rest]), axis=0) == pytest.approx(images)
    # 10 of each class expected, with the standard deviation √(10 · 0.9 · 200/299) = 2.5 of drawing without replacement
    assert np.bincount(rest[:, 0].astype(int), minlength=10) == pytest.approx(np.full(10, 10), abs=9)
    assert (ss.split(images, 100, seed=1)[1] != rest).any()


def test_kernel_density_is_training_points_plus_noise():
    x = ss.kernel_density(TRAIN, 0.1, 4000, seed=0)
    nearest = cdist(x, TRAIN).argmin(axis=1)
    assert np.bincount(nearest) == pytest.approx([4000 / 3] * 3, abs=4 * math.sqrt(4000 * 2 / 9))
    assert (x - TRAIN[nearest]).std() == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("sampler", ["led", "cfdm"])
def test_without_smoothing_samples_are_training_points(sampler):
    if sampler == "led":
        x = ss.led_samples(TRAIN, 0.0, 60, np.geomspace(3.0, 0.01, 60), 2, seed=1)
    else:
        x = ss.cfdm_samples(TRAIN, 0.0, 60, 200, 2, seed=1)
    assert cdist(x, TRAIN).min(axis=1).max() < 0.02
    assert len(np.unique(cdist(x, TRAIN).argmin(axis=1))) == 3


def test_smoothing_one_point_changes_nothing():
    # the score of a single point is linear, so the mean over shifts ±ξ is the score itself
    one = np.array([[0.3, -0.2]])
    for h in (0.0, 0.7):
        x = ss.led_samples(one, h, 5, np.geomspace(1.0, 0.01, 10), 4, seed=2)
        assert x == pytest.approx(np.tile(one, (5, 1)), abs=1e-12)


def test_smoothing_two_points_fills_the_gap_along_their_line_only():
    train = np.array([[-0.5, 0.0], [0.5, 0.0]])
    x = ss.led_samples(train, 0.6, 300, np.geomspace(2.0, 0.02, 40), 32, seed=3)
    assert (cdist(x, train).min(axis=1) > 0.1).mean() > 0.2
    assert np.abs(x[:, 1]).max() < 1e-9  # across the line the smoothed score is the exact −x_⊥/σ²


def test_distance_off_at_a_share_by_hand():
    rows = [{"share_between": s, "rms_off": o} for s, o in ((0.0, 0.1), (0.4, 0.3), (0.3, 0.5))]
    assert ss.off_at(rows, 0.1) == pytest.approx(0.15)
    assert ss.off_at(rows, 0.9) is None


def image_rows(led, cfdm, measures=(0.2, 0.2)):
    near = dict(zip(("energy_distance", "fd_pixels"), measures), vendi=3.0)
    rows = [{"method": ss.LED, "width": h, "copies": c, **near} for h, c in enumerate(led)]
    rows += [{"method": ss.CFDM, "width": h, "copies": c, **near} for h, c in enumerate(cfdm)]
    return [*rows, {"method": ss.KDE, "width": 0.4, "copies": 0.1, "energy_distance": 0.1, "fd_pixels": 0.1}]


def test_claims_see_what_does_not_hold():
    control = {"copies": 0.05, "vendi": 4.0}
    found = ss.claims(image_rows((1, 0.1), (1, 0.2)), control)
    assert [claim.measured for claim in found] == [0, 0, 0, 0, 1, 1, 0.75]
    assert not found[-1].passed  # three quarters of the diversity of real images are too little
    nearer = ss.claims(image_rows((1, 0.1), (1, 0.2), (0.05, 0.05)), {**control, "vendi": 3.2})
    assert [claim.passed for claim in nearer] == [True] * 7
    assert [claim.measured for claim in ss.claims(image_rows((0.9, 0.9), (1, 1)), control)] == [1, 1, 0, 1]


def test_frechet_distance_of_pixels_by_hand():
    # means 3 apart; variances 2 and 8: 9 + (√8 − √2)², that is 9 + 2
    x, y = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 0.0], [5.0, 0.0]])
    assert ss.measure("", 0.0, x, TRAIN, y)["fd_pixels"] == pytest.approx(11)


def test_the_kernels_draws_are_not_the_noise_that_sampling_starts_from():
    """With seed 0 both were one stream: sample 0 started at its own first shift."""
    noise = product.seeded_normals((4, TRAIN.shape[1]), 0, ss.NOISE, 0)
    shifts = ss.kernel_shifts(4, 2, TRAIN.shape[1], 0)
    assert np.intersect1d(noise, shifts).size == 0
    assert (shifts[:, 0] == -shifts[:, 1]).all()


def test_samples_start_from_noise_of_their_own(monkeypatch):
    starts = []
    real = product.path

    def watched(step, score, draw, sigmas):
        starts.append(draw(0))
        return real(step, score, draw, sigmas)

    monkeypatch.setattr(product, "path", watched)
    ss.led_samples(TRAIN, 0.5, 4, np.geomspace(1.0, 0.1, 5), 2, seed=0)
    assert np.intersect1d(starts[0], ss.kernel_shifts(4, 2, TRAIN.shape[1], 0)).size == 0
