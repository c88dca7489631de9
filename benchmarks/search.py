"""Exact search against faiss IndexFlatL2, on real and on noise queries.

    python benchmarks/search.py [--data FOLDER] [--reference 50000] [--queries 10000] [--k 50]

FOLDER holds train.parquet and test.parquet of 32×32 RGB images (CIFAR-10 in the Hugging Face layout); without it the
images are a synthetic stand-in, and the last line says so. faiss is timed on --faiss-queries of the queries, on the
same threads, and scaled; its answers are compared with ours. The last line is JSON.
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
from PIL import Image

from stages.search.nearest import nearest
from stages.search.products import threads
from stages.search.range_search import pairs_within


def main() -> None:
    """Time both searches and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10-jpeg"))
    parser.add_argument("--reference", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--noise-queries", type=int, default=1_000)
    parser.add_argument("--faiss-queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=50)
    options = parser.parse_args()
    real = (options.data / "train.parquet").is_file()
    reference, queries = (
        (read(options.data / f"{split}.parquet", count) if real else stand_in(seed, count))
        for seed, (split, count) in enumerate((("train", options.reference), ("test", options.queries)))
    )
    noise = np.random.default_rng(0).integers(0, 256, (options.noise_queries, reference.shape[1]), dtype=np.uint8)
    nearest(queries[:8], reference, options.k)  # compiles, once per machine
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ours, (index, squared) = timed(lambda: nearest(queries, reference, options.k))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ours_noise, _ = timed(lambda: nearest(noise, reference, options.k))
    join, pairs = timed(lambda: pairs_within(reference, round(0.02**2 * reference.shape[1] * 255**2)))
    part = queries[: options.faiss_queries]
    faiss_seconds, faiss_index, faiss_squared = faiss_search(part, reference, options.k)
    per_query = faiss_seconds / len(part)
    result = {
        "data": "cifar10" if real else "synthetic",
        "shape": [len(queries), *reference.shape],
        "k": options.k,
        "threads": threads(),
        "seconds": round(ours, 3),
        "faiss_flat_seconds": round(per_query * len(queries), 2),
        "ratio_vs_faiss_flat": round(per_query * len(queries) / ours, 2),
        "noise_ratio_vs_faiss_flat": round(per_query * len(noise) / ours_noise, 2),
        "extra_memory_mib": memory // 1024,
        "faiss_neighbors_that_differ": float((faiss_index != index[: len(part)]).mean()),
        "faiss_worst_squared_error": float(np.abs(faiss_squared - squared[: len(part)]).max()),
        "self_join_seconds": round(join, 2),
        "self_join_pairs": len(pairs[0]),
    }
    print(json.dumps(result))


def timed(search: Callable) -> tuple[float, object]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = search()
    return time.perf_counter() - start, result


def faiss_search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, np.ndarray, np.ndarray]:
    """faiss's flat index on the same number of threads: seconds, index, squared distances."""
    import faiss

    faiss.omp_set_num_threads(threads())
    index = faiss.IndexFlatL2(reference.shape[1])
    index.add(reference.astype(np.float32))
    points = queries.astype(np.float32)
    seconds, (squared, found) = timed(lambda: index.search(points, k))
    return seconds, found, squared


def read(path: Path, count: int) -> np.ndarray:
    """The first `count` images of a parquet file, uint8 (count, 3072)."""
    cells = pq.read_table(path, columns=["image"])["image"].slice(0, count).to_pylist()
    images = (Image.open(io.BytesIO(cell["bytes"])).convert("RGB") for cell in cells)
    return np.stack([np.asarray(image).reshape(-1) for image in images])


def stand_in(seed: int, count: int) -> np.ndarray:
    """Images with the 1/f spectrum of photographs, uint8 (count, 3072)."""
    rng = np.random.default_rng([1, seed])
    frequency = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32)[None])
    amplitude = 1 / np.maximum(frequency, 1 / 32)
    images = np.empty((count, 32, 32, 3), np.uint8)
    for start in range(0, count, 1000):
        white = rng.standard_normal((min(1000, count - start), 32, 32, 3))
        smooth = np.fft.ifft2(np.fft.fft2(white, axes=(1, 2)) * amplitude[..., None], axes=(1, 2)).real
        block = images[start : start + 1000]
        block[:] = np.clip(128 + 60 * smooth / smooth.std(), 0, 255)
    return images.reshape(count, -1)


if __name__ == "__main__":
    main()
