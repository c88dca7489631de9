"""Which images closed forms copy: the training sets, the copies, the forms, and the block's claims."""

import functools

import numpy as np
import pytest
import yaml

from stages import verify
from stages.images.sources.open import open_source
from stages.images.subset import read_subset
from stages.memorization.groups import duplicates_among
from stages.reporting.theory_figures import theory_figures
from stages.theory import copied_images
from stages.theory.copied_images import with_repeats


@functools.cache
def digits():
    return read_subset(open_source("mnist5k"), np.arange(1000), None)


DIGITS = copied_images.shrunk(digits(), 4)


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


def test_shrinking_takes_the_mean_of_squares():
    image = np.arange(20, dtype=np.uint8).reshape(1, 4, 5, 1)
    assert copied_images.shrunk(image, 2)[0, :, :, 0].tolist() == [[3, 5], [13, 15]]


def rows(**changed):
    """Three sets of one form."""
    return [{"set": i, "form": "kernel", "copied": 0.5, "model": 0.92 + 0.01 * i, "low_coverage": 0.6 + 0.01 * i,
             "duplicates": 0.7, **changed} for i in range(3)]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "slopes", "failed"),
    [
        ({}, [0.9, 1.0, 1.1], set()),
        ({"duplicates": 0.93}, [1, 1, 1], {0}),
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


def test_the_block_has_a_row_per_set_and_form_and_a_figure():
    values = yaml.safe_load(verify.Path("stages/theory/blocks.yaml").read_text())["copied_images"]
    block = copied_images.CopiedImages(**{**values, "sets": 3, "train": 100, "forms": ["loader-25", "tikhonov"]})
    found = block.findings(0, digits())
    table = found.tables["copied_images"]
    assert len(table) == 6
    assert len(found.claims) == 4
    assert [row["model"] for row in table] == [
        row["model"] for row in block.findings(0, digits()).tables["copied_images"]
    ]
    (figure,) = theory_figures("copied_images", found.tables)
    assert "<svg" in figure.svg
    assert block.source("other") == "mnist5k"
    with pytest.raises(ValueError, match="train 100 images cannot be drawn from 30"):
        block.findings(0, digits()[:30])
