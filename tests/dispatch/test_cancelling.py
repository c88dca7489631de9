"""A run that is cancelled in Prefect ends its work, which resumes where it stopped."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from crowding import Process
from held_training import held_training, served_project
from small_project import SmallProject, hear_interrupts
from watching import TRAIN, logged, login_header, orphans, query, until

pytestmark = pytest.mark.faults

DEPLOYED = """
from pipeline import server
server.become_client(server.running())
from pipeline.deployment import scheduled_repro
scheduled_repro(targets=["train"])
"""


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with served_project(tmp_path_factory.mktemp("cancel")) as project:
        yield project


@pytest.fixture
def project(started):
    with held_training(started):
        yield started


def cancel(project: SmallProject, name: str) -> dict[str, Any]:
    """Ask for the cancellation of the newest run of a name, as `prefect flow-run cancel` does."""
    run = newest(project, name)
    port = json.loads((project.folder / ".scoresmooth/prefect/server.json").read_text())["port"]
    body = json.dumps({"state": {"type": "CANCELLING"}}).encode()
    address = f"http://127.0.0.1:{port}/api/flow_runs/{run['id']}/set_state"
    headers = {"Content-Type": "application/json", **login_header(project)}
    urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30)
    return run


def newest(project: SmallProject, flow: str) -> dict[str, Any]:
    found = query(project, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1, "flows": {"name": {"any_": [flow]}}})
    return found[0]


def ends_and_resumes(project: SmallProject, process: subprocess.Popen[str]) -> str:
    """Require that a cancelled process ends with its children, and that the rest of the training follows later."""
    lock = project.folder / "dvc.lock"
    before = lock.read_bytes()
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None), output
    until(lambda: not orphans(project), 30)
    assert lock.read_bytes() == before
    project.release()
    done = project.log()
    assert done == ["train net step 0", "train net step 1"]
    project.run(*TRAIN)
    assert project.log() == [f"train net step {n}" for n in range(2, project.params["train"]["steps"])]
    return output


def test_a_cancelled_stage_ends(project):
    process = project.start(*TRAIN)
    until(lambda: logged(project, 2))
    cancel(project, "train")
    run = newest(project, "train")
    output = ends_and_resumes(project, process)
    assert "error: cancelled in Prefect: ending the work; finished shards stay cached" in output
    (found,) = query(project, "flow_runs", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert found["state_name"] == "Cancelled"


def test_a_cancelled_stage_in_the_background_of_a_script_ends(project):
    """There SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = Process(
            project.command(*TRAIN), cwd=project.folder, env=project.environment(), stdout=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    until(lambda: logged(project, 2))
    os.kill(process.pid, signal.SIGINT)  # still ignored
    cancel(project, "train")
    ends_and_resumes(project, process)


@pytest.mark.long
@pytest.mark.parametrize("ignored", [False, True], ids=["at a terminal", "in the background"])
def test_a_cancelled_graph_ends_with_its_stages(project, ignored):
    dispose = (lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else hear_interrupts
    process = Process(
        project.command("repro", "train"), cwd=project.folder, env=project.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=dispose,
    )  # fmt: skip
    until(lambda: logged(project, 2))
    run = cancel(project, "repro")
    ends_and_resumes(project, process)
    (found,) = query(project, "flow_runs", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert found["state_name"] == "Cancelled"


@pytest.mark.long
def test_a_stage_that_is_cancelled_within_a_graph_ends_the_graph(project):
    process = project.start("repro", "train")
    until(lambda: logged(project, 2))
    run = cancel(project, "train")
    output = ends_and_resumes(project, process)
    assert "train@net failed" in output
    assert "error: cancelled in Prefect" in output
    (found,) = query(project, "flow_runs", {"flow_runs": {"id": {"any_": [run["id"]]}}})
    assert found["state_name"] == "Cancelled"
    assert newest(project, "repro")["state_name"] == "Failed"


@pytest.mark.long
@pytest.mark.parametrize("killed", [True, False], ids=["by its worker", "without a worker"])
def test_a_cancelled_deployment_ends_with_its_stages(project, killed):
    process = Process(
        [sys.executable, "-c", DEPLOYED],
        cwd=project.folder,
        env=project.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )
    until(lambda: logged(project, 2))
    cancel(project, "scheduled repro")
    if killed:
        process.terminate()
    ends_and_resumes(project, process)
    assert newest(project, "repro")["state_name"] == "Cancelled"
