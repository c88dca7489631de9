"""The analytic league in a small form: measures whose answer is known."""

import numpy as np
import pytest
import torch

from benchmarks import brute_force, league, small_models


def test_training_images_are_copies_and_means_of_two_are_blends():
    train, held_out = small_models.drawn(60, league.HELD_OUT, 0)
    assert league.of_samples(train[:30], train, held_out)["copies"] == 1
    means = ((train[:30].astype(int) + train[30:]) // 2).astype(np.uint8)
    found = league.of_samples(means, train, held_out)
    assert found["blends"] > 0.9
    assert found["copies"] < 0.1


def setting(**changes):
    own = {"source": "mnist5k", "label": None, "side": 8, "size": 15, "steps": (), "sigma_max": 2.5, "levels": 12}
    return league.Setting(**{**own, "mask_threshold": 0.02, **changes})


def test_a_tables_levels_and_threshold_reach_its_forms():
    spec = setting(levels=9, mask_threshold=0.3).variant(league.FORMS["pca-loader-25"])
    assert (spec.sampler.levels, spec.mask_threshold, spec.loader_batch) == (9, 0.3, 25)
    assert setting(levels=9).variant(league.FORMS["shells"]).sampler.levels == league.ACTUAL["levels"]


@pytest.fixture
def few(monkeypatch):
    for name in ("SAMPLES", "POINTS", "CHECKED"):
        monkeypatch.setattr(league, name, 6)


def test_every_form_of_the_league_is_a_row(few):
    rows = list(league.rows(setting(steps=(1, 2)), 0, None, {"held-out", "network", "wiener", "cfdm"}))
    assert [row["form"] for row in rows] == ["held-out", "network", "wiener", "cfdm"]
    assert rows[1]["step"] in (1, 2)
    assert len(rows[2]["r2"]) == len(rows[3]["cosine"]) == len(league.LEVELS)
    text = "\n".join(league.table([{**row, "seed": seed} for row in rows for seed in (0, 1)]))
    assert "best cosine at sigma 0.05" in text
    assert text.count("\ncfdm") == 3


def test_forms_equal_their_formulas_and_kernels_are_off_by_their_draws(few):
    """float32 leaves 1e-7 of the largest entry, more where a small difference of scores is what remains of cfdm's."""
    forms = {name for name in league.FORMS if "loader" not in name} | {"loader-25", "pca-loader-25"}
    found = {row["form"]: row["error"] for row in league.rows(setting(size=60), 0, None, forms)}
    assert set(found) == forms
    exact = {name: found.pop(name) for name in forms - {"kernel", "cfdm"}}
    assert max(exact.values()) < 1e-6
    assert all(0.001 < error < 1 for error in found.values())


def test_a_wrong_score_is_seen(few):
    train, held_out = small_models.drawn(20, 10, 0)
    spec = setting().variant(league.FORMS["empirical"])
    x = league.points(held_out, 0.3, 0)
    images, rows = small_models.flat(train) / 255, league.image_rows(x)
    right = np.stack([brute_force.posterior_mean(point, images, 0.3) - point for point in rows]) / 0.09
    for factor, wanted in ((1, 0), (1.01, 0.01)):
        got = brute_force.error(spec, factor * right, rows, images, 0.3, (8, 8, 1), None)
        assert got == pytest.approx(wanted, abs=1e-12)


def test_the_share_of_masks_is_of_the_fall_in_copies():
    copies = {"empirical": 1.0, "pca-locality": 0.4, "loader-25": 0.5, "pca-loader-25": 0.2}
    found = [{"form": form, "seed": seed, "copies": own} for form, own in copies.items() for seed in (0, 1)]
    *_, line = league.batches_table(found, league.BATCHES)
    assert "the fall 80.0" in line
    assert "exact masks alone 60.0" in line
    assert "share of masks 0.75" in line


def test_a_network_is_kept_and_read_again(tmp_path, monkeypatch):
    train, _ = small_models.drawn(12, 10, 0)
    made = small_models.network_of("plain", train, 0, 1, tmp_path)
    monkeypatch.setattr(small_models.small, "trained", None)
    again = small_models.network_of("plain", train, 0, 1, tmp_path)
    for name, value in made.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
