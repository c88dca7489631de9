"""When copying starts, against the number of training images: small networks of preset onset, plain and smoothed.

    python -m benchmarks.onset [--sizes 25 50 100 200] [--seeds 0 1 2] [--keep FOLDER] [--out onset.jsonl] [--threads 1]

A seed draws the images (a smaller set lies within a larger one), the weights, the batches and the noise. At every
snapshot (sqrt 2 apart) 100 samples are compared with the training images, exactly: copies have r1/r2 < 0.7, and the
control is 1,000 held-out images under the same rule. A training ends once more than --until are copies. Prints the
steps of the onset, their slope against the number of images on log-log axes (1: in proportion), a line of JSON, and
keeps every training in --out, from which an interrupted run continues.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import small_models
from benchmarks.places import out_path
from stages.beyond.copying_onset import grid
from stages.memorization.onset import crossing, exponent, onset
from stages.memorization.ratios import nn_ratio
from stages.memorization.seeds import SeedMean, paired_difference
from stages.search.nearest import nearest

RATIO, ENOUGH, SAMPLES, HELD_OUT = 0.7, 0.3, 100, 1000
SHARES = (0.1, 0.25)
VARIANTS = ("plain", "smoothed")


def copied(images: np.ndarray, train: np.ndarray) -> np.ndarray:
    """The nearest training image of each copy, int64; uint8 images (N, H, W, C)."""
    index, squared = nearest(small_models.flat(images), small_models.flat(train), 2)
    return index[nn_ratio(squared) < RATIO, 0]


def measure(
    name: str, size: int, seed: int, first: int, last: int, keep: Path | None = None, enough: float = ENOUGH
) -> dict[str, Any]:
    """Train one network, with its copies at every snapshot, until more than the share `enough` of its samples are.

    The networks stay in the folder `keep`.
    """
    spec, (train, held_out) = small_models.variant(name), small_models.drawn(size, HELD_OUT, seed)
    steps, started = grid(first, last), time.process_time()
    row: dict[str, Any] = {"variant": name, "size": size, "seed": seed, "samples": SAMPLES, "held_out": HELD_OUT}
    row |= {"control": len(copied(held_out, train)), "steps": [], "copies": [], "sources": []}
    for step, network in small_models.snapshots(name, train, seed, steps, keep):
        sources = copied(small_models.samples(spec, network, train, SAMPLES), train)
        row["steps"].append(step)
        row["copies"].append(len(sources))
        row["sources"].append(np.bincount(sources, minlength=size).tolist())
        print(f"{name} {size} images, seed {seed}, step {step}: {len(sources)} copies", flush=True)
        if len(sources) > enough * SAMPLES:
            break
    return row | {"processor_seconds": round(time.process_time() - started, 1)}


def onsets(row: dict[str, Any]) -> dict[str, float | None]:
    """The steps of one training: the last safe one, the first that copies, and where given shares are crossed."""
    found = onset(row["steps"], row["copies"], [row["samples"]] * len(row["steps"]), row["control"], row["held_out"])
    rates = [copies / row["samples"] for copies in row["copies"]]
    crossed = {f"at_{share:.0%}": crossing(row["steps"], rates, share) for share in SHARES}
    return {"last_safe": found.last_safe, "first_copying": found.first_copying, **crossed}


def slopes(rows: list[dict[str, Any]], name: str, measure: str) -> SeedMean | None:
    """The exponent of a variant's onset over the seeds that have it at two sizes or more; None without such a seed."""
    found: dict[int, list[tuple[int, float]]] = {}
    for row in rows:
        step = onsets(row)[measure]
        if row["variant"] == name and step is not None:
            found.setdefault(row["seed"], []).append((row["size"], step))
    pairs = [tuple(zip(*points)) for points in found.values() if len({size for size, _ in points}) > 1]
    return exponent(*zip(*pairs)) if pairs else None


def delay(rows: list[dict[str, Any]], size: int, measure: str) -> SeedMean | None:
    """ln of the smoothed network's onset over the plain one's, over the seeds in which both have one; or None."""
    found = {(row["variant"], row["seed"]): onsets(row)[measure] for row in rows if row["size"] == size}
    known = {each for each, step in found.items() if step is not None}
    common = sorted({seed for _, seed in known if {(name, seed) for name in VARIANTS} <= known})
    plain, smoothed = ([np.log(found[name, seed]) for seed in common] for name in VARIANTS)
    return paired_difference(smoothed, plain) if common else None


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The lines that are printed: a table of the trainings, and the exponents."""
    yield f"{'variant':9} {'images':>6} {'seed':>4} {'control':>8} {'last safe':>9} {'10 %':>7} {'25 %':>7}  copies"
    for row in sorted(rows, key=lambda row: (row["variant"], row["size"], row["seed"])):
        found = onsets(row)
        control = row["control"] / row["held_out"]
        numbers = ["-" if found[key] is None else f"{found[key]:.0f}" for key in ("last_safe", "at_10%", "at_25%")]
        copies = " ".join(f"{step}:{count}" for step, count in zip(row["steps"], row["copies"]))
        head = f"{row['variant']:9} {row['size']:6} {row['seed']:4} {control:8.1%}"
        yield f"{head} {numbers[0]:>9} {numbers[1]:>7} {numbers[2]:>7}  {copies}"
    for name in VARIANTS:
        for measured in ("first_copying", "at_25%"):
            found = slopes(rows, name, measured)
            if found is not None:
                interval = "" if found.low is None else f" [{found.low:.2f}, {found.high:.2f}]"
                yield f"{name}: {measured} grows as images^{found.mean:.2f}{interval}, {len(found.points)} seeds"
    for size in sorted({row["size"] for row in rows}):
        for measured in ("first_copying", "at_25%"):
            found = delay(rows, size, measured)
            if found is not None:
                ends = "" if found.low is None else f" [{np.exp(found.low):.2f}, {np.exp(found.high):.2f}]"
                times = f"{np.exp(found.mean):.2f}{ends} times as late, {len(found.points)} seeds"
                yield f"{size} images: smoothed has {measured} {times}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=small_models.ENTRIES)
    parser.add_argument("--first", type=int, default=50, help="the first snapshot")
    parser.add_argument("--steps-per-image", type=float, default=45, help="the longest training")
    parser.add_argument(
        "--until", type=float, default=ENOUGH, help="share of copies that ends a training; 1: none does"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks, for halves, risk and thermometer")
    small_models.add_options(parser)
    parser.add_argument("--out", type=out_path, default=Path("onset.jsonl"))
    arguments = parser.parse_args()
    small_models.use_options(arguments)
    rows = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(row["variant"], row["size"], row["seed"]) for row in rows}
    for size in arguments.sizes:
        for seed in arguments.seeds:
            for name in arguments.variants:
                if (name, size, seed) not in done:
                    last = max(4 * arguments.first, round(arguments.steps_per_image * size))
                    rows.append(measure(name, size, seed, arguments.first, last, arguments.keep, arguments.until))
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(report(rows)))
    exponents = {name: {m: slopes(rows, name, m) for m in ("first_copying", "at_25%")} for name in VARIANTS}
    plain = {n: {m: s and [s.mean, s.low, s.high] for m, s in each.items()} for n, each in exponents.items()}
    print(json.dumps({"trainings": len(rows), "exponents": plain}))


if __name__ == "__main__":
    main()
