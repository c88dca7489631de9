"""The dispatch, end to end on tiny stages: finished work is found again after kills and damage."""

import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest
from crowding import Process
from PIL import Image
from small_project import SmallProject
from watching import (
    SAMPLE,
    TRAIN,
    logged,
    newest_run,
    orphans,
    processes,
    query,
    results,
    samples,
    undisturbed,
    until,
)  # fmt: skip

from pipeline import progress, server, server_login
from stages.diffusion import train_network
from stages.diffusion.loss_curve import COLUMNS
from stages.files.artifacts import write_json


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    """A project with the variant `net` trained, and what two processes printed that wanted its server at once."""
    project = SmallProject(tmp_path_factory.mktemp("project"))
    try:
        racing = [project.start("server", "start") for _ in range(2)]
        printed = [process.communicate(timeout=300)[0] for process in racing]
        project.run("stage", "ingest")
        project.run(*TRAIN)
        shutil.copytree(project.folder / "data", project.folder / "data.good")
        yield project, printed
    finally:
        project.stop()


@pytest.fixture
def project(started):
    """The project in its first state, without samples."""
    project, _ = started
    project.reset()
    shutil.rmtree(project.folder / ".scoresmooth/shards/sample", ignore_errors=True)
    shutil.rmtree(project.folder / "data")
    shutil.copytree(project.folder / "data.good", project.folder / "data")
    project.log()
    yield project
    project.release()
    until(lambda: not orphans(project))


def task_states(project: SmallProject, run: dict[str, Any]) -> dict[str, str]:
    runs = query(project, "task_runs", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert not any(task["tags"] for task in runs)  # each start would ask the server about the limits of its tags
    return {task["name"]: task["state_name"] for task in runs}


def test_two_racing_processes_start_one_server(started):
    project, printed = started
    addresses = {re.search(r"http://\S+", text)[0] for text in printed}
    assert len(addresses) == 1
    assert sorted("already running" in text for text in printed) == [False, True]
    assert len(processes(project, "server\0start\0--host")) == 1
    address = addresses.pop()
    assert address in project.run("server", "status")
    with urllib.request.urlopen(f"{address}/ui-settings", timeout=30) as response:
        assert json.load(response)["api_url"] == "/api"  # the pages ask the server that they come from


def test_the_ui_shows_runs_tasks_and_artifacts(project):
    noise = np.random.default_rng(0).integers(0, 256, (600, 700, 3), dtype=np.uint8)
    Image.fromarray(noise).save(project.folder / "drawn.png")
    path = project.folder / "stages" / "sample.py"
    more = '; import shutil; shutil.copy("drawn.png", out / "pairs.png"); write_text(out / "report.html", "<p>")'
    last = 'write_json(out / "sample.json", {"count": params.count})'
    path.write_text(path.read_text().replace(last, last + more))
    first = project.run(*SAMPLE)
    assert "4 shards, 0 cached, 4 to compute" in first
    expected = samples(project)
    run = newest_run(project)
    assert (run["name"], run["state_name"], sorted(run["tags"])) == ("sample net", "Completed", ["net", "sample"])
    given = {"stage": "sample", "variant": "net", "count": 8, "shards": 4, "seed": 1}
    assert run["parameters"] == {**given, "spec": {"network": True, "temperature": 1.0}}
    names = {f"net {n}/4" for n in range(1, 5)}
    until(lambda: task_states(project, run) == {**dict.fromkeys(names, "Completed"), "gather": "Completed"})
    assert heartbeats(project, run)
    shown = query(project, "artifacts", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    data = {item["key"].removeprefix("sample-net-"): item["data"] for item in shown}
    assert sorted(data) == ["pairs", "params", "progress", "report", "sample"]
    assert json.loads(data["sample"]) == [{"name": "count", "value": 8}]
    assert {"name": "count", "value": 8} in json.loads(data["params"])
    assert data["progress"] == 100
    assert (project.folder / "data/sample/net/report.html").as_uri() in data["report"]
    picture = base64.b64decode(re.search(r"\(data:image/png;base64,(.*)\)", data["pairs"])[1])
    assert Image.open(io.BytesIO(picture)).size == (350, 300)  # more than 512 KiB: halved
    assert project.log() == [f"sample net {n}/4" for n in range(1, 5)]

    assert "4 shards, 4 cached, 0 to compute" in project.run(*SAMPLE)
    run = newest_run(project)
    until(lambda: task_states(project, run) == {**dict.fromkeys(names, "Cached"), "gather": "Completed"})
    assert project.log() == []
    assert samples(project) == expected


def heartbeats(project: SmallProject, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The events by which Prefect knows that a run lives."""
    of_run = {"resource": {"id": [f"prefect.flow-run.{run['id']}"]}, "event": {"name": ["prefect.flow-run.heartbeat"]}}
    return query(project, "events", {"filter": of_run})["events"]


def test_a_training_shows_how_far_it_is(project):
    """A single long shard: its steps are its progress. The names are those of the real training."""
    assert (progress.CURVE, COLUMNS[0]) == (train_network.LOSS, "step")
    path = project.folder / "stages" / "train.py"
    text = path.read_text()
    for old, new in (
        ('{"steps": params.steps,', '{"optimization": {"steps": params.steps}, "steps": params.steps,'),
        ('log(f"train', r'write_text(shard.scratch / "loss.tsv", f"step\tloss\n{step + 1}\t0.5\n"); log(f"train'),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    project.hold(4)
    process = project.start(*TRAIN)
    shown = {"artifacts": {"key": {"any_": ["train-net-progress"]}}, "sort": "CREATED_DESC"}
    until(lambda: [item["data"] for item in query(project, "artifacts", shown)][:1] == [40])
    project.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert query(project, "artifacts", shown)[0]["data"] == 100


@pytest.mark.faults
def test_damaged_shards_are_computed_again_and_only_they(project):
    project.run(*SAMPLE)
    expected = samples(project)
    project.log()
    flipped, cut, _, deleted = results(project, "sample")
    content = bytearray(flipped.read_bytes())
    content[3] ^= 1
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    deleted.unlink()  # Prefect's own record still lists it
    output = project.run(*SAMPLE)
    assert output.count("the cached result is damaged") == 3
    assert len(project.log()) == 3
    assert samples(project) == expected


@pytest.mark.faults
def test_kill_in_the_middle_of_sample_then_only_the_missing_shards_are_computed(project):
    project.hold(2)
    process = project.start(*SAMPLE)
    until(lambda: len(list((project.folder / ".scoresmooth/shards").glob("sample/*.manifest"))) == 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.release()
    done = project.log()
    assert done == ["sample net 1/4", "sample net 2/4"]
    assert not (project.folder / "data/sample").exists()
    project.run(*SAMPLE)
    # the second shard was logged; whether its manifest was written in time is open
    assert project.log() in (
        ["sample net 3/4", "sample net 4/4"],
        ["sample net 2/4", "sample net 3/4", "sample net 4/4"],
    )
    resumed = samples(project)
    assert undisturbed(project) == resumed


@pytest.mark.faults
def test_kill_of_a_training_stage_ends_its_process_and_the_next_one_resumes(project):
    project.params["train"]["steps"] = 12  # another training
    project.write_params()
    project.hold(3)
    process = project.start(*TRAIN)
    until(lambda: logged(project, 3))
    assert len(processes(project, "pipeline.child")) == 1
    process.kill()  # the stage only: its child must notice by itself
    process.wait()
    until(lambda: not processes(project, "pipeline.child"), 10)
    project.release()
    assert project.log() == [f"train net step {n}" for n in range(3)]
    project.run(*TRAIN)
    assert project.log() == [f"train net step {n}" for n in range(3, 12)]
    assert json.loads((project.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKL"]


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_children_and_marks_the_run_crashed(project, number):
    project.params["train"]["steps"] = 100 + number
    project.write_params()
    project.hold(2)
    process = project.start(*TRAIN)
    until(lambda: logged(project, 2))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode in (-number, 128 + number), output
    assert not processes(project, "pipeline.child")
    assert "interrupted" in output
    assert newest_run(project)["state_name"] == "Crashed"
    project.release()
    project.run(*TRAIN)
    assert project.log() == [f"train net step {n}" for n in range(100 + number)]  # each of them once
    (trained,) = json.loads((project.folder / "data/train/net/score.json").read_text())
    assert trained == "".join(chr(65 + step) for step in range(100 + number))


def test_a_stage_that_runs_already_is_waited_for_and_its_work_not_done_twice(project):
    project.hold(1)
    first = project.start(*SAMPLE)
    until(lambda: logged(project, 1))
    second = project.start(*SAMPLE)
    assert f"process {first.pid} is still running this stage" in second.stdout.readline()
    project.release()
    for process in (first, second):
        process.communicate(timeout=60)
        assert process.returncode == 0
    assert len(project.log()) == 4


def test_wrong_input_found_in_a_child_process_is_one_line(project):
    project.params["variants"]["net"]["temperature"] = 13.0
    project.write_params()
    output = project.run(*TRAIN, code=2)
    assert "error: temperature 13 is unlucky: take another" in output
    assert "Traceback" not in output
    assert newest_run(project)["state_name"] == "Failed"


@pytest.mark.parametrize("processes", [["sample"], []], ids=["process", "thread"])
def test_a_failing_shard_shows_its_cause_everywhere_and_leaves_the_others(project, processes):
    """At the terminal with its traceback, once, and the cause in the last line; in the states of the UI the cause."""
    project.params["execution"]["processes"] = processes
    project.write_params()
    path = project.folder / "stages" / "sample.py"
    check = "assert 'net 3' not in shard.name, 'three'; first, last ="
    path.write_text(path.read_text().replace("first, last =", check))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "assert" in text)
    output = project.run(*SAMPLE, code=1)
    cause = f"sample net 3/4: AssertionError: three (stages/sample.py, line {line})"
    assert output.count("Traceback") == 1
    assert output.splitlines()[-1] == f"error: {cause}"
    assert project.log() == ["sample net 1/4", "sample net 2/4"]
    run = newest_run(project)
    assert cause in run["state"]["message"]
    logs = query(project, "logs", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})
    assert any(cause in log["message"] for log in logs)


def test_a_second_attempt_stands_in_the_runs_log(project):
    project.params["execution"]["processes"] = ["sample"]
    project.write_params()
    path = project.folder / "stages" / "sample.py"
    refuse = 'import os; os.environ["SCORESMOOTH_MEMORY_SHARE"] == "1.0" and bytearray(1 << 62); first, last ='
    path.write_text(path.read_text().replace("first, last =", refuse))
    project.run(*SAMPLE)
    logs = query(project, "logs", {"logs": {"flow_run_id": {"any_": [newest_run(project)["id"]]}}})
    tried = [log["message"] for log in logs if "trying once more with half the working memory" in log["message"]]
    assert len(tried) == 4


def test_a_stage_without_shards_needs_no_server(tmp_path):
    project = SmallProject(tmp_path)
    project.run("stage", "train", "--variant", "closed")
    assert json.loads((tmp_path / "data/train/closed/score.json").read_text()) == []
    assert not (tmp_path / ".scoresmooth" / "prefect").exists()


def test_code_digest_follows_the_imports(tmp_path):
    project = SmallProject(tmp_path)

    def digest(stage: str) -> str:
        code = f"from pipeline.closure import code_digest; print(code_digest({stage!r}))"
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=project.environment(), check=True, capture_output=True, text=True
        ).stdout

    first = digest("sample")
    project.write_stage("filter", suffix="# a comment\n")
    assert digest("sample") == first
    project.write_stage("sample", suffix="from stages import helper\n")
    (tmp_path / "stages" / "helper.py").write_text("")
    second = digest("sample")
    assert second != first
    (tmp_path / "stages" / "helper.py").write_text("FACTOR = 2\n")
    assert digest("sample") != second


@pytest.mark.faults
def test_a_killed_server_comes_back_on_its_port_with_its_history(project):
    status = project.run("server", "status")
    runs = len(query(project, "flow_runs", {}))
    (pid,) = processes(project, "server\0start\0--host")
    os.kill(pid, signal.SIGKILL)
    until(lambda: not processes(project, "server\0start\0--host"))
    assert "not running" in project.run("server", "status", code=1)
    output = project.run(*SAMPLE)
    assert status.split()[0] in output
    assert len(query(project, "flow_runs", {})) == runs + 1


def test_old_runs_are_forgotten_and_results_stay(project):
    project.run(*SAMPLE)
    runs = len(query(project, "flow_runs", {}))
    assert "deleted 0 runs" in project.run("server", "prune", "--days", "1")
    assert len(query(project, "flow_runs", {})) == runs
    assert f"deleted {runs} runs" in project.run("server", "prune", "--days", "0")
    assert query(project, "flow_runs", {}) == []
    assert "4 cached, 0 to compute" in project.run(*SAMPLE)


class Foreign(BaseHTTPRequestHandler):
    """A server that has nothing to do with the project."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"pid": 1, "proof": "0123"}')

    def log_message(self, *_):
        pass


def test_a_foreign_server_on_the_port_is_not_mistaken_for_ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign = HTTPServer(("127.0.0.1", 0), Foreign)
    Thread(target=foreign.serve_forever, daemon=True).start()
    try:
        port = foreign.server_port
        write_json(server.HOME / "server.json", {"port": port, "pid": os.getpid()})
        server_login.make_login(server.HOME)
        assert not server.is_ours(port)
        assert server.running() is None  # its process id is ours, but nobody holds the server's lock
        assert server._choose_port() != port
    finally:
        foreign.shutdown()
        foreign.server_close()


@pytest.mark.faults
def test_kill_of_dvc_alone_then_dvc_repro_waits_for_the_stage_and_ends_identically(project):
    project.write_dvc()
    dvc, environment, run = project.dvc_command(), project.environment(), project.dvc
    run("repro", "-q", "train@net")
    project.log()
    project.hold(1)
    killed = Process([*dvc, "repro", "sample@net"], cwd=project.folder, env=environment, stdout=subprocess.DEVNULL)
    until(lambda: logged(project, 1))
    killed.kill()  # dvc alone: its stage keeps running
    killed.wait()
    with (project.folder / "dvc.log").open("w") as log:
        again = Process([*dvc, "repro", "sample@net"], cwd=project.folder, env=environment, stdout=log, stderr=log)
    until(lambda: "is still running this stage" in (project.folder / "dvc.log").read_text())
    project.release()
    assert again.wait(timeout=120) == 0
    assert project.log() == [f"sample net {n}/4" for n in range(1, 5)]
    assert "Data and pipelines are up to date" in run("repro", "sample@net")
    resumed = samples(project)
    assert undisturbed(project) == resumed
