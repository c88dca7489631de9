"""Shards on a Ray cluster of two simulated nodes: the same bytes, and a lost node costs only what it was doing."""

import os
import shutil
import socket
import subprocess
import sys

import pytest
from crowding import Process
from ray_cluster import start_cluster
from small_project import PARAMS, ROOT, SmallProject
from watching import SAMPLE, logged, processes, samples, until

from pipeline.params import Execution

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[pipeline,ray]'")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs and two nodes with one CPU each, whose home is a folder of the test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        nodes = start_cluster(num_cpus=0)
        nodes.workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
        yield nodes
        nodes.shutdown()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cluster):
    project = SmallProject(tmp_path_factory.mktemp("ray"))
    try:
        for stage in (("stage", "ingest"), ("stage", "train", "--variant", "net")):
            project.run(*stage)
        yield project
    finally:
        project.stop()


@pytest.fixture
def project(trained, cluster):
    """The project without samples, its shards on Ray."""
    trained.reset()
    trained.release()
    shutil.rmtree(trained.folder / ".scoresmooth/shards/sample", ignore_errors=True)
    trained.params["execution"] |= {"runner": "ray", "address": cluster.address, "shared": None}
    trained.write_params()
    trained.log()
    yield trained
    trained.release()


def plain(project: SmallProject) -> bytes:
    project.plain("sample", "net")
    return samples(project)


def test_an_error_on_a_node_is_named_with_its_place(project):
    path = project.folder / "stages" / "sample.py"
    check = "assert 'net 3' not in shard.name, 'three'; first, last ="
    path.write_text(path.read_text().replace("first, last =", check))
    line = next(n for n, text in enumerate(path.read_text().splitlines(), 1) if "assert" in text)
    output = project.run(*SAMPLE, code=1)
    assert f"error: sample net 3/4: AssertionError: three (stages/sample.py, line {line})" in output.splitlines()


def test_shards_on_nodes_give_the_same_bytes(project):
    project.run(*SAMPLE)
    assert sorted(project.log()) == [f"sample net {n}/4" for n in range(1, 5)]
    found = samples(project)
    assert plain(project) == found
    assert "4 cached, 0 to compute" in project.run(*SAMPLE)  # the cache is this machine's, whoever computed
    assert "4 cached, 0 to compute" in project.run(*SAMPLE, "--runner", "local")


def test_inputs_and_results_travel_through_a_shared_place(project, tmp_path):
    project.params["execution"]["shared"] = (tmp_path / "shared").as_uri()
    project.write_params()
    project.run(*SAMPLE)
    assert project.log() == []  # nobody worked in the project's folder
    found = samples(project)
    assert plain(project) == found
    stored = [path.name for path in (tmp_path / "shared" / "files").iterdir()]
    assert len(stored) == 1 + 4  # the score, and four results
    assert not [name for name in stored if name.endswith(".part")]


def test_wrong_input_found_on_a_node_is_one_line(project):
    project.params["variants"]["net"]["temperature"] = 13.0
    project.write_params()
    output = project.run("stage", "train", "--variant", "net", code=2)
    assert "error: temperature 13 is unlucky: take another" in output
    assert "Traceback" not in output


def test_no_cluster_at_the_address_is_one_line(project):
    project.params["execution"]["address"] = "127.0.0.1:1"
    project.write_params()
    output = project.run(*SAMPLE, code=2)
    assert "error: execution.address: no Ray cluster at 127.0.0.1:1" in output


def test_a_shard_that_fits_into_no_node_is_one_line_after_the_limit(project):
    """The two nodes have two CPUs together, but one each."""
    project.params["execution"]["cpus_per_job"] = 2
    project.write_params()
    output = project.run(*SAMPLE, code=2)
    lacks, remedy = "node with 2 CPUs and 0 GPUs of the Ray cluster", "start one, or lower execution.cpus_per_job"
    assert f"waiting for a {lacks}, for at most 1 s (execution.node_timeout): {remedy}" in output
    assert f"error: execution.node_timeout: no {lacks} within 1 s: {remedy} or gpus_per_job" in output


def test_a_shard_that_wants_a_gpu_is_not_computed_on_a_cpu_silently(project):
    path = project.folder / "stages" / "sample.py"
    path.write_text(path.read_text() + "\nimport stages.device\n")  # what tells a stage that may use a GPU
    (project.folder / "stages" / "device.py").write_text("")
    output = project.run(*SAMPLE, code=2)
    assert "error: execution.node_timeout: no node with 1 CPUs and 1 GPUs of the Ray cluster within 1 s: " in output
    assert "lower execution.cpus_per_job or gpus_per_job (0: compute on CPUs)" in output
    assert project.log() == []
    project.params["execution"]["gpus_per_job"] = 0
    project.write_params()
    project.run(*SAMPLE)
    assert len(project.log()) == 4


def answer(**changes):
    """The description of a node, as cluster.describe returns it."""
    here = {"python": "3.12.1", "packages": {"ray": "2", "torch": "2"}, "code": "c", "shared": True, "gpus": 0}
    return {**here, "token": True, "cpus": 4, **changes}


@pytest.mark.parametrize(
    ("changes", "gpus", "missing"),
    [
        ({}, 0, []),  # a cluster of CPUs
        ({}, 1, ["1 GPUs on one node (execution.gpus_per_job; the node with most has 0)"]),
        ({"gpus": 2}, 2, []),
        ({"gpus": 1}, 2, ["2 GPUs on one node (execution.gpus_per_job; the node with most has 1)"]),
        ({"cpus": 2}, 0, ["3 CPUs on one node (execution.cpus_per_job; the node with most has 2)"]),
        ({"python": "3.11.0"}, 0, ["a: Python 3.12.1 (it has 3.11.0)"]),
        ({"packages": {"ray": "2", "torch": "1"}}, 0, ["a: torch 2 (it has 1)"]),
        ({"code": "d"}, 0, ["a: this project's code (it runs another version)"]),
        (
            {"shared": False},
            0,
            ["a: execution.shared s3://b (mount it there, or set execution.shared to what all nodes see)"],
        ),
    ],
)
def test_everything_that_a_node_lacks_is_named(changes, gpus, missing):
    from pipeline import cluster

    execution = Execution(**{**PARAMS["execution"], "shared": "s3://b", "gpus_per_job": gpus, "cpus_per_job": 3})
    assert cluster._missing(answer(), {"a": answer(**changes)}, execution) == missing


def test_cluster_check_says_what_is_missing(project, tmp_path):
    project.params["execution"]["gpus_per_job"] = 0
    project.write_params()
    output = project.run("cluster", "check", code=1)
    assert output.count("shared place seen") == 4  # here and three nodes
    nodes = "\n".join(line for line in output.splitlines() if not line.startswith("here"))
    assert [nodes.count(f", {cpus} CPUs, 0 GPUs, ") for cpus in (0, 1)] == [1, 2]  # what Ray gives out there
    assert [line for line in output.splitlines() if line.startswith("missing: ")] == [
        "missing: a token (export RAY_AUTH_MODE=token on all nodes: whoever reaches the ports can run code)"
    ]


def test_without_ray_the_runner_says_what_to_install(project):
    code = "import sys; sys.modules['ray'] = None; from pipeline.cli import main; sys.argv[1:] = sys.argv[1:]; main()"
    command = project.command
    project.command = lambda *arguments: [sys.executable, "-c", code, *arguments]
    try:
        output = project.run(*SAMPLE, code=2)
    finally:
        project.command = command
    assert "error: execution.runner is ray, which is not installed: pip install '.[pipeline,ray]'" in output


@pytest.mark.long
@pytest.mark.faults
def test_a_lost_node_costs_only_the_shard_it_worked_on(project, cluster):
    project.hold(1)
    process = project.start(*SAMPLE)
    until(lambda: logged(project, 1))
    done = len(list((project.folder / ".scoresmooth/shards/sample").glob("*.manifest")))
    cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
    project.release()
    output, _ = process.communicate(timeout=180)
    cluster.workers.append(cluster.add_node(num_cpus=1))
    assert process.returncode == 0, output
    log = project.log()
    assert set(log) == {f"sample net {n}/4" for n in range(1, 5)}
    assert len(log) <= 4 + 1, done
    found = samples(project)
    assert plain(project) == found
    assert not processes(project, "pipeline.cli\0stage")


MEETS = """
import torch
from stages.diffusion.distributed import join
with join(2, "cpu") as (world, _):
    print(world.all_gather(torch.tensor([world.rank + 1.0])).tolist())
"""


def test_the_processes_of_a_training_meet_at_a_store_whose_port_is_held(monkeypatch):
    """Nobody can take the port between its choice and its use: the store listens from the first moment."""
    from pipeline import ray_runner

    monkeypatch.setattr(ray_runner.ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    meeting = ray_runner._Meeting()
    address, port = meeting.place()
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind((address, port))
    found = [
        Process(
            [sys.executable, "-c", MEETS],
            env={**os.environ, **ray_runner._torchrun_variables(rank, 2, address, port), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.communicate(timeout=240)[0] for process in found] == ["[1.0, 2.0]\n"] * 2


@pytest.mark.long
@pytest.mark.faults
@pytest.mark.parametrize("comes_back", [True, False])
def test_lost_nodes_are_waited_for_aloud_and_with_a_limit(project, cluster, comes_back):
    """Ray itself would wait for a node silently and for ever."""
    project.params["execution"]["node_timeout"] = 300 if comes_back else 3
    project.write_params()
    project.hold(1)
    process = project.start(*SAMPLE)
    until(lambda: logged(project, 1))
    while cluster.workers:
        cluster.remove_node(cluster.workers.pop(), allow_graceful=False)
    project.release()
    try:
        if comes_back:
            lines = iter(process.stdout.readline, "")
            told = next(line for line in lines if "waiting for a node" in line)
            assert "waiting for a node with 1 CPUs and 0 GPUs of the Ray cluster, for at most 5 min" in told
        else:
            output, _ = process.communicate(timeout=180)
            assert process.returncode == 2, output
            lacks = "no node with 1 CPUs and 0 GPUs of the Ray cluster within 3 s: start one, or lower execution."
            assert f"error: execution.node_timeout: {lacks}" in output
    finally:
        cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    if comes_back:
        output, _ = process.communicate(timeout=180)
        assert process.returncode == 0, output
        assert set(project.log()) == {f"sample net {n}/4" for n in range(1, 5)}
    assert not processes(project, "pipeline.cli\0stage")
