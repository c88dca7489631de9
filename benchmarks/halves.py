"""Two halves: do models of disjoint halves of a set give alike samples from the same noise, or copies of their halves?

    python -m benchmarks.halves [--sizes 100 1000] [--networks plain smoothed] [--steps 400 1131] [--keep FOLDER]

A model that has learned the distribution gives the same sample from the same noise, whichever half it saw (Kadkhodaie
et al. 2024, arXiv 2310.02557); one that memorizes gives images of its own half. Alikeness needs no threshold of a
copy: 1 - (mean squared distance of the samples i of both) / (that of unrelated samples i and j), 1 for equal and 0 for
unrelated samples. Beside it stand the copies (r1/r2 < 0.7), their held-out control, and alikeness minus copies, which
is high for alike samples without copies (of a Gaussian, too) and negative where all are copies. Closed forms
(`--networks` without names: these alone), and networks of preset onset, trained with one seed on both halves; all
start from the same noise and take the same sampler, Heun's. A line of JSON per pair of models is kept in --out, from
which an interrupted run continues.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import small_models
from benchmarks.places import out_path
from benchmarks.samplers import cell
from stages.beyond.halves import alikeness
from stages.beyond.measures import copied, flat
from stages.diffusion.parameters import Variant
from stages.memorization.seeds import SHARE, over_seeds, rate_variance

HELD_OUT = 1000
Pair = tuple[np.ndarray, np.ndarray]
CLOSED: dict[str, dict[str, Any]] = {
    "conditioning": {"form": "conditioning"},
    "wiener": {"form": "wiener"},
    "kernel": {"form": "kernel-smoothed", "kernel": {"h": 0.4, "draws": 32}},
    "local-3": {"form": "local", "patch": 3},
    "loader-25": {"form": "loader-batches", "loader_batch": 25},
}


def copies(images: np.ndarray, train: np.ndarray) -> int:
    """How many images (N, H, W, C) copy a training image, r1/r2 < 0.7."""
    return int(copied(images, train).sum())


def closed_form(name: str, train: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Samples of a closed form, uint8 (count, H, W, C)."""
    sampler = small_models.variant("plain").sampler
    spec = Variant(score="closed-form", sampler=sampler, **CLOSED[name])
    return small_models.samples(spec, None, train, count, seed)


def compared(images: Pair, halves: Pair, held_out: np.ndarray) -> dict[str, Any]:
    """Alikeness of two models' samples, and the copies of each among its own half."""
    found, low, high = alikeness(*map(flat, images))
    return {
        "samples": len(images[0]), "alikeness": found, "low": low, "high": high,
        "copies": [copies(own, half) for own, half in zip(images, halves)],
        "control": copies(held_out, halves[0]), "held_out": len(held_out),
    }  # fmt: skip


def parts(size: int, seed: int) -> tuple[Pair, np.ndarray]:
    """Two disjoint halves of `size` images each, the first the set of benchmarks.onset, and held-out images."""
    both, held_out = small_models.drawn(2 * size, HELD_OUT, seed)
    return (both[:size], both[size:]), held_out


def closed_row(name: str, size: int, seed: int, count: int) -> dict[str, Any]:
    """Compare a closed form of both halves."""
    halves, held_out = parts(size, seed)
    images = tuple(closed_form(name, half, count, seed) for half in halves)
    return {"model": name, "size": size, "seed": seed, **compared(images, halves, held_out)}


def network_rows(
    name: str, size: int, seed: int, count: int, steps: Sequence[int], keep: Path | None
) -> Iterator[dict[str, Any]]:
    """Compare networks of both halves after each of the steps; one seed gives both the same weights and order."""
    (halves, held_out), spec = parts(size, seed), small_models.variant(name)
    networks = [small_models.snapshots(name, half, seed, steps, keep) for half in halves]
    for (step, one), (_, other) in zip(*networks, strict=True):
        images = tuple(small_models.samples(spec, net, half, count, seed) for net, half in zip((one, other), halves))
        found = compared(images, halves, held_out)
        yield {"model": f"{name}, {step} steps", "size": size, "seed": seed, **found}


def rows(options: argparse.Namespace, done: set[tuple[str, int, int]]) -> Iterator[dict[str, Any]]:
    """Yield a row for every pair of models that is not done."""
    for seed, size in itertools.product(options.seeds, options.sizes):
        for name in CLOSED:
            if (name, size, seed) not in done:
                yield closed_row(name, size, seed, options.samples)
        for name in options.networks:
            left = [step for step in options.steps if (f"{name}, {step} steps", size, seed) not in done]
            if left:
                yield from network_rows(name, size, seed, options.samples, left, options.keep)


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown line per model and size: means over the seeds with their t-intervals."""
    lines = ["| model | images per half | alikeness | copies % | control % | alikeness - copies |", "|---" * 6 + "|"]
    for name, size in dict.fromkeys((row["model"], row["size"]) for row in rows):
        own = [row for row in rows if (row["model"], row["size"]) == (name, size)]
        alike = [row["alikeness"] for row in own]
        share = [sum(row["copies"]) / (2 * row["samples"]) for row in own]
        sampling = [rate_variance(np.array(sum(row["copies"])), 2 * row["samples"]) for row in own]
        copied = over_seeds(share, sampling, SHARE)
        control = np.mean([100 * row["control"] / row["held_out"] for row in own])
        beyond = over_seeds([one - other for one, other in zip(alike, share)])
        cells = cell(over_seeds(alike), 1, 2), cell(copied, 100, 1), f"{control:.1f}", cell(beyond, 1, 2)
        lines.append(f"| {name} | {size:,} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000], help="images of each half")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="*", default=["plain"], choices=small_models.ENTRIES)
    parser.add_argument("--steps", type=int, nargs="+", default=[1131], help="of the networks' training, ascending")
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks; that of benchmarks.onset has some")
    small_models.add_options(parser)
    parser.add_argument("--out", type=out_path, default=Path("halves.jsonl"))
    options = parser.parse_args()
    small_models.use_options(options)
    found = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for row in rows(options, {(row["model"], row["size"], row["seed"]) for row in found}):
        found.append(row)
        with options.out.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print("\n".join(table(found)))
    print(json.dumps({"pairs": len(found)}))


if __name__ == "__main__":
    main()
