"""The copy metrics against hand-made cases, published intervals and SciPy."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from stages.memorization.matching import Matches
from stages.memorization.metrics import FeatureDistances, Rules, Searched, compare, metrics_table, published_flags
from stages.memorization.pictures import Pair, draw_pairs, spread_rows
from stages.memorization.ratios import (
    candidate_count,
    candidates,
    carlini,
    inauthentic,
    lowest,
    nn_ratio,
    over,
    rho,
    two_stage,
)
from stages.memorization.scores import Scores
from stages.memorization.statistics import newcombe, rate_interval, wilson
from stages.memorization.verdicts import Evidence, decide, order, ratio_rules
from stages.memorization.vocabulary import VERDICTS
from stages.search.pixel_distance import pixel_distance


@pytest.mark.parametrize(
    ("flagged", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (81, 263), (15, 148), (1, 29), (0, 1)]
)
def test_wilson_is_scipys(flagged, count):
    expected = binomtest(flagged, count).proportion_ci(0.95, method="wilson")
    assert wilson(flagged, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_published():
    """Newcombe 1998 (two-sided intervals for the single proportion), table I, method 3."""
    cases = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (flagged, count), expected in cases.items():
        assert wilson(flagged, count) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("count", [100, 300, 1000])
def test_the_interval_of_a_rate_holds_every_rate(count):
    """The exact coverage, a sum over the binomial law. Wilson's own falls to 84 % at a rate of 0.18/count."""
    ends, counts = np.array([rate_interval(k, count) for k in range(count + 1)]), np.arange(count + 1)
    rates = np.concatenate([np.geomspace(1e-3 / count, 0.05, 400), np.linspace(0.05, 0.5, 200)])
    rates = np.concatenate([rates, 1 - rates])
    covered = [binom.pmf(counts, count, p) @ ((ends[:, 0] <= p) & (p <= ends[:, 1])) for p in rates]
    assert min(covered) >= 0.927
    assert np.mean(covered[400:600]) == pytest.approx(0.95, abs=0.005)  # rates from 0.05 to 0.5
    assert rate_interval(10, count) == wilson(10, count)


def test_wilson_edges():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match=r"not within 0\.\.3"):
        wilson(4, 3)


def test_newcombe_published():
    """Newcombe 1998 (difference of independent proportions), table II, method 10, columns (a) to (h)."""
    cases = [
        ((56, 70, 48, 80), (0.0524, 0.3339)),
        ((9, 10, 3, 10), (0.1705, 0.8090)),
        ((6, 7, 2, 7), (0.0582, 0.8062)),
        ((5, 56, 0, 29), (-0.0381, 0.1926)),
        ((0, 10, 0, 20), (-0.1611, 0.2775)),
        ((0, 10, 0, 10), (-0.2775, 0.2775)),
        ((10, 10, 0, 20), (0.6791, 1.0)),
        ((10, 10, 0, 10), (0.6075, 1.0)),
    ]
    for counts, expected in cases:
        assert newcombe(*counts) == pytest.approx(expected, abs=5e-5)


def test_newcombe_covers():
    """Exact coverage by enumeration of every pair of outcomes: about 95 %, as published (mean 0.95 over the square)."""
    n, m = 30, 40
    covered = []
    for p, q in itertools.product((0.05, 0.3, 0.7), (0.02, 0.3, 0.6)):
        weight = np.outer(binom.pmf(range(n + 1), n, p), binom.pmf(range(m + 1), m, q))
        inside = [[a <= p - q <= b for a, b in (newcombe(i, n, j, m) for j in range(m + 1))] for i in range(n + 1)]
        covered.append((weight * np.array(inside)).sum())
    assert 0.94 < np.mean(covered) < 0.97
    assert min(covered) > 0.92


def test_newcombe_is_antisymmetric():
    low, high = newcombe(3, 50, 9, 70)
    assert newcombe(9, 70, 3, 50) == pytest.approx((-high, -low))


SQUARED = np.array([[0, 0, 0], [0, 0, 9], [0, 4, 9], [1, 9, 25], [4, 4, 4]], np.int64)


def test_ratios_by_hand():
    np.testing.assert_allclose(nn_ratio(SQUARED), [0, 0, 0, 1 / 3, 1])
    np.testing.assert_allclose(rho(SQUARED), [0, 0, 0, 1 / 3, 1])
    np.testing.assert_allclose(pixel_distance(np.array([[255 * 255 * 12]]), 12), [[1.0]])


def test_a_quotient_of_distances_at_its_edges():
    """A copy has quotient 0 whatever lies beside it; an unknown scale gives an unknown quotient."""
    found = over(np.array([0.0, 0.0, 2.0, 2.0, 0.0]), np.array([0.0, 3.0, 0.0, np.nan, np.nan]))
    np.testing.assert_array_equal(found, [0, 0, np.inf, np.nan, 0])


def test_candidates():
    assert [candidate_count(n, 1.0) for n in (0, 1, 99, 100, 101, 1000)] == [0, 1, 1, 1, 2, 10]
    assert candidate_count(10, 100.0) == 10
    assert candidate_count(700, 0.1 + 0.2) == 3  # 2.1 rounded up, not the float dust of it
    np.testing.assert_array_equal(lowest(np.array([0.5, 0.1, 0.1, 0.1]), 2), [1, 2])


def test_two_stage_needs_both():
    candidate = np.array([True, True, True, False])
    distance, threshold = np.array([1.0, 1.0, 1.1, np.nan]), np.array([1.0, 2.0, 1.0, np.nan])
    np.testing.assert_array_equal(two_stage(candidate, distance, threshold), [True, True, False, False])


def test_carlini_and_authenticity_by_hand():
    nearest_distance, scale = np.array([0.0, 1.0, 1.0, 0.0]), np.array([1.0, 3.0, 2.0, 0.0])
    np.testing.assert_array_equal(carlini(nearest_distance, scale, 0.5), [True, True, False, True])
    np.testing.assert_array_equal(inauthentic(SQUARED, np.array([0, 5, 5, 0, 4])), [True, True, True, False, True])


def test_verdicts_by_rule():
    rows = [  # identical, ratio, outstanding, candidate, confirmed -> verdict
        (True, 0.0, True, True, False, "copy"),
        (False, 0.2, True, True, False, "copy"),
        (False, 0.5, False, False, False, "near_copy"),
        (False, 0.5, False, True, True, "near_copy"),
        (False, 0.5, True, True, False, "unsure"),
        (False, 0.9, True, True, True, "near_copy"),
        (False, 0.9, True, False, False, "unsure"),
        (False, 0.9, False, True, True, "same_content"),
        (False, 0.9, False, True, False, "novel"),
        (False, 0.9, False, False, False, "novel"),
        (False, 1 / 3, False, False, False, "near_copy"),  # the thresholds themselves are not below
        (False, 0.7, False, False, False, "novel"),
    ]
    *columns, expected = zip(*rows)
    evidence = Evidence(*(np.array(column) for column in columns))
    verdict, reason = decide(ratio_rules(evidence, 1 / 3, 0.7))
    assert verdict == list(expected)
    assert all(reason)
    ranks = [VERDICTS.index(verdict[row]) for row in order(verdict, np.array(columns[1]))]
    assert ranks == sorted(ranks)


def flags(rng: np.random.Generator, count: int, near: float) -> dict[str, np.ndarray]:
    squared = np.sort(rng.integers(100, 200, (count, 5)), axis=1) ** 2
    squared[: int(near * count), 0] = 30**2
    own = np.sort(rng.integers(100, 200, (count, 4)), axis=1) ** 2
    fields = dict.fromkeys(field.name for field in dataclasses.fields(Matches))
    matches = Matches(**{**fields, "squared": squared, "own_squared": own, "dimension": 12})
    searched = Searched(matches, Scores(nn_ratio(squared), None, None), candidates(squared, 5.0))
    features = FeatureDistances(rng.random(count), np.full(count, 2.0))
    return published_flags(searched, features, Rules(5.0, 1.0, 0.5, 4))


def test_metrics_table():
    rng = np.random.default_rng(0)
    ours, theirs = flags(rng, 200, 0.25), flags(rng, 100, 0.0)
    table = metrics_table(ours, theirs, {name: ("words", 0.5) for name in ours}, ())
    ratio = table["nn_ratio_copy"]
    assert (ratio["flagged"], ratio["count"], ratio["rate"], ratio["holdout_flagged"]) == (50, 200, 0.25, 0)
    assert (ratio["excess_low"], ratio["excess_high"]) == newcombe(50, 200, 0, 100)
    assert table["two_stage"]["flagged"] == 10  # 5 % of 200, all confirmed
    assert table["two_stage"]["holdout_flagged"] == 5  # of its own set
    assert table["byte_identical"]["flagged"] == 0
    assert all(m["ci_low"] <= m["rate"] <= m["ci_high"] for m in table.values())
    assert all(m["excess_low"] <= m["excess"] <= m["excess_high"] for m in table.values())


def test_a_control_compared_with_itself_has_no_excess():
    flags = np.random.default_rng(0).random(300) < 0.1
    result = compare(flags, flags)
    assert result["excess"] == 0
    assert result["excess_low"] < 0 < result["excess_high"]


def test_picture_is_deterministic_and_unsmoothed(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    pairs = [Pair((image, image, 255 - image), name, 0.5, 0.1) for name in VERDICTS]
    first = draw_pairs(tmp_path / "a.png", pairs, 2, "title", "words").read_bytes()
    assert draw_pairs(tmp_path / "b.png", pairs, 2, "title", "words").read_bytes() == first
    canvas = np.asarray(Image.open(tmp_path / "a.png"))
    enlarged = np.kron(image[..., 0], np.ones((12, 12), np.uint8))
    windows = np.lib.stride_tricks.sliding_window_view(canvas[..., 0], enlarged.shape)[100:115, 30:40]
    assert (windows == enlarged).all(axis=(2, 3)).any()


def test_spread_rows():
    np.testing.assert_array_equal(spread_rows(3, 10), [0, 1, 2])
    rows = spread_rows(1000, 24)
    assert (rows[0], rows[-1], len(rows)) == (0, 999, 24)
    assert len(spread_rows(0, 5)) == 0
