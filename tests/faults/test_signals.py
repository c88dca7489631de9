"""Signals to a run, at a terminal and in the background of a script, where SIGINT is ignored from the start."""

import os
import signal
import subprocess
import sys

import pytest
from crowding import Process, limit
from held_training import held_training, served_project
from small_project import ROOT, SmallProject
from watching import TRAIN, logged, orphans, until

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with served_project(tmp_path_factory.mktemp("signals")) as project:
        yield project


@pytest.fixture
def project(started):
    with held_training(started):
        yield started


def start(project: SmallProject, command: tuple[str, ...], ignored: tuple[int, ...]) -> subprocess.Popen[str]:
    """Start a command in a session of its own, with some signals ignored."""

    def dispose() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

    return Process(
        project.command(*command), cwd=project.folder, env=project.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=dispose,
    )  # fmt: skip


def send(process: subprocess.Popen[str], number: int, thread: str) -> None:
    """Send a signal for one of the process's threads, which Linux prefers: as a rule the main one."""
    own = process.pid if thread == "main" else max(map(int, os.listdir(f"/proc/{process.pid}/task")))
    os.kill(own, number)


PLACES = {"at a terminal": (), "in the background": (signal.SIGINT,)}
CASES = [
    (command, number, place)
    for command in (TRAIN, ("repro", "train"))
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    for place in PLACES
    if (command, number, place) != (TRAIN, signal.SIGINT, "in the background")  # a shell means it to be ignored there
]


@pytest.mark.parametrize("thread", ["main", "another"])
@pytest.mark.parametrize(("command", "number", "place"), CASES, ids=[f"{c[0]} {n.name} {p}" for c, n, p in CASES])
def test_a_signal_ends_a_run_with_all_its_processes(project, command, number, place, thread):
    """Whichever thread gets it: the main one waits meanwhile, and Python calls handlers in that one only."""
    process = start(project, command, PLACES[place])
    until(lambda: logged(project, 2))
    send(process, number, thread)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, None), output
    assert "interrupted: ending the work; finished shards stay cached" in output
    until(lambda: not orphans(project), 10)
    project.release()
    assert project.log() == ["train net step 0", "train net step 1"]


def test_without_a_terminal_a_run_goes_on_with_nohup(project):
    process = start(project, TRAIN, (signal.SIGHUP,))
    until(lambda: logged(project, 2))
    os.killpg(process.pid, signal.SIGHUP)
    project.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_a_wait_of_the_main_thread_ends_with_a_signal_that_another_thread_got():
    """Each wait by itself, without Prefect."""
    code = """
import os, signal, subprocess, sys, threading, time
from queue import SimpleQueue
from pipeline.signals import code_of, next_of
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
def send():
    time.sleep(1)
    os.kill(threading.get_native_id(), signal.SIGTERM)
threading.Thread(target=send, daemon=True).start()
sleeper = subprocess.Popen(["sleep", "600"])
try:
    WAIT
finally:
    sleeper.kill()
"""
    for wait in ("next_of(SimpleQueue())", "code_of(sleeper)"):
        done = subprocess.run([sys.executable, "-c", code.replace("WAIT", wait)], cwd=ROOT, timeout=limit(60))
        assert done.returncode == 7


KILLED = """
import os
_gather = gather
def gather(params, parts):
    if Path("kill").exists():
        Path("kill").unlink()
        with atomic_path(DATA / "sample" / params.variant / "samples.bin"):
            os._exit(9)
    _gather(params, parts)
"""


def test_what_a_killed_process_was_writing_does_not_stay_among_the_outs(dispatched):
    """Without DVC, which removes a stage's outs before it runs."""
    dispatched.write_stage("sample", KILLED)
    outs = dispatched.folder / "data/sample/net"
    outs.mkdir(parents=True)
    (outs / ".gitignore").write_text("samples.bin\n")  # a person's, or DVC's
    (outs / ".samples.0123abcd").mkdir()  # no file of ours
    (dispatched.folder / "kill").touch()
    dispatched.stages("sample@net", code=9)
    assert len(list(outs.iterdir())) == 3
    dispatched.stages("sample@net")
    assert {path.name for path in outs.iterdir()} == {".gitignore", ".samples.0123abcd", "samples.bin", "sample.json"}
