"""The benchmark of the risk model in a small form: its runs, its tables, and what it does with the riskiest images."""

import argparse
import json
import sys
from collections import Counter

import numpy as np
import pytest

from benchmarks import risk, risk_runs, small_models
from stages.memorization.risk import FEATURES


def test_a_tenth_of_the_images_is_repeated():
    train = risk_runs.repeated(small_models.digits(), 100, 0)
    _, sizes = np.unique(small_models.flat(train), axis=0, return_counts=True)
    assert (sizes > 1).sum() == 10
    assert set(sizes) == {1, 2, 3, 4}


def test_copies_count_for_the_whole_group_of_their_image():
    train = risk_runs.repeated(small_models.digits(), 100, 0)
    group = risk_runs.groups(train)
    place = np.flatnonzero(np.bincount(group)[group] == 1)[0]
    found = risk_runs.copies_of(train[[0, 0, place]], train, group)
    assert found[place] == 1
    assert set(np.flatnonzero(found)) == {place, *np.flatnonzero(group == group[0])}
    assert set(found[group == group[0]]) == {2}


def test_smoothing_grows_with_the_distance_between_images():
    train = risk_runs.repeated(small_models.digits(), 60, 0)
    dim = (train // 2).astype(np.uint8)
    for name, value in (
        ("kernel", lambda spec: spec.kernel.h),
        ("temperature", lambda spec: spec.smooth_below),
        ("tikhonov", lambda spec: spec.penalty),
    ):
        bright, half = (value(risk_runs.form(name, images)) for images in (train, dim))
        assert half == pytest.approx(bright / 2, rel=0.03)


def test_shifts_move_an_image_by_one_pixel_each_way():
    image = np.zeros((1, 5, 5, 1), np.uint8)
    image[0, 2, 2] = 9
    moved = risk.shifts(image)
    assert {tuple(np.argwhere(each[..., 0] == 9)[0]) for each in moved} == {(1, 2), (3, 2), (2, 1), (2, 3)}


def test_the_riskiest_images_are_removed_or_shifted():
    train = risk_runs.repeated(small_models.digits(), 40, 0)
    weights = np.zeros(len(FEATURES))
    weights[risk.DUPLICATES] = 1
    sets = risk.changed(train, weights, 0)
    assert [len(images) for images in sets.values()] == [40, 38, 46, 38, 46]
    counts, kept = (Counter(image.tobytes() for image in images) for images in (train, sets["riskiest removed"]))
    assert {counts[image] for image in counts - kept} == {max(counts.values())}  # those that repeat most often
    assert (sets["riskiest shifted"][:38] == sets["riskiest removed"]).all()


def made(seed, source="digits", score="kernel"):
    """A run whose copies follow the first feature."""
    x = np.random.default_rng(seed).standard_normal((50, len(FEATURES)))
    row = {"source": source, "score": score, "size": 50, "seed": seed, "steps": None, "x": x}
    return row | {"copied": x[:, 0] > 0, "again": (x[:, 0] > 0).astype(int).tolist()}


def test_a_right_model_and_other_samples_have_auc_one_and_duplicates_none():
    weights = np.eye(len(FEATURES))[0]
    found = risk.tested([made(10), made(11)], weights)
    assert (found["auc"].mean, found["others"].mean, found["runs"]) == (1, 1, 2)
    twice = risk.tested([made(10), made(11), made(11, score="tikhonov")], weights)
    assert twice["auc"].points == (1, 1), "runs of the same images count once"
    assert 0.3 < found["alone"].mean < 0.7
    assert risk.tested([made(10) | {"copied": np.zeros(50, bool)}], weights) is None, "nothing is copied"


def test_runs_of_the_fit_stand_apart_from_the_others():
    rows = [made(0), made(10), made(0, risk.ONSET, "plain"), made(10, "CIFAR-10 class 1")]
    assert {name: len(own) for name, own in risk.kinds(rows).items()} == {
        "fitted: closed forms": 1,
        "digits, 50 images, closed forms": 1,
        "digits without repeats, networks": 1,
        "CIFAR-10 class 1, 50 images, closed forms": 1,
        "all others: kernel": 2,
        "all others: plain": 1,
        "all others": 3,
    }


def test_the_command_runs_to_its_end_and_goes_on_from_its_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(risk_runs, "AGAIN", 1)
    monkeypatch.setattr(risk_runs, "SAMPLES", 1)
    monkeypatch.setattr(risk, "CLOSED", ("loader-25", "tikhonov"))
    monkeypatch.setattr(risk, "FITTED", range(1))
    monkeypatch.setattr(risk, "TESTED", (10,))
    out = tmp_path / "risk.jsonl"
    options = ["risk", "--parts", "closed", "use", "--sizes", "100", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", options)
    risk.main()
    first = capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 2 * 4
    assert "| tikhonov | riskiest removed |" in first
    assert set(json.loads(first.splitlines()[-1])) == {"runs", "weights"}
    monkeypatch.setattr(risk_runs, "run", None)
    risk.main()
    assert capsys.readouterr().out == first


def test_every_part_has_its_runs():
    options = argparse.Namespace(cifar=None, onset=None, sizes=[100], parts=["closed", "networks"])
    found = risk.plan(options)
    assert len(found) == len(set(found)) == 4 * (4 + 3 + 3 + 3) + 7 + 3
