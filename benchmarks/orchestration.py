"""What the dispatch costs: python benchmarks/orchestration.py [--repeats 5]

1. A stage's own work in plain Python beside the same stage as a Prefect flow, with the server up: with its shards to
   compute, with its shards cached, and without any shards. The stage does next to nothing, so the difference is the
   overhead.
2. `dvc repro` with nothing to do, on the project's own dvc.yaml, params.yaml and code, with small files as data.

Times are wall-clock medians with the range, in seconds, of whole processes. Projects are made in a temporary folder.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from small_project import SmallProject  # noqa: E402


def measure(name: str, repeats: int, action: Callable[[], None], before: Callable[[], None] = lambda: None) -> float:
    """Print and return the median of `repeats` runs of `action`, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        before()
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    median = statistics.median(times[1:])
    print(f"{name:45} {median:6.2f}  ({min(times[1:]):.2f} to {max(times[1:]):.2f})", flush=True)
    return median


def stage_overhead(folder: Path, repeats: int) -> None:
    """One stage with four shards: plain, dispatched, cached."""
    project = SmallProject(folder)
    shards = folder / ".scoresmooth" / "shards" / "sample"
    try:
        start = time.perf_counter()
        project.run("server", "start")
        print(f"{'start of the server, once per project':45} {time.perf_counter() - start:6.2f}", flush=True)
        project.run("stage", "ingest")
        empty = measure("stage without shards", repeats, lambda: project.run("stage", "train", "--variant", "closed"))
        plain = measure("4 shards, plain Python", repeats, lambda: project.plain("sample", "closed"))
        stage = ("stage", "sample", "--variant", "closed")
        forget = lambda: shutil.rmtree(shards, ignore_errors=True)  # noqa: E731
        fresh = measure("4 shards, dispatched", repeats, lambda: project.run(*stage), forget)
        cached = measure("4 shards, dispatched, all cached", repeats, lambda: project.run(*stage))
        print(f"overhead of a stage: {fresh - plain:.2f} s, cached {cached - plain:.2f} s, no shards {empty:.2f} s")
    finally:
        project.stop()


def nothing_to_do(folder: Path, repeats: int) -> None:
    """dvc repro on the real graph, every out present and recorded."""
    for name in ("dvc.yaml", "params.yaml", "stages"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(folder / "site")}

    def dvc(*arguments: str) -> str:
        command = [sys.executable, "-m", "dvc", *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    dvc("init", "--no-scm")
    config = (ROOT / ".dvc" / "config").read_text().replace("[core]\n", "[core]\n    no_scm = true\n")
    (folder / ".dvc" / "config").write_text(config)
    _write_outs(folder)
    dvc("commit", "-f")
    assert "up to date" in dvc("repro")
    measure("dvc repro with nothing to do", repeats, lambda: dvc("repro"))
    measure("dvc version, for comparison", repeats, lambda: dvc("version"))


def _write_outs(folder: Path) -> None:
    """A small file for every data dependency and out of dvc.yaml."""
    import yaml

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


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="scoresmooth-") as folder:
        for name, part in (("stage", stage_overhead), ("dvc", nothing_to_do)):
            (Path(folder) / name).mkdir()
            part(Path(folder) / name, repeats)
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
