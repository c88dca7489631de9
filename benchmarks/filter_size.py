"""The filter stage on as many samples as the paper verifies: 100,000 against the 50,000 training images of CIFAR-10.

    python -m benchmarks.filter_size PATH/train.parquet PATH/test.parquet --keep FOLDER [--samples 10000 100000]
        [--distinct 5000] [--held-out 5000]

The samples are made, not drawn: 1 % are training images, 1 % training images as JPEG of quality 60, 1 % mirrored ones,
and the others mixtures 0.7 a + 0.3 b of two test images that are not in the control, with noise of standard deviation
0.01. They repeat after --distinct ones, and the searches of these alone are done, in one process; each number of
samples is then gathered from copies of their results, in a process of its own. So the time of N samples is N times that
of one in the searches, plus the gathering that was measured. Features of training images are random numbers: what
two_stage finds means nothing here, what it takes does. Prints processor seconds and peak memory of each task, the share
of each kind that is called a copy, and one JSON line; FOLDER keeps the images and the searches.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

from benchmarks.audit import read
from benchmarks.published import ROOT
from stages import filter as stage
from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams, pinned
from stages.files.arrays import read_arrays, write_arrays
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.neighbors import NeighborTable, write_neighbors
from stages.files.paths import features_of, images_of, neighbors_of, samples_of
from stages.memorization.planting import plant
from stages.protocol import load_tree

VARIANT = "closed-conditioning"  # any variant without runs: its samples are replaced
SHARES = {"exact": 0.01, "jpeg": 0.01, "mirrored": 0.01}
PARTS = Path("parts")


def parameters(shards: int, side: int) -> dict:
    """params.yaml of the project, with the 50 neighbours of the paper's filter."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["embed"]["encoder"] |= {"name": "efficientnet-lite0", "resize": side}
    tree["embed"]["device"] = "cpu"
    tree["filter"] |= {"neighbors": 50, "carlini": {"alpha": 0.5, "n": 50}, "shards": shards}
    tree["variants"] = {VARIANT: tree["variants"][VARIANT]}
    return tree


def make_samples(train: np.ndarray, test: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, uint8 (count, H, W, C), and the kind of each, "" for mixtures."""
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, len(test), (2, count))
    mixed = 0.7 * test[first] + 0.3 * test[second] + 2.55 * generator.standard_normal((count, *test.shape[1:]))
    samples, kinds = np.clip(np.rint(mixed), 0, 255).astype(np.uint8), np.full(count, "", object)
    places = generator.permutation(count)
    for kind, share in SHARES.items():
        number = round(share * count)
        here, places = places[:number], places[number:]
        samples[here], kinds[here] = plant(train[generator.permutation(len(train))[:number]], kind, 0), kind
    return samples, kinds.astype(str)


def set_up(arguments: argparse.Namespace) -> None:
    """Write the images, and random features of the training images."""
    train = read(arguments.source, arguments.train)
    test = read(arguments.test, arguments.held_out + 5_000)
    held_out, others = test[: arguments.held_out], test[arguments.held_out :]
    for split, images in (("train", train), ("holdout", held_out), ("test", others)):
        write_images(images_of(split), image_table(images))
    encoder = load_encoder(pinned(EncoderParams(**parameters(1, arguments.side)["embed"]["encoder"])), "cpu")
    width = encoder(train[:1]).shape[1]
    generator, ids = np.random.default_rng(0), read_images(images_of("train")).ids
    features = generator.standard_normal((len(train), width), np.float32)
    write_features(features_of("train"), FeatureTable(features, ids, encoder.metadata))
    rows = generator.integers(0, len(train), (len(train), 5)).astype(np.int32)
    own = np.ones(len(train), np.float32)
    write_neighbors(neighbors_of("feature"), NeighborTable(rows, np.ones(rows.shape, np.float32), ids, own))


def search(arguments: argparse.Namespace) -> dict:
    """Do the searches of the distinct samples; processor seconds and seconds of each task."""
    samples, kinds = make_samples(
        read_images(images_of("train")).images, read_images(images_of("test")).images, arguments.distinct
    )
    write_images(samples_of(VARIANT), image_table(samples))
    np.savez("samples.npz", samples=samples, kinds=kinds)
    Path("params.yaml").write_text(yaml.safe_dump(parameters(1, arguments.side), sort_keys=False))
    spent = {}
    for shard in stage.plan(stage.Params.from_tree(load_tree(), VARIANT)):
        wall, processor = time.perf_counter(), time.process_time()
        stage.work(shard.at(PARTS / f"{shard.task}.npz"))
        seconds = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
        spent[shard.task] = {name: round(value, 1) for name, value in seconds.items()}
    return spent


def gather(arguments: argparse.Namespace, count: int) -> dict:
    """Gather `count` samples from copies of the searches, and say what was found."""
    kept = np.load("samples.npz")
    pieces = count // arguments.distinct
    write_images(samples_of(VARIANT), image_table(np.concatenate([kept["samples"]] * pieces)))
    kinds = np.tile(kept["kinds"], pieces)
    Path("params.yaml").write_text(yaml.safe_dump(parameters(pieces, arguments.side), sort_keys=False))
    params = stage.Params.from_tree(load_tree(), VARIANT)
    starts = range(0, count, arguments.distinct)
    parts = {task: [PARTS / f"{task}.npz"] for task in ("holdout", "holdout features", "duplicates")}
    parts |= {"samples": [PARTS / "samples.npz" for _ in starts], "samples features": [features(n) for n in starts]}
    wall, processor = time.perf_counter(), time.process_time()
    stage.gather(params, parts)
    spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    pairs = pq.read_table(f"data/filter/{VARIANT}/pairs.parquet").sort_by("sample_index")
    verdicts, candidates = np.array(pairs["verdict"].to_pylist()), int(pairs["candidate"].to_numpy().sum())
    copied = np.isin(verdicts, ["copy", "near_copy"])
    found = {kind or "mixtures": round(float(copied[kinds == kind].mean()), 5) for kind in (*SHARES, "")}
    rounded = {name: round(value, 1) for name, value in spent.items()}
    return {"samples": count, **rounded, "candidates": candidates, "copies": found}


def features(start: int) -> Path:
    """The features of the samples from `start` on: those of the distinct ones, in other rows."""
    arrays = read_arrays(PARTS / "samples features.npz")
    return write_arrays(PARTS / f"features {start}.npz", arrays | {"feature_row": arrays["feature_row"] + start})


def child(arguments: argparse.Namespace, part: str) -> dict:
    """Run a part in a process of its own; what it found, and its peak memory in GB."""
    command = [sys.executable, "-m", "benchmarks.filter_size", *sys.argv[1:], "--part", part]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"part {part} failed")
    found = json.loads(done.stdout.splitlines()[-1])
    print(part, found, flush=True)
    return found


def run(arguments: argparse.Namespace, part: str) -> None:
    """One part, in its own process."""
    arguments.keep.mkdir(parents=True, exist_ok=True)
    for name in ("source", "test"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    os.chdir(arguments.keep)
    known = {"set-up": set_up, "search": search}
    found = known[part](arguments) if part in known else gather(arguments, int(part))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({**(found or {}), "peak_gb": round(peak, 2)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder of everything that is computed")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000], help="multiples of --distinct")
    parser.add_argument("--distinct", type=int, default=5_000)
    parser.add_argument("--held-out", type=int, default=5_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=112, help="at which features are taken")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run(arguments, arguments.part)
        return
    if not (arguments.keep / images_of("train")).exists():
        child(arguments, "set-up")
    rows = [child(arguments, part) for part in ("search", *map(str, arguments.samples))]
    print(json.dumps({**vars(arguments), "source": "", "test": "", "keep": "", "part": "", "rows": rows}))


if __name__ == "__main__":
    main()
