"""Who is copied: features by hand, the fit against its known answer, and the command."""

import csv

import numpy as np
import pytest
from scipy.special import expit

from stages.errors import InputError
from stages.memorization.risk import (
    FEATURES,
    KEEP,
    MASS,
    NEAR,
    WEIGHTS,
    auc,
    calibration_slope,
    features,
    fit,
    probabilities,
)
from stages.risk import Options, run


def images(count=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)


def column(found, name):
    return found[:, FEATURES.index(name)]


def test_features_by_hand():
    pixels = images()
    pixels[10:13] = pixels[10]  # three equal images
    found = features(pixels, np.arange(60) % 3)
    flat = pixels.reshape(60, -1).astype(float)
    distance = np.sqrt(((flat[:, None] - flat) ** 2).sum(2))
    same = np.equal.outer(group := np.where(np.isin(np.arange(60), [10, 11, 12]), 10, np.arange(60)), group)
    outside = np.where(same, np.inf, distance)
    first = outside.min(1)
    assert column(found, "isolation") == pytest.approx(np.log(first / np.median(first)))
    assert column(found, "duplicates") == pytest.approx(np.log(np.where(group == 10, 3, 1)))
    contrast = flat.std(1)
    assert column(found, "contrast") == pytest.approx(np.log(contrast / np.median(contrast)))
    assert column(found, "class_share") == pytest.approx(np.zeros(60))
    listed = np.zeros(60)
    for i in range(60):
        order = np.lexsort((np.arange(60), np.where(np.arange(60) == i, np.inf, distance[i])))
        listed[order[:NEAR]] += 1
    assert column(found, "coverage") == pytest.approx(np.log((1 + listed) / (1 + NEAR)))
    assert (column(found, "gap") <= 0).all()
    square = (flat**2).sum(1)
    assert column(found, "dark") == pytest.approx((square.mean() - square) / np.median(first) ** 2)


def test_overlaps_by_hand():
    """All of 30 images are listed, so that the sums over the listed ones are those over all."""
    pixels = images(30)
    pixels[10:13] = pixels[10]
    found = features(pixels)
    flat = pixels.reshape(30, -1).astype(float)
    distance = np.sqrt(((flat[:, None] - flat) ** 2).sum(2))
    same = np.equal.outer(group := np.where(np.isin(np.arange(30), [10, 11, 12]), 10, np.arange(30)), group)
    s = np.median(np.where(same, np.inf, distance).min(1))

    def overlaps(level):
        weight = np.exp(-((distance / (level * s)) ** 2) / 8)
        return weight / weight.sum(1, keepdims=True)

    own = (overlaps(KEEP) * same).sum(1)
    assert column(found, "keep") == pytest.approx(np.log(own / (1 - own)))
    assert column(found, "mass") == pytest.approx(np.log((overlaps(MASS) @ same).sum(0)))
    assert np.exp(column(found, "mass"))[[*range(11), *range(13, 30)]].sum() == pytest.approx(30)


def test_the_overlap_is_the_bhattacharyya_coefficient_of_two_noised_images():
    """Of N(0, s^2) and N(D, s^2): the integral of the square root of the product is exp(-D^2 / 8 s^2)."""
    s, apart = 0.7, 1.9
    grid = np.linspace(-20, 20, 40_001)
    densities = [np.exp(-((grid - at) ** 2) / (2 * s * s)) / (s * np.sqrt(2 * np.pi)) for at in (0, apart)]
    assert np.trapezoid(np.sqrt(densities[0] * densities[1]), grid) == pytest.approx(np.exp(-(apart**2) / (8 * s**2)))


def test_a_class_that_is_twice_as_frequent_as_an_even_one_has_ln_2():
    labels = np.repeat([0, 1, 2], [40, 10, 10])
    assert column(features(images(), labels), "class_share")[0] == pytest.approx(np.log(2))
    assert (column(features(images(), np.full(60, -1)), "class_share") == 0).all()


def test_the_features_belong_to_the_image_and_not_to_its_row():
    pixels, order = images(), np.random.default_rng(3).permutation(60)
    assert features(pixels[order]) == pytest.approx(features(pixels)[order])


def test_images_that_are_all_equal_have_finite_features():
    assert np.isfinite(features(np.full((15, 4, 4, 1), 7, np.uint8))).all()


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match="3 training images are too few"):
        features(images(3))


def known(count=6000, runs=3, seed=0):
    """Copies that follow a logistic law with known weights and an intercept per run."""
    generator = np.random.default_rng(seed)
    x, run_of = generator.standard_normal((count, 3)), generator.integers(0, runs, count)
    weights, intercepts = np.array([1.0, -0.5, 0.0]), np.array([-2.0, 0.0, 1.0])
    return x, generator.random(count) < expit(x @ weights + intercepts[run_of]), run_of, weights, intercepts


def test_the_fit_finds_known_weights_and_intercepts():
    x, copied, run_of, weights, intercepts = known()
    found = fit(x, copied, run_of)
    assert found.weights == pytest.approx(weights, abs=0.1)
    assert found.intercepts == pytest.approx(intercepts, abs=0.15)


def test_the_slope_is_one_of_right_odds_and_two_of_halved_ones():
    x, copied, run_of, weights, _ = known()
    assert calibration_slope(x @ weights, copied, run_of) == pytest.approx(1, abs=0.08)
    assert calibration_slope(x @ weights / 2, copied, run_of) == pytest.approx(2, abs=0.16)


def test_a_run_in_which_all_are_copied_has_a_finite_fit():
    x, copied, run_of, weights, _ = known()
    found = fit(x, copied | (run_of == 2), run_of)
    assert np.isfinite(found.intercepts).all()
    assert found.weights == pytest.approx(weights, abs=0.15)


def test_auc_by_hand():
    assert auc(np.array([3.0, 2, 1, 0]), np.array([True, True, False, False])) == 1
    assert auc(np.array([1.0, 1, 1, 0]), np.array([True, False, True, False])) == 0.75
    assert np.isnan(auc(np.array([1.0, 2]), np.array([True, True])))


@pytest.mark.parametrize("share", [0.001, 0.1, 0.9])
def test_probabilities_have_the_given_mean_and_the_learned_odds(share):
    x = np.random.default_rng(0).standard_normal((200, len(FEATURES)))
    found = probabilities(x, WEIGHTS, share)
    assert found.mean() == pytest.approx(share, rel=1e-6)
    odds = np.log(found / (1 - found))
    assert odds - odds[0] == pytest.approx((x - x[0]) @ WEIGHTS)


def test_the_command_ranks_repeated_images_first(tmp_path, capsys):
    pixels = images(40)
    pixels[[7, 21, 30]] = pixels[7]
    np.save(tmp_path / "train.npy", pixels)
    rows = run(Options(train=f"npz:{tmp_path}/train.npy", out=tmp_path / "risk.csv", share=0.2))
    assert {row["row"] for row in rows[:3]} == {7, 21, 30}
    assert [row["images_in_group"] for row in rows[:4]] == [3, 3, 3, 1]
    assert np.mean([row["probability"] for row in rows]) == pytest.approx(0.2, abs=1e-3)
    with (tmp_path / "risk.csv").open() as file:
        assert [int(row["row"]) for row in csv.DictReader(file)] == [row["row"] for row in rows]
    assert "(3 alike)" in capsys.readouterr().out
