"""The analytic league in a small form: measures whose answer is known."""

import numpy as np
import pytest
import torch

from benchmarks import league, small_models


def test_a_score_agrees_with_itself_and_half_of_it_does_not():
    generator = torch.Generator().manual_seed(0)
    x, own = torch.randn(2, 30, 12, generator=generator, dtype=torch.float64)
    assert league.agreement(own, own, x, 0.5) == pytest.approx((1, 1))
    r2, cosine = league.agreement(0.5 * own, own, x, 0.5)
    denoised = x + 0.25 * own
    expected = 1 - (0.125 * own).square().sum() / (denoised - denoised.mean(0)).square().sum()
    assert (r2, cosine) == pytest.approx((float(expected), 1))


def test_training_images_are_copies_and_means_of_two_are_blends():
    train, held_out = small_models.drawn(60, league.HELD_OUT, 0)
    assert league.of_samples(train[:30], train, held_out)["copies"] == 1
    means = ((train[:30].astype(int) + train[30:]) // 2).astype(np.uint8)
    found = league.of_samples(means, train, held_out)
    assert found["blends"] > 0.9
    assert found["copies"] < 0.1


def test_every_form_of_the_league_is_a_row(monkeypatch):
    monkeypatch.setattr(league, "SAMPLES", 6)
    monkeypatch.setattr(league, "POINTS", 6)
    rows = list(league.rows(15, 0, 1, None, set(league.FORMS) - {"wiener", "cfdm"}))
    assert [row["form"] for row in rows] == ["held-out", "network", "wiener", "cfdm"]
    assert len(league.table(rows)) == 5
    assert len(rows[2]["r2"]) == len(league.LEVELS)


def test_a_network_is_kept_and_read_again(tmp_path, monkeypatch):
    train, _ = small_models.drawn(12, 10, 0)
    made = small_models.network_of("plain", train, 0, 1, tmp_path)
    monkeypatch.setattr(small_models, "trained", None)
    again = small_models.network_of("plain", train, 0, 1, tmp_path)
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
