"""scoresmooth repro: independent stages run at once, one at a time on a GPU, and none twice after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_project import ROOT, SmallProject
from watching import logged, orphans, processes, query, until

from pipeline import cli, dag, dispatch, gpus, repro, runners
from pipeline.locks import locked, name_holder
from pipeline.params import load_params
from pipeline.repro import thread_variables
from stages.protocol import load_tree


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A DVC project where everything except the samples is up to date."""
    project = SmallProject(tmp_path_factory.mktemp("repro"))
    project.write_dvc()
    try:
        project.run("repro", "train", "--jobs", "2")
        yield project
    finally:
        project.stop()


@pytest.fixture
def project(started):
    """The project with other samples to compute."""
    started.release()
    started.params["sample"]["seed"] += 1
    started.write_params()
    started.log()
    yield started
    started.release()
    until(lambda: not orphans(started))


EIGHT = sorted(f"sample {variant} {n}/4" for variant in ("closed", "net") for n in range(1, 5))


def samples(project: SmallProject) -> dict[str, bytes]:
    return {name: (project.folder / f"data/sample/{name}/samples.bin").read_bytes() for name in ("closed", "net")}


def undisturbed(project: SmallProject) -> dict[str, bytes]:
    """The samples of a run without dispatch, cache or interruption."""
    for variant in ("closed", "net"):
        project.plain("sample", variant)
    return samples(project)


def start_both(project: SmallProject) -> subprocess.Popen[str]:
    """Start a run, and wait until both sample stages are at work; neither can finish a shard."""
    logs = [project.folder / f".scoresmooth/logs/sample@{variant}.log" for variant in ("closed", "net")]
    for log in logs:
        log.unlink(missing_ok=True)
    project.hold(0)
    process = project.start("repro", "--jobs", "2")
    until(lambda: all(log.exists() and "4 to compute" in log.read_text() for log in logs))
    return process


def test_independent_stages_run_at_once_and_the_ui_shows_them_below_one_run(project):
    dry = project.run("repro", "--dry-run").splitlines()
    assert dry == ["sample@closed", "sample@net"]
    process = start_both(project)
    project.release()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert sorted(project.log()) == EIGHT
    whole = query(project, "flow_runs", {"sort": "START_TIME_DESC", "flows": {"name": {"any_": ["repro"]}}})[0]
    below = query(project, "flow_runs", {"flow_runs": {"parent_flow_run_id": {"any_": [whole["id"]]}}})
    assert sorted(run["name"] for run in below) == ["sample closed", "sample net"]
    assert len({tag for run in (whole, *below) for tag in run["tags"] if tag.startswith("run-")}) == 1
    assert whole["parameters"] == {"stages": ["sample@closed", "sample@net"], "jobs": 2}
    shown = {"artifacts": {"flow_run_id": {"any_": [whole["id"]]}, "key": {"any_": ["overview"]}}}
    (table,) = query(project, "artifacts", shown)
    for name in ("sample@closed", "sample@net"):
        assert f'"stage": "{name}", "state": "done"' in table["data"]
    assert table["data"].count('"shards cached": 0, "shards computed": 4') == 2
    assert undisturbed(project) == samples(project)
    assert "up to date" in project.run("repro")


def test_a_dry_run_names_the_stages_whose_own_code_was_edited(tmp_path):
    """All stages depend on the stage `code`, but an edit reaches only those whose list of files it changes."""
    project = SmallProject(tmp_path)
    project.write_dvc()
    document = yaml.safe_load((tmp_path / "dvc.yaml").read_text())
    for name, stage in document["stages"].items():
        stage.get("do", stage).setdefault("deps", []).append(f"data/code/{name}.txt")
    lists = [f"data/code/{name}.txt" for name in document["stages"]]
    document["stages"]["code"] = {"cmd": " ".join(project.command("code")), "deps": ["stages"], "outs": lists}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(document))
    project.run("code")
    for out in ("ingest", "train/closed", "train/net", "sample/closed", "sample/net"):
        (tmp_path / "data" / out).mkdir(parents=True)
        (tmp_path / "data" / out / "out.txt").write_text(out)
    project.dvc("commit", "-f", "-q")
    assert "up to date" in project.run("repro", "--dry-run")
    project.write_stage("sample", suffix="# a comment\n")
    assert sorted(project.run("repro", "--dry-run").splitlines()) == ["code", "sample@closed", "sample@net"]
    project.write_stage("sample")
    project.write_stage("train", suffix="# a comment\n")
    assert sorted(project.run("repro", "--dry-run").splitlines()) == [
        "code",
        "sample@closed (if what it depends on changes)",
        "sample@net (if what it depends on changes)",
        "train@closed",
        "train@net",
    ]


@pytest.mark.long
@pytest.mark.faults
def test_a_failing_stage_leaves_the_others_and_says_why(project):
    path = project.folder / "stages" / "sample.py"
    good = path.read_text()
    path.write_text(good.replace("first, last =", "assert 'net 3' not in shard.name; first, last ="))
    try:
        output = project.run("repro", "--jobs", "2", code=1)
    finally:
        path.write_text(good)
    assert output.count("AssertionError") == 1
    assert "sample@net failed (exit code 255" in output
    assert "sample@closed: done" in output


@pytest.mark.long
@pytest.mark.faults
def test_ctrl_c_stops_the_children_and_the_next_run_goes_on(project):
    process = start_both(project)
    project.hold(2)
    until(lambda: logged(project, 2))
    process.send_signal(signal.SIGINT)  # to this process alone, as a scheduler would
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130), output
    assert not processes(project, "sample")
    project.release()
    first = project.log()
    project.run("repro", "--jobs", "2")
    rest = project.log()
    # at most the two shards under way are computed again
    assert set(first + rest) == set(EIGHT)
    assert len(first + rest) <= len(EIGHT) + 2
    resumed = samples(project)
    assert undisturbed(project) == resumed


@pytest.mark.faults
def test_stages_that_outlive_a_killed_run_are_waited_for_and_not_run_twice(project):
    killed = start_both(project)
    killed.kill()
    killed.wait()
    assert processes(project, "sample")
    again = project.start("repro", "--jobs", "2")
    lines = [again.stdout.readline() for _ in range(3)]
    assert sum("of an earlier run is still working on it: waiting" in line for line in lines) == 2, lines
    assert any("repro: an earlier run was killed; it is marked crashed" in line for line in lines), lines
    project.release()
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert sorted(project.log()) == EIGHT
    runs = query(project, "flow_runs", {"sort": "START_TIME_DESC", "flows": {"name": {"any_": ["repro"]}}})
    assert [run["state_name"] for run in runs[:2]] == ["Completed", "Crashed"]
    resumed = samples(project)
    assert undisturbed(project) == resumed


@pytest.mark.parametrize(
    ("index", "flow", "takes"),
    [(0, "scheduled repro", {"jobs", "targets"}), (1, "scheduled stage", {"name", "variant"})],
)
def test_a_deployment_names_a_flow_and_its_parameters(tmp_path, index, flow, takes):
    deployment = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][index]
    code = "import json, sys; from prefect.flows import load_flow_from_entrypoint as load; flow = load(sys.argv[1])\n"
    code += "print(json.dumps([flow.name, sorted(flow.parameters.properties)]))"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", code, deployment["entrypoint"]]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=120)
    name, parameters = json.loads(done.stdout)
    assert name == flow
    assert set(deployment["parameters"]) <= set(parameters) == takes


def test_the_server_listens_on_loopback_only(started):
    port = json.loads((started.folder / ".scoresmooth/prefect/server.json").read_text())["port"]
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, _, state = line.split()[1:4]
            if state == "0A" and int(address.rsplit(":", 1)[1], 16) == port:
                listening.add(address.rsplit(":", 1)[0])
    assert listening == {"0100007F"}  # 127.0.0.1, in the kernel's byte order


def test_threads_are_shared_among_the_stages(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert thread_variables("filter@a", 1) == {}
    assert thread_variables("filter@a", 3) == {"OMP_NUM_THREADS": "2"}
    assert thread_variables("filter@a", 20) == {"OMP_NUM_THREADS": "1"}
    for same in ("train@a", "sample@a", "verify"):  # the same results as without --jobs
        assert thread_variables(same, 3) == {}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert thread_variables("filter@a", 3) == {}


@pytest.mark.parametrize(
    ("stage", "asked", "given"),
    [("verify", None, "1"), ("sample", None, "1"), ("filter", None, None), ("verify", "3", "3"), ("train", None, None)],
)
def test_measurements_take_one_thread_with_dvc_repro_too(monkeypatch, stage, asked, given):
    """Else `scoresmooth repro --jobs 2` would change their last bits."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    seen = []
    monkeypatch.setattr(subprocess, "Popen", lambda command, env, **_: seen.append(env.get("OMP_NUM_THREADS")))
    runners._Child(stage, gpus.Reservation(), {})
    assert seen == [given]


@pytest.mark.parametrize(("threads", "jobs"), [(1, 3), (2, 1), (None, 1)])
def test_seeds_train_side_by_side_unless_each_takes_several_threads(monkeypatch, threads, jobs):
    """Threads that wait for each other spin, and take the cores from the other training."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.chdir(ROOT)
    found = load_params()
    params = found.stages["train", "net-conditioning"].model_copy(update={"threads": threads})
    execution = found.execution.model_copy(update={"jobs": 3})
    assert dispatch.local_jobs("train", params, execution, 0) == jobs
    assert dispatch.local_jobs("train", params, execution, 1) >= 1  # a GPU of its own


@pytest.mark.parametrize(
    ("threads", "name", "alone"),
    [
        ("2", "train@net-conditioning", True),
        ("1", "train@net-conditioning", False),
        ("2", "train@closed-conditioning", False),  # nothing is trained
        ("2", "sample@net-conditioning", False),
    ],
)
def test_a_training_with_several_threads_runs_alone(monkeypatch, tmp_path, threads, name, alone):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(gpus, "visible", tuple)
    tree = load_tree()
    for given in (None, int(threads)):
        tree["train"]["threads"] = given
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tree))
        assert dispatch._runs_alone(name, load_params(path)) == alone


@pytest.mark.parametrize(("asked", "alone"), [(1, False), (2, True)])
def test_the_threads_of_the_parameters_count(monkeypatch, asked, alone):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", str(3 - asked))
    monkeypatch.setattr(gpus, "visible", tuple)
    parameters, key = load_params(), ("train", "net-conditioning")
    parameters.stages[key] = parameters.stages[key].model_copy(update={"threads": asked})
    assert dispatch._runs_alone("train@net-conditioning", parameters) == alone


SCHEDULE = """
from pipeline.repro import Outcome, Reproducer
from pipeline.repro_flow import _Schedule

class Graph:
    names = ("in", "x", "y", "train@a", "train@b", "sample@a", "sample@b")
    upstream = {"in": (), "x": (), "y": (), "train@a": ("in",), "train@b": ("in",),
                "sample@a": ("train@a",), "sample@b": ("train@b",)}
    def depth(self, name):
        return {"in": 3, "train@a": 2, "train@b": 2}.get(name, 1)

outcomes = {name: Outcome(name, "not started") for name in Graph.names}
reproducer = Reproducer(2, (), bool)
schedule = _Schedule(Graph(), list(Graph.names), reproducer, lambda name: 2, {"train@a", "train@b"}, outcomes)
while schedule._waiting or schedule._running:
    while name := schedule._next():
        schedule._running[name] = None
    print(*schedule._running)
    first = next(iter(schedule._running))
    del schedule._running[first]
    outcomes[first] = Outcome(first, "done")
"""


def test_nothing_runs_beside_a_stage_that_takes_all_processors(tmp_path):
    """Other stages run two at a time. Stages end in the order in which they started."""
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", SCHEDULE]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = ["in x", "x y", "y", "train@a", "train@b", "sample@a sample@b", "sample@b"]
    assert done.stdout.splitlines() == lines


def test_the_stage_that_lists_the_code_is_done_when_it_ran(tmp_path, monkeypatch):
    """Only a stage that left no record was restored by DVC."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dag, "write_code_lists", lambda: None)
    assert repro._outcome("code", 1.0, 1.0).state == "restored"
    cli.code()
    assert repro._outcome("code", 1.0, 1.0).state == "done"


def test_a_lock_follows_no_link(tmp_path):
    (tmp_path / "a.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"), locked(tmp_path / "a.lock"):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_lock_names_its_holder_whole(tmp_path):
    """The process that inherits a lock may have a shorter number than the one that took it."""
    said = []
    with locked(tmp_path / "a.lock") as handle:
        os.pwrite(handle, b"1234567\n", 0)
        name_holder(handle, 42)
        code = "import sys; from pathlib import Path; from pipeline.locks import locked\n"
        code += "with locked(Path(sys.argv[1]), lambda pid: print(repr(pid), flush=True)): pass"
        waiting = subprocess.Popen([sys.executable, "-c", code, tmp_path / "a.lock"], stdout=subprocess.PIPE, text=True)
        said.append(waiting.stdout.readline())
    waiting.communicate(timeout=30)
    assert said == ["'42'\n"]
