"""Benchmarks in a small form: they call the stages' own code, which changes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import audit, closed_form, engine, filter_size, network, onset, published, search
from stages.search.nearest import nearest

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, pathlib
for path in sorted(pathlib.Path("benchmarks").glob("*.py")):
    importlib.import_module(f"benchmarks.{path.stem}")
"""


def test_every_benchmark_starts_as_its_command_does():
    """Without the folders that pytest adds to Python's path."""
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_part_of_the_engine_gives_what_the_plain_call_gives():
    for case in engine.cases():
        engine.check(case)


def test_the_default_network_trains_and_samples(tmp_path):
    steps = network.tasks(tmp_path)
    assert {name: step() for name, step in steps.items()} == {"train": 16, "sample_network": 100, "sample_kernel": 100}


def test_closed_forms_are_compared_over_a_whole_run(monkeypatch, capsys):
    monkeypatch.setattr(closed_form, "SAMPLES", 30)
    monkeypatch.setattr(closed_form, "LEVELS", 20)
    ratios, missing = closed_form.run(closed_form.fields(60, 8), 4, False)
    assert set(ratios) == {"cdist", "float64 blocks"}
    assert all(ratio > 0 for ratio in ratios.values())
    assert missing is None
    said = capsys.readouterr().out.splitlines()
    assert [line.count("differs by") for line in said[:-1]] == [2] * 5
    assert "20 evaluations" in said[-1]


def test_the_published_network_is_the_presets():
    assert (published.network().channels, published.network(channels=4).channels) == (128, 4)
    assert (published.SHAPE, published.NOISE.sigma_max) == ((3, 32, 32), 50.0)
    assert published.optimization(batch=8).ema == 0.9999


def test_a_small_network_is_measured_along_its_training_and_its_onset_fitted(monkeypatch):
    monkeypatch.setattr(onset, "SAMPLES", 5)
    monkeypatch.setattr(onset, "HELD_OUT", 20)
    row = onset.measure("smoothed", 12, 0, 1, 2)
    assert (row["steps"], len(row["copies"])) == ([1, 2], 2)
    assert [sum(counts) for counts in row["sources"]] == row["copies"]
    assert onset.grid(50, 400) == [50, 71, 100, 141, 200, 283, 400]
    made = [
        {**row, "size": size, "seed": seed, "samples": 100, "held_out": 1000, "control": 30}
        | {"steps": [size, 2 * size, 4 * size], "copies": [2, 20, 40]}
        for size in (25, 50)
        for seed in (0, 1)
    ]
    found = onset.slopes(made, "smoothed", "at_25%")
    assert (round(found.mean, 6), len(found.points)) == (1, 2)
    assert "smoothed: first_copying grows as images^1.00" in "\n".join(onset.report(made))
    assert onset.slopes(made, "plain", "at_25%") is None
    assert onset.delay(made, 25, "at_25%") is None
    sooner = [each | {"variant": "plain", "steps": [step // 2 for step in each["steps"]]} for each in made]
    late = onset.delay([*made, *sooner], 50, "at_25%")
    assert np.exp([late.mean, late.low, late.high]) == pytest.approx([2, 2, 2])
    assert "50 images: smoothed has at_25% 2.00 [2.00, 2.00] times as late, 2 seeds" in "\n".join(
        onset.report([*made, *sooner])
    )


def test_the_peers_of_the_search_find_its_neighbours():
    images = search.stand_in(0, 700, 16)
    index, squared = nearest(images[:600], images, 5)
    for name, peer in search.PEERS.items():
        spent, found = peer(images[:600], images, 5)
        measured = search.differences(name, found, index, squared)
        assert (spent > 0).all()
        assert measured[f"{name}_neighbors_that_differ"] < 0.01, "ties and rounding only"
        assert measured[f"{name}_worst_squared_error"] < 1e-6 * np.square(images[0].astype(float)).sum()


def test_copies_and_mixtures_of_the_audit_s_benchmark_are_planted_and_counted_by_kind():
    train = search.stand_in(0, 60, 16).reshape(60, 16, 16, 3)
    samples, kinds = audit.with_copies(search.stand_in(1, 120, 16).reshape(120, 16, 16, 3), train, 3)
    planted = [kind for kind in (*audit.KINDS, *audit.MIXTURES)]
    assert {kind: int((kinds == kind).sum()) for kind in planted} == dict.fromkeys(planted, 3)
    assert all((train == image).all((1, 2, 3)).any() for image in samples[kinds == "exact"])
    assert "duplicated" not in kinds

    verdict = np.where(np.isin(kinds, audit.KINDS), "copy", "novel").astype("U9")
    left = np.flatnonzero(kinds == "")
    verdict[left[:4]] = "copy", "near_copy", "copy", "blend"
    rows = np.arange(len(kinds)) + 1000
    counted = audit.found(kinds, verdict, rows, {int(rows[left[0]]): True, int(rows[left[1]]): False})
    assert all(counted[kind]["copy"]["rate"] == 1 for kind in audit.KINDS)
    assert all(counted[kind]["copy_or_near_copy"]["flagged"] == 0 for kind in audit.MIXTURES)
    assert (counted["shared"]["copy"]["flagged"], counted["shared"]["copy"]["count"]) == (1, 1)
    unseen = {call: rate["flagged"] for call, rate in counted["unseen"].items()}
    assert unseen == {"copy": 1, "copy_or_near_copy": 2, "blend": 1}
    assert counted["not looked at"]["rows"] == [int(rows[left[2]])]

    more, names = audit.extended(samples, kinds, samples, 2_500)
    assert np.array_equal(more[:120], samples)
    assert (names[:120].tolist(), set(names[120:])) == (kinds.tolist(), {audit.MADE})
    assert len(np.unique(more[120:], axis=0)) == len(more) - 120 == 2_380
    assert np.array_equal(more, audit.extended(samples, kinds, samples, 2_500)[0])
    assert len(audit.extended(samples, kinds, samples, 100)[0]) == 120


def test_the_pictures_that_cifar_10_s_sets_share_are_listed_once_each():
    looked_at = audit.shared(50_000)
    with audit.SHARED.open() as lines:
        entries = [line.rstrip("\n").split("\t") for line in lines if not line.startswith("#")][1:]
    assert len(looked_at) == len(entries) == sum(looked_at.values()) + sum(entry[2] == "no" for entry in entries)
    assert all(0 <= int(test) < 10_000 and 0 <= int(train) < 50_000 and why for test, train, _, why in entries)
    assert audit.shared(0) == {}


def test_the_filters_samples_are_all_different_and_of_their_kind():
    train, test = search.stand_in(0, 60, 16).reshape(60, 16, 16, 3), search.stand_in(1, 40, 16).reshape(40, 16, 16, 3)
    samples, kinds = filter_size.make_samples(train, test, 1_500)
    counts = {kind: int((kinds == kind).sum()) for kind in ("exact", "jpeg", "mirrored", "")}
    assert counts == {"exact": 15, "jpeg": 15, "mirrored": 15, "": 1455}
    assert len(np.unique(samples.reshape(1_500, -1), axis=0)) == 1_500
    assert all((train == image).all((1, 2, 3)).any() for image in samples[kinds == "exact"])
    assert all((train == image[:, ::-1]).all((1, 2, 3)).any() for image in samples[kinds == "mirrored"])


def test_the_filters_table_adds_up_its_tasks():
    row = {"samples": 10, "seconds": 1.0, "processor_seconds": 2.0, "peak_gb": 1.0}
    rows = [{**row, "task": "samples"}, {**row, "task": "samples", "peak_gb": 3.0}, {**row, "task": "gather"}]
    assert list(filter_size.table(rows))[2:] == [
        "| 10 | samples | 2 | 4 | 3.00 |", "| 10 | gather | 1 | 2 | 1.00 |", "| 10 | all | 3 | 6 | 3.00 |"
    ]  # fmt: skip
