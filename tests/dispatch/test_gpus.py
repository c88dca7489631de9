"""GPUs are reserved for each shard's process, on simulated devices: only their names are needed."""

import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_project import SmallProject

from pipeline import dispatch, gpus
from pipeline.params import load_params
from stages.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def see(tmp_path, monkeypatch):
    """Return a function that sets the names of the visible GPUs."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def show(*names: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(names))
        gpus.visible.cache_clear()

    yield show
    gpus.visible.cache_clear()


@pytest.fixture
def two_gpus(see):
    see("GPU-a", "GPU-b")


def test_the_folder_of_the_gpu_locks_is_of_ones_own(two_gpus, tmp_path, monkeypatch):
    """Another user can create this name before us, in a folder that everyone can write to."""
    path, victim = tmp_path / f"scoresmooth-gpus-{os.getuid()}", tmp_path / "victim"
    victim.mkdir()
    path.symlink_to(victim)
    with pytest.raises(InputError, match="is not a folder of your own: remove it, or set TMPDIR"):
        gpus.folder()
    assert list(victim.iterdir()) == []
    path.unlink()
    path.mkdir(mode=0o777)
    path.chmod(0o777)
    assert stat.S_IMODE(gpus.folder().stat().st_mode) == 0o700
    another = os.getuid() + 1
    path.rename(tmp_path / f"scoresmooth-gpus-{another}")
    monkeypatch.setattr(os, "getuid", lambda: another)
    with pytest.raises(InputError, match="is not a folder of your own"):
        gpus.folder()


HOLD_GPU = """
import sys
from pipeline import gpus
from pipeline.locks import locked, name_holder
with gpus.reserved(1, lambda text: print(text, flush=True), float(sys.argv[1])):
    import os
    print("has", os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
    sys.stdin.readline()
"""


def hold_a_gpu() -> subprocess.Popen[str]:
    """A process that waits for a GPU for 60 seconds, and holds it until it can read a line."""
    command = [sys.executable, "-c", HOLD_GPU, "60"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_gpu_is_given_to_one_process_at_a_time_and_back_when_it_is_killed(two_gpus):
    first = hold_a_gpu()
    assert first.stdout.readline() == "has GPU-a\n"
    second = hold_a_gpu()
    assert second.stdout.readline() == "has GPU-b\n"
    third = hold_a_gpu()
    waits = (
        "waiting for a free GPU (of 2), for at most 60 s (execution.gpu_timeout): other processes of yours hold them"
    )
    assert third.stdout.readline() == f"{waits} ({gpus.folder()})\n"
    second.kill()
    assert third.stdout.readline() == "has GPU-b\n"
    for process in (first, third):
        process.communicate("\n", timeout=30)
    second.communicate()


def test_a_gpu_that_stays_taken_is_an_error_after_the_limit(see):
    see("GPU-a")
    holder = hold_a_gpu()
    assert holder.stdout.readline() == "has GPU-a\n"
    said = []
    remedy = f"other processes of yours hold them ({gpus.folder()})"
    with pytest.raises(InputError) as refused, gpus.reserved(1, said.append, 0.5):
        pass
    assert str(refused.value) == f"execution.gpu_timeout: no free GPU (of 1) within 0.5 s: {remedy}"
    assert said == [f"waiting for a free GPU (of 1), for at most 0.5 s (execution.gpu_timeout): {remedy}"]
    holder.communicate("\n", timeout=30)


def test_more_gpus_than_there_are_is_one_line(two_gpus):
    with (
        pytest.raises(InputError, match="execution.gpus_per_job is 3 but 2 GPUs are visible: lower it"),
        gpus.reserved(3, print, 0),
    ):
        pass
    with gpus.reserved(2, print, 0):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"


def test_no_gpu_is_visible_when_the_user_hides_them(monkeypatch):
    for value in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        gpus.visible.cache_clear()
        assert gpus.visible() == ()
    gpus.visible.cache_clear()


SHARE = """
import os
from stages import device

def plan(params):
    return [Shard("sample", "samples", str(n), {"n": n}, (), ".bin") for n in range(params.count)]

def work(shard):
    mark = Path("seen") / f"{shard.name}-{os.environ['CUDA_VISIBLE_DEVICES']}-{os.environ['OMP_NUM_THREADS']}"
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    until = time.monotonic() + 60
    while len(list(mark.parent.iterdir())) < 4 and time.monotonic() < until:  # until four work at the same time
        time.sleep(0.02)
    shard.path.write_bytes(b"")
    return shard.path
"""


@pytest.fixture
def project(tmp_path):
    """A project whose stage `sample` computes on a GPU, several shards at a time."""
    made = SmallProject(tmp_path / "project")
    (made.folder / "stages" / "device.py").write_text("")
    made.params["sample"]["count"] = 4
    made.write_stage("sample", SHARE)
    made.params["execution"]["processes"] = ["train", "sample"]
    yield made
    made.stop()


@pytest.mark.parametrize(("jobs", "each"), [(4, 1), (None, 2)])
def test_every_shard_that_runs_has_gpus_of_its_own(project, tmp_path, jobs, each):
    """Four shards at a time, on 4 GPUs or with two of 8 each: without `jobs` there are as many as the GPUs allow."""
    project.params["execution"].update(jobs=jobs, gpus_per_job=each)
    project.write_params()
    names = [str(n) for n in range(4 * each)]
    project.run("stage", "sample@closed", CUDA_VISIBLE_DEVICES=",".join(names), TMPDIR=str(tmp_path))
    seen = [path.name.split("-") for path in (project.folder / "seen").iterdir()]
    held = [names for _, names, _ in seen]
    assert sorted(",".join(held).split(",")) == names
    assert all(len(own.split(",")) == each for own in held)
    assert {threads for *_, threads in seen} == {"1"}  # the number that the user set


def test_a_training_holds_gpus_for_each_of_its_processes(see, monkeypatch):
    monkeypatch.chdir(ROOT)
    see(*"01234567")
    found = load_params()
    params = found.stages["train", "net-conditioning"]

    def each(processes: int, per_process: int) -> int:
        execution = found.execution.model_copy(update={"gpus_per_job": per_process})
        return dispatch.gpus_each("train", params.model_copy(update={"processes": processes}), execution)

    assert (each(1, 1), each(8, 1), each(2, 2)) == (1, 8, 4)
    remedy = "train.processes 8 x execution.gpus_per_job 2 need 16 GPUs, 8 are visible: lower train.processes to 4"
    with pytest.raises(InputError, match=remedy):
        each(8, 2)
    assert dispatch.gpus_each("train", params.model_copy(update={"device": "cpu"}), found.execution) == 0
    assert dispatch.gpus_each("ingest", found.stages["ingest", None], found.execution) == 0


@pytest.mark.parametrize(("jobs", "each", "expected"), [(None, 0, 1), (3, 0, 3), (None, 1, 8), (4, 1, 4), (16, 3, 2)])
def test_jobs_are_as_many_as_the_gpus_allow(see, monkeypatch, jobs, each, expected):
    monkeypatch.chdir(ROOT)
    see(*"01234567")
    execution = load_params().execution.model_copy(update={"jobs": jobs})
    assert dispatch._jobs(execution, each) == expected


WAIT = """
import threading, time
from pipeline import gpus
from pipeline.runners import LocalRunner, Stopped
from stages.protocol import Shard
from pathlib import Path

held = gpus.free(1)
runner, said = LocalRunner(1, ["sample"], 2, 60), []
runner.tell = said.append
with runner:
    runner.prepare("sample", 1)
    threading.Timer(0.5, runner.stop).start()
    try:
        runner.run(Shard("sample", "samples", "x", {}, (), ".bin").at(Path("x.bin")), 0)
    except Stopped as error:
        print(*said, error, sep="; ")
held.release()
print(gpus.free(2).names)
"""


def test_a_shard_waits_aloud_for_its_gpus_and_can_be_stopped(project, tmp_path):
    project.write_params()
    environment = project.environment(CUDA_VISIBLE_DEVICES="0,1", TMPDIR=str(tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(WAIT)]
    done = subprocess.run(command, cwd=project.folder, env=environment, capture_output=True, text=True, timeout=60)
    waiting, stopped, free = done.stdout.replace("; ", "\n").splitlines()
    assert waiting.startswith("waiting for 2 free GPUs (of 2), for at most 60 s (execution.gpu_timeout): "), done.stderr
    assert (stopped, free) == ("sample x was not started", "('0', '1')")
