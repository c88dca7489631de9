"""The benchmark of two halves in a small form: its rows and its table."""

import numpy as np

from benchmarks import halves, small_models


def test_a_pair_of_small_models_is_measured():
    row = halves.closed_row("wiener", 20, 0, 10)
    assert row["low"] <= row["alikeness"] <= row["high"] <= 1
    assert len(row["copies"]) == 2
    assert "wiener" in halves.table([row])[-1]


def test_networks_of_both_halves_are_compared_after_several_steps_of_one_training(tmp_path, monkeypatch):
    monkeypatch.setattr(halves, "HELD_OUT", 20)
    made = list(halves.network_rows("plain", 12, 0, 5, [1, 2], tmp_path))
    assert [row["model"] for row in made] == ["plain, 1 steps", "plain, 2 steps"]
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(small_models.small, "trained", None)
    assert list(halves.network_rows("plain", 12, 0, 5, [1, 2], tmp_path)) == made
    of_onset = small_models.drawn(12, 20, 0)[0]
    assert np.array_equal(halves.parts(12, 0)[0][0], of_onset), "networks of benchmarks.onset serve the first half"


def test_alikeness_minus_copies_is_one_for_equal_samples_without_copies():
    row = {"model": "m", "size": 5, "seed": 0, "samples": 10, "alikeness": 1.0, "copies": [0, 0]}
    others = [row | {"seed": 1}, row | {"seed": 2, "alikeness": 0.9, "copies": [5, 5]}]
    lines = halves.table([each | {"control": 1, "held_out": 10} for each in (row, *others)])
    assert f"| {np.mean([1, 1, 0.4]):.2f} [" in lines[-1]
