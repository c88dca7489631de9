"""What runs without the extra `pipeline`: the import, the audit and its command, but neither Prefect nor DVC."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from saved import save

from pipeline.cli import PIPELINE

ROOT = Path(__file__).parents[2]
BLOCKED = f"""
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {PIPELINE}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_pipeline(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process in which the modules of the extra cannot be imported."""
    command = [sys.executable, "-c", BLOCKED + code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `scoresmooth` likewise."""
    return without_pipeline("from pipeline.cli import main\nmain()", *arguments)


def test_an_audit_from_the_command_line_and_from_python(digits, tmp_path):
    sets = {"train": digits[:60], "samples": digits[55:75], "holdout": digits[100:200]}
    specs = [part for role, images in sets.items() for part in (f"--{role}", save(tmp_path / f"{role}.npy", images))]
    done = command("audit", *specs, "--encoder", "pixels", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "5 of 20 samples are copies" in done.stdout
    again = f"""
import scoresmooth
sets = {{role: {str(tmp_path)!r} + f"/{{role}}.npy" for role in ("train", "samples", "holdout")}}
print(scoresmooth.audit(**sets, encoder="pixels", out={str(tmp_path / "out")!r}).copies)
"""
    done = without_pipeline(again)
    assert (done.stdout, done.returncode) == ("5\n", 0), done.stderr


@pytest.mark.parametrize("name", ["repro", "stage ingest", "dag"])
def test_the_other_commands_name_the_extra(name):
    done = command(*name.split())
    assert done.returncode == 2
    assert done.stderr.endswith(": pip install 'scoresmooth[pipeline]'\n"), done.stderr
    assert done.stderr.startswith("error: this command needs ")


def test_the_review_needs_no_extra():
    done = without_pipeline("import pipeline.review.serve")
    assert done.returncode == 0, done.stderr


def test_version():
    assert command("--version").stdout == f"scoresmooth {version('scoresmooth')}\n"


def test_the_extra_holds_what_is_blocked_here_and_make_installs_it():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {Requirement(line).name for line in project["dependencies"]}
    extra = {Requirement(line).name for line in project["optional-dependencies"]["pipeline"]}
    assert {"prefect", "dvc", "faiss-gpu"} <= extra
    assert not {"prefect", "dvc", "faiss-gpu", "matplotlib"} & names
    assert re.findall(r"^\$\(VENV\)/\.installed.*: extras := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE) == [
        "pipeline", "pipeline,test",
    ]  # fmt: skip


def test_the_import_takes_no_torch():
    code = "import sys, scoresmooth\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
