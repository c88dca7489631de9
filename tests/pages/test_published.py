"""A paper's numbers beside ours: read from the stages' files, differing protocol named, unknown variants refused."""

import json

import pytest
from report_project import IMAGES, REPORT, write_project

from stages.errors import InputError
from stages.protocol import run_plain
from stages.reporting.published import Published, differing

PUBLISHED = {
    "source": "A paper, 2026",
    "protocol": {"ingest.counts.train": 20, "deduplicate.removed": 0},
    "tables": [
        {
            "table": "Table 1",
            "measure": "fid_train",
            "numbers": {"net-conditioning": 6.49, "net-temperature": 8.5},
            "protocol": {"fid.encoder": "inception_v3", "fid.samples": 200, "sample.sampler.levels": 500},
            "note": "The paper has two more rows.",
        },
        {"table": "Table 2", "measure": "verified", "numbers": {"net-conditioning": 514}},
        {"table": "Table 3", "measure": "near_copies", "numbers": {"net-conditioning": 128}},
        {"table": "Table 4", "measure": "ratio_min", "numbers": {"net-conditioning": 0.2276}},
    ],
}


@pytest.fixture
def report(tmp_path, monkeypatch):
    """Return a function that runs the report with `published`, and returns the page and results.json."""
    monkeypatch.chdir(tmp_path)

    def run(published):
        write_project(tmp_path, IMAGES, report={**REPORT, "published": published})
        run_plain("report", None)
        out = tmp_path / "data" / "report"
        return (out / "report.html").read_text(), json.loads((out / "results.json").read_text())

    return run


def test_ours_the_papers_the_difference_and_the_differing_protocol(report, tmp_path):
    page, results = report(PUBLISHED)
    tables = {table["table"]: table for table in results["published"]}
    row = tables["Table 1"]["rows"][0]
    assert (row["variant"], row["paper"]) == ("net-conditioning", 6.49)
    assert row["ours"] == pytest.approx(0.04)
    assert row["difference"] == pytest.approx(0.04 - 6.49)
    assert row["test_over_train"] == pytest.approx(1 / 0.8)
    assert row["protocol"] == [
        "deduplicate.removed: 4 instead of 0",
        "fid.encoder: efficientnet-lite0 instead of inception_v3",
        "sample.sampler.levels: 100 instead of 500",
    ]
    pairs = json.loads((tmp_path / "data/filter/net-conditioning/filter.json").read_text())
    assert tables["Table 3"]["rows"][0]["ours"] == pairs["metrics"]["nn_ratio_near_copy"]["flagged"]
    assert tables["Table 4"]["rows"][0]["ours"] == pairs["ratio"]["min"]
    unjudged = tables["Table 2"]["rows"][0]
    assert unjudged["ours"] is None
    assert unjudged["difference"] is None
    for text in ("A paper, 2026", "6.49", "instead of inception_v3", "nobody has judged the pairs", "two more rows"):
        assert text in page


def test_without_published_numbers_the_page_has_no_such_section(report):
    page, results = report(None)
    assert 'id="published"' not in page
    assert results["published"] == []


def test_a_number_of_no_variant_is_refused(report):
    tables = [{"table": "Table 1", "measure": "fid_train", "numbers": {"net": 1.0}}]
    with pytest.raises(InputError, match="report.published: Table 1 has a number of 'net', which is not a variant"):
        report({**PUBLISHED, "tables": tables})
    with pytest.raises(ValueError, match="measure"):
        Published(**{**PUBLISHED, "tables": [{**tables[0], "measure": "fid"}]})


def test_what_our_results_lack_differs_and_equal_values_do_not():
    found = {"fid": {"samples": 10_000, "per_class": True}, "train": {"noise": {"sigma_max": 50.0}}}
    protocol = {"fid.samples": 10_000, "fid.per_class": True, "train.noise.sigma_max": 50, "train.seed.x": 1, "no": 2}
    assert differing(protocol, found) == ["train.seed.x: unknown instead of 1", "no: unknown instead of 2"]
    assert differing({"fid.samples": 100_000}, found) == ["fid.samples: 10,000 instead of 100,000"]
