"""A whole audit of CIFAR-10 with known copies among the samples: what is found, at which price.

    python -m benchmarks.audit PATH/train.parquet [PATH/test.parquet] [--train 50000] [--without-holdout]

Training images: the first --train of train.parquet. Held out: half of the test images. Samples: the other half, of
which 2 % are replaced by training images, 2 % by training images as JPEG of quality 60, 2 % by mirrored ones, and 1 %
by training images that have a near duplicate, with noise of 0.03. Prints recall per kind and false positives of every
rule, time and peak memory, and one JSON line. A natural near duplicate between test and training images counts as a
false positive, and there are some in CIFAR-10.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from stages.images.decode import to_pixels
from stages.images.sources.open import open_source
from stages.memorization.planting import plant
from stages.search.nearest import nearest

ROOT = Path(__file__).parent.parent
SHARES = {"exact": 0.02, "jpeg": 0.02, "mirrored": 0.02, "duplicated": 0.01}


def read(path: Path, count: int | None) -> np.ndarray:
    """The first images of a parquet file, uint8 (N, 32, 32, 3)."""
    source = open_source(f"parquet:{path}")
    rows = range(len(source) if count is None else min(count, len(source)))
    return np.stack([to_pixels(item.image, 32, 3) for item in source.read(rows)])


def near_duplicates(train: np.ndarray, wanted: int) -> np.ndarray:
    """Rows of `train` whose nearest other image is at less than 0.4 of the mean distance of its 50 nearest."""
    flat, found = train.reshape(len(train), -1), np.zeros(0, np.int64)
    order = np.random.default_rng(1).permutation(len(train))
    for start in range(0, len(train), 4000):
        rows = np.sort(order[start : start + 4000])
        distance = np.sqrt(nearest(flat[rows], flat, min(50, len(flat) - 1), exclude=rows)[1])
        found = np.concatenate([found, rows[distance[:, 0] < 0.4 * distance.mean(1)]])
        if len(found) >= wanted:
            break
    return found[:wanted]


def with_copies(samples: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The samples with some replaced by copies, and each one's kind ("" where it was left)."""
    generator = np.random.default_rng(0)
    samples, kinds = samples.copy(), np.full(len(samples), "", object)
    places = generator.permutation(len(samples))
    for kind, share in SHARES.items():
        count = round(share * len(samples))
        rows = near_duplicates(train, count) if kind == "duplicated" else generator.permutation(len(train))[:count]
        here, places = places[: len(rows)], places[len(rows) :]
        samples[here], kinds[here] = plant(train[rows], kind, 0), kind
    return samples, kinds


def run(folder: Path, train: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and peak memory in GB of the audit."""
    command = [sys.executable, "-m", "stages.audit", "--train", f"npz:{train}", "--samples",
               f"npz:{folder}/samples.npy", "--out", str(folder / "out"), *arguments]  # fmt: skip
    started = time.perf_counter()
    child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"the audit failed: {' '.join(command)}")
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test-count", type=int, default=10_000)
    parser.add_argument("--without-holdout", action="store_true")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    arguments = parser.parse_args()
    test = read(arguments.test or arguments.source.with_name("test.parquet"), arguments.test_count)
    train = read(arguments.source, arguments.train)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        samples, kinds = with_copies(test[1::2], train)
        for name, images in (("train", train), ("holdout", test[::2]), ("samples", samples)):
            np.save(folder / f"{name}.npy", images)
        holdout = [] if arguments.without_holdout else ["--holdout", f"npz:{folder}/holdout.npy"]
        spent = run(folder, folder / "train.npy", holdout)
        pairs = pq.read_table(folder / "out" / "pairs.parquet").sort_by("sample_index")
    kind, rows = kinds.astype(str), {}
    for column in [name for name in pairs.column_names if name.startswith("flag_")]:
        flags = pairs[column].to_numpy()
        rows[column[5:]] = {name: round(float(flags[kind == name].mean()), 4) for name in SHARES}
        rows[column[5:]]["false_positives"] = round(float(flags[kind == ""].mean()), 5)
        print(f"{column[5:]:22}", "  ".join(f"{name} {value:7.2%}" for name, value in rows[column[5:]].items()))
    sizes = {"train": len(train), "holdout": len(test[::2]), "samples": len(samples)}
    found = {**spent, "images": sizes, "metrics": rows}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
