"""An option --out that names no place, for every command that has it: a line that names the option, before any work."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from stages.memorization.options import named_place

ROOT = Path(__file__).parents[1]

NEEDED = {
    "audit": ["--train", "folder:a", "--samples", "folder:b"],
    "copybench": [],
    "risk": ["--train", "folder:a"],
}
"""Command: the other options that it needs."""

CURVE = ["--train", "folder:a", "--samples", "folder:b", "--samples", "folder:c"]


def with_out() -> list[str]:
    """The commands of `scoresmooth` that have an option --out."""
    commands = typer.main.get_command(app).commands
    return sorted(name for name, command in commands.items() if any("--out" in each.opts for each in command.params))


def benchmarks_with_out() -> list[str]:
    """The benchmarks that have an option --out, by the name that `python -m` takes."""
    found = [path.relative_to(ROOT) for path in (ROOT / "benchmarks").rglob("*.py") if '("--out"' in path.read_text()]
    return sorted(".".join(path.with_suffix("").parts) for path in found)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


def test_every_command_that_has_the_option_is_tried_here():
    assert with_out() == sorted(NEEDED)
    assert len(benchmarks_with_out()) >= 9


@pytest.mark.parametrize("out", ["", "  ", "a" * 300])
@pytest.mark.parametrize("command", ["pipeline.cli", "stages"])
@pytest.mark.parametrize(("name", "others"), [*NEEDED.items(), pytest.param("audit", CURVE, id="audit-curve")])
def test_no_place_is_one_line(tmp_path, command, name, others, out):
    words = [f"stages.{name}"] if command == "stages" else [command, name]
    done = run(tmp_path, *words, *others, "--out", out)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --out: ")
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["copybench", "risk"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    done = run(tmp_path, f"stages.{name}", *NEEDED[name], "--out", "mine/out.csv")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "error: --out mine/out.csv cannot be written (Not a directory)" in done.stderr


def test_a_folder_in_the_place_of_the_table_is_one_line(tmp_path):
    done = run(tmp_path, "stages.risk", *NEEDED["risk"], "--out", str(tmp_path))
    assert done.stderr == f"error: --out {tmp_path} is a folder: name a file for the table\n"
    assert done.returncode == 2


@pytest.mark.parametrize("command", ["pipeline.cli", "stages"])
def test_another_wrong_option_is_one_line_too(tmp_path, command):
    words = ["stages.risk"] if command == "stages" else [command, "risk"]
    done = run(tmp_path, *words, "--train", "folder:a", "--share", "2")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --share: Input should be less than 1 (got ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", benchmarks_with_out())
def test_no_place_ends_a_benchmark_with_a_line(name, tmp_path, monkeypatch):
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, "--out", ""])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == "error: --out: name the place that the results are written to (got '')"
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_kept_as_it_is():
    assert named_place("a/b.csv") == named_place(Path("a/b.csv")) == Path("a/b.csv")
    with pytest.raises(ValueError, match="longer than the 255 bytes"):
        named_place("ä" * 128)
