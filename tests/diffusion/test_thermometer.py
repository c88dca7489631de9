"""The thermometer reads the temperature of scores whose temperature is known, and says where it cannot."""

import numpy as np
import pytest
import torch

from stages.diffusion import scores, thermometer
from stages.diffusion.alignment import expansion_row, temperature_rows
from stages.diffusion.model import Model
from stages.diffusion.parameters import AlignmentParams, Variant

SIDE, POINTS = 16, 48
DIMENSION = SIDE * SIDE


def centres(count=40):
    """Smooth random images: at any level some are much nearer to each other than others, as in real data."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 4, 4), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(4, axis=1).repeat(4, axis=2))


def noised(pictures, sigma, seed=1, count=POINTS):
    generator = np.random.default_rng(seed)
    chosen = pictures.flatten(1)[generator.integers(0, len(pictures), count)].double() / 255
    return chosen + sigma * torch.from_numpy(generator.standard_normal(chosen.shape))


def read(score, x, sigma, pictures, seed=0, by="error", **options):
    closed = thermometer.closed_scores(scores.make_centres(pictures), x, sigma, **options)
    return thermometer.READINGS[by](score, closed, np.random.default_rng(seed))


@pytest.mark.parametrize("by", thermometer.READINGS)
@pytest.mark.parametrize("options", [{}, {"nearest": 8}, {"precision": "scheduled"}])
@pytest.mark.parametrize(("temperature", "sigma"), [(1.0, 1.3), (5.0, 0.7), (30.0, 0.7), (200.0, 0.3)])
def test_known_temperatures_are_read(temperature, sigma, options, by):
    pictures = centres()
    x = noised(pictures, sigma)
    level = torch.full((POINTS,), sigma, dtype=torch.float64)
    score = scores.unconditioning(scores.make_centres(pictures), x, temperature, sigma=level, **options)
    found = read(score, x, sigma, pictures, by=by, **options)
    assert found.identified
    assert found.t_eff == pytest.approx(temperature, rel=0.05)
    assert found.low <= temperature <= found.high
    assert found.error < 0.01


def test_the_interval_covers_under_noise():
    """A score with an error of its own at every point: about 95 % of the intervals hold T."""
    pictures, sigma, covered = centres(), 0.7, 0
    for seed in range(40):
        x = noised(pictures, sigma, seed)
        exact = scores.unconditioning(scores.make_centres(pictures), x, 30.0)
        error = torch.from_numpy(np.random.default_rng([seed, 1]).standard_normal(exact.shape))
        found = read(exact + 0.3 * exact.norm(dim=1, keepdim=True) / SIDE * error, x, sigma, pictures)
        assert found.error == pytest.approx(0.3 / np.sqrt(1.09), rel=0.1)
        covered += found.low <= 30 <= found.high
    assert covered >= 34


def test_a_score_that_is_merely_too_short_reads_hot_by_its_error_alone():
    pictures, sigma = centres(), 0.7
    x = noised(pictures, sigma)
    short = 0.8 * scores.unconditioning(scores.make_centres(pictures), x, 5.0)
    assert read(short, x, sigma, pictures).low > 5
    found = read(short, x, sigma, pictures, by="direction")
    assert found.t_eff == pytest.approx(5, rel=0.05)
    assert found.low <= 5 <= found.high


def test_where_one_centre_has_all_weight_only_an_upper_bound_is_read():
    pictures = centres()
    x = noised(pictures, 0.02)
    found = read(scores.unconditioning(scores.make_centres(pictures), x), x, 0.02, pictures)
    assert not found.identified
    assert found.low == 1
    assert 2 < found.high < DIMENSION


def test_where_all_centres_weigh_the_same_only_a_lower_bound_is_read():
    pictures = centres()
    x = noised(pictures, 5.0)
    found = read(scores.unconditioning(scores.make_centres(pictures), x, 200.0), x, 5.0, pictures)
    assert not found.identified
    assert 1 < found.low < 200
    assert found.high == pytest.approx(DIMENSION)


def test_a_noise_conditioned_score_reads_about_one():
    """It divides by σ², the closed form by r²/d: the lengths differ by sqrt(2/d) of a score, at every T."""
    pictures, sigma = centres(), 1.3
    x = noised(pictures, sigma, count=400)
    score = scores.conditioning(scores.make_centres(pictures), x, torch.full((400,), sigma, dtype=torch.float64))
    found = read(score, x, sigma, pictures)
    assert found.identified
    assert found.t_eff < 1.25
    assert found.error == pytest.approx(np.sqrt(2 / DIMENSION), rel=0.2)


def test_a_network_is_read_over_all_images_and_over_as_many_as_its_target():
    spec = {"score": "network", "form": "temperature", "temperature": 30, "neighbors": {"space": "pixel", "k": 8}}
    sampler = {"name": "actual-noise", "levels": 4, "step": 0.1, "exact_below": 1.0}
    pictures = centres()[..., None].numpy()
    levels = torch.tensor([2.0, 0.5], dtype=torch.float64)
    model = Model(Variant(**spec, sampler=sampler), levels, pictures, torch.device("cpu"), torch.nn.Identity())
    x = noised(centres(), 0.7)
    rows = temperature_rows(model, 0.7, x, scores.unconditioning(model.centres, x, 30.0, nearest=8), seed=0)
    named = {(row["neighbors"], row["reading"]): row for row in rows}
    assert set(named) == {(None, "error"), (None, "direction"), (8, "error"), (8, "direction")}
    for reading in thermometer.READINGS:
        assert named[8, reading]["t_eff"] == pytest.approx(30, rel=0.05)
        assert named[8, reading]["error"] < named[None, reading]["error"]


def expansion(temperature, sigma, times=1.0):
    """The row of a network F = times σ s_T, whose factors are the closed form's at T, up to float32."""

    class Shells(torch.nn.Module):
        def forward(self, x, level):
            found = scores.unconditioning(scores.make_centres(centres()), x.flatten(1).double(), temperature)
            return (times * sigma * found).to(x.dtype).reshape(x.shape)

    variant = Variant(
        score="network", form="unconditioning",
        sampler={"name": "actual-noise", "levels": 4, "step": 0.1, "exact_below": 1.0},
    )  # fmt: skip
    levels = torch.tensor([2.0, 0.5], dtype=torch.float64)
    model = Model(variant, levels, centres()[..., None].numpy(), torch.device("cpu"), Shells())
    settings = AlignmentParams(levels=2, images=1, expansion_pairs=12, pairs=12, paths=1, points=3, level=1.0, steps=1)
    return expansion_row(model, sigma, 0, settings, seed=0)


@pytest.mark.parametrize(("temperature", "sigma"), [(1.0, 1.3), (5.0, 0.7), (30.0, 0.7)])
def test_known_temperatures_are_read_from_the_expansion_of_pairs(temperature, sigma):
    row = expansion(temperature, sigma)
    assert row["expansion_pairs"] > 3
    assert row["expansion_identified"]
    assert row["expansion_t_eff"] == pytest.approx(temperature, rel=0.05)
    assert row["expansion_low"] <= temperature <= row["expansion_high"]


def test_where_no_temperature_has_the_expansion_none_is_read():
    row = expansion(1.0, 0.7, times=3.0)
    assert row["expansion_t_eff"] == 1
    assert row["expansion_identified"] is False
