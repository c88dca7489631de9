"""What takes a GPU, in one command of ten minutes: step costs, peers, closed forms, search, copies of a small set.

    python -m benchmarks.gpu IMAGES [--scale full|small] [--only cost|peer|closed|search|copies|samplers|rate ...]
                                    [--minutes 10] [--out gpu]

IMAGES: CIFAR-10 as parquet (Hugging Face layout), or an npz with `images` uint8 (N, H, W, C) and `labels` (N,).

cost      seconds per step and peak memory of conditioning, unconditioning, pixel and feature neighbours at CIFAR-10
          size (METHODS §3, §9), the four taking turns.
search    exact nearest images, 10,000 queries in 50,000 images, beside faiss IndexFlatL2; needs faiss for GPUs.
copies    1,000 images of one class and 200 of another: conditioning, unconditioning and three temperatures are trained
          and sampled, 1,000 samples each: #mem, mean and min of r1/r2 (METHODS §9), and the same for held-out images.
samplers  samples per second of every sampler with the CIFAR-10 network.
rate      share of the device's matrix rate that a training step of that network reaches, and where the rest goes.
closed    the closed-form score over the images against a softmax over torch.cdist: speed, and how far off that is.
peer      the network beside diffusers' UNet2DModel, as it comes and compiled; needs diffusers, the others do not.

Without --only the first five run, the most telling first, until --minutes are over; copies trains in what is left of
them. Results are merged into OUT/gpu.json after each part: the same command again skips the parts that are there, and
goes on with the trainings from their checkpoints. A part that --only names is measured anew. A part whose peer is not
installed is left out, and a line says so. At the end a table sets the results beside their aims; the last line is the
JSON. Needs torch, numpy, pydantic, pyyaml, pyarrow, pillow, safetensors and tqdm, and neither
prefect, dvc nor faiss. --scale small is the same code on a CPU, in minutes.
"""

import argparse
import json
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import step_profile
from benchmarks.gpu import aims
from benchmarks.gpu.closed import closed
from benchmarks.gpu.copies import copies
from benchmarks.gpu.cost import cost
from benchmarks.gpu.images import load, two_classes
from benchmarks.gpu.samplers import samplers
from benchmarks.gpu.search import search
from benchmarks.gpu.setup import Scale, forget, scale, show
from benchmarks.places import out_path
from stages.files.artifacts import write_json

PARTS = ("cost", "peer", "closed", "search", "copies")
ON_REQUEST = ("samplers", "rate")
SAMPLING = 0.35
"""Share of the time of part copies that sampling and compiling take; the rest trains. [estimated]"""


def rate(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """See step_profile.py; with the compiler, and without, where the profile names every operator."""
    network, batch = size.rate
    return {
        "rows": {
            name: step_profile.measure(network, batch, "auto", device, fused)
            for name, fused in {"compiled": True, "eager": False}.items()
            if compiled or not fused
        }
    }


def peer(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """How many times as fast ours is than diffusers', in bfloat16; see diffusers_unet.py."""
    from benchmarks import diffusers_unet

    channels, batch, rounds = size.peer
    times = diffusers_unet.compare(channels, batch, "bfloat16", rounds, device, compiled)
    rows = {name: {"seconds_per_step": round(seconds, 5)} for name, seconds in times.items()}
    return {"batch": batch, "times_as_fast": diffusers_unet.ratios(times, "bfloat16"), "rows": rows}


def installed(name: str) -> bool:
    """Whether the package is there."""
    try:
        return find_spec(name) is not None
    except ValueError:  # blocked
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("--scale", choices=("full", "small"), default="full")
    parser.add_argument("--only", nargs="+", choices=(*PARTS, *ON_REQUEST))
    parser.add_argument("--minutes", type=float, default=10.0, help="of the whole command")
    parser.add_argument("--eager", action="store_true", help="do not compile the networks")
    parser.add_argument("--out", type=out_path, default=Path("gpu"))
    arguments = parser.parse_args()
    if arguments.scale == "full" and not torch.cuda.is_available():
        raise SystemExit("error: --scale full needs a GPU and none is visible: use --scale small")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compiled = arguments.scale == "full" and not arguments.eager
    size, end = scale(arguments.scale, compiled), time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "gpu.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {"device": name, "scale": arguments.scale, "torch": torch.__version__}
    if any(found.get(key, value) != value for key, value in about.items()):
        raise SystemExit(f"error: {results} is of another device, scale or torch: name another folder with --out")
    found |= about
    images, labels = load(arguments.images)
    train, held_out = two_classes(size, images, labels)
    work = {
        "cost": lambda: cost(size, device, compiled),
        "copies": lambda: copies(size, device, train, held_out, arguments.out, training_minutes(end)),
        "search": lambda: search(size, device, images),
        "samplers": lambda: samplers(size, device, train, compiled),
        "rate": lambda: rate(size, device, compiled),
        "closed": lambda: closed(device, images),
        "peer": lambda: peer(size, device, compiled),
    }
    for part in arguments.only or PARTS:
        if reason := left_out(part, found, arguments.only, end):
            print(f"{part}: {reason}", flush=True)
            continue
        print(part, flush=True)
        started = time.perf_counter()
        found[part] = work[part]() | {"seconds": 0.0}
        found[part]["seconds"] = round(time.perf_counter() - started, 1)
        for row, values in found[part]["rows"].items() if part not in ("copies", "samplers") else ():
            show(row, values)
        write_json(results, found)
        forget()
    print(aims.table(found))
    print(json.dumps(found))


def left_out(part: str, found: dict[str, Any], only: list[str] | None, end: float) -> str:
    """Why a part does not run now; "" where it does."""
    if part == "peer" and not installed("diffusers"):
        return "not measured: install diffusers"
    if not only and part in found:
        return f"measured before ({found[part]['seconds']} s); --only {part} measures it anew"
    if not only and time.monotonic() > end:
        return "no time left: run the same command again"
    return ""


def training_minutes(end: float) -> float:
    """Minutes of training that fit, besides sampling, before `end`, a time of time.monotonic."""
    return max(0.02, (end - time.monotonic()) / 60 * (1 - SAMPLING))


if __name__ == "__main__":
    main()
