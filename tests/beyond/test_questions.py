"""What the papers leave open: intervals judge, blocks of a small size run, and comparisons whose answer is known."""

import numpy as np
import pytest

from stages import verify
from stages.beyond import adaptive_targets, copying_onset, measures
from stages.beyond.question import Question, percent, share_difference, summary, words
from stages.memorization.seeds import SeedMean, over_seeds
from stages.protocol import load_tree
from stages.theory.claims import Statement

ABOUT = Statement("claim", "formula", "source", "computed")
BLOCKS = load_tree("pipeline/toy_blocks.yaml")
QUESTIONS = {name: kind for name, kind in verify.Blocks.kinds().items() if issubclass(kind, Question)}


@pytest.mark.parametrize(("values", "above", "below"), [([1, 1.2, 1.1], True, False), ([-1, -1.2, -1.1], False, True),
                                                  ([1, -1, 0.5], False, False), ([0, 0, 0], False, False)])  # fmt: skip
def test_a_claim_is_shown_where_the_whole_interval_lies_on_its_side(values, above, below):
    found = over_seeds(values)
    assert (ABOUT.above(found, 0.0, "0").passed, ABOUT.below(found, 0.0, "0").passed) == (above, below)
    alone = over_seeds(values[:1])
    assert not any(
        claim.passed for claim in (ABOUT.above(alone, -9, "0"), ABOUT.below(alone, 9, "0"), ABOUT.within(alone, 0, 9))
    )
    unknown = SeedMean(np.nan, np.nan, np.nan, (np.nan, np.nan))
    assert not any(claim.passed for claim in (ABOUT.above(unknown, 0, "0"), ABOUT.below(unknown, 0, "0")))
    assert ABOUT.within(found, 1.1, 0.4).passed == above
    row = ABOUT.above(found, 0.0, "equal shares").row()
    assert (row["low"], row["high"], row["measured"]) == (found.low, found.high, found.mean)
    assert "3 seeds" in row["reason"]
    assert "if untrue: equal shares" in row["reason"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_has_an_answer_with_intervals(name):
    """At toy size: a piece per seed, tables that join, and claims whose intervals are over the seeds."""
    block = QUESTIONS[name](**BLOCKS[name])
    images = verify.load({"source": block.dataset, "resolution": block.resolution}, block.images, 0)
    tables = {}
    for piece in block.pieces():
        again = QUESTIONS[name](**piece.model_dump(mode="json"))
        for table, rows in again.findings(0, images).tables.items():
            tables.setdefault(table, []).extend(rows)
    for rows in tables.values():
        assert {row["seed"] for row in rows} <= set(block.seeds)
        assert len({tuple(row) for row in rows}) == 1, "equal keys in every row"
    assert block.conclude(tables)
    assert block.QUESTION.count("?") >= 1
    assert "If " in block.QUESTION, "says what it would read if untrue"


def test_a_question_of_one_seed_is_refused():
    block = BLOCKS | {"two_halves": BLOCKS["two_halves"] | {"seeds": [0]}}
    with pytest.raises(ValueError, match="two_halves.seeds: an interval needs at least two seeds"):
        verify.Blocks.model_validate(block)


def test_seeds_draw_other_images_and_never_a_held_out_one():
    block = QUESTIONS["two_halves"](**BLOCKS["two_halves"])
    pool = np.arange(block.images)
    (one, held_out), (other, _) = (block.drawn(pool, seed, 20) for seed in (0, 1))
    assert not set(one) & set(held_out)
    assert set(one) != set(other)
    assert set(block.drawn(pool, 0, 5)[0]) < set(one), "smaller sets lie within larger ones"
    with pytest.raises(ValueError, match="more than the 50"):
        block.drawn(pool, 0, 40)


def test_shares_of_images_that_are_known():
    generator = np.random.default_rng(0)
    train, held_out = (generator.integers(0, 256, (n, 4, 4, 1)).astype(np.uint8) for n in (30, 400))
    found = measures.shares(train, train, held_out)
    assert (found["copies"], found["nearer"], found["blends"]) == (1, 1, 0)
    assert found["fd_low"] <= found["fd"] <= found["fd_high"]
    middles = ((train[:15].astype(int) + train[15:]) // 2).astype(np.uint8)
    blended = measures.shares(middles, train, held_out)
    assert blended["copies"] < 0.2
    assert blended["blends"] > 0.8


def test_shares_differ_by_no_less_than_sampling_demands():
    rows = [{"seed": s, "form": f, "copies": c, "samples": 50} for s in (0, 1, 2) for f, c in (("a", 1.0), ("b", 0.0))]
    found = share_difference(rows, "copies", {"form": "a"}, {"form": "b"})
    assert (found.mean, found.high) == (1, 1)
    assert 0.95 < found.low < 1
    assert percent(rows, "copies", form="b").startswith("0.0 [0.0, ")
    assert percent(rows, "copies", form="b") != "0.0 [0.0, 0.0]"


def rows_of(rule, seed, fd, copies):
    shares = {"copies": copies, "nearer": copies, "blends": 0.0, "fd": fd, "samples": 100, "control": 0.1}
    return {"rule": rule, "temperature": "1", "seed": seed, **shares}


def test_a_rule_is_compared_with_the_constant_temperature_of_its_distance():
    """Constant: FD 2, 1 and 0 with 20, 60 and 100 % copies; at FD 1.5 they have 40 %."""
    rows = [rows_of("constant", 0, fd, copies) for fd, copies in ((2, 0.2), (1, 0.6), (0, 1.0))]
    for fd, copies, difference in ((1.5, 0.1, -0.3), (1, 0.6, 0.0), (2, 0.5, 0.3)):
        found = adaptive_targets.at_equal_distance("rule", [*rows, rows_of("rule", 0, fd, copies)], 0)
        assert found["copies"][0] == pytest.approx(difference)
        assert found["copies"][1] > 0
    assert adaptive_targets.at_equal_distance("rule", [*rows, rows_of("rule", 0, 3, 0.1)], 0) is None


def trainings(exponent, delay):
    """Copies grow from 0 to 50 % from one measured step to the next, so that the crossing is at 25 %."""
    rows = []
    for seed in (0, 1, 2):
        for size in (10, 20, 40):
            for name, times in (("plain", 1), ("smoothed", delay)):
                step = 10 * times * size**exponent * (1 + 0.01 * seed)
                about = {"variant": name, "images": size, "seed": seed, "samples": 100, "control": 5, "held_out": 100}
                rows += [about | {"step": step, "copies": 0}, about | {"step": 2 * step, "copies": 50}]
    return rows


@pytest.mark.parametrize(("exponent", "delay"), [(1.0, 2.0), (1.5, 1.0), (0.0, 3.0)])
def test_the_onset_is_read_from_trainings_whose_onset_is_known(exponent, delay):
    steps = copying_onset.onset_steps(trainings(exponent, delay), 0.25)
    assert copying_onset.slope(steps, "plain").mean == pytest.approx(exponent)
    assert all(row["last_safe"] == row["crossed"] / 2**0.5 for row in steps) or steps[0]["last_safe"] > 0
    grows, equal, *delays = copying_onset.conclusions(steps)
    assert grows.passed == (exponent > 0)
    assert equal.passed == (exponent == 1)
    assert [claim.passed for claim in delays] == 3 * [delay > 1]
    assert delays[0].measured == pytest.approx(np.log(delay))


def test_a_training_without_copies_has_no_onset():
    rows = [row | {"copies": 0} for row in trainings(1.0, 2.0)]
    steps = copying_onset.onset_steps(rows, 0.25)
    assert {row["crossed"] for row in steps} == {-1}
    assert copying_onset.slope(steps, "plain") is None
    assert [claim.passed for claim in copying_onset.conclusions(steps)] == 5 * [False]


def test_words_and_summaries():
    rows = [{"seed": seed, "value": value, "form": "a"} for seed, value in ((1, 3.0), (0, 1.0))]
    assert summary(rows, "value", form="a").points == (1.0, 3.0)
    assert words(over_seeds([0.5, 0.5]), 100, 1) == "50.0 [50.0, 50.0]"
