"""A project on a network file system: late files, no locks, and a machine's own state elsewhere."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_project import SmallProject

from pipeline import node
from pipeline.processes import WorkFailed
from stages.errors import InputError
from stages.files.artifacts import sha256_file
from stages.files.locks import locked
from stages.files.paths import machine_state


def test_a_result_is_waited_for_until_it_is_whole(tmp_path):
    whole = tmp_path / "whole"
    whole.write_bytes(b"content")
    late = tmp_path / "late"

    def write() -> None:
        time.sleep(0.2)
        late.write_bytes(b"cont")
        time.sleep(0.6)
        late.write_bytes(b"content")

    thread = threading.Thread(target=write)
    thread.start()
    node.appear(late, sha256_file(whole))
    assert late.read_bytes() == b"content"
    thread.join()


def test_a_result_that_stays_away_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(node, "SETTLE", 0.1)
    with pytest.raises(WorkFailed, match="absent: the result that a node wrote is not seen here after 0.1 s"):
        node.appear(tmp_path / "absent", "0" * 64)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_one_line_with_the_remedy(tmp_path, monkeypatch, code):
    def flock(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    message = r"lock: this file system has no locks \(.*\): mount it with -o flock \(Lustre\)"
    with pytest.raises(InputError, match=message), locked(tmp_path / "lock"):
        pass


def test_state_of_a_machine_lies_where_it_is_asked_for_apart_for_every_project(tmp_path, monkeypatch):
    caches = [tmp_path / name / "project/.scoresmooth" for name in "ab"]
    assert [machine_state(cache) for cache in caches] == caches
    monkeypatch.setenv("SCORESMOOTH_STATE", str(tmp_path / "local"))
    found = [machine_state(cache) for cache in caches]
    assert found[0] != found[1]
    assert {place.parent for place in found} == {tmp_path / "local"}
    assert all(place.name.startswith("project-") for place in found)


def test_sqlite_and_the_server_move_and_results_stay(tmp_path):
    project = SmallProject(tmp_path / "project")
    script = """
import os, time
from pathlib import Path
from pipeline import cache, server
from stages.protocol import Shard
Path("in").write_text("x")
os.utime("in", (1, 1))
time.sleep(2.1)
print(cache.place(Shard("sample", "samples", "a", {}, ("in",)), "code").path, server.HOME, sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=project.folder,
        env=project.environment(SCORESMOOTH_STATE=str(tmp_path / "local")),
        capture_output=True,
        text=True,
        check=True,
    )
    result, home = map(Path, done.stdout.split())
    (state,) = (tmp_path / "local").iterdir()
    assert home == state / "prefect"
    assert (state / "digests.sqlite").exists()
    assert result.parts[:2] == (".scoresmooth", "shards")
    assert not list(project.folder.rglob("*.sqlite"))
