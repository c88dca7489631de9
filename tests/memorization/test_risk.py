"""Who is copied: features by hand, the fit against its known answer, and the command."""

import csv

import numpy as np
import pytest
from scipy.special import expit, logsumexp

import stages.memorization.risk
from stages.errors import InputError
from stages.memorization.risk import (
    DESCRIBED,
    FEATURES,
    LEAST,
    LEVEL,
    MOST,
    NEAR,
    SHIFTS,
    SPREAD,
    WEIGHTS,
    _smoothed,
    auc,
    calibration_slope,
    described,
    features,
    fit,
    log_odds,
    probabilities,
)
from stages.risk import Options, run


def images(count=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 6, 6, 1), dtype=np.uint8)


def by_hand(pixels):
    """Squared distances, whether two images are of one group (10 to 12 are equal), and the median distance s."""
    flat = pixels.reshape(len(pixels), -1).astype(float)
    squared = ((flat[:, None] - flat) ** 2).sum(2)
    group = np.where(np.isin(np.arange(len(pixels)), [10, 11, 12]), 10, np.arange(len(pixels)))
    same = np.equal.outer(group, group)
    first = np.sqrt(np.where(same, np.inf, squared).min(1))
    return flat, squared, same, first


def with_equal_ones(count, seed=0):
    pixels = images(count, seed)
    pixels[10:13] = pixels[10]
    return pixels


def test_what_is_described_by_hand():
    found = described(pixels := with_equal_ones(60))
    _, squared, same, first = by_hand(pixels)
    assert found["isolation"] == pytest.approx(np.log(first / np.median(first)))
    assert found["duplicates"] == pytest.approx(np.log(same.sum(1)))
    listed = np.zeros(60)
    for i in range(60):
        order = np.lexsort((np.arange(60), np.where(np.arange(60) == i, np.inf, squared[i])))
        listed[order[:NEAR]] += 1
    assert found["coverage"] == pytest.approx(np.log((1 + listed) / (1 + NEAR)))
    assert list(found) == [*FEATURES, *DESCRIBED]


def test_smoothing_by_hand():
    """All of 30 images are listed; a level near their distance, so that smoothing moves them."""
    pixels = np.clip(with_equal_ones(30).astype(int) // 8 + 100, 0, 255).astype(np.uint8)
    found = described(pixels)
    flat, squared, same, first = by_hand(pixels)
    level = LEVEL * np.median(first)

    def kept(z):
        away = np.sqrt(((z[:, None] - flat) ** 2).sum(2))
        one, other = (np.where(which, away, np.inf).min(1) for which in (same, ~same))
        return -np.log(np.clip(one / other, LEAST, MOST))

    def mean(weight):
        return weight @ flat / weight.sum(1, keepdims=True)

    assert found["blend"] == pytest.approx(kept(mean(np.exp(-squared / (8 * level**2)))), abs=1e-6)
    z = flat
    for _ in range(SHIFTS):
        z = mean(np.exp(-((z[:, None] - flat) ** 2).sum(2) / (2 * level**2)))
    assert found["mode"] == pytest.approx(kept(z), abs=1e-6)
    assert found["blend"].std() > 0.01


def test_a_pair_has_its_mode_between_when_the_level_reaches_its_distance():
    """Two points merge where they are less than 2 l apart, so that r1/r2 = 1: here 1.5 l, and 4 l."""
    flat, group = np.array([[0], [15], [120], [160]], np.uint8), np.arange(4)
    index = np.array([[1, 2, 3], [0, 2, 3], [3, 1, 0], [2, 1, 0]])
    found = _smoothed(flat, group, index, 10.0)["mode"]
    assert found[:2] == pytest.approx(np.zeros(2), abs=1e-6)
    assert (found[2:] > 3).all()


def test_start_is_the_share_of_the_noise_that_begins_at_an_image():
    pixels, sigma = with_equal_ones(30), 3.0
    pixels[5:9] //= 2
    flat, generator = pixels.reshape(30, -1) / 255, np.random.default_rng(0)
    x = sigma * generator.standard_normal((40_000, flat.shape[1]))
    log = -(((x[:, None] - flat) ** 2).sum(2)) / (2 * sigma**2)
    share = np.exp(log - logsumexp(log, axis=1, keepdims=True)).mean(0)
    share[10:13] = share[10:13].sum()
    assert described(pixels, sigma)["start"] == pytest.approx(np.log(30 * share), abs=0.05)
    assert described(pixels, 1e6)["start"] == pytest.approx(described(pixels)["duplicates"], abs=1e-6)
    assert (described(pixels)["start"] == described(pixels, 5 / 16 * 6)["start"]).all()


def test_the_features_are_those_described_in_blocks_too(monkeypatch):
    pixels = with_equal_ones(60)
    found = described(pixels)
    assert ([found[name] for name in FEATURES] == features(pixels).T).all()
    monkeypatch.setattr(stages.memorization.risk, "BUDGET", 1 << 20)
    assert pytest.approx(np.array([found[name] for name in FEATURES])) == features(pixels).T


def test_the_overlap_is_the_bhattacharyya_coefficient_of_two_noised_images():
    """Of N(0, s^2) and N(D, s^2): the integral of the square root of the product is exp(-D^2 / 8 s^2)."""
    s, apart = 0.7, 1.9
    grid = np.linspace(-20, 20, 40_001)
    densities = [np.exp(-((grid - at) ** 2) / (2 * s * s)) / (s * np.sqrt(2 * np.pi)) for at in (0, apart)]
    assert np.trapezoid(np.sqrt(densities[0] * densities[1]), grid) == pytest.approx(np.exp(-(apart**2) / (8 * s**2)))


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
    score = log_odds(x, WEIGHTS)
    assert odds - odds[0] == pytest.approx(score - score[0])


def test_log_odds_have_the_order_of_the_weighted_sum_and_a_largest_spread():
    x = np.random.default_rng(0).standard_normal((200, len(FEATURES)))
    score = x @ WEIGHTS
    for scale, spread in ((0.1, 0.1 * score.std()), (10, SPREAD)):
        found = log_odds(scale * x, WEIGHTS)
        assert found.std() == pytest.approx(spread)
        assert (np.argsort(found) == np.argsort(score)).all()
    assert (log_odds(np.zeros((5, len(FEATURES))), WEIGHTS) == 0).all()


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
