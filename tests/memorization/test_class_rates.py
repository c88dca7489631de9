"""Samples with labels: filter.json says how many of each class are copied, and the report shows it."""

import json
from pathlib import Path

import numpy as np
import yaml
from filter_inputs import TREE, write_index
from report_project import IMAGES, write_project

from stages.files.images import image_table, write_images
from stages.memorization.group_rates import class_rates
from stages.protocol import run_plain


def test_the_filter_counts_the_headline_in_every_class(tmp_path, monkeypatch):
    """All samples of class 2 are training images, and none of class 5."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    train, held, new = (rng.integers(0, 256, (count, 8, 8, 3), np.uint8) for count in (60, 80, 10))
    write_images("data/deduplicate/train.arrow", image_table(train))
    write_images("data/deduplicate/holdout.arrow", image_table(held, np.tile([2, 5], 40)))
    write_index(train)
    Path("params.yaml").write_text(yaml.safe_dump(TREE))
    samples = np.concatenate([train[:10], new])
    for labels, wanted in ((np.repeat([2, 5], 10), {"2": (10, 10), "5": (0, 10)}), (None, None)):
        write_images("data/sample/v/samples.arrow", image_table(samples, labels))
        run_plain("filter", "v")
        found = json.loads(Path("data/filter/v/filter.json").read_text())
        if wanted is None:
            assert "classes" not in found
            continue
        assert {row["group"]: (row["flagged"], row["count"]) for row in found["classes"]} == wanted
        assert [row["holdout"]["count"] for row in found["classes"]] == [40, 40]
        assert found["classes"][0]["p_holm"] < 1e-4
        assert sum(row["flagged"] for row in found["classes"]) == found["metrics"][found["headline"]]["flagged"]


def test_the_report_shows_the_rates_of_the_classes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project(tmp_path, IMAGES)
    path = Path("data/filter/net-conditioning/filter.json")
    copied = np.arange(40) < 15
    rows = class_rates(np.repeat([3, 8], 20), copied, np.array([3, 3, 3]), np.array([True, False, False]))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"classes": rows}))
    run_plain("report")
    page = Path("data/report/report.html").read_text(encoding="utf-8")
    assert page.count("Copied samples by class: 1 of 2 classes exceed the others") == 1
    row = page.split("<tr><th>3</th><td>20</td>")[1].split("</tr>")[0]
    assert "75" in row
    assert "33" in row
    assert "none" in page.split("<tr><th>8</th><td>20</td>")[1].split("</tr>")[0]
