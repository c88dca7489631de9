"""The project's Prefect server loses its files, hangs, or is driven by others. See docs/faults.md."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from browser import Browser, find_browser, wait_for
from small_project import SmallProject
from watching import TRAIN, logged, orphans, processes, query, until

pytestmark = pytest.mark.faults

RECORD, LOGIN = "server.json", "login"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    project = SmallProject(tmp_path_factory.mktemp("lost"))
    try:
        yield project
    finally:
        project.stop()


@pytest.fixture
def project(started) -> SmallProject:
    """A project whose server runs and answers."""
    started.reset()
    started.run("server", "start")
    started.log()
    return started


def home(project: SmallProject) -> Path:
    return project.folder / ".scoresmooth" / "prefect"


def servers(project: SmallProject) -> list[int]:
    return processes(project, "server\0start\0--host")


def call(project: SmallProject, path: str, body: bytes | None = None, **headers: str) -> int:
    """The status of the server's answer."""
    port = json.loads((home(project) / RECORD).read_text())["port"]
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", body, named)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_web_page_can_neither_read_nor_change_anything(project):
    """Requests as a page from elsewhere sends them, with and without a preflight, and as another local user does."""
    pool = json.dumps({"name": "evil", "type": "process"}).encode()
    kinds = ({"Content_Type": "application/json"}, {"Content_Type": "text/plain"}, {})
    for kind in kinds:
        assert call(project, "api/work_pools/", pool, Origin="http://evil.example", **kind) == 403
        assert call(project, "api/work_pools/", pool, Host="evil.example", **kind) == 403
        assert call(project, "api/work_pools/", pool, **kind) == 401
        assert call(project, "api/work_pools/", pool, Authorization="Basic YTpi", **kind) == 401
    assert call(project, "api/admin/settings") == 401
    assert call(project, "api/flow_runs/filter", b"{}", Content_Type="application/json") == 401
    assert call(project, "ui-settings", Origin="null") == 403
    assert query(project, "work_pools", {}) == []


def test_a_person_logs_in_to_the_ui(project, tmp_path):
    if find_browser() is None:
        pytest.skip("there is no Chromium on this machine")
    project.run("stage", "ingest")
    printed = project.run("server", "start")
    address, login = re.search(r"http://\S+", printed)[0], (home(project) / LOGIN).read_text().strip()
    assert f"the UI asks for the text in {home(project).relative_to(project.folder) / LOGIN}" in printed
    with Browser(tmp_path) as browser:
        tab = browser.open(f"{address}/runs")
        wait_for(lambda: tab.run("!!document.querySelector('input[type=password]')"))
        tab.run("document.querySelector('input[type=password]').focus()")
        tab.call("Input.insertText", text=login)
        tab.press("Enter")
        wait_for(lambda: "ingest" in tab.run("document.body.innerText"))


@pytest.mark.parametrize("name", [RECORD, LOGIN])
@pytest.mark.parametrize("damage", ["cut", "emptied", "removed"])
def test_a_damaged_record_of_the_server_is_restored(project, name, damage):
    address, path = project.run("server", "status").split()[0], home(project) / name
    content = path.read_bytes()
    path.unlink() if damage == "removed" else path.write_bytes(content[:10] if damage == "cut" else b"")
    assert address in project.run("server", "start")
    assert path.read_bytes() == content
    assert len(servers(project)) == 1


def test_stop_never_ends_another_process(project):
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        record = json.loads((home(project) / RECORD).read_text())
        os.kill(servers(project)[0], signal.SIGSTOP)  # so that it cannot restore its record
        (home(project) / RECORD).write_text(json.dumps({**record, "pid": bystander.pid}))
        begun = time.monotonic()
        said = project.run("server", "start", "--timeout", "2", code=2)
        assert "error: the Prefect server did not answer within 2 s" in said
        assert "stopped" in project.run("server", "stop")
        assert time.monotonic() - begun < 90
        assert bystander.poll() is None
        until(lambda: not servers(project))
    finally:
        bystander.kill()
        bystander.wait()


def test_the_folder_of_a_living_server_is_removed(project):
    (old,) = servers(project)
    shutil.rmtree(home(project))
    until(lambda: old not in servers(project))  # nobody could find it any more
    assert "ingest: done" in project.run("stage", "ingest")
    assert len(servers(project)) == 1
    assert [run["name"] for run in query(project, "flow_runs", {})] == ["ingest"]


def test_the_database_of_a_living_server_is_removed(project):
    (home(project) / "prefect.db").unlink()
    until(lambda: not servers(project))  # it looks twice a second; a command within that time may still use it
    output = project.run("stage", "ingest")
    assert "ingest: done" in output
    assert "Traceback" not in output
    assert [run["name"] for run in query(project, "flow_runs", {})] == ["ingest"]
    assert len(servers(project)) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_whose_server_is_dead_within_seconds(project, number):
    project.run("stage", "ingest")
    project.params["train"]["steps"] = 100 + number
    project.write_params()
    project.log()
    project.hold(2)
    process = project.start(*TRAIN)
    try:
        until(lambda: logged(project, 2))
        os.kill(servers(project)[0], signal.SIGKILL)
        begun = time.monotonic()
        process.send_signal(number)
        project.release()
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode in (-number, 128 + number), output
    assert time.monotonic() - begun < 35, output  # a training has 25 s for its checkpoint
    assert "interrupted" in output


@pytest.mark.long
def test_a_signal_ends_the_whole_graph_whose_server_is_dead(project):
    project.write_dvc()
    project.hold(2)
    process = project.start("repro", "--jobs", "2")
    try:
        until(lambda: logged(project, 2))
        os.kill(servers(project)[0], signal.SIGKILL)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        project.release()
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert time.monotonic() - begun < 60, output  # its stages have 35 s
    assert "interrupted" in output
    until(lambda: not orphans(project))
