"""Ray's memory monitor kills every shard: each is tried once more with half the working memory, then reported."""

import pytest
from ray_cluster import start_cluster
from small_project import SmallProject
from watching import SAMPLE, samples

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[pipeline,ray]'")
pytestmark = [pytest.mark.long, pytest.mark.faults]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose shards go to a node that always counts as full."""
    monkeypatch.setenv("RAY_memory_usage_threshold", "0.001")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    node = start_cluster(num_cpus=1)
    (tmp_path / "project").mkdir()
    made = SmallProject(tmp_path / "project")
    try:
        for stage in (("stage", "ingest"), ("stage", "train", "--variant", "net")):
            made.run(*stage)
        made.params["execution"] |= {"runner": "ray", "address": node.address}
        made.write_params()
        yield made
    finally:
        made.stop()
        node.shutdown()


def test_the_memory_monitors_kills_are_reported_and_not_repeated_without_end(project):
    project.hold(0)  # a shard that lasts until it is killed
    output = project.run(*SAMPLE, code=2)
    assert "killed by Ray, out of memory on its node: trying once more with half the working memory" in output
    assert "error: sample net " in output
    assert "out of memory twice" in output
    assert "lower sample.batch" in output


def test_a_shard_that_is_refused_memory_is_tried_again_with_half(project, monkeypatch):
    path = project.folder / "stages" / "sample.py"
    refuse = 'import os; os.environ["SCORESMOOTH_MEMORY_SHARE"] == "1.0" and bytearray(1 << 62); first, last ='
    path.write_text(path.read_text().replace("first, last =", refuse, 1))
    project.params["execution"] |= {"address": None}  # a cluster of this machine alone, with its own memory
    project.write_params()
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    output = project.run(*SAMPLE)
    assert output.count("refused memory (MemoryError): trying once more with half the working memory") == 4
    found = samples(project)
    project.write_stage("sample")
    project.plain("sample", "net")
    assert samples(project) == found
