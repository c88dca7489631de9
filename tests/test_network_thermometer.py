"""The thermometer over networks: its readings of a score of known temperature, its tables, and its rank correlation."""

import math

import numpy as np
import pytest
import torch

from benchmarks import small_models, thermometer
from stages.diffusion import scores
from stages.diffusion.model import make_model


class Hot(torch.nn.Module):
    """A network that has learned the closed form at temperature T."""

    def __init__(self, train, temperature, nearest=None):
        super().__init__()
        self.nearest = nearest
        self.centres = scores.make_centres(torch.from_numpy(small_models.flat(train)))
        self.temperature = temperature

    def forward(self, x, sigma):
        flat = x.movedim(1, -1).flatten(1).double()
        hot = torch.full((len(x),), self.temperature, dtype=torch.float64)
        options = {"power": flat.shape[1] - 2, "nearest": self.nearest}
        found = scores.unconditioning(self.centres, flat, hot, sigma=sigma.double(), **options)
        return (sigma[:, None] * found).float().reshape(len(x), *x.shape[2:], x.shape[1]).movedim(-1, 1)


@pytest.fixture(scope="module")
def train():
    return small_models.drawn(60, 10, 0)[0]


def read(network, train):
    with torch.inference_mode():
        model = make_model(small_models.variant("plain"), small_models.NOISE, train, network, small_models.CPU)
        return {(row["sigma"], row["reading"]): row for row in thermometer.readings(model)}


def test_a_score_of_known_temperature_is_read_within_5_percent(train):
    found = read(Hot(train, 6.0), train)
    assert set(found) == {(sigma, name) for sigma in thermometer.LEVELS for name in thermometer.READINGS}
    known = {key: row["t_eff"] for key, row in found.items() if row["identified"] and key[1] in ("error", "direction")}
    assert len(known) >= 2
    assert list(known.values()) == pytest.approx([6.0] * len(known), rel=0.05)


@pytest.mark.parametrize("k", [4, None])
def test_the_number_of_images_that_a_known_score_weighs_has_the_least_error(train, k):
    """At T = 30 the weights reach beyond the 4 nearest of 60 images at the two upper levels."""
    with torch.inference_mode():
        network = Hot(train, 30.0, k)
        model = make_model(small_models.variant("plain"), small_models.NOISE, train, network, small_models.CPU)
        found = thermometer.over_neighbors(model)
    for sigma in thermometer.LEVELS[1:]:
        own = {row["k"]: row for row in found if row["sigma"] == sigma}
        assert set(own) == set(thermometer.NEIGHBORS)
        assert own[k]["t_eff"] == pytest.approx(30, rel=0.05)
        assert own[k]["error"] < 0.01 < min(row["error"] for other, row in own.items() if other != k)


def row(size, seed, step, t, copies, identified=True):
    readings = [
        {"sigma": sigma, "reading": name, "t_eff": t, "low": t, "high": t, "identified": identified}
        for sigma in thermometer.LEVELS
        for name in thermometer.READINGS
    ]
    about = {"variant": "plain", "size": size, "seed": seed, "step": step, "samples": 100, "copies": copies}
    return about | {"readings": readings}


def test_the_table_has_the_geometric_mean_over_the_seeds_that_identify_a_temperature():
    rows = [row(25, 0, 50, 3.2, 10), row(25, 1, 50, 5.0, 20), row(25, 2, 50, 99.0, 30, identified=False)]
    lines = [line for line in thermometer.table(rows) if "plain" in line]
    assert len(lines) == len(thermometer.LEVELS)
    half = 12.7062 * np.std([math.log(3.2), math.log(5)], ddof=1) / math.sqrt(2)
    assert f"| 4.0 [{4 * math.exp(-half):.1f}, {4 * math.exp(half):.1f}] (2/3) |" in lines[0]
    assert "| plain | 25 | 50 | 20 [" in lines[0]
    assert "- (0/1)" in thermometer.temperature(rows[2:], thermometer.LEVELS[0], "error")


def test_copies_that_rise_as_the_temperature_falls_have_rank_correlation_minus_one():
    level = thermometer.LEVELS[0]
    rows = [row(25, seed, 50 * i, 9.0 - i, 10 * i) for seed in range(2) for i in range(1, 4)]
    found = thermometer.along_training(rows, level, "error")
    assert found.points == (pytest.approx(-1), pytest.approx(-1))
    rising = [row(50, 0, 50 * i, 1.0 + i, 10 * i) for i in range(1, 4)]
    assert thermometer.along_training([*rows, *rising], level, "error").points[0] == pytest.approx(0)
    assert thermometer.along_training(rows[:3], level, "error") is None, "one seed has no interval"


def test_networks_of_an_onset_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(thermometer, "POINTS", 4)
    monkeypatch.setattr(thermometer, "PAIRS", 2)
    about = {"variant": "plain", "size": 12, "seed": 0, "steps": [1, 2], "copies": [0, 3], "samples": 5, "held_out": 20}
    found = list(thermometer.measured([about], tmp_path, {("plain", 12, 0, 1)}))
    assert [(each["step"], each["copies"]) for each in found] == [(2, 3)]
    lines = [line for line in thermometer.neighbor_table(found) if line.startswith("| plain | 12 |")]
    assert len(lines) == len(thermometer.LEVELS) * 4  # 2, 4, 8 and all of 12 images
    assert all(line.endswith("| – |") for line in lines[3::4])
    done = {("plain", 12, 0, step) for step in (1, 2)}
    assert list(thermometer.measured([about], tmp_path, done)) == []


def test_the_minimiser_of_the_plain_target_is_the_empirical_score(train):
    few = train[:12]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.05, 0.1, 0.3, 0.6, 2.0], dtype=torch.float64)
    flat, centres = x.movedim(1, -1).flatten(1), scores.make_centres(torch.from_numpy(small_models.flat(few)))
    found = thermometer.Minimiser(small_models.variant("plain"), few)(x, sigma).flatten(1)
    assert found.numpy() == pytest.approx((sigma[:, None] * scores.conditioning(centres, flat, sigma)).numpy())


def test_the_minimiser_of_a_target_over_all_images_is_the_closed_form_at_its_temperature(train):
    few = train[:25]
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([0.05, 0.1, 0.3, 0.6, 2.0], dtype=torch.float64)
    flat, centres = x.movedim(1, -1).flatten(1), scores.make_centres(torch.from_numpy(small_models.flat(few)))
    spec = small_models.variant("one-temperature")
    heat = torch.full((5,), float(spec.temperature), dtype=torch.float64)
    wanted = sigma[:, None] * scores.unconditioning(centres, flat, heat, power=62)
    assert thermometer.Minimiser(spec, few)(x, sigma).flatten(1).numpy() == pytest.approx(wanted.numpy())


def test_a_network_of_a_target_over_neighbours_is_compared_with_its_minimiser():
    rows = [{"variant": "smoothed", "size": 12, "seed": 0}]
    (found,) = thermometer.minimisers(rows, 20)
    direction = {row["sigma"]: row["t_eff"] for row in found["readings"] if row["reading"] == "direction"}
    assert 4 < direction[0.18] < 7.5, "posterior over the sources cools it"
    assert list(thermometer.table([found]))
