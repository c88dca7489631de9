"""Which share of the device's matrix rate a training step reaches, and where the rest goes.

    python -m benchmarks.step_profile [--network default|cifar10] [--batch 32]

The rate is that of a square matrix product in the step's precision (2048 wide, 8192 on a GPU); the step's operations
are counted by torch's FlopCounterMode (products and convolutions, forward and backward). The table gives each kind of
operator's own time within a step (torch.profiler). On a CPU times are processor seconds.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import published, training_step
from benchmarks.published import ROOT, SHAPE
from benchmarks.turns import in_turns
from stages.device import uses_bfloat16
from stages.diffusion.parameters import NetworkParams
from stages.protocol import load_tree

KINDS = {
    "fused by the compiler (norms, SiLU, sums)": ("triton",),
    "convolutions, backward": ("convolution_backward",),
    "convolutions, forward": ("convolution", "mkldnn_convolution", "conv2d"),
    "matrix products": ("mm", "addmm", "bmm", "linear", "scaled_dot"),
    "GroupNorm and SiLU": ("group_norm", "silu"),
    "optimizer, clip, average": ("_fused_adamw", "lerp", "linalg_vector_norm", "_foreach"),
    "copies and casts": ("copy", "cat", "clone", "contiguous", "fill", "zero"),
    "resampling": ("pool", "upsample", "pixel_"),
    "additions and scaling": ("add", "mul", "div", "sub"),
}


REST = "everything else (noise, launching, autograd)"


def kind(name: str) -> str:
    """The kind of an operator of the profile."""
    short = name.removeprefix("aten::")
    for title, prefixes in KINDS.items():
        if any(prefix in short for prefix in prefixes):
            return title
    return REST


def spent_by_kind(events: Iterable[Any], device: torch.device) -> dict[str, float]:
    """Each kind's own time. On a GPU that of the kernels, which the profile lists twice: by themselves, and with the
    operator that launched them, which says what they are for."""
    own = defaultdict(float)
    if device.type == "cpu":
        for event in events:
            own[kind(event.key)] += event.self_cpu_time_total
        return own
    kernels = 0.0
    for event in events:
        if event.device_type == DeviceType.CPU:
            own[kind(event.key)] += event.self_device_time_total
        elif not event.is_user_annotation:
            kernels += event.self_device_time_total
    own[REST] += max(0.0, kernels - sum(own.values()))
    return own


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a square product."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    clock = time.perf_counter if device.type == "cuda" else time.process_time

    def product() -> None:
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()

    return 2 * size**3 / in_turns({"product": product}, 10, clock)["product"]


def measure(name: str, batch: int, precision: str, device: torch.device, compiled: bool) -> dict[str, Any]:
    """Rate, operations, step, table. Operations are counted before anything is compiled."""
    network, shape = published.network(), SHAPE
    if name == "default":
        network, shape = NetworkParams(**load_tree(ROOT / "params.yaml")["train"]["network"]), (1, 16, 16)
    images = torch.randint(0, 256, (500, *shape), dtype=torch.uint8, device=device)
    half = uses_bfloat16(precision, device)
    with tempfile.TemporaryDirectory() as folder:
        run = training_step.trainer(network, batch, images, Path(folder), precision)

        def step() -> None:
            training_step.step(run, run.training.target, None)
            if device.type == "cuda":
                torch.cuda.synchronize()

        with FlopCounterMode(display=False) as counter:
            step()
        if compiled:
            run.training.forward = torch.compile(run.training.forward)
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        seconds = in_turns({"step": step}, 8, clock)["step"]
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        with profile(activities=activities) as table:
            for _ in range(3):
                step()
    own = spent_by_kind(table.key_averages(), device)
    shares = {title: time_ / sum(own.values()) for title, time_ in sorted(own.items(), key=lambda item: -item[1])}
    for title, share in shares.items():
        print(f"{title:45} {share:6.1%}")
    rate = matrix_rate(device, torch.bfloat16 if half else torch.float32)
    reached = counter.get_total_flops() / seconds
    print(f"step {1e3 * seconds:.1f} ms, {reached / 1e9:.0f} GFLOP/s of {rate / 1e9:.0f} in square products")
    result = {"network": name, "batch": batch, "bfloat16": half, "compile": compiled, "device": str(device)}
    result |= {"seconds_per_step": round(seconds, 5), "threads": torch.get_num_threads()}
    return result | {
        "share_of_matrix_rate": round(reached / rate, 3),
        "where": {k: round(v, 3) for k, v in shares.items()},
    }


def main() -> None:
    """One network, one precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("default", "cifar10"), default="default")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile; kernels are then fused and named so")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result = measure(arguments.network, arguments.batch, arguments.precision, device, arguments.compile)
    print(json.dumps({"benchmark": "step_profile", **result}))


if __name__ == "__main__":
    main()
