"""The tags that runs share: one per `dvc repro`, the commit, the experiment."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_project import ROOT

from pipeline.labels import shared_labels

STAGES = """
import subprocess, sys
code = f"import sys; sys.path.insert(0, {sys.argv[1]!r}); from pipeline.labels import shared_labels; "
for _ in range(2):
    subprocess.run(["sh", "-c", '"$0" -c "$1"; true', sys.executable, code + "print(*shared_labels(), flush=True)"])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder without git, outside of any run."""
    for name in ("DVC_EXP_NAME", "SCORESMOOTH_RUN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reproduce(folder: Path) -> list[str]:
    """The tags of two stages that a program named dvc starts one after the other."""
    (folder / "dvc").write_text(STAGES)
    command = [sys.executable, str(folder / "dvc"), str(ROOT)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def test_the_stages_of_one_dvc_repro_share_a_tag(folder):
    first, second = reproduce(folder), reproduce(folder)
    assert len(first) == len(second) == 2
    assert len(set(first)) == len(set(second)) == 1
    assert first[0].startswith("run-")
    assert first[0] != second[0]


def test_a_run_carries_its_commit_and_its_experiment(folder, monkeypatch):
    monkeypatch.setenv("SCORESMOOTH_RUN", "run-1")
    assert shared_labels() == {"run-1"}
    monkeypatch.setenv("DVC_EXP_NAME", "wide-net")
    for command in (("init", "-q"), ("-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "a",
                                     "--allow-empty")):  # fmt: skip
        subprocess.run(["git", *command], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert shared_labels() == {"run-1", "wide-net", f"commit-{head[:12]}"}
