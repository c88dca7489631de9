"""Observe a small project while its commands run: its log, its processes, its server's runs, its outs."""

import base64
import contextlib
import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crowding import limit
from small_project import SmallProject

TRAIN = ("stage", "train", "--variant", "net")
SAMPLE = ("stage", "sample", "--variant", "net")


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for a condition and return its value. seconds: of an idle machine (crowding.limit)."""
    began = time.monotonic()
    while not (value := condition()):
        assert time.monotonic() < began + limit(seconds), "the condition did not become true"
        time.sleep(0.02)
    return value


def logged(project: SmallProject, lines: int) -> bool:
    """Whether the work has logged at least this many lines."""
    path = project.folder / "work.log"
    return path.exists() and len(path.read_text().splitlines()) >= lines


def login_header(project: SmallProject) -> dict[str, str]:
    """What a client of the project's server sends with every request."""
    login = (project.folder / ".scoresmooth/prefect/login").read_text().strip()
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def query(project: SmallProject, what: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the project's server for its newest `what` (flow_runs, task_runs, artifacts)."""
    port = json.loads((project.folder / ".scoresmooth/prefect/server.json").read_text())["port"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/{what}/filter",
        json.dumps({"limit": 50, **body}).encode(),
        {"Content-Type": "application/json", **login_header(project)},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def newest_run(project: SmallProject) -> dict[str, Any]:
    """The flow run that started last, as the server describes it."""
    return query(project, "flow_runs", {"sort": "START_TIME_DESC", "limit": 1})[0]


def of_project(pid: str, folder: Path) -> bool:
    """Whether a living process works in this folder."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == folder
    except OSError:
        return False


def workers(folder: Path) -> list[int]:
    """Processes that work in this folder or below it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or it is another user's
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def processes(project: SmallProject, word: str) -> list[int]:
    """Living processes of the project whose command line has `word`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and of_project(entry.name, project.folder):
            try:
                command, state = (entry / "cmdline").read_bytes(), (entry / "stat").read_text().split()[2]
            except OSError:
                continue
            if word.encode() in command and state != "Z":
                found.append(int(entry.name))
    return found


def orphans(project: SmallProject) -> list[int]:
    """The project's living processes, without its server, which stays on purpose."""
    return sorted(set(processes(project, "")) - set(processes(project, "prefect\0server\0start")))


def samples(project: SmallProject) -> bytes:
    """The samples of the variant `net`."""
    return (project.folder / "data/sample/net/samples.bin").read_bytes()


def results(project: SmallProject, stage: str) -> list[Path]:
    """The results of the stage's shards in the cache, sorted."""
    folder = project.folder / ".scoresmooth" / "shards" / stage
    return sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".txt"))


def undisturbed(project: SmallProject) -> bytes:
    """The samples of a run without dispatch, cache or interruption."""
    shutil.rmtree(project.folder / "data/sample", ignore_errors=True)
    project.plain("sample", "net")
    return samples(project)
