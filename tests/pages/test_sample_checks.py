"""The report's checks of the noise levels, the held-out images and the closed form's copies."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_project import IMAGES, write_project

from stages.protocol import run_plain
from stages.reporting.checks import even_draws

FOLDER = Path("data/report")


@pytest.mark.parametrize(("sigma", "lead", "distance"), [(3.0, 2.7, 3.0), (5.0, 0.9, 7.6)])
def test_a_level_that_does_not_fit_the_images_is_shown(project, sigma, lead, distance):
    """Too great a lead of dark images, or images farther apart than the level reaches."""
    write_project(project, IMAGES)
    for path in Path("data/train").glob("*/score.json"):
        start = {"chosen": "given", "fitting_sigma_max": 7.4, "lead": lead, "largest_distance": distance}
        changed = {"noise": {"sigma_min": 0.05, "sigma_max": sigma}, "start": start}
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    run_plain("report")
    check = json.loads((FOLDER / "results.json").read_text())["checks"][0]
    assert not check["passed"]
    assert f"At sigma_max {sigma:g}" in check["sentence"]
    assert "set train.noise.sigma_max to auto (7.4)" in check["sentence"]
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    assert "set train.noise.sigma_max to auto (7.4)" in page


def test_held_out_images_that_are_training_images_are_shown(project):
    write_project(project, IMAGES)
    path = Path("data/filter/closed-conditioning/filter.json")
    leak = {"where": "0123456789abcdef", "train_where": "fedcba9876543210", "equal": False, "rho_star": 0.1}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"leaks": [leak]}))
    run_plain("report")
    check = json.loads((FOLDER / "results.json").read_text())["checks"][1]
    assert not check["passed"]
    assert "1 held-out images are training images" in check["sentence"]
    assert "0123456789ab… (fedcba987654…)" in (FOLDER / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("found", "passed"), [(20, True), (17, False), (3, False)])
def test_a_closed_form_that_favours_some_images_is_shown(project, found, passed):
    """200 even draws from 20 images show all of them."""
    write_project(project, IMAGES, count=200)
    path = Path("data/filter/closed-conditioning/filter.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unique_training_images": found}))
    run_plain("report")
    rows = json.loads((FOLDER / "results.json").read_text())["checks"]
    check = next(row for row in rows if row["title"] == "closed-conditioning copies all training images alike")
    assert check["passed"] is passed
    assert ("Some images are favoured" in check["sentence"]) is not passed


def test_different_images_among_even_draws():
    """By simulation, and by hand where the draws are one or the images two."""
    generator = np.random.default_rng(3)
    for draws, count in ((90, 100), (300, 100), (5, 7)):
        drawn = np.sort(generator.integers(count, size=(20_000, draws)), axis=1)
        found = 1 + (np.diff(drawn, axis=1) > 0).sum(axis=1)
        mean, deviation = even_draws(draws, count)
        assert abs(np.mean(found) - mean) < 4 * deviation / math.sqrt(len(found))
        assert np.std(found) == pytest.approx(deviation, rel=0.03)
    for (draws, count), values in {(1, 1): (1, 0), (1, 9): (1, 0), (0, 9): (0, 0), (2, 2): (1.5, 0.5)}.items():
        assert even_draws(draws, count) == pytest.approx(values, abs=1e-6)
