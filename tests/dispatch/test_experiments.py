"""Experiments and git worktrees: each runs its own code, and all experiments share the project's server and cache."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_project import ROOT, SmallProject
from watching import processes, query

from pipeline import dispatch, summary
from stages.files.paths import LOCAL, shared_state

MARK = """
plan_before, work_before = plan, work

def plan(params):
    shards = plan_before(params)
    return [Shard(s.stage, s.task, s.name, {{**s.settings, "mark": "{0}"}}, s.inputs, s.suffix) for s in shards]

def work(shard):
    path = work_before(shard)
    path.write_bytes(path.read_bytes() + f"planned by {{shard.settings['mark']}}, worked on by {0};".encode())
    return path
"""
"""Code of a version of the stage `sample`: who planned a shard and who worked on it stands in the samples."""


def git(folder: Path, *arguments: str) -> str:
    """Run git, require its success, and return what it printed."""
    person = ("-c", "user.name=Test", "-c", "user.email=test@example.org")
    done = subprocess.run(["git", *person, *arguments], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def marks(samples: bytes) -> set[str]:
    return {part for part in samples.decode().split(";") if part.startswith("planned")}


@pytest.mark.parametrize(
    ("folder", "state"),
    [
        ("/home/me/project", LOCAL),
        ("/home/me/project/.dvc/tmp/exps/tmp3x", Path("/home/me/project/.scoresmooth")),
        ("/home/me/project/.dvc/tmp/exps/standalone/tmp3x/data", Path("/home/me/project/.scoresmooth")),
        ("/home/me/exps/project", LOCAL),
    ],
)
def test_an_experiment_shares_the_projects_state(folder, state):
    assert shared_state(Path(folder)) == state


def test_the_installed_command_runs_the_code_of_the_working_directory(tmp_path):
    """As in a second git worktree that shares the environment of the first."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline/__init__.py").write_text("")
    (tmp_path / "pipeline/cli.py").write_text("import sys; print('here', *sys.argv[1:])")
    script = "import sys; sys.path[0] = sys.argv.pop(1); from pipeline.cli import main; main()"
    command = [sys.executable, "-c", script, str(ROOT), "results", "--theory"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "here results --theory\n", done.stderr


@pytest.fixture
def project(tmp_path):
    """A project in git and DVC, whose network is trained."""
    project = SmallProject(tmp_path / "project")
    project.write_dvc(scm=True)
    text = (project.folder / "dvc.yaml").read_text()
    code = text.replace("deps: ['data/train/${key}']", "deps: ['data/train/${key}', stages/sample.py]")
    assert code != text
    (project.folder / "dvc.yaml").write_text(code)
    (project.folder / ".gitignore").write_text("/.scoresmooth/\n/site\n/work.log\n__pycache__\n")
    try:
        project.dvc("repro", "-q", "train")
        git(project.folder, "add", "-A")
        git(project.folder, "commit", "-qm", "base")
        yield project
    finally:
        project.stop()


@pytest.mark.long
def test_queued_experiments_run_their_own_code_and_share_one_server(project):
    for mark in ("one", "two"):
        project.write_stage("sample", suffix=MARK.format(mark))
        project.dvc("exp", "run", "--queue", "--name", f"exp-{mark}")
    project.write_stage("sample")
    printed = project.dvc("exp", "run", "--run-all")
    assert len(processes(project, "server\0start\0--host")) == 1
    for mark in ("one", "two"):
        runs = query(project, "flow_runs", {"flow_runs": {"tags": {"all_": [f"exp-{mark}"]}}})
        assert sorted((run["name"], run["state_name"]) for run in runs) == [
            ("sample closed", "Completed"), ("sample net", "Completed"),
        ], printed  # fmt: skip
        project.dvc("exp", "apply", f"exp-{mark}")
        for variant in ("closed", "net"):
            samples = (project.folder / f"data/sample/{variant}/samples.bin").read_bytes()
            assert marks(samples) == {f"planned by {mark}, worked on by {mark}"}
        git(project.folder, "checkout", "-q", "--", ".")


@pytest.mark.long
def test_a_second_git_worktree_runs_its_own_code(project, tmp_path):
    git(project.folder, "worktree", "add", "-q", str(tmp_path / "second"))
    second = SmallProject.__new__(SmallProject)
    second.folder, second.params = tmp_path / "second", project.params
    second.write_stage("sample", suffix=MARK.format("second"))
    try:
        second.dvc("repro", "-q", "sample@net")
        samples = (second.folder / "data/sample/net/samples.bin").read_bytes()
        assert marks(samples) == {"planned by second, worked on by second"}
        assert not (project.folder / "data/sample").exists()
    finally:
        second.stop()


@pytest.mark.parametrize("experiment", [None, "wide-net"])
def test_the_report_of_an_experiment_ends_with_the_table(tmp_path, monkeypatch, capsys, experiment):
    """`dvc exp run` prints no results itself; `make repro` and `scoresmooth repro` print them at their own end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)
    if experiment:
        monkeypatch.setenv("DVC_EXP_NAME", experiment)
    (tmp_path / "params.yaml").write_text("variants: {}\n")
    (tmp_path / "data/report").mkdir(parents=True)
    (tmp_path / "data/report/results.json").write_text("{}")
    monkeypatch.setattr(dispatch, "load_stage", lambda *_: (None, None))
    monkeypatch.setattr(dispatch, "stage_module", lambda _: SimpleNamespace(plan=lambda _: []))
    monkeypatch.setattr(dispatch, "_dispatch", lambda *_: 0)
    monkeypatch.setattr(summary, "print_results", lambda path: print(f"table of {path}"))
    dispatch.run_stage("report")
    printed = capsys.readouterr().out
    found = [
        text in printed for text in ("table of data/report/results.json", str(tmp_path / "data/report/report.html"))
    ]
    assert found == [experiment is not None] * 2


@pytest.mark.long
def test_what_dvc_cannot_do_on_a_fresh_clone_and_what_the_readme_says_instead(project, tmp_path):
    """DVC looks for the inputs of a stage alone, and of a dry experiment, before anything has made them."""
    clone = SmallProject.__new__(SmallProject)
    clone.folder, clone.params = tmp_path / "clone", project.params
    git(tmp_path, "clone", "-q", str(project.folder), str(clone.folder))
    alone, dry = ("repro", "-s", "sample@net"), ("exp", "run", "--dry")
    try:
        for command in (alone, dry):
            with pytest.raises(AssertionError, match="No such file or directory"):
                clone.dvc(*command)
        clone.dvc("repro", "-q", "sample@net")
        clone.dvc(*alone)
        clone.dvc("repro", "--dry", "sample@net")
        with pytest.raises(AssertionError, match="No such file or directory"):
            clone.dvc(*dry)  # DVC looks for the outs in a copy of the project that has none
    finally:
        clone.stop()
