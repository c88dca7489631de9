"""The loss curve of a training while it runs, as DVCLive keeps it."""

import csv
from pathlib import Path

import pytest

from pipeline.live import FOLDER, LiveCurve
from stages.protocol import Shard

pytest.importorskip("dvclive", reason="DVCLive is not installed: pip install '.[live]'")


def logged(name: str) -> list[tuple[int, float]]:
    with (FOLDER / "net-x-seed-1" / "plots" / "metrics" / f"{name}.tsv").open() as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file, delimiter="\t")]


def test_new_rows_are_logged_once_and_a_restart_begins_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dvc.yaml").write_text("stages: {}\n")
    shard = Shard("train", "train", "net-x seed 1", {}).at("cache/key.safetensors")
    curve = LiveCurve(shard)
    curve.look()  # before the first row
    assert not FOLDER.exists()
    shard.scratch.mkdir(parents=True)
    path = shard.scratch / "loss.tsv"
    path.write_text("step\tloss\n50\t2.5\n100\t1.5\n")
    curve.look()
    assert logged("loss") == [(50, 2.5), (100, 1.5)]
    with path.open("a") as file:
        file.write("150\tnan\n200\t0.5\n")
    curve.look()
    curve.look()
    assert [step for step, _ in logged("loss")] == [50, 100, 150, 200]
    path.write_text("step\tloss\n50\t3.5\n")
    curve.look()
    assert logged("loss") == [(50, 3.5)]
    assert Path("dvc.yaml").read_text() == "stages: {}\n"  # the project's own file is left alone
