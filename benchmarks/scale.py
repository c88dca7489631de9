"""What happens before a stage's shards start: the driver's digests of their inputs, and the nodes' fetching of them.

    python -m benchmarks.scale [--images 200000] [--shards 256] [--nodes 8]

Writes the images, 2.4 KB each, to a temporary folder, and a table of as many images of 16 x 16 pixels. The driver
places shards that cover the images and shards that all read the table, cold and warm, and stores the table in a shared
place. Simulated nodes, each with a folder of its own, then fetch it for their part of the shards, as `pipeline.node`
does. Prints seconds, bytes read or moved, and peak memory. The last line is JSON. docs/scale.md extrapolates.
"""

import argparse
import functools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.node import kept_files
from pipeline.shared import SharedPlace
from stages.files import shard_cache
from stages.protocol import Shard, spans

PIXELS = 16 * 16 * 3


def placed(shards: list[Shard], known: dict[Path, str]) -> dict[str, float]:
    """Place the shards: seconds, and bytes read."""
    read, real = [], shard_cache.sha256_file
    shard_cache.sha256_file = lambda path: read.append(os.path.getsize(path)) or real(path)
    seconds = _seconds(lambda: [shard_cache.place(shard, "code", known=known) for shard in shards])
    shard_cache.sha256_file = real
    return {"seconds": seconds, "read_bytes": sum(read)}


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 2)


def driver(files: list[Path], table: Path, shards: int) -> dict[str, dict[str, float]]:
    """Place shards that cover the files, and as many that all read the table."""
    cuts = spans(len(files), shards)
    pieces = [Shard("ingest", "source", str(a), {"start": a}, tuple(map(str, files[a:b]))) for a, b in cuts]
    common = [Shard("sample", "samples", str(n), {"n": n}, (str(table),)) for n in range(shards)]
    kinds = {"images": pieces, "one file": common}
    return {f"{name}, {state}": placed(own, {}) for name, own in kinds.items() for state in ("cold", "warm")}


def nodes(table: Path, count: int, shards: int) -> dict[str, dict[str, float]]:
    """Store the table, and fetch it on every node for each of its shards: seconds, and bytes moved."""
    place, moved, start = SharedPlace(Path("shared").absolute().as_uri()), [], Path.cwd()
    get, tree = place.get, {}
    stored = _seconds(lambda: tree.update(place.put_tree(table)))
    place.get = lambda digest, path: (get(digest, path), moved.append(path.stat().st_size))
    first, further = [], []
    for node in range(count):
        own = start / f"node-{node}" / "project"
        own.mkdir(parents=True)
        os.chdir(own)  # a node remembers its digests in its own folder
        fetch = functools.partial(place.get_tree, tree, table, kept_files(own))
        first.append(_seconds(fetch))
        further += [_seconds(fetch) for _ in range(shards // count - 1)]
    os.chdir(start)
    return {
        "table, stored": {"seconds": stored},
        "table, fetched by all nodes": {"seconds": round(sum(first), 2), "moved_bytes": sum(moved)},
        "further shards of all nodes": {"seconds": round(sum(further), 2), "moved_bytes": sum(moved[count:])},
    }


def measure(images: int, shards: int, count: int) -> dict[str, object]:
    """Measure in the current folder, which must be empty."""
    files = [Path("images") / f"{n // 1000:05}" / f"{n:07}.png" for n in range(images)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(file).encode() * 100)
    table = Path("table.arrow")
    with table.open("wb") as written:
        for _ in range(images):
            written.write(os.urandom(PIXELS))
    time.sleep(2.1)  # younger files are not remembered
    found = {"images": images, "shards": shards, "nodes": count, "table_bytes": table.stat().st_size}
    found |= driver(files, table, shards) | nodes(table, count, shards)
    return found | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = measure(options.images, options.shards, options.nodes)
        os.chdir("/")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
