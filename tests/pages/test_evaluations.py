"""Copies against score evaluations: variants that differ in the number of levels alone are joined, with numbers."""

import html
import re
from pathlib import Path

import pytest
from report_project import IMAGES, REPORT, wilson, write_project

from stages.files.artifacts import read_json, write_json
from stages.protocol import run_plain
from stages.reporting.evaluations import evaluation_figure, evaluation_groups
from stages.reporting.inputs import read_inputs

BLIND = {"score": "network", "form": "unconditioning"}
SMOOTHED = {"score": "network", "form": "temperature", "temperature": 30.0, "neighbors": {"space": "pixel", "k": 8}}
ACTUAL = {"name": "actual-noise", "exact_below": 3.0}
TEN, FIFTY, HUNDRED = ({**ACTUAL, "levels": n, "step": step} for n, step in ((10, 0.6), (50, 0.16), (100, 0.09)))
CASES = {  # variant -> (spec, sampler, share of copies, Fréchet distance)
    "blind-100": (BLIND, HUNDRED, 0.6, 0.05),
    "blind-10": (BLIND, TEN, 0.1, 0.4),
    "blind-50": (BLIND, FIFTY, 0.4, 0.1),
    "blind-50-large-steps": (BLIND, {**FIFTY, "step": 0.6}, 0.3, 0.15),
    "other-score": (SMOOTHED, TEN, 0.2, 0.2),
    "other-start": (BLIND, {**TEN, "exact_below": 1.0}, 0.2, 0.2),
    "other-sampler": (BLIND, {"name": "reverse-sde", "levels": 60}, 0.2, 0.2),
    "ascent": (BLIND, {"name": "gradient-ascent", "levels": 300, "step": 0.1, "stop_below": 0.1}, 0.2, 0.2),
    "ascent-long": (BLIND, {"name": "gradient-ascent", "levels": 900, "step": 0.1, "stop_below": 0.1}, 0.2, 0.2),
}


def write(names: list[str]) -> dict[str, dict]:
    """A project of some of the CASES, whose evaluations are their levels."""
    variants = {name: CASES[name][0] for name in names}
    write_project(
        Path(), IMAGES, variants=variants, copied={name: CASES[name][2] for name in names},
        distances={name: CASES[name][3] for name in names}, samplers={name: CASES[name][1] for name in names},
        report={**REPORT, "contrasts": []},
    )  # fmt: skip
    for name in names:
        path = Path("data/sample") / name / "sample.json"
        write_json(path, {**read_json(path), "nfe": CASES[name][1]["levels"]})
    return variants


def groups(names: list[str]) -> list[list[dict]]:
    return evaluation_groups(read_inputs(Path("data"), write(names), IMAGES[:1, 0, 0, 0]).variants)


def test_variants_that_differ_in_levels_only_are_joined_in_the_order_of_evaluations(project):
    (own,) = groups([name for name in CASES if name != "blind-50-large-steps"])
    assert [(row["variant"], row["evaluations"], row["step"]) for row in own] == [
        ("blind-10", 10, 0.6),
        ("blind-50", 50, 0.16),
        ("blind-100", 100, 0.09),
    ]
    for row, copies, distance in zip(own, (20, 80, 120), (0.4, 0.1, 0.05)):
        assert row["copies"] == pytest.approx((copies / 200, *wilson(copies, 200)), abs=1e-4)
        assert row["fd_test"] == pytest.approx((distance, 0.9 * distance, 1.1 * distance))
        assert row["holdout"] == {"copies": 1 / 400, "blends": 2 / 400, "fd_test": 0.021}


def test_where_steps_are_compared_a_line_has_one_step(project):
    (own,) = groups(list(CASES))
    assert [(row["variant"], row["step"]) for row in own] == [("blind-10", 0.6), ("blind-50-large-steps", 0.6)]


@pytest.mark.parametrize("names", [["blind-10"], ["blind-10", "other-score"], ["blind-50", "other-start"]])
def test_without_such_variants_there_is_no_figure(project, names):
    assert groups(names) == []
    assert evaluation_figure([], "FD") is None
    run_plain("report")
    assert 'id="evaluations"' not in Path("data/report/report.html").read_text()


def test_another_number_of_samples_under_the_distance_is_another_group(project):
    write(["blind-10", "blind-50"])
    path = Path("data/fid/blind-10/fid.json")
    write_json(path, {**read_json(path), "samples": 100})
    found = read_inputs(Path("data"), {name: BLIND for name in ("blind-10", "blind-50")}, IMAGES[:1, 0, 0, 0])
    assert evaluation_groups(found.variants) == []


def test_the_page_shows_the_curve_and_its_numbers(project):
    write(["blind-10", "blind-50", "blind-100", "other-score"])
    run_plain("report")
    page = Path("data/report/report.html").read_text()
    section = page[page.index('<section id="evaluations">') :]
    section = section[: section.index("</section>")]
    assert "blind-10 · blind-50 · blind-100" in section
    rows = [
        " ".join(html.unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in re.findall(r"<tr>.*?</tr>", section)
    ]
    low, high = (100 * end for end in wilson(20, 200))
    assert rows[1].startswith(f"blind-10 actual-noise 10 0.60 10.0 % [{low:.1f}, {high:.1f}]")
    assert rows[1].endswith("0.400 [0.360, 0.440]")
    assert rows[3].startswith("blind-100 actual-noise 100 0.090 60.0 %")
    assert len(rows) == 4
    assert 'href="#evaluations"' in page
