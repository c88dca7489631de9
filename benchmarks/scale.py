"""What the driver does before a stage's first shard starts: the digests of its inputs.

    python -m benchmarks.scale [--images 200000] [--shards 256]

Writes the images, 2.4 KB each, to a temporary folder, places shards that cover them and shards that all read one
file, cold and warm, and prints seconds,
bytes read and peak memory. The last line is JSON. docs/scale.md extrapolates.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from stages.files import shard_cache
from stages.protocol import Shard, spans


def placed(shards: list[Shard], known: dict[Path, str]) -> tuple[float, int]:
    """Seconds to place the shards, and bytes read."""
    read, real = [], shard_cache.sha256_file
    shard_cache.sha256_file = lambda path: read.append(os.path.getsize(path)) or real(path)
    started = time.perf_counter()
    for shard in shards:
        shard_cache.place(shard, "code", known=known)
    seconds = time.perf_counter() - started
    shard_cache.sha256_file = real
    return seconds, sum(read)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=256)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        files = [Path("images") / f"{n // 1000:05}" / f"{n:07}.png" for n in range(options.images)]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(str(file).encode() * 100)
        table = Path("table.arrow")
        table.write_bytes(os.urandom(1 << 20) * 64)
        time.sleep(2.1)  # younger files are not remembered
        cuts = spans(len(files), options.shards)
        pieces = [Shard("ingest", "source", str(a), {"start": a}, tuple(map(str, files[a:b]))) for a, b in cuts]
        common = [Shard("sample", "samples", str(n), {"n": n}, (str(table),)) for n in range(options.shards)]
        found = {"images": options.images, "shards": options.shards}
        for name, shards in (("images", pieces), ("one file", common)):
            for state in ("cold", "warm"):
                seconds, read = placed(shards, {})
                found[f"{name}, {state}"] = {"seconds": round(seconds, 2), "read_bytes": read}
        found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        os.chdir("/")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
