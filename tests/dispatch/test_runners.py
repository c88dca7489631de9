"""Processes that work on shards: kept for the next shard, reported when they die, ended at the end."""

import subprocess
import sys
import textwrap

import pytest
from small_project import SmallProject

HEAD = """
    import json, os, signal, threading, time
    from pathlib import Path
    from pipeline.locks import is_locked, locked
    from pipeline.runners import ChildEnded, LocalRunner, Stopped
    from stages.files.artifacts import write_json
    from stages.errors import InputError
    from stages.protocol import Shard

    def shard(name, stage="train", **settings):
        settings = {"steps": 3, "temperature": 1.0, **settings}
        made = Shard(stage, "work", name, settings, ("data/in.txt",), ".txt").at(Path(f"cache/{name}.txt"))
        made.path.parent.mkdir(exist_ok=True)
        return made

    def work(runner, made):
        with locked(Path("cache/lock")) as lock:
            runner.run(made, lock)

    def children():
        found = [line.split() for line in os.popen(f"ps -o pid=,args= --ppid {os.getpid()}")]
        return [int(line[0]) for line in found if "pipeline.child" in line]
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project whose modules the scripts import."""
    return SmallProject(tmp_path_factory.mktemp("runners"))


@pytest.fixture
def run(project):
    """Run a script in the project's folder and return what it printed."""

    def go(body: str) -> list[str]:
        script = textwrap.dedent(HEAD) + textwrap.dedent(body)
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=project.folder,
            env=project.environment(),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[:-1]

    return go


def test_one_process_does_one_shard_after_the_other_and_ends_with_the_runner(run):
    assert run("""
        with LocalRunner(1, ["train"]) as runner:
            runner.prepare("train", 2)
            first = children()
            work(runner, shard("a"))
            work(runner, shard("b", steps=5))
            print(len(first), children() == first)
        print(children(), Path("cache/a.txt").read_text(), Path("cache/b.txt").read_text())
    """) == ["1 True", "[] ABC ABCDE"]


def test_no_more_processes_are_prepared_than_jobs_or_shards(run):
    assert run("""
        for jobs, shards, stage in [(3, 2, "train"), (2, 5, "train"), (2, 0, "train"), (2, 2, "sample")]:
            with LocalRunner(jobs, ["train"]) as runner:
                runner.prepare(stage, shards)
                print(len(children()))
    """) == ["2", "2", "0", "0"]


def test_wrong_input_is_raised_by_name_and_the_process_goes_on(run):
    assert run("""
        with LocalRunner(1, ["train"]) as runner:
            try:
                work(runner, shard("c", temperature=13))
            except InputError as error:
                print(error)
            first = children()
            work(runner, shard("d"))
            print(children() == first, Path("cache/d.txt").read_text())
    """) == ["temperature 13 is unlucky: take another", "True ABC"]


@pytest.mark.parametrize("processes", [["sample"], []], ids=["process", "thread"])
def test_an_error_of_the_work_is_named_with_its_place(run, project, processes):
    path = project.folder / "stages" / "sample.py"
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "Path(shard.inputs[0]).read" in text)
    assert run(f"""
        from pipeline.runners import WorkFailed
        with LocalRunner(1, {processes}) as runner:
            try:
                work(runner, shard("x", "sample", span=(0, 1)))
            except WorkFailed as error:
                print(error)
    """) == [
        "sample x: FileNotFoundError: [Errno 2] No such file or directory: 'data/in.txt' "
        f"(stages/sample.py, line {line})"
    ]  # fmt: skip


def test_a_stage_that_cannot_be_imported_is_named_with_its_place(run, project):
    project.write_stage("fid", suffix="raise OSError('no such library')\n")
    line = len((project.folder / "stages" / "fid.py").read_text().splitlines())
    assert run("""
        from pipeline.runners import WorkFailed
        with LocalRunner(1, ["fid"]) as runner:
            try:
                work(runner, shard("x", "fid"))
            except WorkFailed as error:
                print(error)
    """) == [f"fid x: OSError: no such library (stages/fid.py, line {line})"]


def test_a_killed_process_is_named_with_its_signal_and_another_takes_over(run):
    assert run("""
        def kill():
            while not Path("work.log").exists() or "train e step 1" not in Path("work.log").read_text():
                time.sleep(0.01)
            os.kill(children()[0], signal.SIGSEGV)

        Path("work.log").unlink(missing_ok=True)
        Path("hold").write_text("2")
        with LocalRunner(1, ["train"]) as runner:
            threading.Thread(target=kill).start()
            try:
                work(runner, shard("e"))
            except ChildEnded as error:
                print(error)
            Path("hold").unlink()
            work(runner, shard("e"))
            print(Path("cache/e.txt").read_text())
    """) == ["train e: its process ended with signal 11", "ABC"]


def test_the_process_holds_the_shards_lock_while_it_works(run):
    assert run("""
        def look():
            while not Path("work.log").exists() or "train f step 1" not in Path("work.log").read_text():
                time.sleep(0.01)
            descriptors = [os.readlink(f"/proc/{children()[0]}/fd/{name}")
                           for name in os.listdir(f"/proc/{children()[0]}/fd")]
            print(any(target.endswith("cache/lock") for target in descriptors))
            Path("hold").unlink()

        Path("work.log").unlink(missing_ok=True)
        Path("hold").write_text("2")
        with LocalRunner(1, ["train"]) as runner:
            thread = threading.Thread(target=look)
            thread.start()
            work(runner, shard("f"))
            thread.join()
            descriptors = [os.readlink(f"/proc/{children()[0]}/fd/{name}")
                           for name in os.listdir(f"/proc/{children()[0]}/fd") if name != "255"]
            print(any(target.endswith("cache/lock") for target in descriptors), is_locked(Path("cache/lock")))
    """) == ["True", "False False"]


def test_a_stopped_runner_ends_its_work_and_starts_no_more(run):
    assert run("""
        Path("work.log").unlink(missing_ok=True)
        Path("hold").write_text("1")
        with LocalRunner(1, ["train"]) as runner:
            def stop():
                while not Path("work.log").exists() or "train g step 0" not in Path("work.log").read_text():
                    time.sleep(0.01)
                runner.stop()
            threading.Thread(target=stop).start()
            for name in ("g", "h"):
                try:
                    work(runner, shard(name))
                except Stopped as stopped:
                    print(stopped)
        Path("hold").unlink()
        print(children(), Path("cache/g.txt").exists())
    """) == ["train g was stopped", "train h was not started", "[] False"]
