"""What the dispatch costs, and what it saves: python -m benchmarks.orchestration [--parts stage dvc] [--repeats 5]

stage    A stage's own work in plain Python beside the same stage as a Prefect flow, with the server up: with its shards
         to compute, with its shards cached, and without any shards. The stage does next to nothing, so the difference
         is the overhead.
dvc      `dvc repro` and `scoresmooth repro --dry-run` with nothing to do, on the project's own dvc.yaml, params.yaml
         and code, with small files as data.
parallel The project's own pipeline, with params.yaml made small (or as it is, with --full): `dvc repro` beside
         `scoresmooth repro --jobs 2`, each from nothing, each with a server of its own; whether all outs are equal.
ray      The 16 shards of sample and the 8 of filter of a closed form, one thread each: on this machine with two jobs,
         beside a Ray cluster of two simulated nodes with one CPU each. Needs pip install '.[pipeline,ray]'.
thousand A stage of 1,000 shards: seconds per shard beside plain Python, the server's memory and database before and
         after, and how long the requests of the UI's pages then take.

Times are wall-clock medians with the range, in seconds, of whole processes, and the least processor seconds. Projects
are made in a temporary folder. The last line is all numbers as JSON.
"""

import argparse
import base64
import contextlib
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.small_project import ROOT, SmallProject

Numbers = dict[str, Any]


def measure(name: str, repeats: int, action: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    """Print and return the median of `repeats` runs of `action`, after one that does not count."""
    times, spent = [], []
    for _ in range(repeats + 1):
        before()
        start, began = time.perf_counter(), _processor_seconds()
        action()
        times.append(time.perf_counter() - start)
        spent.append(_processor_seconds() - began)
    median, spread = statistics.median(times[1:]), f"({min(times[1:]):.2f} to {max(times[1:]):.2f})"
    print(f"{name:45} {median:6.2f}  {spread}  processor {min(spent[1:]):.2f}", flush=True)
    return median


def _processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def stage_overhead(folder: Path, repeats: int) -> Numbers:
    """One stage with four shards: plain, dispatched, cached."""
    project = SmallProject(folder)
    shards = folder / ".scoresmooth" / "shards" / "sample"

    def forget() -> None:
        shutil.rmtree(shards, ignore_errors=True)

    try:
        start = time.perf_counter()
        project.run("server", "start")
        print(f"{'start of the server, once per project':45} {time.perf_counter() - start:6.2f}", flush=True)
        project.run("stage", "ingest")
        empty = measure("stage without shards", repeats, lambda: project.run("stage", "train", "--variant", "closed"))
        plain = measure("4 shards, plain Python", repeats, lambda: project.plain("sample", "closed"))
        stage = ("stage", "sample", "--variant", "closed")
        fresh = measure("4 shards, dispatched", repeats, lambda: project.run(*stage), forget)
        cached = measure("4 shards, dispatched, all cached", repeats, lambda: project.run(*stage))
        print(f"overhead of a stage: {fresh - plain:.2f} s, cached {cached - plain:.2f} s, no shards {empty:.2f} s")
        return {"plain_s": plain, "dispatched_s": fresh, "cached_s": cached, "no_shards_s": empty}
    finally:
        project.stop()


def nothing_to_do(folder: Path, repeats: int) -> Numbers:
    """dvc repro and scoresmooth repro on the real graph, every out present and recorded."""
    for name in ("dvc.yaml", "params.yaml", "stages"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}
    environment["PYTHONPATH"] = str(ROOT)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    run("dvc", "init", "--no-scm")
    config = (ROOT / ".dvc" / "config").read_text().replace("[core]\n", "[core]\n    no_scm = true\n")
    (folder / ".dvc" / "config").write_text(config)
    _write_outs(folder)
    run("dvc", "commit", "-f")
    ours = ("pipeline.cli", "repro", "--dry-run")
    assert "up to date" in run("dvc", "repro")
    assert "up to date" in run(*ours)
    nothing = measure("dvc repro with nothing to do", repeats, lambda: run("dvc", "repro"))
    own = measure("scoresmooth repro --dry-run, nothing to do", repeats, lambda: run(*ours))
    version = measure("dvc version, for comparison", repeats, lambda: run("dvc", "version"))
    return {"nothing_to_do_s": nothing, "scoresmooth_s": own, "dvc_version_s": version}


def _write_outs(folder: Path) -> None:
    """A small file for every data dependency and out of dvc.yaml."""
    variants = yaml.safe_load((folder / "params.yaml").read_text())["variants"]
    for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values():
        body = stage.get("do", stage)
        paths = [*body["deps"], *body["outs"], *(next(iter(metric)) for metric in body.get("metrics", []))]
        for path in (path for path in paths if path.startswith("data/")):
            for variant in variants:
                target = folder / path.replace("${key}", variant)
                target = target if target.suffix else target / "out.json"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(f'{{"path": "{target.name}"}}')


REDUCED: dict[str, Any] = {
    "ingest": {"train": 60, "test": 200, "holdout": 200},
    "train": {"seeds": [42], "snapshots": [100]},
    "train.optimization": {"steps": 150, "checkpoint_every": 100},
    "sample": {"count": 60, "batch": 20, "shards": 3},
}
"""What --parts parallel changes in params.yaml without --full."""


def parallel(folder: Path, repeats: int, full: bool) -> Numbers:
    """The whole pipeline, one stage after the other beside two at a time. Once each: it is long."""
    commands = {"dvc repro": ["dvc", "repro"], "scoresmooth repro --jobs 2": ["pipeline.cli", "repro", "--jobs", "2"]}
    times, outs = {}, {}
    for name, command in commands.items():
        place = folder / command[0]
        _copy_project(place, {} if full else REDUCED)
        environment = _environment(place)
        start = time.perf_counter()
        with (folder / f"{command[0]}.log").open("wb") as log:
            done = subprocess.run([sys.executable, "-m", *command], cwd=place, env=environment, stdout=log, stderr=log)
        times[name] = time.perf_counter() - start
        subprocess.run([sys.executable, "-m", "pipeline.cli", "server", "stop"], cwd=place, env=environment)
        if done.returncode:
            raise RuntimeError((folder / f"{command[0]}.log").read_text()[-3000:])
        print(f"{name:45} {times[name]:6.1f}", flush=True)
        stages = yaml.safe_load((place / "dvc.lock").read_text())["stages"]
        outs[name] = {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", [])}
    one, two = outs.values()
    different = sorted(path for path in one if one[path] != two.get(path))
    sequential, at_once = times.values()
    print(f"{sequential / at_once:.2f} times as fast; outs that differ: {', '.join(different) or 'none'}")
    return {"sequential_s": sequential, "jobs_2_s": at_once, "ratio": sequential / at_once, "different": different}


def _environment(place: Path) -> dict[str, str]:
    """Variables for commands that run the copy's code."""
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONPATH": str(place)}
    environment["PATH"] = f"{place}:{Path(sys.executable).parent}:{environment['PATH']}"
    return environment


def _copy_project(place: Path, changes: dict[str, Any]) -> None:
    """The project's code and pipeline, without results, as a DVC project of its own."""
    for name in ("stages", "pipeline"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(ROOT / "data" / "verdicts", place / "data" / "verdicts")  # people's, a dependency of filter
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    for dotted, values in changes.items():
        node = tree
        for part in dotted.split("."):
            node = node[part]
        node.update(values)
    (place / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    script = place / "scoresmooth"  # what dvc.yaml calls, with this copy's code
    script.write_text(f'#!/bin/sh\nPYTHONPATH={place} exec {sys.executable} -m pipeline.cli "$@"\n')
    script.chmod(0o755)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=place, check=True)
    config = (ROOT / ".dvc" / "config").read_text().replace("[core]\n", "[core]\n    no_scm = true\n")
    (place / ".dvc" / "config").write_text(config)


SHARDS: dict[str, Any] = {
    "ingest": {"train": 100, "test": 100, "holdout": 100},
    "sample": {"count": 1600, "batch": 100, "shards": 16},
    "filter": {"shards": 8},
    "execution": {"jobs": 2},
}
"""What --parts ray changes in params.yaml."""


def ray_throughput(folder: Path, repeats: int, variant: str = "closed-kernel") -> Numbers:
    """Shards per second here with two jobs, and on two nodes with one CPU each; whether the outs are equal."""
    from ray.cluster_utils import Cluster

    os.environ["OMP_NUM_THREADS"] = "1"
    _copy_project(folder, SHARDS)
    environment = _environment(folder)

    def scoresmooth(*arguments: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")

    def stage(name: str, *options: str) -> Callable[[], None]:
        return lambda: scoresmooth("stage", name, "--variant", variant, *options)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    numbers: Numbers = {}
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        for name in ("ingest", "deduplicate", "embed", "index"):
            scoresmooth("stage", name)
        scoresmooth("stage", "train", "--variant", variant)
        tree = yaml.safe_load((folder / "params.yaml").read_text())
        tree["execution"]["address"] = cluster.address
        (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        for name in ("sample", "filter"):
            numbers[name] = _here_and_there(folder, name, tree[name]["shards"], stage, repeats)
    finally:
        scoresmooth("server", "stop")
        cluster.shutdown()
    return numbers


def _here_and_there(
    folder: Path, name: str, shards: int, stage: Callable[..., Callable[[], None]], repeats: int
) -> Numbers:
    """One stage's shards here and on Ray; the outs must be equal."""

    def forget() -> None:
        shutil.rmtree(folder / ".scoresmooth" / "shards" / name, ignore_errors=True)

    local = measure(f"{shards} shards of {name}, here", repeats, stage(name), forget)
    cached = measure(f"{shards} shards of {name}, all cached", repeats, stage(name))
    expected = _digests(folder / "data" / name)
    remote = measure(f"{shards} shards of {name}, 2 Ray nodes", repeats, stage(name, "--runner", "ray"), forget)
    equal = _digests(folder / "data" / name) == expected
    rates = f"{shards / local:.2f} here, {shards / remote:.2f} on Ray"
    print(f"{name}: shards per second: {rates}, ratio {local / remote:.2f}; outs equal: {equal}", flush=True)
    return {"local_s": local, "cached_s": cached, "ray_s": remote, "ratio": local / remote, "equal": equal}


def _digests(folder: Path) -> dict[str, str]:
    """sha256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def thousand(folder: Path, repeats: int, shards: int = 1000) -> Numbers:
    """One stage with 1,000 shards that do next to nothing."""
    project = SmallProject(folder)
    project.params["sample"].update(count=shards, shards=shards)
    project.write_params()
    home = folder / ".scoresmooth" / "prefect"
    try:
        for name in ("ingest", "train --variant closed"):
            project.run("stage", *name.split())
        start = time.perf_counter()
        project.plain("sample", "closed")
        plain = time.perf_counter() - start
        record = json.loads((home / "server.json").read_text())
        before = _memory(record["pid"]), _size(home)
        start = time.perf_counter()
        project.run("stage", "sample", "--variant", "closed")
        fresh = time.perf_counter() - start
        after = _memory(record["pid"]), _size(home)
        login = (home / "login").read_text().strip()
        answers = _answers(f"http://127.0.0.1:{record['port']}/api", login, repeats)
    finally:
        project.stop()
    each = (fresh - plain) / shards * 1000
    print(f"{shards} shards: plain {plain:.1f} s, dispatched {fresh:.1f} s ({each:.1f} ms each)")
    print(f"server: {before[0]:.0f} to {after[0]:.0f} MiB, database {before[1]:.1f} to {after[1]:.1f} MiB")
    print("its pages answer in " + ", ".join(f"{seconds:.2f} s ({page})" for page, seconds in answers.items()))
    per_shard = {"plain_s": plain, "dispatched_s": fresh, "per_shard_ms": each}
    growth = {"server_mib": [before[0], after[0]], "database_mib": [before[1], after[1]]}
    return {**per_shard, **growth, "answers_s": answers}


def _answers(api: str, login: str, repeats: int) -> dict[str, float]:
    """Median seconds of what the UI's pages ask for: the list of runs, a run's tasks, its graph and its artifacts."""

    def ask(path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        token = base64.b64encode(login.encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {token}"}
        request = urllib.request.Request(f"{api}/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    newest = ask("flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})[0]["id"]
    run = {"flow_runs": {"id": {"any_": [newest]}}}
    pages: dict[str, tuple[str, dict[str, Any] | None]] = {
        "runs": ("flow_runs/paginate", {"sort": "START_TIME_DESC", "limit": 50, "page": 1}),
        "200 tasks of a run": ("task_runs/filter", {**run, "limit": 200}),
        "its number of tasks": ("task_runs/count", run),
        "its graph": (f"flow_runs/{newest}/graph-v2", None),
        "its artifacts": ("artifacts/filter", {**run, "limit": 50}),
        "its log": ("logs/filter", {"logs": {"flow_run_id": {"any_": [newest]}}, "limit": 200}),
    }
    found = {}
    for page, (path, body) in pages.items():
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            ask(path, body)
            times.append(time.perf_counter() - start)
        found[page] = statistics.median(times)
    return found


def _memory(pid: int) -> float:
    """Resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def _size(folder: Path) -> float:
    """MiB of the database's files."""
    return sum(path.stat().st_size for path in folder.glob("prefect.db*")) / 2**20


PARTS = {
    "stage": stage_overhead,
    "dvc": nothing_to_do,
    "parallel": parallel,
    "ray": ray_throughput,
    "thousand": thousand,
}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["stage", "dvc"])
    parser.add_argument("--full", action="store_true", help="parallel: params.yaml as it is (half an hour)")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    numbers: Numbers = {"load_before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="scoresmooth-") as folder:
        for name in arguments.parts:
            (Path(folder) / name).mkdir()
            options = {"full": arguments.full} if name == "parallel" else {}
            with contextlib.chdir(folder):
                numbers[name] = PARTS[name](Path(folder) / name, arguments.repeats, **options)
    numbers["load_after"] = os.getloadavg()[0]
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
