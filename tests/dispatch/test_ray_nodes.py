"""Nodes that are absent or lost are waited for aloud and with a limit, on simulated nodes and tasks."""

import threading

import pytest

from stages.errors import InputError
from stages.protocol import Shard

pytest.importorskip("ray", reason="Ray is not installed: pip install '.[pipeline,ray]'")
from pipeline import ray_runner

SHARD = Shard("sample", "samples", "x", {}, (), ".bin")
NODE = {"Alive": True, "Resources": {"CPU": 1.0, "GPU": 1.0}}
LACKS = "node with 1 CPUs and 1 GPUs of the Ray cluster"


@pytest.fixture
def nodes(monkeypatch):
    """The cluster's nodes, which a test changes."""
    found = [NODE]
    monkeypatch.setattr(ray_runner, "connect", lambda address: None)
    monkeypatch.setattr(ray_runner, "LOOK", 0.01)
    monkeypatch.setattr(ray_runner.ray, "nodes", lambda: list(found))
    return found


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(ray_runner, "say", lines.append)
    return lines


def runner(timeout: float) -> ray_runner.RayRunner:
    return ray_runner.RayRunner("HOST:6379", ray_runner.RayResources(1, 1, timeout), None, 4)


def test_an_absent_node_is_waited_for_when_a_stage_starts(nodes, said):
    nodes.clear()
    threading.Timer(0.2, nodes.append, [NODE]).start()
    assert runner(60).jobs == 1
    remedy = "start one, or lower execution.cpus_per_job or gpus_per_job (0: compute on CPUs)"
    assert said == [f"waiting for a {LACKS}, for at most 60 s (execution.node_timeout): {remedy}"]
    nodes[:] = [{**NODE, "Resources": {"CPU": 8.0}}, {**NODE, "Alive": False}]
    with pytest.raises(InputError, match=f"^execution.node_timeout: no {LACKS} within 0.1 s: start one"):
        runner(0.1)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_task_whose_node_is_lost(nodes, said, monkeypatch, comes_back):
    """Ray would look for another node silently and for ever."""
    made, looks, cancelled = runner(60 if comes_back else 0.05), [], []

    def wait(references, timeout):
        threading.Event().wait(timeout)
        looks.append(1)
        nodes[:] = [NODE] if comes_back and len(looks) > 3 else []
        return (references, []) if comes_back and len(looks) > 5 else ([], references)

    monkeypatch.setattr(ray_runner.ray, "wait", wait)
    monkeypatch.setattr(ray_runner.ray, "get", lambda reference: f"digest of {reference}")
    monkeypatch.setattr(ray_runner.ray, "cancel", lambda reference, force: cancelled.append(reference))
    if comes_back:
        assert made._wait(SHARD, "task") == "digest of task"
    else:
        with pytest.raises(InputError, match=f"no {LACKS} within 0.05 s"):
            made._wait(SHARD, "task")
    assert [line.split(", for")[0] for line in said] == [f"waiting for a {LACKS}"]
    assert cancelled == ([] if comes_back else ["task"])


def test_a_training_needs_room_for_all_its_processes(nodes, said):
    made = runner(0.05)
    with pytest.raises(InputError, match="no room for the 2 processes of train.processes with 1 CPUs and 1 GPUs each"):
        made._together(SHARD, None, 2)
