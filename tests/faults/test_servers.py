"""Prefect's server, its database and DVC, killed or in each other's way while a stage runs. See docs/faults.md."""

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from small_project import SmallProject
from watching import SAMPLE, TRAIN, logged, of_project, processes, query, samples, undisturbed, until

pytestmark = pytest.mark.faults


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
    assert "the Prefect server has ended; finished shards stay cached: run again" in output
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
