"""A whole audit of CIFAR-10 with known copies among the samples: what is found, at which price.

    python -m benchmarks.audit PATH/train.parquet [PATH/test.parquet] [--train 50000] [--copies 40] [--samples N]
        [--without-holdout]

Training images: the first --train of train.parquet. Held out: half of the test images. Samples: the other half, of
which --copies are replaced by copies of every kind of KINDS, and equally many by each of MIXTURES of
training images, which are not copies. With --samples, mixtures of two test images (MADE) fill them up to N. Prints
recall per kind with its interval, what the mixtures are called, the false positives among the test images that are
left, time and peak memory, and one JSON line.

CIFAR-10's two sets share pictures. cifar10_shared.tsv lists test images that somebody looked at beside their match:
those that show the same picture are counted apart, every other flagged one is a false positive.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from stages.images.decode import to_pixels
from stages.images.sources.open import open_source
from stages.memorization.planting import WORDS, plant
from stages.memorization.statistics import rate_with_interval
from stages.search.nearest import nearest

ROOT = Path(__file__).parent.parent
SHARED = Path(__file__).with_name("cifar10_shared.tsv")
KINDS = tuple(kind for kind in WORDS if kind != "duplicated")  # the audit's self-test plants those of repeated images
MADE = "made"  # the kind of samples that are mixtures of test images
AROUND = 8  # nearest images that mixtures of near images are drawn from


def _of(weights: list[float]) -> Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]:
    """A mixture of an image and others that are drawn from all training images."""

    def mix(row: np.ndarray, train: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        others = generator.choice(len(train), len(weights) - 1, replace=False)
        return np.tensordot(weights, train[[row[0], *others]].astype(float), 1)

    return mix


MIXTURES = {
    "mean of two": _of([0.5, 0.5]),
    "0.6 and 0.4": _of([0.6, 0.4]),
    "mean of eight": _of([1 / 8] * 8),
    "mean with one of the five nearest": lambda row, train, generator: train[
        [row[0], row[1 + generator.integers(5)]]
    ].mean(0),
    "mean with the seven nearest": lambda row, train, _: train[row].mean(0),
}
"""Name → (rows: an image and the nearest to it, training images, generator) → a mixture (H, W, C)."""


def read(path: Path, count: int | None) -> np.ndarray:
    """The first images of a parquet file, uint8 (N, 32, 32, 3)."""
    source = open_source(f"parquet:{path}")
    rows = range(len(source) if count is None else min(count, len(source)))
    return np.stack([to_pixels(item.image, 32, 3) for item in source.read(rows)])


def mixtures(train: np.ndarray, rows: np.ndarray, name: str, seed: int) -> np.ndarray:
    """One of MIXTURES for every row, uint8 (R, H, W, C)."""
    flat, generator = train.reshape(len(train), -1), np.random.default_rng([seed, list(MIXTURES).index(name)])
    near = nearest(flat[rows], flat, AROUND - 1, exclude=rows)[0]
    made = [MIXTURES[name](np.array([row, *others]), train, generator) for row, others in zip(rows, near)]
    return np.rint(made).astype(np.uint8)


def mixed_pairs(images: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """0.7 a + 0.3 b of two images with noise of standard deviation 0.01, uint8 (count, H, W, C); no two are alike."""
    first, second = generator.integers(0, len(images), (2, count))
    mixed = 0.7 * images[first] + 0.3 * images[second] + 2.55 * generator.standard_normal((count, *images.shape[1:]))
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


def extended(samples: np.ndarray, kinds: np.ndarray, test: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` samples and their kinds: the given ones, and after them mixtures of test images, made seeded."""
    generator, more = np.random.default_rng(1), max(0, count - len(samples))
    parts = [mixed_pairs(test, min(1_000, more - start), generator) for start in range(0, more, 1_000)]
    return np.concatenate([samples, *parts]), np.concatenate([kinds, np.full(more, MADE)])


def with_copies(samples: np.ndarray, train: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples with `copies` of them replaced by each kind, and each one's kind ("" where it was left)."""
    generator = np.random.default_rng(0)
    samples, kinds = samples.copy(), np.full(len(samples), "", object)
    places = generator.permutation(len(samples))
    for kind in (*KINDS, *MIXTURES):
        rows = generator.permutation(len(train))[:copies]
        here, places = places[: len(rows)], places[len(rows) :]
        samples[here] = plant(train[rows], kind, 0) if kind in KINDS else mixtures(train, rows, kind, 0)
        kinds[here] = kind
    return samples, kinds.astype(str)


def shared(train: int) -> dict[int, bool]:
    """Test images that were looked at beside a training image below `train`: row → whether it is the same picture."""
    with SHARED.open() as lines:
        rows = csv.DictReader((line for line in lines if not line.startswith("#")), delimiter="\t")
        return {int(row["test"]): row["same"] == "yes" for row in rows if int(row["train"]) < train}


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


def found(
    kinds: np.ndarray, verdict: np.ndarray, rows: np.ndarray, looked_at: dict[int, bool]
) -> dict[str, dict[str, Any]]:
    """Per kind, and for the test images that were left, rates with intervals: copy, copy_or_near_copy, blend.

    verdict, rows: of every sample, and its row among the test images. Test images that show a training image are
    "shared"; "unseen" are the others, and "not looked at" counts the flagged ones that looked_at does not name.
    """
    group = kinds.copy()
    left = kinds == ""
    group[left] = ["shared" if looked_at.get(row) else "unseen" for row in rows[left].tolist()]
    called = {
        "copy": verdict == "copy",
        "copy_or_near_copy": np.isin(verdict, ["copy", "near_copy"]),
        "blend": verdict == "blend",
    }
    result = {
        name: {call: rate_with_interval(int(flags[group == name].sum()), int((group == name).sum()))
               for call, flags in called.items()}
        for name in dict.fromkeys([*kinds[~left].tolist(), "shared", "unseen"])
    }  # fmt: skip
    unknown = called["copy_or_near_copy"] & left & ~np.isin(rows, list(looked_at))
    return result | {"not looked at": {"rows": rows[unknown].tolist()}}


def main() -> None:
    """Plant, audit, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path, nargs="?")
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--test-count", type=int, default=10_000)
    parser.add_argument("--copies", type=int, default=40, help="copies of every kind, and mixtures of every kind")
    parser.add_argument("--samples", type=int, default=0, help="add mixtures of test images up to this number")
    parser.add_argument("--without-holdout", action="store_true")
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    arguments = parser.parse_args()
    test = read(arguments.test or arguments.source.with_name("test.parquet"), arguments.test_count)
    train = read(arguments.source, arguments.train)
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        samples, kinds = with_copies(test[1::2], train, arguments.copies)
        samples, kinds = extended(samples, kinds, test[1::2], arguments.samples)
        for name, images in (("train", train), ("holdout", test[::2]), ("samples", samples)):
            np.save(folder / f"{name}.npy", images)
        holdout = [] if arguments.without_holdout else ["--holdout", f"npz:{folder}/holdout.npy"]
        spent = run(folder, folder / "train.npy", holdout)
        pairs = pq.read_table(folder / "out" / "pairs.parquet").sort_by("sample_index")
        answer = json.loads((folder / "out" / "audit.json").read_text())
    verdict, rows = np.array(pairs["verdict"].to_pylist()), 2 * pairs["sample_index"].to_numpy() + 1
    result = found(kinds, verdict, rows, shared(len(train)))
    unknown = result.pop("not looked at")["rows"]
    for name, rates in result.items():
        cells = (f"{call} {r['rate']:.1%} [{r['ci_low']:.1%}, {r['ci_high']:.1%}]" for call, r in rates.items())
        print(f"{name:34} {rates['copy']['count']:5}", "  ".join(cells))
    print(f"flagged, not looked at: {unknown}" if unknown else "all flagged test images were looked at")
    tested = {name: metric["recall"] for name, metric in answer["thresholds_self_test"]["metrics"].items()}
    sizes = {"train": len(train), "holdout": len(test[::2]), "samples": len(samples)}
    told = {"thresholds": answer["thresholds"], "leaked": answer["holdout"]["leaked"], "not_looked_at": unknown}
    recall = {name: tested[name] for name in ("calibrated", "copy_or_near_copy")}
    print(json.dumps({**spent, "images": sizes, "found": result, **told, "self_test": recall}))


if __name__ == "__main__":
    main()
