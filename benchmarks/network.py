"""The default small network against the first version in the repository: python -m benchmarks.network [--rounds 5]

Training step, sampling step of the network and of the closed-form kernel score, with the settings of params.yaml; the
first version knows float32 alone. It is commit 5e9e444, read with `git archive` together with this script and
params.yaml as they were when both versions still had one interface (commit 7e545d9). Each version runs in a process of
its own; both processes stay up and take turns. Times are processor seconds over all threads, which other work on the
machine does not change; ratios are of medians.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import process_time

import numpy as np
import torch

from benchmarks.published import ROOT
from stages.diffusion.model import load_model
from stages.diffusion.network import NCSNpp
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams
from stages.diffusion.sampling import trajectory
from stages.diffusion.targets import denoising_target
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import start_training
from stages.diffusion.training_set import TrainingSet
from stages.files.tensors import save_tensors
from stages.protocol import load_tree

FIRST = {"5e9e444": ["stages"], "7e545d9": ["benchmarks/network.py", "params.yaml"]}
"""Commits, and what is read of each, that make the first version's process."""

STEPS = {"train": 8, "sample_network": 2, "sample_kernel": 2}
"""How many steps are timed together, per turn."""


def tasks(folder: Path) -> dict[str, Callable[[], int]]:
    """What is timed: name -> one step, which returns its number of images. folder: for the network's weights."""
    tree = load_tree(ROOT / "params.yaml")
    settings, count, size = tree["train"], tree["ingest"]["train"], tree["ingest"]["resolution"]
    network, noise = NetworkParams(**settings["network"]), NoiseParams(**settings["noise"])
    optimization = OptimizationParams(**settings["optimization"])
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8)
    images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def build() -> NCSNpp:
        return NCSNpp(network, 1, size, True, noise.sigma_min, noise.sigma_max)

    training = start_training(
        optimization, noise, build, TrainingSet(images, None), denoising_target, True, settings["seeds"][0]
    )
    trainer = Trainer(training, folder, {})
    weights = folder / "model.safetensors"

    def train() -> int:
        next(trainer.steps())
        return optimization.batch

    def sample(name: str, path: str | None) -> Callable[[], int]:
        spec = {key: value for key, value in tree["variants"][name].items() if key not in ("sampler", "curve")}
        score = {"spec": spec, "noise": settings["noise"], "network": network.model_dump(mode="json")}
        if path:
            save_tensors(path, build().state_dict(), {"score": score, "image_shape": [1, size, size]})
        sampler, precision = tree["variants"][name]["sampler"], tree["sample"]["precision"]
        model = load_model(score, sampler, pixels, path, "cpu", precision=precision)
        states = iter(())

        def step() -> int:
            nonlocal states
            if next(states, None) is None:
                states = trajectory(model, 0, torch.arange(tree["sample"]["batch"]))
                next(states)
            return tree["sample"]["batch"]

        return step

    kernel = sample("closed-kernel", None)
    return {"train": train, "sample_network": sample("net-conditioning", str(weights)), "sample_kernel": kernel}


def serve() -> None:
    """Child: time STEPS[name] steps for every name that comes in, print images per processor second."""
    with tempfile.TemporaryDirectory() as folder:
        steps = tasks(Path(folder))
        for line in sys.stdin:
            name = line.strip()
            start = process_time()
            images = sum(steps[name]() for _ in range(STEPS[name]))
            print(images / (process_time() - start), flush=True)


def child(root: Path) -> subprocess.Popen:
    """A process of the benchmarks/network.py under `root`, with the stages beside it."""
    command = [sys.executable, root / "benchmarks" / "network.py", "--serve"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(root)}, text=True, **pipes)


def ask(process: subprocess.Popen, name: str) -> float:
    """Images per processor second of one turn."""
    process.stdin.write(name + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main() -> None:
    """Both versions in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve()
    with tempfile.TemporaryDirectory(prefix="scoresmooth-") as folder:
        for commit, names in FIRST.items():
            archive = subprocess.run(["git", "-C", ROOT, "archive", commit, *names], capture_output=True, check=True)
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
                files.extractall(folder, filter="data")
        processes = {"first": child(Path(folder)), "now": child(ROOT)}
        rates: dict[tuple[str, str], list[float]] = {}
        for turn in range(arguments.rounds + 1):
            for name in STEPS:
                for side, process in processes.items():
                    rate = ask(process, name)
                    if turn:  # the first turn warms up
                        rates.setdefault((name, side), []).append(rate)
        for process in processes.values():
            process.stdin.close()
            process.wait()
    result = {}
    for name in STEPS:
        first, now = (statistics.median(rates[name, side]) for side in ("first", "now"))
        print(
            f"{name:15} first version {first:8.1f} images per processor second, now {now:8.1f}, ratio {now / first:.2f}"
        )
        result[name] = round(now / first, 3)
    print(json.dumps({"benchmark": "network", "cores": len(os.sched_getaffinity(0)), "ratio": result}))


if __name__ == "__main__":
    main()
