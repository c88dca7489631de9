"""Estimators of the posterior mean against the exact one: softmax inside loader batches, and few neighbours.

    python -m benchmarks.estimators PATH/train.parquet [--train 50000] [--points 16]

Points are training images with noise sigma, pixels in [-1, 1], as in the field. The root mean squared error of each
estimate, per pixel, off the exact posterior mean over all training images: means over batches of 128, 512 and 2,048
images of the posterior mean inside the batch (what a streaming softmax gives that is normalised per batch); and the
posterior mean over the k nearest images alone, found exactly, or by an approximate index (FAISS IVF, 256 lists, 8 of
them searched). Prints a table with the standard error over points, and one line of JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.audit import read
from stages.diffusion import scores
from stages.diffusion.peer_scores import loader_batches
from stages.diffusion.temperature import conditioning_log_weights

SIGMAS = (0.5, 1.0, 2.0, 5.0, 20.0)
BATCHES = (128, 512, 2048)
NEAREST = (10, 100, 1000)
LISTS, PROBES = 256, 8


def over(images: np.ndarray, x: Tensor, sigma: float, rows: np.ndarray) -> Tensor:
    """The posterior mean over some images of each point. images: uint8 (M, d); x: (B, d); rows: int64 (B, k)."""
    out = torch.empty_like(x)
    for i, own in enumerate(rows):
        near = scores.unit(torch.from_numpy(images[own[own >= 0]]))
        weight = torch.softmax(conditioning_log_weights((x[i] - near).square().sum(1), sigma**2), 0)
        out[i] = weight @ near
    return out


def exact_order(centres: scores.Centres, x: Tensor, k: int) -> np.ndarray:
    """The k nearest images of each point, int64 (B, k)."""
    squared = torch.cat([r2 for r2, _ in centres.squared_distances(x)], dim=1)
    return squared.topk(k, dim=1, largest=False).indices.numpy()


def index_of(images: np.ndarray) -> Callable[[Tensor, int], np.ndarray]:
    """Search of an approximate index of the images."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    pixels = (images / 255).astype(np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(pixels.shape[1]), pixels.shape[1], LISTS)
    index.train(pixels[:: max(1, len(pixels) // (40 * LISTS))])
    index.add(pixels)
    index.nprobe = PROBES
    return lambda x, k: index.search(x.numpy().astype(np.float32), k)[1]


def errors(images: np.ndarray, points: int, seed: int = 0) -> dict[str, dict[float, list[float]]]:
    """Each estimator's rms error off the exact posterior mean at every point, by sigma, in units of [-1, 1]."""
    rows, generator = images.reshape(len(images), -1), np.random.default_rng(seed)
    centres, search = scores.make_centres(torch.from_numpy(rows)), index_of(rows)
    found: dict[str, dict[float, list[float]]] = {}
    for sigma in SIGMAS:
        level = sigma / 2  # of pixels in [0, 1]
        start = rows[generator.choice(len(rows), points, replace=False)] / 255
        x = torch.from_numpy(start + level * generator.standard_normal(start.shape))
        sigmas = torch.full((points,), level, dtype=torch.float64)
        exact = x + level**2 * scores.conditioning(centres, x, sigmas)
        most = [k for k in NEAREST if k <= len(rows)]
        order = exact_order(centres, x, most[-1])
        estimates = {f"batches of {size}": x + level**2 * loader_batches(centres, size)(x, sigmas) for size in BATCHES}
        estimates |= {f"exact top {k}": over(rows, x, level, order[:, :k]) for k in most}
        estimates |= {f"IVF top {k}": over(rows, x, level, search(x, k)) for k in most}
        print(f"sigma {sigma:g} done", file=sys.stderr, flush=True)
        for name, estimate in estimates.items():
            own = 2 * (estimate - exact).square().mean(1).sqrt()
            found.setdefault(name, {})[sigma] = own.tolist()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images, started = read(arguments.source, arguments.train), time.process_time()
    found = errors(images, arguments.points)
    print(f"{'rms error off the exact mean':28}", *(f"sigma {sigma:<9g}" for sigma in SIGMAS))
    for name, own in found.items():
        cells = (f"{np.mean(v):.3f} ± {np.std(v, ddof=1) / len(v) ** 0.5:.3f}  " for v in own.values())
        print(f"{name:28}", *cells)
    means = {name: {sigma: float(np.mean(v)) for sigma, v in own.items()} for name, own in found.items()}
    print(json.dumps({"images": len(images), "processor_seconds": round(time.process_time() - started), "rms": means}))


if __name__ == "__main__":
    main()
