"""Every preset at toy scale, from its images to the report: all variants and every published number appear."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy_preset import toy_project

from pipeline import preset
from stages.protocol import run_plain

pytestmark = pytest.mark.long


def require_whole_report(folder: Path, tree: dict) -> None:
    """Every variant has a row of results, and every published number stands beside ours."""
    found = json.loads((folder / "data" / "report" / "results.json").read_text())
    page = (folder / "data" / "report" / "report.html").read_text()
    assert [row["variant"] for row in found["rows"]] == list(tree["variants"])
    tables = {table["table"]: table for table in found["published"]}
    for wanted in (tree["report"]["published"] or {"tables": []})["tables"]:
        rows = {row["variant"]: row for row in tables[wanted["table"]]["rows"]}
        assert rows.keys() == wanted["numbers"].keys()
        assert {name: row["paper"] for name, row in rows.items()} == wanted["numbers"]
        assert wanted["table"] in page
        if wanted["measure"] not in ("verified", "verified_without_repeated"):  # these need people's verdicts
            assert all(row["ours"] is not None for row in rows.values()), wanted["table"]


@pytest.mark.parametrize("name", preset.names())
def test_every_stage_of_a_toy_preset_runs(tmp_path, monkeypatch, name):
    """One process, without DVC and Prefect."""
    monkeypatch.chdir(tmp_path)
    tree = toy_project(tmp_path, name)
    for stage in ("ingest", "deduplicate", "embed", "index", "verify"):
        run_plain(stage)
    for variant in tree["variants"]:
        for stage in ("train", "choose", "sample", "filter", "fid"):
            run_plain(stage, variant)
    run_plain("report")
    require_whole_report(tmp_path, tree)


def test_a_toy_preset_through_repro(tmp_path):
    tree = toy_project(tmp_path, "cifar10")
    command = [sys.executable, "-m", "pipeline.cli"]
    try:
        done = subprocess.run([*command, "repro", "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    finally:
        subprocess.run([*command, "server", "stop"], cwd=tmp_path, capture_output=True)
    require_whole_report(tmp_path, tree)
