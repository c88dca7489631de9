"""The filter stage on as many samples as the paper verifies: 100,000 against the 50,000 training images of CIFAR-10.

    python -m benchmarks.filter_size PATH/train.parquet PATH/test.parquet --keep FOLDER [--samples 10000 100000]
        [--held-out 5000]

The samples are made, not drawn, and no two are alike: 1 % are training images, 1 % training images as JPEG of quality
60, 1 % mirrored ones, and the others mixtures 0.7 a + 0.3 b of two test images that are not in the control, with noise
of standard deviation 0.01. Parameters are those of preset cifar10, but features come from the packaged encoder at
--side pixels, and those of training images are random numbers: what two_stage finds means nothing here, what it takes
does. A shard has 10,000 samples at most; each shard and each gathering runs in a process of its own, one after the
other, as the stage has them without GPUs. Prints their seconds, processor seconds and peak memory, the share of each
kind that is called a copy, and one JSON line; FOLDER keeps every piece, so that the same command goes on where it was
interrupted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import yaml

from benchmarks.audit import mixed_pairs, read
from benchmarks.published import PRESET, ROOT
from stages import filter as stage
from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams, pinned
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.neighbors import NeighborTable, write_neighbors
from stages.files.paths import features_of, images_of, neighbors_of, samples_of
from stages.memorization.planting import plant
from stages.protocol import Shard, by_task, load_tree

VARIANT = "closed-conditioning"  # any variant without runs: its samples are replaced
SHARES = {"exact": 0.01, "jpeg": 0.01, "mirrored": 0.01}
OTHERS = 5_000  # test images that are mixed
LARGEST, FEWEST = 10_000, 2  # samples of a shard, and shards
MADE = Path("made")
SET_UP, GATHER = "set-up", "gather"


def parameters(shards: int, side: int) -> dict:
    """params.yaml of the project with the filter of preset cifar10."""
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["embed"]["encoder"] |= {"name": "efficientnet-lite0", "resize": side}
    tree["embed"]["device"] = "cpu"
    tree["filter"] |= {**PRESET["filter"], "shards": shards}
    tree["variants"] = {VARIANT: tree["variants"][VARIANT]}
    return tree


def make_samples(train: np.ndarray, test: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images, uint8 (count, H, W, C), and the kind of each, "" for mixtures."""
    generator = np.random.default_rng(0)
    parts = [min(1_000, count - start) for start in range(0, count, 1_000)]
    samples = np.concatenate([mixed_pairs(test, part, generator) for part in parts])
    kinds, places = np.full(count, "", object), generator.permutation(count)
    for kind, share in SHARES.items():
        number = round(share * count)
        here, places = places[:number], places[number:]
        samples[here], kinds[here] = plant(train[generator.permutation(len(train))[:number]], kind, 0), kind
    return samples, kinds.astype(str)


def set_up(arguments: argparse.Namespace) -> dict:
    """Write the images, and random features of the training images."""
    train = read(arguments.source, arguments.train)
    test = read(arguments.test, arguments.held_out + OTHERS)
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
    return {}


def set_up_samples(arguments: argparse.Namespace, count: int) -> dict:
    """Write `count` samples, and the parameters of their filter."""
    samples, kinds = make_samples(read_images(images_of("train")).images, read_images(images_of("test")).images, count)
    write_images(samples_of(VARIANT), image_table(samples))
    np.save("kinds.npy", kinds)
    tree = parameters(max(FEWEST, -(-count // LARGEST)), arguments.side)
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return {}


def planned(count: int) -> list[Shard]:
    """The stage's shards, each with the place of its result; those on other images than the samples are kept."""
    shards = stage.plan(stage.Params.from_tree(load_tree(), VARIANT))
    named = [f"{count} {shard.name}" if shard.task.startswith("samples") else shard.name for shard in shards]
    return [shard.at(MADE / f"{name} {shard.task}.npz".replace("/", " of ")) for shard, name in zip(shards, named)]


def search(arguments: argparse.Namespace, count: int, place: int) -> dict:
    """Work on one shard."""
    stage.work(planned(count)[place])
    return {}


def gather(arguments: argparse.Namespace, count: int) -> dict:
    """Gather the shards, and say what was found."""
    shards = planned(count)
    stage.gather(stage.Params.from_tree(load_tree(), VARIANT), by_task(shards, [Path(shard.path) for shard in shards]))
    pairs = pq.read_table(f"data/filter/{VARIANT}/pairs.parquet").sort_by("sample_index")
    verdicts, candidates = np.array(pairs["verdict"].to_pylist()), int(pairs["candidate"].to_numpy().sum())
    copied, kinds = np.isin(verdicts, ["copy", "near_copy"]), np.load("kinds.npy")
    found = {kind or "mixtures": round(float(copied[kinds == kind].mean()), 5) for kind in (*SHARES, "")}
    return {"candidates": candidates, "copies": found}


def child(part: str) -> dict:
    """Run a part in a process of its own, unless that was done before; what it found, its seconds and peak memory."""
    command = [sys.executable, "-m", "benchmarks.filter_size", *sys.argv[1:], "--part", part]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"part {part} failed")
    found = json.loads(done.stdout.splitlines()[-1])
    print(part, found, flush=True)
    return found


def measured(arguments: argparse.Namespace) -> Iterator[dict]:
    """A row for every shard and every gathering."""
    keep = arguments.keep.resolve()
    if not (keep / images_of("train")).exists():
        child(SET_UP)
    for count in arguments.samples:
        child(f"{SET_UP} {count}")
        os.chdir(keep)
        shards = planned(count)
        os.chdir(arguments.start)
        for place, shard in enumerate(shards):
            row = keep / f"{shard.path}.json"
            if not row.exists():
                found = child(f"search {count} {place}")
                row.write_text(json.dumps({"task": shard.task, "shard": shard.name, **found}))
            yield {"samples": count, **json.loads(row.read_text())}
        yield {"samples": count, "task": GATHER, **child(f"{GATHER} {count}")}


def run(arguments: argparse.Namespace) -> None:
    """One part, in its own process."""
    arguments.keep.mkdir(parents=True, exist_ok=True)
    for name in ("source", "test"):
        setattr(arguments, name, getattr(arguments, name).resolve())
    os.chdir(arguments.keep)
    part, *numbers = arguments.part.split()
    work = {SET_UP: set_up_samples if numbers else set_up, "search": search, GATHER: gather}[part]
    wall, processor = time.perf_counter(), time.process_time()
    found = work(arguments, *map(int, numbers))
    spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps({**{name: round(value, 1) for name, value in spent.items()}, "peak_gb": round(peak, 2), **found}))


def table(rows: list[dict]) -> Iterator[str]:
    """Markdown lines: the seconds and the peak memory of each task, and of the whole stage."""
    yield "| samples | task | seconds | processor seconds | peak GB |"
    yield "|---" * 5 + "|"
    for count in dict.fromkeys(row["samples"] for row in rows):
        own = [row for row in rows if row["samples"] == count]
        tasks = {
            task: [row for row in own if row["task"] == task] for task in dict.fromkeys(row["task"] for row in own)
        }
        for name, parts in {**tasks, "all": own}.items():
            seconds, processor = (sum(row[key] for row in parts) for key in ("seconds", "processor_seconds"))
            peak = max(row["peak_gb"] for row in parts)
            yield f"| {count:,} | {name} | {seconds:.0f} | {processor:.0f} | {peak:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--keep", type=Path, required=True, help="folder of everything that is computed")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--held-out", type=int, default=5_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=112, help="at which features are taken")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        run(arguments)
        return
    arguments.start = Path.cwd()
    rows = list(measured(arguments))
    print("\n".join(table(rows)))
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
