"""The figures of trained scores: which are drawn, and what they say."""

import pytest

from stages.reporting.theory_figures import theory_figures

CLOSED = ("expansion_empirical", "expansion_closed_form", *(f"expansion_t_{t}" for t in (1, 10, 100, 1000)))


def tables(*levels):
    """Tables of networks with these rows by level, an interpolation each."""
    path = {"path": 0, "length": 3.0, "longest_step": 0.9, "even_step": 1.0, "median_ratio": 0.2}
    names = dict.fromkeys(level["variant"] for level in levels)
    paths = [{"variant": name, "mixture": mixture, **path} for name in names for mixture in ("linear", "spherical")]
    return {"learned_levels": list(levels), "learned_paths": paths, "learned_temperatures": readings()}


def level(variant="net", **changes):
    row = {"variant": variant, "sigma": 0.1, "cosine": 0.9, "angle": 26.0, "smooth_below": None}
    row |= dict.fromkeys(("expansion", "expansion_error", *CLOSED)) | {"expansion_pairs": 0}
    return row | changes


def test_levels_without_pairs_have_no_figure_of_the_expansion():
    figures = theory_figures("learned_score", tables(level(), level(sigma=50.0)))
    assert len(figures) == 2
    assert "T_eff" in figures[-1].svg
    assert not any("expansion factor" in figure.svg for figure in figures)


def test_one_figure_has_the_expansion_of_all_networks_and_closed_forms():
    found = {"expansion": 2.5, "expansion_error": 0.03, "expansion_pairs": 9876, **dict.fromkeys(CLOSED, 3.0)}
    rows = [level(name, sigma=sigma, **found) for name in ("net", "smoothed") for sigma in (0.5, 5.0)]
    figures = theory_figures("learned_score", tables(level(), level("smoothed"), *rows))
    (drawn,) = (figure for figure in figures if "expansion factor" in figure.svg)
    for name in ("net", "smoothed", "empirical score, all images", "T = 1", "T = 10", "T = 100", "T = 1000"):
        assert f">{name}<" in drawn.svg or f", {name}<" in drawn.svg, name
    assert "mean over 9,876 pairs per level" in drawn.caption
    assert "largest standard error is 0.03" in drawn.caption


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
    found = {**tables(level()), "learned_temperatures": readings(**changes)}
    assert said in theory_figures("learned_score", found)[-1].caption
