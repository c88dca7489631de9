"""The report at the terminal: scoresmooth results."""

import json
import re
from pathlib import Path

import pytest
from report_project import IMAGES, verified_counts, write_project

from stages.errors import InputError
from stages.protocol import run_plain
from stages.reporting import results, words
from stages.reporting.terminal import print_markdown, print_results, print_theory

FOLDER = Path("data/report")


def test_the_terminal_prints_the_table(page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_results()
    shown = capsys.readouterr().out
    shares = r"net-conditioning +75\.0 \[68\.6, 80\.5\] +0\.2 +75\.0 \[.*\] +5\.0 \[.*\]"
    assert re.search(rf"{shares} +0\.0500 \[0\.0450, 0\.0550\] +0\.70 +0\.05", shown)
    assert shown.index("closed form") < shown.index("closed-conditioning") < shown.index("network")
    assert "temperature: net-temperature and net-conditioning are confounded by noise conditioning" in shown
    assert "4 of 4 variants draw sound samples" in shown
    assert "net-conditioning 75.0 % [68.6, 80.5]".replace("0 %", f"0{words.THIN}%") in shown.replace("\n", " ")


def test_the_table_in_markdown_is_the_one_at_the_terminal(page, capsys):
    print_markdown()
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {8}
    rows = json.loads((FOLDER / "results.json").read_text())["rows"]
    assert [row[0] for row in cells[2:]] == [row["variant"] for row in rows]
    own = next(row for row in cells if row[0] == "net-conditioning")
    assert (own[1], own[5], own[6]) == ("75.0 [68.6, 80.5]", "0.0500 [0.0450, 0.0550]", "0.70")


def test_verified_pairs_stand_in_the_page_the_metrics_and_at_the_terminal(project, capsys):
    write_project(project, IMAGES)
    path = Path("data/filter/net-conditioning/filter.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verified": verified_counts(200)}))
    run_plain("report")
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    assert page.count("Verified by eye") == 1
    assert "<strong>at least 9 of 200</strong> samples are copies, " in page
    assert '<span class="warn">3 suspected pairs are open</span>; of 3 training images' in page
    assert "within 0.02: <strong>at least 4</strong>" in page
    assert f"4.5{words.THIN}% [2.4" not in page, "an unfinished review is no rate"
    assert "anna judged 17, bert judged 12; 5 not, 2 unsure, 1 disputed, 3 of 20 suspected pairs open" in page
    assert "2 verdicts match no pair of this run and were not used" in page
    assert "anna and bert agree on 11 of 12 (Cohen's κ 0.81)" in page
    metrics = json.loads((FOLDER / "metrics.json").read_text())["variants"]
    assert metrics["net-conditioning"]["verified_rate"] == 9 / 200
    assert "verified_rate" not in metrics["closed-conditioning"]
    rows = {row["variant"]: row for row in json.loads((FOLDER / "results.json").read_text())["rows"]}
    assert (rows["net-conditioning"]["verified"], rows["net-conditioning"]["verified_count"]) == (9, 200)
    assert rows["net-conditioning"]["verified_without_repeated"] == 4
    print_results(FOLDER / "results.json")
    printed = capsys.readouterr().out
    assert printed.count("verified by eye") == 1
    assert (
        "net-conditioning: at least 9 of 200; without repeated training images at least 4; 3 suspected pairs are open"
        in printed
    )
    assert rows["net-conditioning"]["verified_open"] == 3
    path.write_text(json.dumps(json.loads(path.read_text()) | {"verified": verified_counts(200) | {"open": 0}}))
    run_plain("report")
    page = (FOLDER / "report.html").read_text(encoding="utf-8")
    assert f"<strong>9 of 200 (4.5{words.THIN}% [2.4, 8.3])</strong> are copies, of 3 training images" in page
    assert f"within 0.02: <strong>4 of 200 (2.0{words.THIN}% [0.8, 5.0])</strong>" in page
    capsys.readouterr()
    print_results(FOLDER / "results.json")
    assert (
        f"net-conditioning: 9 of 200 (4.5{words.THIN}% [2.4, 8.3]); without repeated training images 4 of 200"
        in capsys.readouterr().out
    )


def test_a_row_of_many_cases_fails_by_the_one_that_deviates_most():
    """Its mean may lie within the tolerance."""
    claim = {"claim": "a quotient is 1", "measured": 1.0043, "expected": 1.0, "tolerance": 0.02, "deviation": 0.05}
    said = results.in_words(claim)
    assert (
        said == "a quotient is 1: one case deviates by 0.0500, the tolerance is 0.0200 (mean 1.0043, expected 1.0000)"
    )
    assert results.in_words(claim | {"deviation": None}) == "a quotient is 1: 1.0043 instead of 1.0000 ± 0.0200"


def test_the_terminal_prints_every_claim_of_the_theory(page, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    print_results()
    assert "fails: a claim that fails: 0.90000 instead of 0.99730 ± 1.00·10⁻⁴" in capsys.readouterr().out
    print_theory()
    shown = capsys.readouterr().out
    assert re.search(r"holds +noise lies in the shell +0\.99730 +0\.99730 +1\.00·10⁻⁵ +0 ≤ 1\.00·10⁻⁴", shown)
    assert re.search(r"FAILS +a claim that fails +0\.99730 +0\.90000 +0\.0973 > 1\.00·10⁻⁴", shown)
    assert re.search(r"holds +At the highest noise level the trained score .* \(net-conditioning\) +1", shown)
    claims = 2 + len(trained := [claim for block in json_results()["beside_verify"] for claim in block["claims"]])
    assert len(trained) == 2
    assert (
        f"{1 + sum(claim['passed'] for claim in trained)} of {claims} claims hold; quick mode, images: digits" in shown
    )


def json_results():
    return json.loads((FOLDER / "results.json").read_text())["theory"]


def test_before_the_report_the_terminal_prints_what_verify_found(project, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(InputError, match=r"verify\.json is missing"):
        print_theory()
    write_project(project, IMAGES)
    print_theory()
    shown = capsys.readouterr().out
    assert "1 of 2 claims hold" in shown
    assert "the claims on trained scores are missing: run scoresmooth repro report" in shown


def test_no_report_yet_says_what_to_run(project):
    with pytest.raises(InputError, match=r"results\.json is missing"):
        print_results()


@pytest.mark.parametrize("show", [print_results, print_markdown])
def test_a_report_of_another_version_is_named(show, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": [{"variant": "net", "copies": 3}]}))
    with pytest.raises(InputError, match=r"results\.json is of another version .*scoresmooth repro report"):
        show(path)
