"""Exact search against faiss IndexFlatL2, on real and on noise queries.

    python -m benchmarks.search [--data FOLDER] [--reference 50000] [--queries 10000] [--k 50]

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

from stages.engine.products import threads
from stages.search.nearest import nearest
from stages.search.range_search import pairs_within


def main() -> None:
    """Time both searches and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, help="folder with CIFAR-10's train.parquet and test.parquet; else a stand-in"
    )
    parser.add_argument("--reference", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--noise-queries", type=int, default=5_000)
    parser.add_argument("--faiss-queries", type=int, default=1_000)
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
    part = queries[: options.faiss_queries]
    theirs, faiss_index, faiss_squared = faiss_search(part, reference, options.k)
    per_query = theirs / len(part)
    result = {
        "data": "cifar10" if real else "synthetic",
        "shape": [len(queries), *reference.shape],
        "k": options.k,
        "threads": threads(),
        "seconds": round(float(ours[0]), 3),
        "faiss_flat_seconds": round(float(per_query[0]) * len(queries), 2),
        "ratio_vs_faiss_flat": ratio(per_query * len(queries), ours)[0],
        "ratio_of_processor_time": ratio(per_query * len(queries), ours)[1],
        "noise_ratio_vs_faiss_flat": ratio(per_query * len(noise), ours_noise)[0],
        "noise_ratio_of_processor_time": ratio(per_query * len(noise), ours_noise)[1],
        "extra_memory_mib": memory // 1024,
        "faiss_neighbors_that_differ": float((faiss_index != index[: len(part)]).mean()),
        "faiss_worst_squared_error": float(np.abs(faiss_squared - squared[: len(part)]).max()),
        "self_join_seconds": round(float(join[0]), 2),
        "self_join_pairs": len(pairs[0]),
    }
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


def faiss_search(queries: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """faiss's flat index on the same number of threads: `timed`, index, squared distances."""
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
