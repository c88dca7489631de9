"""Audits of several checkpoints: their names and order, one search of the training set, the curve and the exit code."""

import csv
import json

import numpy as np
import pytest
from accessible import missing_names
from PIL import Image
from saved import save

from stages.audit import COPIES_ABOVE_LIMIT, DONE, run_all, run_curve
from stages.errors import InputError
from stages.memorization import audit_work
from stages.memorization.audit_runs import Run, named_runs
from stages.memorization.statistics import rate_interval


@pytest.fixture
def checkpoints(digits, tmp_path):
    """Folders step-900, step-1000, step-2000 with 0, 3 and 12 copies among 30 samples, and the other options."""
    for step, copies in ((900, 0), (1000, 3), (2000, 12)):
        folder = tmp_path / "runs" / f"step-{step}"
        folder.mkdir(parents=True)
        for row, image in enumerate(np.concatenate([digits[:copies], digits[300 + copies : 330]])):
            Image.fromarray(image[..., 0]).save(folder / f"{row:02}.png")
    specs = {"train": save(tmp_path / "train.npy", digits[:200]), "holdout": save(tmp_path / "h.npy", digits[400:540])}
    return f"folder:{tmp_path}/runs/step-*", {**specs, "encoder": "pixels", "out": tmp_path / "out"}


def test_a_pattern_gives_a_curve_by_step_from_one_search(checkpoints, monkeypatch, capsys):
    pattern, options = checkpoints
    searched, match = [], audit_work.match
    monkeypatch.setattr(
        audit_work, "match", lambda queries, *rest: searched.append(len(queries)) or match(queries, *rest)
    )
    high = rate_interval(3, 30)[1]
    assert run_curve(named_runs([pattern]), {**options, "fail_above": high}, quiet=True) == COPIES_ABOVE_LIMIT
    assert sorted(searched)[:3] == [30, 30, 30]
    assert len(searched) == 5  # the control and the planted copies once
    found = json.loads((options["out"] / "curve.json").read_text())
    assert [(row["name"], row["step"], row["flagged"]) for row in found["runs"]] == [
        ("step-900", 900, 0), ("step-1000", 1000, 3), ("step-2000", 2000, 12)
    ]  # fmt: skip
    assert [(row["ci_low"], row["ci_high"]) for row in found["runs"]] == [rate_interval(n, 30) for n in (0, 3, 12)]
    assert found["last_below"] == "step-1000"
    with (options["out"] / "curve.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["name"], int(row["flagged"])) for row in table] == [
        ("step-900", 0),
        ("step-1000", 3),
        ("step-2000", 12),
    ]
    page = (options["out"] / "curve.html").read_text()
    assert "The last step whose interval lies below" in page
    assert page.count("<circle") == 3
    assert missing_names(page) == []
    assert all((options["out"] / name / "report.html").is_file() for name in ("step-900", "step-1000", "step-2000"))
    said = capsys.readouterr().out
    assert "step-1000: 3 of 30 samples are copies: 10.00% [2.73%, 25.62%]" in said
    alone = named_runs([pattern])[1]
    run_all([alone.source], **{**options, "out": options["out"].parent / "alone"})
    theirs = json.loads((options["out"].parent / "alone" / "audit.json").read_text())
    assert theirs["metrics"] == json.loads((options["out"] / "step-1000" / "audit.json").read_text())["metrics"]


def test_repeated_samples_without_names_of_files(checkpoints, tmp_path):
    _, options = checkpoints
    sources = [f"folder:{tmp_path}/runs/step-{step}" for step in (900, 1000)]
    assert run_all(sources, **options, no_images=True, fail_above=0.5) == DONE
    assert sorted(path.name for path in options["out"].iterdir()) == [
        "curve.html", "curve.json", "curve.tsv", "run-1", "run-2"
    ]  # fmt: skip
    text = (options["out"] / "curve.json").read_text() + (options["out"] / "curve.html").read_text()
    assert "step-" not in text
    assert str(tmp_path) not in text


def test_runs_are_ordered_by_the_last_number_of_their_names_or_as_given():
    given = ["npz:b/step-10.npy", "npz:step-9.npy?images=x", "folder:seed-3/step-100/"]
    assert named_runs(given) == [
        Run("step-9", 9, given[1]), Run("step-10", 10, given[0]), Run("step-100", 100, given[2])
    ]  # fmt: skip
    given = ["folder:late", "folder:early-1"]
    assert named_runs(given) == [Run("late", 1, given[0]), Run("early-1", 2, given[1])]


def test_what_makes_no_curve_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match="2 sets are called 'step-1'"):
        named_runs(["folder:a/step-1", "folder:b/step-1"])
    with pytest.raises(InputError, match="--samples folder:.*step-.: nothing matches"):
        named_runs([f"folder:{tmp_path}/step-*"])
    large = np.repeat(np.repeat(digits[300:310], 2, 1), 2, 2)
    sources = [save(tmp_path / "step-1.npy", digits[300:310, ::2, ::2]), save(tmp_path / "step-2.npy", large)]
    options = {"train": save(tmp_path / "t.npy", digits[:100]), "holdout": save(tmp_path / "h.npy", digits[400:500])}
    with pytest.raises(InputError, match="step-1 at 7 pixels and step-2 at 14 cannot be compared: give --resolution"):
        run_all(sources, **options, out=tmp_path / "out", encoder="pixels")
