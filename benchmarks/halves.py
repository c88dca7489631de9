"""Two halves: do models of disjoint halves of a set give alike samples from the same noise, or copies of their halves?

    python -m benchmarks.halves [--sizes 100 1000] [--samples 200] [--seeds 0 1 2] [--out FILE]

A model that has learned the distribution gives the same sample from the same noise, whichever half it saw (Kadkhodaie
et al. 2024, arXiv 2310.02557); one that memorizes gives images of its own half. Alikeness needs no threshold of a copy:
1 - (mean squared distance of the samples i of both) / (that of unrelated samples i and j), 1 for equal and 0 for
unrelated samples. Beside it stand the copies (r1/r2 < 0.7) and their held-out control. Closed forms, and networks of
preset onset trained with one seed on both halves; all start from the same noise and take the same sampler, Heun's.
A line of JSON per pair of models is kept in --out, from which an interrupted run continues.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import small_models
from stages.diffusion.model import make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.memorization.ratios import nn_ratio
from stages.memorization.seeds import over_seeds
from stages.memorization.statistics import Z95
from stages.search.nearest import nearest

RATIO, HELD_OUT = 0.7, 1000
CLOSED: dict[str, dict[str, Any]] = {
    "conditioning": {"form": "conditioning"},
    "wiener": {"form": "wiener"},
    "kernel": {"form": "kernel-smoothed", "kernel": {"h": 0.4, "draws": 32}},
    "local-3": {"form": "local", "patch": 3},
    "loader-25": {"form": "loader-batches", "loader_batch": 25},
}


def alikeness(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Return 1 - mean_i |a_i - b_i|^2 / mean_(i != j) |a_i - b_j|^2, and its 95 % interval (jackknife over i).

    one, other: (N, d), N >= 3; sample i of both began at the same noise.
    """
    a, b = one.astype(np.float64), other.astype(np.float64)
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    n, pairs = len(a), np.diag(squares)
    together, apart = pairs.sum(), squares.sum() - pairs.sum()
    # without i: its own pair, and its row and column of the unrelated ones
    left = apart - (squares.sum(0) + squares.sum(1) - 2 * pairs)
    each = 1 - ((together - pairs) / (n - 1)) / (left / ((n - 1) * (n - 2)))
    found = 1 - (together / n) / (apart / (n * (n - 1)))
    half = Z95 * float(np.sqrt((n - 1) / n * ((each - each.mean()) ** 2).sum()))
    return float(found), float(found) - half, float(found) + half


def copies(images: np.ndarray, train: np.ndarray) -> int:
    """How many images (N, H, W, C) copy a training image, r1/r2 < 0.7."""
    return int((nn_ratio(nearest(small_models.flat(images), small_models.flat(train), 2)[1]) < RATIO).sum())


def closed_form(name: str, train: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Samples of a closed form, uint8 (count, H, W, C)."""
    sampler = small_models.variant("plain").sampler
    spec = Variant(score="closed-form", sampler=sampler, **CLOSED[name])
    model = make_model(spec, small_models.NOISE, train, None, small_models.CPU)
    return draw_samples(model, seed, count, min(50, count))


def trained(name: str, train: np.ndarray, count: int, seed: int, steps: int, keep: Path | None) -> np.ndarray:
    """Samples of a network after `steps` steps, uint8 (count, H, W, C)."""
    network = small_models.network_of(name, train, seed, steps, keep)
    return small_models.samples(small_models.variant(name), network, train, count, seed)


def measure(name: str, size: int, seed: int, count: int, draw: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Compare the models of two halves of `size` images each."""
    started = time.process_time()
    both, held_out = small_models.drawn(2 * size, HELD_OUT, seed)
    halves = both[:size], both[size:]
    one, other = (draw(half) for half in halves)
    found, low, high = alikeness(small_models.flat(one), small_models.flat(other))
    return {
        "model": name, "size": size, "seed": seed, "samples": count,
        "alikeness": found, "low": low, "high": high,
        "copies": [copies(images, half) for images, half in zip((one, other), halves)],
        "control": copies(held_out, halves[0]), "held_out": HELD_OUT,
        "processor_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A line per model and size: means over the seeds with their t-intervals."""
    lines = [f"{'model':22} {'images':>6}  alikeness              copied %               control %  seeds"]
    for name, size in dict.fromkeys((row["model"], row["size"]) for row in rows):
        own = [row for row in rows if (row["model"], row["size"]) == (name, size)]
        alike = over_seeds([row["alikeness"] for row in own])
        copied = over_seeds([50 * sum(row["copies"]) / row["samples"] for row in own])
        control = np.mean([100 * row["control"] / row["held_out"] for row in own])
        cells = [
            f"{mean.mean:.2f}" + ("" if mean.low is None else f" [{mean.low:.2f}, {mean.high:.2f}]")
            for mean in (alike, copied)
        ]
        lines.append(f"{name:22} {size:6}  {cells[0]:22} {cells[1]:22} {control:9.1f}  {len(own)}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="images of each half")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="*", default=["plain"], choices=list(small_models.PRESET["variants"]))
    parser.add_argument("--steps", type=int, default=1000, help="of the networks' training")
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("halves.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(row["model"], row["size"], row["seed"]) for row in rows}
    count, steps, keep = arguments.samples, arguments.steps, arguments.keep
    for seed in arguments.seeds:
        for size in arguments.sizes:
            models = {name: lambda half, n=name, s=seed: closed_form(n, half, count, s) for name in CLOSED}
            for name in arguments.networks:
                models[f"{name}, {steps} steps"] = lambda half, n=name, s=seed: trained(n, half, count, s, steps, keep)
            for name, draw in models.items():
                if (name, size, seed) not in done:
                    rows.append(measure(name, size, seed, count, draw))
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))
    print(json.dumps({"pairs": len(rows)}))


if __name__ == "__main__":
    main()
