"""Verdicts of people on the filter's pairs: what they count, and that they change no other number."""

from pathlib import Path

import numpy as np
import pytest
from filter_inputs import write_index
from small_filter import COUNT, VERDICTS, decide, run, write_small_project

from stages.errors import InputError
from stages.files.images import image_table, read_images, write_images
from stages.memorization.statistics import rate_interval


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_project()
    return tmp_path


def test_verified_pairs_are_counted_with_and_without_repeated_training_images(project):
    """Six pairs judged by two people; training images 0 and 1 are made to repeat each other."""
    train = read_images("data/deduplicate/train.arrow")
    images = np.array(train.images)
    images[1] = images[0] + 1  # at a distance of 1/255
    write_images("data/deduplicate/train.arrow", image_table(images))
    write_index(images)
    summary, pairs = run()
    assert summary["verified"] is None
    pair = {p["sample_index"]: (p["sample_id"], p["train_id"]) for p in pairs}
    one = {0: "copy", 2: "copy", 3: "copy", 4: "not", 5: "unsure"}
    other = {0: "copy", 2: "not", 4: "not", 11: "copy"}
    stale = ("gone", pair[3][1])
    crossed = (pair[3][0], pair[4][1])  # both ids exist, but not as a pair
    decided = [("anna", *pair[row], verdict) for row, verdict in one.items()]
    decided += [("bert", *pair[row], verdict) for row, verdict in other.items()]
    decide(Path(VERDICTS["verdicts"]["v"]), [*decided, ("anna", *stale, "copy"), ("anna", *crossed, "copy")])
    verified = run(**VERDICTS)[0]["verified"]
    assert verified["outcomes"] == {"copy": 3, "not": 1, "unsure": 1, "disputed": 1, "undecided": COUNT - 6}
    assert (verified["flagged"], verified["count"], verified["rate"]) == (3, COUNT, 3 / COUNT)
    assert (verified["ci_low"], verified["ci_high"]) == rate_interval(3, COUNT)
    assert verified["unique_training_images"] == 3  # of samples 0, 3 and 11
    without = verified["without_repeated"]
    assert (without["flagged"], without["unique_training_images"], without["repeated_images"]) == (2, 2, 1)
    assert verified["reviewers"] == {"anna": 7, "bert": 4}
    assert verified["stale"] == 2
    assert verified["stale_pairs"] == sorted([list(stale), list(crossed)])
    assert verified["open"] == verified["suspected"] - 6 == verified["offered"] - 6
    # both decided 0 (copy, copy), 2 (copy, not), 4 (not, not): p_o = 2/3, p_e = (2/3)(1/3) + (1/3)(2/3) = 4/9
    assert verified["agreement"] == [
        {"reviewers": ["anna", "bert"], "pairs": 3, "alike": 2, "kappa": pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))}
    ]
    few = run(**VERDICTS, candidates=2)[0]["verified"]  # what is not offered stays open
    assert (few["offered"], few["suspected"], few["open"]) == (2, verified["suspected"], verified["open"])
    near = run(**VERDICTS, repeated_within=0.0039)[0]["verified"]["without_repeated"]  # 1/255 = 0.00392...
    assert (near["flagged"], near["repeated_images"]) == (3, 0)


def test_verdicts_change_no_other_number(project):
    plain, pairs = run()
    row = pairs[0]
    decide(Path(VERDICTS["verdicts"]["v"]), [("anna", row["sample_id"], row["train_id"], "not")])
    judged, same = run(**VERDICTS)
    assert same == pairs
    assert {**judged, "verified": None} == plain


def test_samples_with_equal_pixels_share_their_verdict(project):
    samples = read_images("data/sample/v/samples.arrow")
    write_images("data/sample/v/samples.arrow", samples.take(np.array([0, 0, 0, *range(40, 90)])))
    _, pairs = run()
    row = next(p for p in pairs if p["sample_index"] == 1)
    decide(Path(VERDICTS["verdicts"]["v"]), [("anna", row["sample_id"], row["train_id"], "copy")])
    verified = run(**VERDICTS)[0]["verified"]
    assert (verified["flagged"], verified["unique_training_images"]) == (3, 1)


def test_missing_verdicts_are_named(project):
    with pytest.raises(
        InputError, match=r"data/verdicts/v/verdicts\.jsonl is missing: make it with scoresmooth review"
    ):
        run(**VERDICTS)
