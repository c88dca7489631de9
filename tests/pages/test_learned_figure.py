"""The figure of trained scores where few levels were measured, none of which has pairs of points."""

import pytest

from stages.reporting.theory_figures import theory_figures


@pytest.mark.parametrize("expansion", [None, 2.5])
def test_it_is_drawn_whether_or_not_a_level_has_pairs(expansion):
    level = {"variant": "net", "sigma": 0.1, "cosine": 0.9, "angle": 26.0, "smooth_below": None}
    level |= {"expansion": expansion, "expansion_empirical": expansion}
    path = {"variant": "net", "path": 0, "length": 3.0, "longest_step": 0.9, "even_step": 1.0, "median_ratio": 0.2}
    paths = [{"mixture": mixture, **path} for mixture in ("linear", "spherical")]
    levels = [level, {**level, "sigma": 50.0, "cosine": 0.99}]
    tables = {"learned_levels": levels, "learned_paths": paths, "learned_temperatures": readings()}
    figure, thermometer = theory_figures("learned_score", tables)
    assert "expansion factor" in figure.svg
    assert "T_eff" in thermometer.svg


def readings(**changes):
    """Two levels of one network: T = 5 ± 1 by both readings at 0.1, unknown by direction at 50."""
    row = {"variant": "net", "neighbors": None, "identified": True, "error": 0.2, "error_at_1": 0.3}
    row |= {"t_eff": 5.0, "low": 4.0, "high": 6.0, **changes}
    unknown = {"low": 1.0, "high": 256.0, "identified": False}
    return [
        {**row, "sigma": sigma, "reading": name, **(unknown if (sigma, name) == (50.0, "direction") else {})}
        for sigma in (0.1, 50.0)
        for name in ("error", "direction")
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "net at 1 of 2 levels (T from 5 to 5)."),
        ({"low": 1.0}, "net at 0 of 2 levels."),
        ({"identified": False}, "net at 0 of 2 levels."),
    ],
)
def test_the_caption_names_only_temperatures_that_both_readings_tell_from_one(changes, said):
    levels = [{"variant": "net", "sigma": 0.1, "cosine": 0.9, "expansion": None, "expansion_empirical": None}]
    path = {"variant": "net", "mixture": "linear", "longest_step": 0.9, "even_step": 1.0}
    tables = {"learned_levels": levels, "learned_paths": [path], "learned_temperatures": readings(**changes)}
    assert said in theory_figures("learned_score", tables)[1].caption
