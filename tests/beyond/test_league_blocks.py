"""The league and loader batches: agreement by hand, claims that see what does not hold, small runs of both blocks."""

import numpy as np
import pytest

from stages.beyond import league, loader_batches, points
from stages.diffusion.parameters import NetworkParams, OptimizationParams, Variant
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.protocol import load_tree
from stages.reporting.theory_figures import theory_figures

HEUN = {"name": "heun", "levels": 5}
COMMON = {
    "images": 100, "dataset": "mnist5k", "resolution": 8, "held_out": 40, "samples": 10, "points": 10, "size": 30,
    "noise": {"sigma_min": 0.05, "sigma_max": 2.5}, "seeds": [0, 1], "levels": [0.05, 0.5],
}  # fmt: skip
PLAIN, MASKED = loader_batches.PLAIN, loader_batches.MASKED


@pytest.fixture(scope="module")
def digits():
    source = open_source("mnist5k")
    return read_subset(source, np.arange(100), 8)


def batches():
    return loader_batches.LoaderBatches(**COMMON, batches=[5, 15], mask_threshold=0.0005, sampler=HEUN)


def small_league():
    base = load_tree("params.yaml")["train"]
    network = {**base["network"], "channels": 4, "multipliers": [1], "attention": []}
    forms = {name: {"score": "closed-form", "form": name, "sampler": HEUN} for name in ("conditioning", "wiener")}
    return league.League(
        **COMMON, forms=forms, variant=Variant(score="network", form="conditioning", sampler=HEUN),
        network=NetworkParams(**network), optimization=OptimizationParams(**{**base["optimization"], "steps": 2}),
    )  # fmt: skip


def test_a_score_agrees_with_itself_and_half_of_it_does_not():
    x, own = np.random.default_rng(0).standard_normal((2, 30, 12))
    assert league.agreement(own, own, x, 0.5) == pytest.approx((1, 1))
    r2, cosine = league.agreement(0.5 * own, own, x, 0.5)
    denoised = x + 0.25 * own
    expected = 1 - np.square(0.125 * own).sum() / np.square(denoised - denoised.mean(0)).sum()
    assert (r2, cosine) == pytest.approx((expected, 1))


def test_noised_images_have_noise_of_their_level():
    clean = np.full((200, 8, 8, 1), 51, np.uint8)
    x = points.rows(points.noised(clean, 0.3, 0))
    assert x.mean() == pytest.approx(0.2, abs=0.01)
    assert x.std() == pytest.approx(0.3, rel=0.02)
    assert abs(np.corrcoef(x.ravel(), points.rows(points.noised(clean, 0.2, 0)).ravel())[0, 1]) < 0.05


def together(block, images):
    tables = {}
    for piece in block.pieces():
        for name, rows in piece.findings(0, images).tables.items():
            tables.setdefault(name, []).extend(rows)
    return tables


def test_loader_batches_of_few_digits(digits):
    block = batches()
    tables = together(block, digits)
    assert len(tables["loader_batches"]) == 2 * 2 * 3
    assert len(tables["loader_batches_error"]) == 2 * 2 * 3 * 2
    exact = [row["error"] for row in tables["loader_batches_error"] if row["batch"] == 30]
    assert max(exact) < 1e-6
    low = {
        b: [r["error"] for r in tables["loader_batches_error"] if (r["batch"], r["sigma"]) == (b, 0.05)]
        for b in (5, 15)
    }
    assert np.mean(low[5]) > np.mean(low[15]) > 0.01
    assert [claim.passed for claim in block.conclude(tables)[:4]] == [True] * 4
    (figure,) = theory_figures("loader_batches", tables)
    assert "images that share a softmax" in figure.svg


def batch_rows(copies):
    """copies: (softmax, batch) -> share, to which one batch of all adds 0.01 times the seed, and others take it off."""
    return [
        {"softmax": softmax, "batch": batch, "seed": seed, "copies": share + (0.01 if batch == 30 else -0.01) * seed,
         "control": 0.05, "blends": 0.1, "samples": 100, "controls": 100}
        for (softmax, batch), share in copies.items() for seed in (-1, 1)
    ]  # fmt: skip


def test_claims_on_batches_see_what_does_not_hold():
    """No effect of batches: copies that differ by chance alone, and an error in one seed."""
    keys = [(softmax, batch) for softmax in (PLAIN, MASKED) for batch in (5, 15, 30)]
    errors = [
        {"softmax": softmax, "batch": batch, "sigma": sigma, "seed": seed, "error": 0.0 if batch == 30 else 0.01 * seed}
        for softmax, batch in keys for sigma in (0.05, 0.5) for seed in (0, 1)
    ]  # fmt: skip
    equal = dict.fromkeys(keys, 0.9) | {(MASKED, batch): 0.2 for batch in (5, 15, 30)}
    found = batches().conclude({"loader_batches": batch_rows(equal), "loader_batches_error": errors})
    assert [claim.passed for claim in found] == [True, False, True, False, False, False, False]
    falls = dict.fromkeys(keys, 0.1) | {(PLAIN, 30): 0.9, (MASKED, 30): 0.5}
    *_, plain, masked, share = batches().conclude({"loader_batches": batch_rows(falls), "loader_batches_error": errors})
    assert all(claim.passed for claim in (plain, masked, share))
    assert (plain.measured, masked.measured, share.measured) == pytest.approx((0.8, 0.4, 0.5), abs=0.01)


def test_a_league_of_two_forms(digits):
    block = small_league()
    tables = together(block, digits)
    assert [row["form"] for row in tables["league"]] == ["network", "conditioning", "wiener"] * 2
    assert len(tables["league_levels"]) == 2 * 2 * 2
    assert {row["copies"] for row in tables["league"] if row["form"] == "conditioning"} == {1.0}
    assert len(block.conclude(tables)) == 3
    (figure,) = theory_figures("league", tables)
    assert all(name in figure.svg for name in ("network", "conditioning", "wiener"))


def test_claims_of_the_league_see_what_does_not_hold():
    def tables(cosines, copies):
        levels = [
            {"form": form, "sigma": sigma, "seed": seed, "cosine": cosine + 0.001 * seed}
            for form, pair in cosines.items() for sigma, cosine in zip((0.05, 0.5), pair) for seed in (0, 1)
        ]  # fmt: skip
        rows = [
            {"form": form, "seed": seed, "copies": share, "control": 0.05, "fd": 1.0,
             "samples": 100, "controls": 100}
            for form, share in copies.items() for seed in (0, 1)
        ]  # fmt: skip
        return {"league_levels": levels, "league": rows}

    holds = tables({"conditioning": (0.7, 0.99), "wiener": (0.8, 0.99)}, {"network": 0.1, "conditioning": 1.0})
    assert [claim.passed for claim in small_league().conclude(holds)] == [True] * 3
    fails = tables({"conditioning": (0.8, 0.9), "wiener": (0.79, 0.9)}, {"network": 1.0, "conditioning": 0.9})
    assert [claim.passed for claim in small_league().conclude(fails)] == [False] * 3
