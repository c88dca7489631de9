"""The benchmark of the risk model in a small form: its runs, its tables, and what it does with the riskiest images."""

import argparse
import json
import sys
from collections import Counter

import numpy as np
import pytest

import stages.memorization.risk
from benchmarks import risk, risk_runs, risk_use, small_models
from stages.memorization.risk import DESCRIBED, FEATURES, auc


def test_shifts_move_an_image_by_one_pixel_each_way():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 2, 2] = 9
    moved = risk_use.shifts(image)
    assert {tuple(np.argwhere(each[..., 0] == 9)[0]) for each in moved} == {(1, 2), (3, 2), (2, 1), (2, 3)}


def test_the_riskiest_images_are_removed_or_shifted():
    train = risk_runs.repeated(small_models.digits(), 40, 0)
    weights = np.array([1.0, 0, 0])
    sets = risk_use.changed(train, weights, 0)
    assert [len(images) for images in sets.values()] == [40, 38, 46, 38, 46]
    counts, kept = (Counter(image.tobytes() for image in images) for images in (train, sets["riskiest removed"]))
    assert {counts[image] for image in counts - kept} == {max(counts.values())}  # those that repeat most often
    assert (sets["riskiest shifted"][:38] == sets["riskiest removed"]).all()


def test_fashion_mnist_is_a_source_where_it_is_named(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (risk_runs.FASHION + 5, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "fashion.npy", images)
    found = risk_runs.sources(None, f"npz:{tmp_path}/fashion.npy")["FashionMNIST"]
    assert (found == images[: risk_runs.FASHION]).all()
    assert "FashionMNIST" not in risk_runs.sources(None, None)


def test_the_fewest_copies_at_a_distance_are_interpolated():
    curve = {"1": (0.8, 1.0), "2": (0.4, 2.0), "3": (0.5, 3.0), "4": (0.0, 4.0)}
    assert risk_use.fewest(curve, 1.5) == pytest.approx(0.6)
    assert risk_use.fewest(curve, 2.0) == 0.4
    assert risk_use.fewest(curve, 3.0) == 0.4, "a nearer form that copies less counts, too"
    assert risk_use.fewest(curve, 9.0) == 0
    assert risk_use.fewest(curve, 0.9) is None


def made(seed, source="digits", score="kernel"):
    """A run whose copies follow the first feature."""
    x = np.random.default_rng(seed).standard_normal((50, len(FEATURES)))
    row = {"source": source, "score": score, "size": 50, "seed": seed, "steps": None, "x": x, "others": x[:, 0]}
    row |= {"duplicates": x[:, 1], "coverage": -x[:, 2]}
    copied = x[:, 0] > 0
    return row | {"copied": copied, "likely": copied, "again": copied.astype(int).tolist()}


@pytest.mark.parametrize("label", risk.LABELS)
def test_a_right_model_and_other_samples_have_auc_one_and_duplicates_none(label):
    weights = np.eye(len(FEATURES))[0]
    found = risk.tested([made(10), made(11)], weights, label)
    assert (found["auc"].mean, found["others"].mean, found["further"].mean, found["runs"]) == (1, 1, 1, 2)
    assert found["common"] is None, "one score has no order in common with others"
    twice = risk.tested([made(10), made(11), made(11, score="tikhonov")], weights, label)
    assert twice["auc"].points == (1, 1), "runs of the same images count once"
    assert twice["common"].mean == pytest.approx(1)
    assert 0.3 < found["alone"].mean < 0.7
    assert found["gain"].mean == pytest.approx(1 - found["alone"].mean)
    assert risk.tested([made(10) | {label: np.zeros(50, bool)}], weights, label) is None, "nothing is copied"


def test_low_coverage_has_its_sign():
    run = made(10)
    run["coverage"] = -run["x"][:, 0]
    assert risk.tested([run], np.zeros(len(FEATURES)), "likely")["low"].mean == 1


def test_no_order_exceeds_the_bound_of_a_common_one():
    generator = np.random.default_rng(0)
    labels = [generator.random(30) < share for share in (0.2, 0.5, 0.7)]
    bound = risk.common_order(labels)
    for order in [sum(labels).astype(float), *generator.standard_normal((50, 30))]:
        assert np.mean([auc(order, own) for own in labels]) <= bound
    opposite = np.arange(30) < 15
    assert risk.common_order([opposite, ~opposite]) == pytest.approx(0.5)
    assert risk.common_order([opposite, opposite]) == 1


def test_the_probability_is_that_of_one_copy_among_five_samples_per_image(monkeypatch):
    known = {name: np.zeros(4) for name in (*FEATURES, *DESCRIBED)}
    monkeypatch.setattr(stages.memorization.risk, "described", lambda images: known)
    counts = {"further": 100, "copies": [0, 1, 0, 0], "again": [0, 13, 14, 100]}
    rows = [{"source": "digits", "score": name, "size": 4, "seed": 10, "steps": None, **counts} for name in
            ("kernel", "tikhonov", "plain")]  # fmt: skip
    found = risk.described(rows, argparse.Namespace(cifar=None, fashion=None, classes=()))
    assert found[0]["p"] == pytest.approx([0, 1 - np.exp(-0.65), 1 - np.exp(-0.7), 1 - np.exp(-5)])
    assert found[0]["likely"].tolist() == [False, False, True, True]
    assert found[0]["copied"].tolist() == [False, True, False, False]
    assert found[0]["others"] == pytest.approx(np.log(np.array(counts["again"]) + 0.5))
    assert found[2]["others"] is None, "closed forms say nothing about a network here"


def test_runs_of_the_fit_stand_apart_from_the_others():
    rows = [made(0), made(10), made(0, risk.ONSET, "plain"), made(10, "CIFAR-10 class 1")]
    assert {name: len(own) for name, own in risk.kinds(rows).items()} == {
        "fitted: closed forms": 1,
        "digits, 50 images, closed forms": 1,
        "digits without repeats, networks": 1,
        "CIFAR-10 class 1, 50 images, closed forms": 1,
        "all others: kernel": 2,
        "all others: plain": 1,
        "all others: closed forms": 2,
        "all others: networks": 1,
    }


def test_the_command_runs_to_its_end_and_goes_on_from_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(risk_runs, "AGAIN", 1)
    monkeypatch.setattr(risk_runs, "SAMPLES", 1)
    monkeypatch.setattr(risk, "CLOSED", ("loader-25", "tikhonov"))
    monkeypatch.setattr(risk, "FITTED", range(1))
    monkeypatch.setattr(risk_use, "SEEDS", (10, 11))
    monkeypatch.setattr(risk_use, "STRENGTHS", (1.0, 3.0))
    monkeypatch.setattr(risk_use, "SAMPLES", 1)
    out = tmp_path / "risk.jsonl"
    options = ["risk", "--parts", "closed", "use", "--sizes", "100", "--seeds", "10", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", options)
    risk.main()
    first = capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 2 * 4
    assert "| tested on (copied) |" in first
    assert "| tested on (likely) |" in first
    assert first.count("| tikhonov | riskiest removed |") == 2, "beside the whole set, and at its distance"
    assert "| tikhonov | shifted |" in first, "the riskiest less random ones"
    assert set(json.loads(first.splitlines()[-1])) == {"runs", "weights"}
    monkeypatch.setattr(risk_runs, "run", None)
    risk.main()
    assert capsys.readouterr().out == first


def test_every_part_has_its_runs():
    given = {"cifar": None, "fashion": None, "classes": (), "onset": None, "sizes": [100], "seeds": range(10, 15)}
    options = argparse.Namespace(**given, parts=["closed", "networks"])
    found = risk.plan(options)
    assert len(found) == len(set(found)) == 4 * (8 + 5 + 5 + 5) + 5 + 5
