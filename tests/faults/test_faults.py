"""Disks that fill up, folders that cannot be written, killed processes, clocks that jump: what is lost is said, and the
next run computes what is missing, to the same bytes. docs/faults.md has the table."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_project import SmallProject
from test_pipeline import SAMPLE, logged, of_project, orphans, processes, query, results, samples, undisturbed, until

from pipeline import cache, oom
from stages.files.artifacts import sha256_file
from stages.protocol import Shard

pytestmark = pytest.mark.faults
TRAIN = ("stage", "train", "--variant", "net")


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    project = SmallProject(tmp_path_factory.mktemp("faults"))
    try:
        project.run("stage", "ingest")
        project.run(*TRAIN)
        yield project
    finally:
        project.stop()


@pytest.fixture
def project(started):
    """The project with its network trained and nothing sampled."""
    started.release()
    started.reset()
    for folder in ("data/sample", ".scoresmooth/shards/sample"):
        shutil.rmtree(started.folder / folder, ignore_errors=True)
    started.log()
    yield started
    started.release()
    until(lambda: not orphans(started))


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    """A tmpfs over a folder; skips where this user may not mount."""
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting needs root: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(folder: Path) -> Path:
    """Write a file until the disk is full."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


DISPATCH = """
import sys
from pipeline import cache
from pipeline.params import load_stage, stage_module
from pipeline.runners import LocalRunner
from stages.protocol import by_task
for address in sys.argv[1:]:
    name, _, variant = address.partition("@")
    params, execution = load_stage(name, variant or None)
    shards = [cache.place(shard, "code") for shard in stage_module(name).plan(params)]
    with LocalRunner(1, execution.processes) as runner:
        for shard in shards:
            cache.obtain(shard, runner.run, lambda text: print(text, flush=True))
    stage_module(name).gather(params, by_task(shards, [shard.path for shard in shards]))
"""


class Dispatched(SmallProject):
    """A project whose stages run through cache and runner, but without Prefect: what is tested here needs none."""

    def start_stages(self, *addresses: str) -> subprocess.Popen[str]:
        """Start stages ("sample@net"), one after the other, in a process."""
        command = [sys.executable, "-c", DISPATCH, *addresses]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def stages(self, *addresses: str, code: int = 0) -> str:
        """Run stages to their end, require the exit code, and return what they printed."""
        process = self.start_stages(*addresses)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == code, output
        return output


@pytest.fixture
def dispatched(tmp_path):
    """Such a project with its network trained and nothing sampled."""
    project = Dispatched(tmp_path)
    project.stages("ingest", "train@net")
    project.log()
    yield project
    project.release()
    until(lambda: not orphans(project))


def test_disk_full_while_a_shard_is_written(dispatched):
    dispatched.params["sample"]["count"] = 4000  # shards of some 50 kB
    dispatched.write_params()
    with mounted(dispatched.folder / ".scoresmooth/shards/sample", "size=1m") as disk:
        dispatched.hold(2)
        process = dispatched.start_stages("sample@net")
        until(lambda: logged(dispatched, 2))
        filler = fill(disk)
        dispatched.release()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in output
        assert 1 <= len(results(dispatched, "sample")) <= 2  # the second one may have met the full disk
        assert not list(disk.glob(".*"))  # nothing half-written stays
        done = len(list(disk.glob("*.manifest")))
        filler.unlink()
        dispatched.log()
        dispatched.stages("sample@net")
        assert dispatched.log() == [f"sample net {n}/4" for n in range(done + 1, 5)]
        resumed = samples(dispatched)
        assert undisturbed(dispatched) == resumed


def test_disk_full_while_a_checkpoint_is_written(dispatched):
    dispatched.params["train"]["steps"] = 14
    dispatched.write_params()
    with mounted(dispatched.folder / ".scoresmooth/shards/train", "size=1m") as disk:
        dispatched.hold(3)
        process = dispatched.start_stages("train@net")
        until(lambda: logged(dispatched, 3))
        filler = fill(disk)
        dispatched.release()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in output, output
        filler.unlink()
        dispatched.log()
        dispatched.stages("train@net")
        assert dispatched.log() == [f"train net step {n}" for n in range(3, 14)]
        assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKLMN"]


def test_read_only_folder_of_outs(dispatched):
    with mounted(dispatched.folder / "data/sample", "ro"):
        output = dispatched.stages("sample@net", code=1)
    assert "Read-only file system: " in output
    assert len(dispatched.log()) == 4
    dispatched.stages("sample@net")
    assert dispatched.log() == []
    resumed = samples(dispatched)
    assert undisturbed(dispatched) == resumed


def test_an_empty_cached_shard_is_computed_again(dispatched):
    dispatched.stages("sample@net")
    expected = samples(dispatched)
    dispatched.log()
    results(dispatched, "sample")[1].write_bytes(b"")
    output = dispatched.stages("sample@net")
    assert "the cached result is damaged (it has 0 bytes instead of" in output
    assert len(dispatched.log()) == 1
    assert samples(dispatched) == expected


def test_a_killed_training_process_goes_on_from_its_checkpoint_in_another_one(dispatched):
    dispatched.params["train"]["steps"] = 13
    dispatched.write_params()
    dispatched.hold(4)
    process = dispatched.start_stages("train@net")
    until(lambda: logged(dispatched, 4))
    (child,) = processes(dispatched, "pipeline.child")
    os.kill(child, signal.SIGKILL)
    dispatched.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "train net: killed (out of memory?), at " in output
    assert "MiB: trying once more with half the working memory" in output
    assert dispatched.log() == [f"train net step {n}" for n in range(13)]
    assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKLM"]


def grow(dispatched: Dispatched, stage: str, mark: str, code: str) -> None:
    """Have the stage's work run `code` after the line `mark`; `share` is what it is to do with."""
    path, share = dispatched.folder / "stages" / f"{stage}.py", 'share = float(os.environ["SCORESMOOTH_MEMORY_SHARE"])'
    before = path.read_text()
    assert before.count(mark) == 1
    path.write_text(before.replace(mark, f"{mark}; import os, signal; {share}; {code}"))


def test_a_shard_without_memory_is_tried_again_with_half_of_it(dispatched):
    """Killed, as by the kernel, and refused, as by a limit: whatever the first attempt had, the second one has less."""
    kill = "share == 1 and first == 2 and os.kill(os.getpid(), signal.SIGKILL)"
    refuse = "share == 1 and first == 4 and bytearray(1 << 62)"
    dispatched.params["execution"]["processes"] = ["train", "sample"]
    dispatched.write_params()
    grow(dispatched, "sample", 'first, last = shard.settings["span"]', f"{kill}; {refuse}")
    output = dispatched.stages("sample@net")
    tried = [line for line in output.splitlines() if "trying once more with half the working memory" in line]
    assert [line.split(",")[0] for line in tried] == [
        "sample net 2/4: killed (out of memory?)",
        "sample net 3/4: refused memory (MemoryError)",
    ]
    assert dispatched.log() == [f"sample net {n}/4" for n in range(1, 5)]
    found = samples(dispatched)
    dispatched.write_stage("sample")
    assert undisturbed(dispatched) == found


@pytest.mark.parametrize(
    ("stage", "mark", "remedy"),
    [
        ("train", 'checkpoint = shard.scratch / "checkpoint.txt"', "set train.optimization.microbatch"),
        ("filter", 'log("filter")', "raise filter.shards (this changes no result)"),
    ],
)
def test_a_shard_without_memory_twice_is_one_line(dispatched, stage, mark, remedy):
    path = dispatched.folder / "stages" / f"{stage}.py"
    if stage == "filter":
        path.write_text(
            path.read_text().replace("return []", 'return [Shard("filter", "samples", "net 1/1", {}, (), ".txt")]')
            + '\ndef work(shard):\n    log("filter")\n    return write_text(shard.path, "")\n'
        )
        mark = 'def work(shard):\n    log("filter")'
    dispatched.params["execution"]["processes"] = ["train", "filter"]
    dispatched.params["train"]["steps"] = 12
    dispatched.write_params()
    enough = path.read_text()
    grow(dispatched, stage, mark, "os.kill(os.getpid(), signal.SIGKILL)")
    output = dispatched.stages(f"{stage}@net", code=1)
    assert output.count("trying once more") == 1
    name = "net" if stage == "train" else "net 1/1"
    (line,) = [line for line in output.splitlines() if f"{stage} {name}: out of memory twice: " in line]
    assert re.search(r"killed \(out of memory\?\), at \d+ MiB; with half the working memory: killed .* MiB\. ", line)
    assert remedy in line
    assert "execution.jobs (1)" in line
    path.write_text(enough)
    dispatched.log()
    dispatched.stages(f"{stage}@net")
    if stage == "train":
        assert dispatched.log() == [f"train net step {n}" for n in range(12)]
        assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKL"]
    else:
        assert dispatched.log() == ["filter", "filter"]  # its work and its gathering


@contextlib.contextmanager
def memory_limit(bytes_: int) -> Iterator[Path]:
    """A control group of its own with so much memory; yields the file that takes processes. Skips without the right."""
    first = Path("/sys/fs/cgroup/memory") / oom._group("memory") if oom._group("memory") is not None else None
    group = (first or Path("/sys/fs/cgroup")) / f"scoresmooth-test-{os.getpid()}"
    name = "memory.limit_in_bytes" if first else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group needs root: {error}")
    try:
        try:
            (group / name).write_text(str(bytes_))
        except OSError as error:
            pytest.skip(f"a control group with a limit of memory: {error}")
        yield group / "cgroup.procs"
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().split())
        group.rmdir()


def test_the_kernel_kills_a_shard_that_takes_too_much_and_half_fits(dispatched):
    """A control group of 512 MiB, and a shard that wants 700."""
    dispatched.params["execution"]["processes"] = ["train", "sample"]
    dispatched.write_params()
    take = "block = bytearray(int(700 * share) << 20); block[::4096] = bytes(len(block[::4096]))"
    grow(dispatched, "sample", 'first, last = shard.settings["span"]', take)
    with memory_limit(512 << 20) as members:
        process = dispatched.start_stages("sample@net")
        members.write_text(str(process.pid))
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert output.count("trying once more with half the working memory") == 4
    assert "sample net 1/4: killed by the kernel, out of memory, at " in output
    found = samples(dispatched)
    dispatched.write_stage("sample")
    assert undisturbed(dispatched) == found


@pytest.mark.long
def test_the_server_is_killed_while_a_stage_runs(project):
    project.hold(2)
    process = project.start(*SAMPLE)
    until(lambda: logged(project, 2))
    (server,) = processes(project, "server\0start\0--host")
    os.kill(server, signal.SIGKILL)
    project.release()
    output, _ = process.communicate(timeout=400)  # Prefect tries for some two minutes
    assert process.returncode == 1
    assert "the Prefect server has ended; what is finished stays cached: run again" in output
    first = project.log()
    project.run(*SAMPLE)
    assert sorted(first + project.log()) == [f"sample net {n}/4" for n in range(1, 5)]
    runs = query(project, "flow_runs", {"sort": "START_TIME_DESC", "limit": 2})
    assert runs[0]["state_name"] == "Completed"
    assert runs[1]["state_name"] in ("Completed", "Failed", "Crashed")
    resumed = samples(project)
    assert undisturbed(project) == resumed


@pytest.mark.long
def test_two_dvc_repro_at_once(project):
    project.write_dvc()
    project.hold(1)
    command = [*project.dvc_command(), "repro", "sample@net"]
    first = subprocess.Popen(command, cwd=project.folder, env=project.environment(), stdout=subprocess.DEVNULL)
    until(lambda: logged(project, 1))
    second = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, timeout=120
    )
    assert second.returncode != 0
    assert "is busy, it is being blocked by" in second.stdout + second.stderr
    project.release()
    assert first.wait(timeout=120) == 0
    assert sorted(set(project.log()) - {"ingest all"}) == [f"sample net {n}/4" for n in range(1, 5)]
    assert "up to date" in project.dvc("repro", "sample@net")
    resumed = samples(project)
    assert undisturbed(project) == resumed


@pytest.mark.long
def test_disk_full_while_dvc_stores_an_out(project):
    project.write_dvc()
    project.dvc("repro", "-q", "train@net")
    project.params["sample"] |= {"count": 8000, "seed": 5}
    project.write_params()
    with mounted(project.folder / ".dvc/cache", "size=1m") as disk:
        filler = fill(disk)
        command = [*project.dvc_command(), "repro", "--single-item", "sample@net"]
        done = subprocess.run(
            command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode != 0
        assert "No space left on device" in done.stdout + done.stderr
        filler.unlink()
        project.log()
        project.dvc("repro", "-q", "--single-item", "sample@net")
        assert project.log() == []  # the shards were there
        assert "up to date" in project.dvc("repro", "--single-item", "sample@net")
        resumed = samples(project)
        assert undisturbed(project) == resumed


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_makes_no_stale_digest(tmp_path, monkeypatch, jump):
    """A file changed within the resolution of its time stamp, by a clock that has just been set."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input.bin"
    now = time.time_ns() + jump * 10**9
    path.write_bytes(b"one")
    os.utime(path, ns=(now, now))
    monkeypatch.setattr(time, "time_ns", lambda: now)
    shard = Shard("sample", "samples", "1/1", {}, ("input.bin",))
    first = cache.place(shard, "code")
    path.write_bytes(b"two")
    os.utime(path, ns=(now, now))
    second = cache.place(shard, "code")
    assert first.path != second.path
    assert cache.input_digest("input.bin") == sha256_file(path)


CLOCK = """
import time
from pathlib import Path
clock, real, real_ns = Path("clock"), time.time, time.time_ns
ahead = lambda: int(clock.read_text()) if clock.exists() else 0
time.time, time.time_ns = lambda: real() + ahead(), lambda: real_ns() + ahead() * 10**9
"""


def set_clock(project: SmallProject, seconds: int) -> None:
    """From now on time.time() in the project's processes is so far ahead; 0: right again."""
    (project.folder / "clock.new").write_text(str(seconds))
    (project.folder / "clock.new").rename(project.folder / "clock")


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_while_a_stage_runs_loses_nothing(dispatched, monkeypatch, jump):
    """Half of the results bear the time after the jump, as the kernel would have stamped them."""
    monkeypatch.setattr(sys.modules[__name__], "DISPATCH", CLOCK + DISPATCH)
    before = {path for path in dispatched.folder.rglob("*") if path.is_file() and not path.is_symlink()}
    dispatched.hold(2)
    process = dispatched.start_stages("sample@net")
    until(lambda: logged(dispatched, 2))
    set_clock(dispatched, jump)
    dispatched.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert dispatched.log() == [f"sample net {n}/4" for n in range(1, 5)]
    then = time.time() + jump
    for path in results(dispatched, "sample")[2:]:
        for written in (path, path.with_suffix(".manifest"), path.with_suffix(".lock")):
            assert written not in before
            os.utime(written, (then, then))
    for ahead in (jump, 0, -jump):
        set_clock(dispatched, ahead)
        dispatched.stages("sample@net")
        assert dispatched.log() == []
    found = samples(dispatched)
    assert undisturbed(dispatched) == found


@pytest.fixture
def postgres(tmp_path_factory):
    """A PostgreSQL server on loopback that can be killed and started again."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path(p).parent for p in [shutil.which("pg_ctl")] if p]
    if not found or os.getuid() != 0:
        pytest.skip("needs PostgreSQL's programs and root (they refuse to run as root: a user postgres does)")
    folder = Path("/tmp") / f"scoresmooth-postgres-{os.getpid()}"
    folder.mkdir()
    shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [str(found[-1] / program), *arguments]
        done = subprocess.run(command, user="postgres", cwd=folder, capture_output=True, text=True, timeout=60)
        written = (folder / "log").read_text() if (folder / "log").exists() else ""
        assert done.returncode == 0, done.stdout + done.stderr + written

    def start() -> str:
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start")
        return f"postgresql+asyncpg://postgres@127.0.0.1:{port}/postgres"

    def kill() -> None:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        # as long as nobody has taken its exit status, a new one believes that it runs
        until(lambda: not Path(f"/proc/{pid}").exists())
        # its children notice by themselves; until then their shared memory keeps a new one from starting
        until(lambda: not [entry for entry in Path("/proc").glob("[0-9]*") if of_project(entry.name, folder / "data")])

    run("initdb", "-D", str(folder / "data"), "-A", "trust")
    yield start, kill
    running = folder / "data" / "postmaster.pid"
    if running.exists() and Path(f"/proc/{running.read_text().split()[0]}").exists():  # no test has killed it
        run("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.long
def test_the_history_on_postgresql_which_is_killed_while_a_stage_runs(tmp_path, postgres):
    start, kill = postgres
    variables = {"PREFECT_SERVER_DATABASE_CONNECTION_URL": start()}
    project = SmallProject(tmp_path)
    try:
        for stage in (("stage", "ingest"), TRAIN):
            project.run(*stage, **variables)
        assert "postgresql+asyncpg at 127.0.0.1" in project.run("server", "status")
        project.log()
        project.hold(2)
        process = project.start(*SAMPLE, **variables)
        until(lambda: logged(project, 2))
        kill()
        project.release()
        process.communicate(timeout=300)
        first = project.log()
        start()
        project.run(*SAMPLE, **variables)
        assert sorted(first + project.log()) == [f"sample net {n}/4" for n in range(1, 5)]
        assert query(project, "flow_runs", {"sort": "START_TIME_DESC"})[0]["state_name"] == "Completed"
        resumed = samples(project)
        assert undisturbed(project) == resumed
    finally:
        project.stop()
