"""Shards on a Ray cluster of two simulated nodes: the same bytes, and a lost node costs only what it was doing."""

import shutil
import sys

import pytest
from small_project import SmallProject
from test_pipeline import SAMPLE, logged, processes, samples, until

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[ray]'")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head without CPUs and two nodes with one CPU each, whose home is a folder of the test."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
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
    """The project with nothing sampled, its shards on Ray."""
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


def test_cluster_check_says_what_is_missing(project, tmp_path):
    output = project.run("cluster", "check", code=1)
    assert output.count("shared place seen") == 4  # here and three nodes
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
    assert "error: execution.runner is ray, which is not installed: pip install '.[ray]'" in output


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
