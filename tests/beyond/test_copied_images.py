"""Which images closed forms copy: the training sets, the copies, the forms, and the block's claims."""

import functools

import numpy as np
import pytest

from stages.beyond import copied_images
from stages.beyond.copied_images import with_repeats
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.memorization.groups import duplicates_among
from stages.protocol import load_tree
from stages.reporting.theory_figures import theory_figures


@functools.cache
def digits():
    return read_subset(open_source("mnist5k"), np.arange(1000), 8)


DIGITS = digits()


def test_a_tenth_of_the_images_is_repeated():
    train = with_repeats(DIGITS[:100], 0)
    _, sizes = np.unique(train.reshape(100, -1), axis=0, return_counts=True)
    assert (sizes > 1).sum() == 10
    assert set(sizes) == {1, 2, 3, 4}


def test_copies_count_for_the_whole_group_of_their_image():
    train = with_repeats(DIGITS[:100], 0)
    group = duplicates_among(train).group
    place = np.flatnonzero(np.bincount(group)[group] == 1)[0]
    found = copied_images.copies_of(train[[0, 0, place]], train, group)
    assert found[place] == 1
    assert set(np.flatnonzero(found)) == {place, *np.flatnonzero(group == group[0])}
    assert set(found[group == group[0]]) == {2}


def test_smoothing_grows_with_the_distance_between_images():
    train = with_repeats(DIGITS[:60], 0)
    dim = (train // 2).astype(np.uint8)
    for name, value in (
        ("kernel", lambda spec: spec.kernel.h),
        ("temperature", lambda spec: spec.smooth_below),
        ("tikhonov", lambda spec: spec.penalty),
    ):
        bright, half = (value(copied_images.form(name, images)) for images in (train, dim))
        assert half == pytest.approx(bright / 2, rel=0.03)


def test_more_strength_smooths_more():
    train = with_repeats(DIGITS[:60], 0)
    one, more = (copied_images.form("tikhonov", train, strength).penalty for strength in (1, 2))
    assert more == pytest.approx(2 * one, rel=0.01)
    assert copied_images.form("loader-25", train, 2).loader_batch == 12


def rows(**changed):
    """Three sets of one form."""
    return [{"seed": i, "form": "kernel", "copied": 0.5, "model": 0.93 + 0.002 * i, "low_coverage": 0.6 + 0.01 * i,
             "duplicates": 0.7, **changed} for i in range(3)]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "slopes", "failed"),
    [
        ({}, [0.98, 1.0, 1.02], set()),
        ({"duplicates": 0.94}, [1, 1, 1], {0}),
        ({"model": 0.89}, [1, 1, 1], {1}),
        ({"low_coverage": 0.4}, [1, 1, 1], {2}),
        ({}, [0.5, 0.6, 0.7], {3}),
    ],
)
def test_each_claim_can_fail(changed, slopes, failed):
    found = copied_images.claims(rows(**changed), slopes)
    assert {i for i, claim in enumerate(found) if not claim.passed} == failed


def test_one_training_set_makes_no_claim():
    assert copied_images.claims(rows()[:1], [1.0]) == []


def test_the_block_has_a_row_per_seed_and_form_and_a_figure():
    values = load_tree("stages/theory/blocks.yaml")["copied_images"]
    some = {"seeds": [20, 21], "samples": 500, "forms": ["loader-25", "tikhonov"]}
    block = copied_images.CopiedImages(**{**values, **some})
    found = block.findings(0, digits())
    table = found.tables["copied_images"]
    assert [(row["seed"], row["form"]) for row in table] == [(a, b) for a in some["seeds"] for b in some["forms"]]
    assert len(block.conclude(found.tables)) == 4
    pieces = [piece.findings(0, digits()).tables["copied_images"] for piece in block.pieces()]
    assert [row for rows in pieces for row in rows] == table
    (figure,) = theory_figures("copied_images", found.tables)
    assert "<svg" in figure.svg
