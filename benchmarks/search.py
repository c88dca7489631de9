"""Exact search against faiss IndexFlatL2 and torch's float32 product with top-k, on real and on noise queries.

    python -m benchmarks.search [--data FOLDER] [--reference 50000] [--queries 10000] [--k 50]

FOLDER holds train.parquet and test.parquet of 32×32 RGB images (CIFAR-10 in the Hugging Face layout); without it the
images are a synthetic stand-in, and the last line says so. The peers are timed on --peer-queries of the queries, on the
same threads, and scaled; their answers are compared with ours. The last line is JSON.
"""

import argparse
import io
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from stages.engine.products import threads
from stages.search.nearest import nearest
from stages.search.range_search import pairs_within

TORCH_BLOCK = 500  # queries; the products with 50,000 references take 100 MB
Found = tuple[np.ndarray, np.ndarray]
"""Index and squared distance of each query's neighbours, (Q, k) both."""


def main() -> None:
    """Time both searches and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR-10's train.parquet and test.parquet; else a stand-in"
    )
    parser.add_argument("--reference", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--noise-queries", type=int, default=5_000)
    parser.add_argument("--peer-queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--large", type=int, default=8_000, help="references of the 64×64 slice; 0 leaves it out")
    options = parser.parse_args()
    real = options.data is not None
    reference, queries = (
        (read(options.data / f"{split}.parquet", count) if real else stand_in(seed, count))
        for seed, (split, count) in enumerate((("train", options.reference), ("test", options.queries)))
    )
    noise = np.random.default_rng(0).integers(0, 256, (options.noise_queries, reference.shape[1]), dtype=np.uint8)
    nearest(queries[:60], reference, options.k)  # compiles, as do these
    nearest(noise[:60], reference, options.k)
    pairs_within(reference[:4000], 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, (index, squared) = timed(lambda: nearest(queries, reference, options.k))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ours_noise, _ = timed(lambda: nearest(noise, reference, options.k))
    join, pairs = timed(lambda: pairs_within(reference, round(0.02**2 * reference.shape[1] * 255**2)))
    part = options.peer_queries
    result = {
        "data": "cifar10" if real else "synthetic",
        "shape": [len(queries), *reference.shape],
        "k": options.k,
        "threads": threads(),
        "seconds": round(float(ours[0]), 3),
        "processor_seconds": round(float(ours[1]), 3),
        "extra_memory_mib": memory // 1024,
        "self_join_seconds": round(float(join[0]), 2),
        "self_join_pairs": len(pairs[0]),
    }
    for name, search in PEERS.items():
        for kind, points, spent in (("", queries, ours), ("noise_", noise, ours_noise)):
            theirs, found = search(points[:part], reference, options.k)
            theirs *= len(points) / min(part, len(points))
            result[f"{name}_{kind}seconds"] = round(float(theirs[0]), 2)
            result[f"{kind}ratio_vs_{name}"], result[f"{kind}ratio_of_processor_time_vs_{name}"] = ratio(theirs, spent)
            if not kind:
                result |= differences(name, found, index[:part], squared[:part])
    if options.large:
        result["extrapolated_seconds"] = extrapolated(options.large, options.k)
    print(json.dumps(result))


def ratio(theirs: np.ndarray, ours: np.ndarray) -> list[float]:
    """How many times as fast: by the clock, and by processor time, which other programs disturb less."""
    return np.round(theirs / ours, 2).tolist()


def extrapolated(count: int, k: int) -> dict[str, float]:
    """Clock seconds at 64×64, from slices of synthetic photographs, as per_image (M + Q) + per_pair M Q.

    The larger of two slices has four times the queries; the pairs' cost falls with M, so that this errs upwards. Of
    three runs each the shortest: their difference is small.
    """
    images = stand_in(2, count + 1000, 64)
    reference, queries = images[:count], images[count:]
    few, many = (
        min(timed(lambda n=n: nearest(queries[:n], reference, k))[0][0] for _ in range(3)) for n in (250, 1000)
    )
    steps = np.array([[count + 250, count * 250], [count + 1000, count * 1000]], float)
    per_image, per_pair = np.linalg.solve(steps, [few, many])
    shapes = {"50000 x 10000 x 12288": (50_000, 10_000), "1280000 x 100000 x 12288": (1_280_000, 100_000)}
    return {name: round(per_image * (m + q) + per_pair * m * q, 1) for name, (m, q) in shapes.items()}


def timed(search: Callable) -> tuple[np.ndarray, object]:
    """([clock seconds, processor seconds], result)."""
    clock, processor = time.perf_counter(), time.process_time()
    result = search()
    return np.array([time.perf_counter() - clock, time.process_time() - processor]), result


def differences(name: str, found: Found, index: np.ndarray, squared: np.ndarray) -> dict[str, float]:
    """The share of a peer's neighbours that are not ours, and the largest error of its squared distances."""
    return {
        f"{name}_neighbors_that_differ": float((found[0] != index).mean()),
        f"{name}_worst_squared_error": float(np.abs(found[1] - squared).max()),
    }


def faiss_search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, Found]:
    """faiss's flat index on the same number of threads: `timed`, and what it finds."""
    import faiss

    faiss.omp_set_num_threads(threads())
    index = faiss.IndexFlatL2(reference.shape[1])
    index.add(reference.astype(np.float32))
    points = queries.astype(np.float32)
    seconds, (squared, found) = timed(lambda: index.search(points, k))
    return seconds, (found, squared)


def torch_search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, Found]:
    """torch on the same number of threads: blocks of ‖y‖² − 2 x·y as a float32 product, and the k least of each row.

    The references' conversion and norms are prepared before the clock starts, as faiss's index is.
    """
    torch.set_num_threads(threads())
    points, centres = (torch.from_numpy(images.astype(np.float32)) for images in (queries, reference))
    norms = centres.square().sum(1)

    def search() -> Found:
        parts = []
        for block in points.split(TORCH_BLOCK):
            squared, index = torch.addmm(norms, block, centres.T, alpha=-2).topk(min(k, len(centres)), largest=False)
            parts.append((index, squared + block.square().sum(1, keepdim=True)))
        index, squared = (torch.cat(some).numpy() for some in zip(*parts))
        return index, squared

    return timed(search)


PEERS = {"faiss_flat": faiss_search, "torch": torch_search}


def read(path: Path, count: int) -> np.ndarray:
    """The first `count` images of a parquet file, uint8 (count, 3072)."""
    cells = pq.read_table(path, columns=["image"])["image"].slice(0, count).to_pylist()
    images = (Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells)
    return np.stack([np.asarray(image).reshape(-1) for image in images])


def stand_in(seed: int, count: int, side: int = 32) -> np.ndarray:
    """Images with the 1/f spectrum of photographs, uint8 (count, 3 side²)."""
    rng = np.random.default_rng([1, seed])
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None])
    amplitude = 1 / np.maximum(frequency, 1 / side)
    images = np.empty((count, side, side, 3), np.uint8)
    for start in range(0, count, 1000):
        white = rng.standard_normal((min(1000, count - start), side, side, 3))
        smooth = np.fft.ifft2(np.fft.fft2(white, axes=(1, 2)) * amplitude[..., None], axes=(1, 2)).real
        block = images[start : start + 1000]
        block[:] = np.clip(128 + 60 * smooth / smooth.std(), 0, 255)
    return images.reshape(count, -1)


if __name__ == "__main__":
    main()
