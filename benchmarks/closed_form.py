"""Closed-form scores with many centres: python -m benchmarks.closed_form [PATH/train.parquet] [--every 8]

A whole reverse-SDE run of 100 samples over 116 levels from sigma 50 to 0.01 with the conditioning score of 50,000
centres of 32 x 32 x 3 (the images of the parquet file, or random fields with a natural spectrum). At every 8th level
the same states go to a softmax over torch.cdist in float32, to the float64 blocks of `empirical_score`, and, at every
40th and where pykeops is installed and finds a compiler, to KeOps in float32. Times are processor seconds over all
threads, which other work on the machine does not change; a ratio is taken over the levels that both were given. Then
peak memory beyond the images at three sizes, and the time per centre of a slice of 64 x 64 x 3 images as 1.28 million
would have it, memory-mapped.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.diffusion import scores as empirical_score
from stages.diffusion.noise import levels, normal
from stages.diffusion.parameters import NoiseParams
from stages.engine import truncated_score
from stages.engine.many_centres import MIN_PROJECTED_CENTRES, ManyCentres, make_many_centres

SAMPLES, LEVELS = 100, 116
Score = Callable[[torch.Tensor, float], torch.Tensor]


def fields(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random colour images with a 1/f spectrum, uint8 (count, 3 size^2): as near to each other as photographs are."""
    rng, out = np.random.default_rng(seed), np.empty((count, 3 * size * size), np.uint8)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij"))
    spectrum = 1 / np.maximum(frequency, 1 / size)
    for start in range(0, count, 4096):
        n = min(4096, count - start)
        grey = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, 1, size, size))) * spectrum)
        colour = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, 3, size, size))) * spectrum)
        mixed = grey + 0.4 * colour
        mixed *= 0.25 / mixed.std()
        out[start : start + n] = (255 * (0.48 + mixed)).clip(0, 255).reshape(n, -1).astype(np.uint8)
    return out


def images(path: str | None, count: int) -> np.ndarray:
    """uint8 (count, 3072): the first images of a parquet file, or random fields."""
    if path is None:
        return fields(count, 32)
    from stages.images.sources.open import open_source

    source = open_source(f"parquet:{path}")
    rows = [np.asarray(image.image, np.uint8).reshape(-1) for image in source.read(range(min(count, len(source))))]
    return np.stack(rows)


def plain(pixels: torch.Tensor) -> Score:
    """softmax(-cdist^2 / 2 sigma^2) @ X in float32, as one would write it down."""

    def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
        x = x.float()
        weights = torch.softmax(-(torch.cdist(x, pixels) ** 2) / (2 * sigma**2), dim=1)
        return (weights @ pixels - x) / sigma**2

    return score


def keops(pixels: torch.Tensor) -> Score:
    """The same with KeOps' lazy tensors, which hold no samples x centres array. Compiled before it is returned.

    Raises ImportError where it is not installed or finds no C++ compiler.
    """
    if shutil.which(compiler := os.environ.get("CXX", "g++")) is None:
        raise ImportError(f"KeOps compiles its formulas and there is no {compiler}")
    from pykeops.torch import LazyTensor

    def score(x: torch.Tensor, sigma: float) -> torch.Tensor:
        x = x.float().contiguous()
        left, right = LazyTensor(x[:, None]), LazyTensor(pixels[None])
        logits = -left.sqdist(right) / (2 * sigma**2)
        return (logits.sumsoftmaxweight(right, dim=1) - x) / sigma**2

    score(torch.rand(2, pixels.shape[1]), 1.0)
    return score


def run(pixels: np.ndarray, every: int, with_keops: bool) -> tuple[dict[str, float], str | None]:
    """The whole run with ours; the others at every `every`th level. Prints a table, returns the ratios of the means."""
    centres = make_many_centres(pixels)
    prepared = prepare(centres)
    single = torch.from_numpy(pixels).float() / 255
    blocks = empirical_score.make_centres(torch.from_numpy(pixels))
    blocks = dataclasses.replace(blocks, many=None)  # else it would be ours again
    others: dict[str, Score] = {
        "cdist": plain(single),
        "float64 blocks": lambda x, s: empirical_score.conditioning(blocks, x, torch.full((len(x),), s).double()),
    }
    strides, missing = dict.fromkeys(others, every), None
    if with_keops:
        try:
            others["KeOps"] = keops(single)
            strides["KeOps"] = 5 * every  # it takes as long at every level, and long
        except ImportError as error:
            missing = str(error)
            print(f"without KeOps: {missing}")
    sigmas = levels(NoiseParams(sigma_min=0.01, sigma_max=50.0), LEVELS).tolist()
    indices = torch.arange(SAMPLES)
    x = normal(0, indices, 0, (pixels.shape[1],)).double() * sigmas[0]
    ours: list[float] = []
    same: dict[str, list[float]] = {name: [] for name in others}
    times: dict[str, list[float]] = {name: [] for name in others}
    for level in (50.0, 1.4, 0.1):
        near = pixels[:30] / 255 + level * x[:30].numpy() / sigmas[0]
        truncated_score.conditioning(centres, near, np.full(30, level))  # compiles
    for n, (sigma, below) in enumerate(zip(sigmas, [*sigmas[1:], 0.0])):
        point = x.float().double()
        start = time.process_time()
        s = torch.from_numpy(truncated_score.conditioning(centres, point.numpy(), np.full(SAMPLES, sigma)))
        ours.append(time.process_time() - start)
        line = f"sigma {sigma:8.3f}  ours {ours[-1]:7.3f} s"
        chosen = [name for name, stride in strides.items() if n % stride == stride // 2]
        if chosen:
            for name in chosen:
                same[name].append(ours[-1])
                start = time.process_time()
                other = others[name](point, sigma)
                times[name].append(time.process_time() - start)
                off = float(((other.double() - s).norm(dim=1) / s.norm(dim=1)).max())
                line += f"   {name} {times[name][-1]:7.3f} s, differs by {off:.1e}"
            print(line, flush=True)
        variance = sigma**2 - below**2
        x = x + variance * s + (variance**0.5 * normal(0, indices, n + 1, (pixels.shape[1],)) if below else 0)
    nearest = (255 * x).round().clamp(0, 255).to(torch.uint8).numpy()
    copies = sum(bool((np.abs(pixels.astype(np.int16) - row).max(1) <= 1).any()) for row in nearest[:10])
    print(
        f"coordinates made in {prepared:.2f} s; {len(ours)} evaluations, {statistics.mean(ours):.3f} s each; "
        f"{copies} of the first 10 samples are copies"
    )
    ratios = {name: statistics.mean(values) / statistics.mean(same[name]) for name, values in times.items()}
    return {name: round(ratio, 2) for name, ratio in ratios.items()}, missing


def prepare(centres: ManyCentres) -> float:
    """Processor seconds in which the projected coordinates are made that small noise levels ask for, once."""
    make_many_centres(centres.images[:MIN_PROJECTED_CENTRES]).projected  # noqa: B018  (compiles)
    start = time.process_time()
    centres.projected  # noqa: B018  (made at its first use)
    return time.process_time() - start


def memory(count: int, base: np.ndarray) -> float:
    """Child: peak memory in MB that evaluations for 100 samples at large to small noise need beyond the images: `base`,
    uint8 (n, 3072), and behind them the same shifted sideways, until there are `count`."""
    pixels = np.empty((count, 3072), np.uint8)
    for n, start in enumerate(range(0, count, len(base))):
        pixels[start : start + len(base)] = np.roll(base.reshape(-1, 32), n, 1).reshape(base.shape)[: count - start]
    noise = np.random.default_rng(1).standard_normal((SAMPLES, 3072))
    truncated_score.conditioning(make_many_centres(pixels[:100]), noise, np.full(SAMPLES, 1.0))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    centres = make_many_centres(pixels)
    for sigma in (50.0, 1.0, 0.1, 0.02):
        truncated_score.conditioning(centres, pixels[:SAMPLES] / 255 + sigma * noise, np.full(SAMPLES, sigma))
    return round(status("VmHWM") - before, 1)


def status(name: str) -> float:
    """A line of /proc/self/status, MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def slice_of_imagenet(count: int = 20_000) -> dict[str, float]:
    """Seconds per million centres of 64 x 64 x 3 pixels for 100 samples, all summed and truncated, memory-mapped."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.bin"
        fields(count, 64).tofile(path)
        centres = make_many_centres(np.memmap(path, np.uint8, "r", shape=(count, 12288)))
        x = normal(0, torch.arange(SAMPLES), 0, (12288,)).double().numpy()
        out = {"projected coordinates": round(prepare(centres) / count * 1e6, 1)}
        for sigma in (100.0, 0.1):
            point, level = centres.images[:SAMPLES] / 255 + sigma * x, np.full(SAMPLES, sigma)
            truncated_score.conditioning(
                make_many_centres(centres.images[:MIN_PROJECTED_CENTRES]), point, level
            )  # compiles
            start = time.process_time()
            truncated_score.conditioning(centres, point, level)
            out[f"sigma {sigma:g}"] = round((time.process_time() - start) / count * 1e6, 1)
    return out


def main() -> None:
    """Time the run, then memory, then the slice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parquet", nargs="?")
    parser.add_argument("--centres", type=int, default=50_000)
    parser.add_argument("--every", type=int, default=8)
    parser.add_argument("--no-keops", action="store_true")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(memory(arguments.memory, images(arguments.parquet, min(arguments.memory, arguments.centres))))
        return
    pixels = images(arguments.parquet, arguments.centres)
    ratios, missing = run(pixels, arguments.every, not arguments.no_keops)
    del pixels
    given = [arguments.parquet] if arguments.parquet else []
    command = [sys.executable, "-m", "benchmarks.closed_form", *given, "--memory"]
    # every array is mapped by itself, else the peak holds what the allocator keeps of those before, 10 to 60 MB
    own = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    sizes = (50_000, 150_000, 1_000_000)  # the buffers stop growing at 32,768 images, what is kept at 54,000
    peaks = {n: float(subprocess.check_output([*command, str(n)], text=True, env=own)) for n in sizes}
    print("peak memory beyond the images, MB:", peaks)
    per_million = slice_of_imagenet()
    print("64 x 64 x 3, seconds per million centres and 100 samples:", per_million)
    result = {"centres": arguments.centres, "threads": torch.get_num_threads(), "cores": os.cpu_count()}
    result |= {"times_as_fast": ratios, "memory_mb": peaks, "seconds_per_million_64px": per_million}
    result |= {"left_out": {"KeOps": missing}} if missing else {}
    print(json.dumps({"benchmark": "closed_form", **result}))


if __name__ == "__main__":
    main()
