"""Shards as jobs: on submitit's own executors, and on Slurm, whose commands a stand-in answers on this machine.

The shards go through cache and runner as in a flow, but without Prefect.
"""

import os
import shutil
import signal
import subprocess
import sys

import fake_slurm
import pytest
from crowding import Process
from small_project import SmallProject, hear_interrupts
from watching import logged, processes, samples, undisturbed, until

pytest.importorskip("submitit", reason="submitit is not installed: pip install '.[pipeline,slurm]'")

DRIVE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pipeline import cache, closure, dispatch
from pipeline.params import load_stage, stage_module
from pipeline.processes import WorkFailed
from stages.errors import InputError
from stages.protocol import by_task

name = sys.argv[1]
params, execution = load_stage(name, "net")
shards = [cache.place(shard, closure.code_digest(name)) for shard in stage_module(name).plan(params)]
with ThreadPoolExecutor(len(shards)) as pool:
    try:
        runner = dispatch._cluster_runner(name, params, execution, len(shards))
        runner.tell = lambda text: print(text, flush=True)
        list(pool.map(lambda shard: cache.obtain(shard, runner.run, print), shards))
        stage_module(name).gather(params, by_task(shards, [shard.path for shard in shards]))
    except (InputError, WorkFailed) as error:
        print("error:", error)
        sys.exit(2 if isinstance(error, InputError) else 1)
    except KeyboardInterrupt:
        runner.stop()
        sys.exit(130)
"""


class Submitter(SmallProject):
    """The project whose shards are jobs."""

    def start(self, stage: str) -> subprocess.Popen[str]:
        """Start the work of a stage of the variant `net`."""
        return Process(
            [sys.executable, "-c", DRIVE, stage], cwd=self.folder, env=self.environment(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=hear_interrupts,
        )  # fmt: skip

    def jobs(self) -> dict[str, str]:
        """The states of all jobs that the stand-in has seen."""
        return {path.name: path.read_text() for path in (self.commands.parent / "jobs").glob("[0-9]*")}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A project with what its samples need, and Slurm's commands."""
    project = Submitter(tmp_path_factory.mktemp("slurm"))
    project.commands = fake_slurm.install(tmp_path_factory.mktemp("commands"))
    for stage, variant in (("ingest", ()), ("train", ("--variant", "net"))):
        command = [sys.executable, "-m", f"stages.{stage}", *variant]
        subprocess.run(command, cwd=project.folder, env=project.environment(), check=True, timeout=240)
    return project


@pytest.fixture
def project(begun, monkeypatch):
    """The project without results of shards."""
    monkeypatch.setenv("PATH", f"{begun.commands}:{os.environ['PATH']}")
    begun.reset()
    begun.release()
    shutil.rmtree(begun.folder / ".scoresmooth", ignore_errors=True)
    begun.params["execution"] |= {"runner": "slurm", "cpus_per_job": 2}
    begun.params["execution"]["slurm"] |= {"options": {"partition": "gpu"}}
    begun.write_params()
    begun.log()
    yield begun
    begun.release()
    until(lambda: not processes(begun, "submitit"))


def rehearse(project: Submitter, executor: str) -> None:
    project.params["execution"]["address"] = executor
    project.write_params()


@pytest.mark.parametrize("executor", ["local", "debug"])
def test_jobs_give_the_same_bytes(project, executor):
    rehearse(project, executor)
    output = project.run("sample")
    assert sorted(project.log()) == [f"sample net {n}/4" for n in range(1, 5)]
    assert f"{project.folder}/.scoresmooth/slurm/" in output  # where a job's output is
    found = samples(project)
    assert undisturbed(project) == found


def test_wrong_input_and_errors_of_a_job_are_one_line(project):
    rehearse(project, "local")
    project.params["variants"]["net"]["temperature"] = 13.0
    project.write_params()
    output = project.run("train", code=2)
    assert "error: temperature 13 is unlucky: take another" in output.splitlines()
    path = project.folder / "stages" / "sample.py"
    path.write_text(
        path.read_text().replace("first, last =", "assert 'net 3' not in shard.name, 'three'; first, last =")
    )
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "assert" in text)
    output = project.run("sample", code=1)
    said = f"error: sample net 3/4: AssertionError: three (stages/sample.py, line {line}) (job "
    assert any(text.startswith(said) for text in output.splitlines())
    assert "Traceback" not in output


def test_slurm_is_asked_for_what_the_parameters_say(project):
    project.run("sample")
    assert sorted(project.log()) == [f"sample net {n}/4" for n in range(1, 5)]
    assert set(project.jobs().values()) == {"COMPLETED"}
    asked = next((project.folder / ".scoresmooth/slurm").glob("*.sh")).read_text()
    for option in ("cpus-per-task=2", "job-name=scoresmooth-sample", "partition=gpu", "requeue", "time=60"):
        assert f"#SBATCH --{option}\n" in asked
    assert "gpus" not in asked
    assert not list((project.folder / ".scoresmooth/shards/sample").glob("*.job"))


def test_a_refused_option_is_one_line(project):
    (project.commands / "sbatch").rename(project.commands / "kept")
    (project.commands / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition: gpu' >&2; exit 1\n")
    (project.commands / "sbatch").chmod(0o755)
    try:
        output = project.run("sample", code=2)
    finally:
        (project.commands / "kept").rename(project.commands / "sbatch")
    assert "error: execution.slurm: slurm refuses a job: " in output
    assert "invalid partition: gpu" in output
    assert "Traceback" not in output


@pytest.mark.parametrize("executor", ["slurm", "local"])
def test_a_preempted_training_is_queued_again_and_continues(project, executor):
    if executor == "local":
        rehearse(project, "local")
    project.hold(5)
    process = project.start("train")
    until(lambda: logged(project, 5))
    if executor == "slurm":
        (job,) = (name for name, state in project.jobs().items() if state == "RUNNING")
        # as in preemption: every process hears it, the shard's too
        subprocess.run([project.commands / "scancel", job, "--signal", "USR2"], check=True)
    else:
        for found in processes(project, "submitit.core._submit"):
            os.kill(found, signal.SIGUSR2)
    until(lambda: len(processes(project, "pipeline.child")) == 0)
    project.release()
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    assert project.log() == [f"train net step {step}" for step in range(10)]


def test_a_job_whose_submitter_was_killed_is_waited_for(project):
    project.hold(5)
    process = project.start("train")
    until(lambda: logged(project, 5))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = project.jobs()
    second = project.start("train")
    assert any(": job " in line for line in iter(second.stdout.readline, ""))
    assert project.jobs() == before
    project.release()
    output, _ = second.communicate(timeout=180)
    assert second.returncode == 0, output
    assert project.log() == [f"train net step {step}" for step in range(10)]


def test_ctrl_c_cancels_the_jobs(project):
    project.hold(5)
    process = project.start("train")
    until(lambda: logged(project, 5))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "CANCELLED" in project.jobs().values()
    until(lambda: not processes(project, "pipeline.child"))
    project.release()
    project.run("train")
    assert project.log() == [f"train net step {step}" for step in range(10)]


def test_without_submitit_the_runner_says_what_to_install(project):
    (project.folder / "submitit.py").write_text(
        "raise ModuleNotFoundError('No module named submitit', name='submitit')"
    )
    try:
        output = project.run("sample", code=2)
    finally:
        (project.folder / "submitit.py").unlink()
    assert "which" not in output
    assert (
        "error: execution.runner is slurm, whose package submitit is not installed: pip install '.[pipeline,slurm]'"
        in output
    )
