"""Networks of adaptive temperatures beside the plain one: measures and comparisons whose answer is known."""

import numpy as np
import pytest

from benchmarks import adaptive, small_models
from stages.reporting.runs import RATIO


def test_training_images_are_copies_and_held_out_ones_hardly_are():
    train, held_out = small_models.drawn(60, 200, 0)
    found = adaptive.measure(train, train, held_out)
    assert (found[RATIO], found["count"]) == (60, 60)
    assert found["fd_low"] <= found["fd"] <= found["fd_high"]
    assert adaptive.measure(held_out[:100], train, held_out)[RATIO] < 25


def row(name, seed, step, fd, copied):
    measures = {RATIO: copied, "calibrated_distance": copied, "blend": 0, "fd": fd, "fd_low": fd, "fd_high": fd}
    return {"variant": name, "size": 50, "seed": seed, "step": step, "count": 200, **measures}


def runs():
    """plain: FD 4, 2, 1 and 0, 20, 60 copies of 200; nonexpansive ends at FD 2 with 10 copies, at step 400."""
    rows = []
    for seed in range(3):
        rows += [row("plain", seed, step, fd, k) for step, fd, k in ((100, 4, 0), (200, 2, 20), (400, 1, 60))]
        rows += [row("nonexpansive", seed, step, fd, k) for step, fd, k in ((200, 3, 4), (400, 2, 10))]
    return rows


def test_a_smoothed_network_is_compared_with_plain_stopped_at_its_distance():
    (line,) = adaptive.frontier(runs(), 400)
    assert line.startswith("nonexpansive, plain stopped at 200, 200, 200: ")
    assert "−5" in line, "10 of 200 against 20 of 200"


def test_the_table_compares_at_the_same_step():
    lines = list(adaptive.table(runs(), 400))
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| plain", "| nonexpansive"]
    assert "| 5.0 [" in lines[3]
    assert "| -25.0 [" in lines[3]
    assert lines[3].endswith("| 2.00 [2.00, 2.00] | 1.00 [1.00, 1.00] |")


def test_a_training_gives_a_row_per_snapshot(tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive, "SAMPLES", 12)
    found = list(adaptive.measured("nonexpansive", 12, 0, [1, 2], tmp_path))
    assert [each["step"] for each in found] == [1, 2]
    assert set(found[0]) == {"variant", "size", *adaptive.columns(found, "nonexpansive")}


def test_closed_forms_copy_more_the_colder_they_are_and_are_compared_at_equal_distance(monkeypatch):
    monkeypatch.setattr(adaptive, "SAMPLES", 40)
    rows = [row for seed in range(2) for row in adaptive.closed_rows(30, seed)]
    own = adaptive.columns(rows, "constant")
    assert len(own["fd"]) == 2 * len(adaptive.CONSTANT)
    for seed in range(2):
        copied = own[RATIO][own["seed"] == seed]
        assert copied[-1] == 40  # T = 1 over 8 neighbours: the empirical score
        assert copied[0] < 40
        assert np.diff(copied).min() > -5  # of 40 samples, whose noise is the same
    lines = list(adaptive.closed_lines(rows))
    assert len(lines) == 2 + len(adaptive.CONSTANT) + 2 * len(adaptive.FOLLOWING)
    assert adaptive.closed_form("nonexpansive").score == "closed-form"


@pytest.mark.parametrize("name", [adaptive.PLAIN, *adaptive.SMOOTHED])
def test_every_variant_differs_from_plain_in_its_target_alone(name):
    spec, plain = (small_models.variant(each).model_dump() for each in (name, adaptive.PLAIN))
    assert spec["sampler"] == plain["sampler"]
    assert small_models.variant(name).conditioned
    target = ("form", "temperature", "smooth_below", "neighbors", "noise_conditioning")
    one, other = ({key: value for key, value in each.items() if key not in target} for each in (spec, plain))
    assert one == other
    assert spec["smooth_below"] in (None, 0.5)
