"""Training on a Ray cluster of two simulated nodes: several processes on several nodes, and nodes that are lost."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from crowding import Process, limit
from diffusion_project import ROOT, VARIANT, environment, project, with_processes
from ray_cluster import start_cluster

from pipeline.shared import SharedPlace
from stages import train
from stages.files.tensors import load_tensors
from stages.protocol import Shard, load_tree

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[pipeline,ray]'")

__all__ = ["environment", "project"]
pytestmark = [pytest.mark.long, pytest.mark.faults]

ON_RAY = """
import sys
from pathlib import Path
from pipeline.dispatch import import_runner
from stages.protocol import Shard
ray_runner = import_runner("ray")
runner = ray_runner.RayRunner(sys.argv[2], ray_runner.RayResources(1, 0), sys.argv[3] or None, 1)
runner.run(Shard.from_json(sys.argv[1]), -1)
"""


@contextlib.contextmanager
def nodes_with_homes(folders, count: int, cpus: int, **variables: str):
    """A head without CPUs and nodes with a home each; `variables` are in the environment of their processes."""
    nodes = start_cluster(num_cpus=0)
    nodes.homes = {}

    def add() -> None:
        home = folders.mktemp("home")
        nodes.homes[nodes.add_node(num_cpus=cpus, env_vars={"HOME": str(home), **variables})] = home

    nodes.add = add
    try:
        for _ in range(count):
            add()
        yield nodes
    finally:
        nodes.shutdown()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes with one CPU each."""
    with nodes_with_homes(tmp_path_factory, 2, 1) as nodes:
        yield nodes


def shard_at(folder: str) -> Shard:
    (shard,) = train.plan(train.Params.from_tree(load_tree(), VARIANT))
    Path(folder).mkdir()
    return shard.at(Path(folder) / "key.safetensors")


def undisturbed() -> bytes:
    """What this machine alone makes, with one thread, as a Ray task with one CPU has."""
    shard = shard_at("local")
    Path("shard.json").write_text(shard.to_json())
    subprocess.run([sys.executable, "-m", "stages.train", "--shard", "shard.json"], check=True, capture_output=True)
    return shard.path.read_bytes()


def start(shard: Shard, cluster, shared: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", ON_RAY, shard.to_json(), cluster.address, shared]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Process(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def scratches(cluster) -> dict[object, list[Path]]:
    """Node -> its scratch folders."""
    return {node: list(home.glob(".cache/scoresmooth/*/ray/*.scratch")) for node, home in cluster.homes.items()}


def wait_for_checkpoint(process: subprocess.Popen[str], place: Path) -> None:
    """Wait until the shared place holds a checkpoint of the shard."""
    record = SharedPlace((place / "scratch" / "key").as_uri())
    end = time.monotonic() + limit(120)
    while not any(name.endswith(".safetensors") for name in record.read_record() or {}):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def at_work(cluster) -> dict[int, Path]:
    """The processes of the cluster's nodes that work on a shard, by the title that Ray gives them -> their homes."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            title, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            own = [home for home in cluster.homes.values() if f"HOME={home}\0".encode() in variables]
            if own and title.startswith(b"ray::work"):
                found[int(entry.name)] = own[0]
    return found


@pytest.mark.parametrize("shared", [False, True])
def test_two_nodes_give_the_weights_of_two_local_processes(project, environment, cluster, shared):
    """Bit for bit, with one folder that all see, and with inputs, checkpoints and result through a shared place."""
    with_processes(2)
    expected = undisturbed()
    shard = shard_at("ray")
    place = (project / "place").as_uri() if shared else ""
    end(start(shard, cluster, place))
    assert shard.path.read_bytes() == expected
    if shared:
        used = [node for node, home in cluster.homes.items() if list(home.glob(".cache/scoresmooth/*/data"))]
        assert len(used) == 2  # each node fetched the inputs
        assert not list((project / "place" / "scratch").glob("*"))  # nothing stays of what is done


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_goes_on_elsewhere_when_its_node_is_lost(project, environment, cluster, processes):
    """From the checkpoint in the shared place: the node that goes on has another home."""
    with_processes(processes, steps=300, checkpoint_every=10, log_every=10)
    expected = undisturbed()
    shard = shard_at("ray")
    process = start(shard, cluster, (project / "place").as_uri())
    wait_for_checkpoint(process, project / "place")
    writing = [node for node, found in scratches(cluster).items() if found]
    lost = writing[0]
    cluster.remove_node(lost, allow_graceful=False)
    del cluster.homes[lost]
    cluster.add()
    output = end(process)
    assert "resuming from the shared place" in output
    assert ("a process was lost: all 2 start again" in output) == (processes == 2)
    assert shard.path.read_bytes() == expected
    assert load_tensors(shard.path)[1]["image_shape"] == [1, 8, 8]


def test_all_processes_of_a_training_on_one_node_resume_there(project, environment, tmp_path_factory):
    """Each fetches the checkpoints into the node's one folder."""
    with_processes(2, steps=300, checkpoint_every=10, log_every=10)
    expected = undisturbed()
    shard = shard_at("ray")
    with nodes_with_homes(tmp_path_factory, 1, 2) as cluster:
        process = start(shard, cluster, (project / "place").as_uri())
        wait_for_checkpoint(process, project / "place")
        (lost,) = cluster.homes
        assert len(at_work(cluster)) == 2
        cluster.remove_node(lost, allow_graceful=False)
        del cluster.homes[lost]
        cluster.add()
        output = end(process)
    assert output.count("resuming from the shared place") == 2
    assert "a process was lost: all 2 start again" in output
    assert shard.path.read_bytes() == expected


@pytest.mark.parametrize("writes", [True, False], ids=["that writes the checkpoints", "that does not"])
def test_a_process_that_hangs_is_given_up_and_all_start_again(project, environment, tmp_path_factory, writes):
    """It is stopped: Ray sees it alive, and its connections stay open. The other one waits for it in a collective."""
    with_processes(2, steps=300, checkpoint_every=10, log_every=10)
    expected = undisturbed()
    shard = shard_at("ray")
    seconds = limit(20)
    with nodes_with_homes(tmp_path_factory, 2, 1, SCORESMOOTH_COLLECTIVE_LIMIT=f"{seconds:g}") as cluster:
        process = start(shard, cluster, (project / "place").as_uri())
        wait_for_checkpoint(process, project / "place")
        checkpoints = ".cache/scoresmooth/*/ray/*.scratch/*.safetensors"
        (writing,) = [home for home in cluster.homes.values() if list(home.glob(checkpoints))]
        (hung,) = [pid for pid, home in at_work(cluster).items() if (home == writing) == writes]
        os.kill(hung, signal.SIGSTOP)
        try:
            output = end(process)
            assert not Path(f"/proc/{hung}/fd").exists()  # Ray has ended it: its CPU is free
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(hung, signal.SIGKILL)
    assert f"another process of the training did not answer for {seconds:g} s" in output
    assert "a process was lost: all 2 start again" in output
    assert output.count("resuming from the shared place") >= 2
    assert shard.path.read_bytes() == expected


def test_more_processes_than_the_cluster_has_is_one_line(project, environment, cluster):
    with_processes(4)
    process = start(shard_at("ray"), cluster, "")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    room = "room for the 4 processes of train.processes with 1 CPUs and 0 GPUs each"
    assert f"execution.node_timeout: no {room} within 0 s: start one, or lower execution.cpus_per_job" in output
