"""Check whether a Ray cluster can do this project's work: one small task on every node reports what it has."""

import os
import platform
import secrets
import subprocess
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import closure
from pipeline.params import STAGES, Execution
from pipeline.ray_runner import connect
from pipeline.shared import SharedPlace
from stages.files.artifacts import sha256_json
from stages.files.paths import CACHE

WAIT = 120.0
"""Seconds to wait for a node's answer."""


def check(execution: Execution) -> tuple[list[str], list[str]]:
    """Return lines that describe the cluster and lines that name what it lacks. Raises InputError without a cluster."""
    connect(execution.address)
    place = SharedPlace(execution.shared) if execution.shared else None
    CACHE.mkdir(exist_ok=True)
    marker = CACHE / f"cluster-check-{secrets.token_hex(8)}"
    marker.write_text(marker.name)
    try:
        digest = place.put(marker) if place else None
        names = sorted({name for stage in STAGES for name in closure.packages(stage)} | {"ray"})
        here = describe(str(marker.absolute()), names, execution.shared, digest)
        alive = [node for node in ray.nodes() if node["Alive"]]
        nodes = {node["NodeManagerAddress"] + " " + node["NodeID"][:8]: node for node in alive}
        found = _ask(nodes, str(marker.absolute()), names, execution.shared, digest)
    finally:
        marker.unlink()
    lines = [f"here: {_line(here)}", *(f"{name}: {_line(answer)}" for name, answer in found.items())]
    return lines, _missing(here, found, execution)


def _ask(nodes: dict[str, dict[str, Any]], *arguments: Any) -> dict[str, dict[str, Any]]:
    """Ask every node to describe itself; add the CPUs and GPUs that Ray schedules there."""
    remote = ray.remote(describe)
    references = {
        name: remote.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False), max_retries=0
        ).remote(*arguments)
        for name, node in nodes.items()
    }
    given = {
        name: {key: int(node["Resources"].get(what, 0)) for key, what in (("cpus", "CPU"), ("gpus", "GPU"))}
        for name, node in nodes.items()
    }
    return {name: ray.get(reference, timeout=WAIT) | given[name] for name, reference in references.items()}


def describe(marker: str, packages: list[str], url: str | None, digest: str | None) -> dict[str, Any]:
    """Describe the node that this runs on: versions, GPUs, and whether it sees the shared place."""
    sees = Path(marker).is_file()
    if url is not None and digest is not None:
        place, copy = SharedPlace(url), Path.home() / ".cache" / "scoresmooth" / Path(marker).name
        try:
            place.get(digest, copy)
            copy.unlink()
            sees = True
        except OSError:
            sees = False
    listed = subprocess.run(["sh", "-c", "nvidia-smi -L 2>/dev/null || true"], capture_output=True, text=True)
    return {
        "python": platform.python_version(),
        "packages": closure.versions(packages),
        "code": sha256_json([closure.code_digest(name) for name in STAGES]),
        "shared": sees,
        "gpus": listed.stdout.count("GPU "),
        "token": os.environ.get("RAY_AUTH_MODE", "") == "token" or (Path.home() / ".ray" / "auth_token").exists(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def _line(found: dict[str, Any]) -> str:
    ray_version, torch = found["packages"]["ray"], found["packages"].get("torch", "absent")
    return (
        f"Python {found['python']}, ray {ray_version}, torch {torch}, {found['cpus']} CPUs, {found['gpus']} GPUs, "
        f"shared place {'seen' if found['shared'] else 'not seen'}, token {'set' if found['token'] else 'not set'}"
    )


def _missing(here: dict[str, Any], nodes: dict[str, dict[str, Any]], execution: Execution) -> list[str]:
    """Return a line for each difference that would make work fail or change results."""
    lines = []
    for name, found in nodes.items():
        if found["python"] != here["python"]:
            lines.append(f"{name}: Python {here['python']} (it has {found['python']})")
        for package, version in here["packages"].items():
            if found["packages"][package] != version:
                lines.append(f"{name}: {package} {version} (it has {found['packages'][package]})")
        if found["code"] != here["code"] and found["packages"] == here["packages"]:
            lines.append(f"{name}: this project's code (it runs another version)")
        if not found["shared"]:
            what = f"execution.shared {execution.shared}" if execution.shared else f"the folder {Path.cwd()}"
            lines.append(f"{name}: {what} (mount it there, or set execution.shared to what all nodes see)")
    lines += _small(nodes, execution)
    if execution.address is not None and not here["token"]:
        lines.append("a token (export RAY_AUTH_MODE=token on all nodes: whoever reaches the ports can run code)")
    return lines


def _small(nodes: dict[str, dict[str, Any]], execution: Execution) -> list[str]:
    """Return a line for each resource of a shard that no single node has."""
    wanted = {"CPUs": ("cpus", execution.cpus_per_job), "GPUs": ("gpus", execution.gpus_per_job)}
    lines = []
    for what, (key, count) in wanted.items():
        most = max((found[key] for found in nodes.values()), default=0)
        if most < count:
            lines.append(f"{count:g} {what} on one node (execution.{key}_per_job; the node with most has {most})")
    return lines
