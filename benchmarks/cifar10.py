"""CIFAR-10 from a parquet file through ingest, deduplicate, embed, index, a closed-form sample and its filter.

    python -m benchmarks.cifar10 PATH/train.parquet [--train 10000] [--samples 200]

Prints time and peak memory of every stage, each in a process of its own and without Prefect or DVC, and one JSON line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.published import NOISE, ROOT

VARIANT = "closed-conditioning"
STAGES = [("ingest", None), ("deduplicate", None), ("embed", None), ("index", None), ("train", VARIANT),
          ("sample", VARIANT), ("filter", VARIANT), ("fid", VARIANT)]  # fmt: skip


def parameters(source: Path, train: int, samples: int) -> dict:
    """params.yaml of the project, on CIFAR-10 at its own resolution."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["ingest"] |= {"source": f"parquet:{source}", "resolution": 32, "channels": 3, "train": train}
    tree["train"]["noise"] = NOISE.model_dump()
    tree["sample"] |= {"count": samples, "shards": 2}
    tree["variants"] = {VARIANT: tree["variants"][VARIANT]}
    return tree


def run(name: str, variant: str | None, folder: str) -> tuple[float, float]:
    """(seconds, peak memory in GB) of one stage."""
    command = [sys.executable, "-m", f"stages.{name}", *(["--variant", variant] if variant else [])]
    started = time.perf_counter()
    child = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"stage {name} failed: run `{' '.join(command)}` in {folder} to see why")
    return time.perf_counter() - started, usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--train", type=int, default=10000)
    parser.add_argument("--samples", type=int, default=200)
    arguments = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        tree = parameters(arguments.source.resolve(), arguments.train, arguments.samples)
        (Path(folder) / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        for name, variant in STAGES:
            seconds, memory = run(name, variant, folder)
            rows[name] = {"seconds": round(seconds, 1), "peak_gb": round(memory, 2)}
            print(f"| {name:11} | {seconds:7.1f} s | {memory:5.2f} GB |", flush=True)
        headline = json.loads((Path(folder) / "data/filter" / VARIANT / "filter.json").read_text())["metrics"][
            "nn_ratio_near_copy"
        ]
    print(
        json.dumps({"train": arguments.train, "samples": arguments.samples, "copies": headline["rate"], "stages": rows})
    )


if __name__ == "__main__":
    main()
