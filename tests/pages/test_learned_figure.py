"""The figure of trained scores where few levels were measured, none of which has pairs of points."""

import pytest

from stages.reporting.theory_figures import theory_figures


@pytest.mark.parametrize("expansion", [None, 2.5])
def test_it_is_drawn_whether_or_not_a_level_has_pairs(expansion):
    level = {"variant": "net", "sigma": 0.1, "cosine": 0.9, "angle": 26.0, "smooth_below": None}
    level |= {"expansion": expansion, "expansion_empirical": expansion}
    path = {"variant": "net", "path": 0, "length": 3.0, "longest_step": 0.9, "even_step": 1.0, "median_ratio": 0.2}
    paths = [{"mixture": mixture, **path} for mixture in ("linear", "spherical")]
    tables = {"learned_levels": [level, {**level, "sigma": 50.0, "cosine": 0.99}], "learned_paths": paths}
    (figure,) = theory_figures("learned_score", tables)
    assert "expansion factor" in figure.svg
