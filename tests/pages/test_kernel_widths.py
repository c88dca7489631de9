"""Copies and diversity against the kernel's width: which variants are joined, and with which numbers."""

import html
import re
from pathlib import Path

import pytest
from report_project import IMAGES, REPORT, wilson, write_project

from stages.protocol import run_plain
from stages.reporting.inputs import read_inputs
from stages.reporting.kernel_widths import width_figure, width_groups

SDE, SLOW = {"name": "reverse-sde", "levels": 100}, {"name": "reverse-sde", "levels": 200}


def kernel(h, draws=16, form="kernel-smoothed"):
    return {"score": "closed-form", "form": form, "kernel": {"h": h, "draws": draws}}


CASES = {  # variant -> (spec, sampler, share of copies)
    "wide": (kernel(0.7), SDE, 0.1),
    "narrow": (kernel(0.3), SDE, 0.8),
    "plain": ({"score": "closed-form", "form": "conditioning"}, SDE, 1.0),
    "middle": (kernel(0.5), SDE, 0.5),
    "slow": (kernel(0.5), SLOW, 0.5),
    "plain-slow": ({"score": "closed-form", "form": "conditioning"}, SLOW, 1.0),
    "many-draws": (kernel(0.5, 64), SDE, 0.5),
    "network": ({"score": "network", "form": "conditioning"}, SDE, 0.7),
    "noise": (kernel(0.3, None, "kernel-density"), SDE, 0.3),
    "more-noise": (kernel(0.5, None, "kernel-density"), SDE, 0.1),
    "cfdm": (kernel(0.5, form="cfdm"), {"name": "cfdm", "levels": 100}, 0.5),
    "cfdm-wide": (kernel(0.9, form="cfdm"), {"name": "cfdm", "levels": 100}, 0.2),
}


def write(names):
    variants = {name: CASES[name][0] for name in names}
    write_project(
        Path(), IMAGES, variants=variants, copied={name: CASES[name][2] for name in names},
        samplers={name: CASES[name][1] for name in names}, report={**REPORT, "contrasts": []},
    )  # fmt: skip
    return variants


def groups(names):
    return width_groups(read_inputs(Path("data"), write(names), IMAGES[:1, 0, 0, 0]).variants)


def test_closed_forms_that_differ_in_the_width_are_joined_from_zero(project):
    own, noise, cfdm = groups(list(CASES))
    assert [(row["variant"], row["width"]) for row in own] == [
        ("plain", 0.0), ("narrow", 0.3), ("middle", 0.5), ("wide", 0.7)
    ]  # fmt: skip
    assert [(row["variant"], row["width"]) for row in noise] == [("plain", 0.0), ("noise", 0.3), ("more-noise", 0.5)]
    assert [(row["variant"], row["width"]) for row in cfdm] == [("cfdm", 0.5), ("cfdm-wide", 0.9)]
    for row, copies in zip(own, (200, 160, 100, 20)):
        assert row["copies"] == pytest.approx((copies / 200, *wilson(copies, 200)), abs=1e-4)
        assert row["vendi"][0] == 5.5
        assert row["holdout"] == {"copies": 1 / 400, "vendi": 6.25, "fd_test": 0.021}


@pytest.mark.parametrize(
    "names", [["wide"], ["wide", "plain"], ["wide", "slow"], ["middle", "many-draws"], ["network"]]
)
def test_without_two_widths_there_is_no_figure(project, names):
    assert groups(names) == []
    assert width_figure([], "FD") is None
    run_plain("report")
    assert 'id="widths"' not in Path("data/report/report.html").read_text()


def test_the_page_shows_the_figure_and_its_numbers(project):
    write(["wide", "narrow", "plain"])
    run_plain("report")
    page = Path("data/report/report.html").read_text()
    section = page[page.index('<section id="widths">') :]
    section = section[: section.index("</section>")]
    assert "plain · narrow · wide" in section
    rows = [
        " ".join(html.unescape(re.sub(r"<[^>]+>", " ", row)).split()) for row in re.findall(r"<tr>.*?</tr>", section)
    ]
    low, high = (100 * end for end in wilson(160, 200))
    assert rows[2].startswith(f"narrow 0.30 80.0 % [{low:.1f}, {high:.1f}] 5.50 6.25")
    assert len(rows) == 4
    assert 'href="#widths"' in page
