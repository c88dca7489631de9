"""Exact search of nearest images on the GPU beside faiss."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.setup import Scale, synchronise
from stages.search.nearest import nearest

ROUNDS = 3


def search(size: Scale, device: torch.device, images: np.ndarray) -> dict[str, Any]:
    """Seconds to find 50 neighbours of noised images, ours (exact int8 products) and faiss IndexFlatL2 in float32.

    The share of faiss's neighbours that differ from the exact ones stands beside its time. Without faiss it is ours
    alone; on a CPU faiss runs there, too.
    """
    queries, k = min(size.queries, len(images)), min(50, len(images))
    flat = images.reshape(len(images), -1)
    noise = np.random.default_rng(0).normal(0, 8, (queries, flat.shape[1]))
    asked = np.clip(flat[:queries] + noise.round(), 0, 255).astype(np.uint8)
    seconds, (found, _) = timed(lambda: nearest(asked, flat, k, device=device.type), device)
    rows = {"ours": {"seconds": round(seconds, 4)}}
    if index := faiss_index(flat, device):
        theirs, (_, others) = timed(lambda: index.search(asked.astype(np.float32), k), device)
        rows["faiss IndexFlatL2"] = {
            "seconds": round(theirs, 4), "times_as_fast": round(theirs / seconds, 2),
            "neighbors_that_differ": float(f"{(others != found).mean():.2g}"),
        }  # fmt: skip
    return {"queries": queries, "images": len(images), "k": k, "rows": rows}


def faiss_index(flat: np.ndarray, device: torch.device) -> Any:
    """faiss's exact index of these images on the device, or None where faiss, or faiss for GPUs, is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatL2(flat.shape[1])
    if device.type == "cuda":
        if faiss.get_num_gpus() == 0:
            return None
        index = faiss.index_cpu_to_all_gpus(index)
    index.add(flat.astype(np.float32))
    return index


def timed(work: Any, device: torch.device) -> tuple[float, Any]:
    """The least seconds of a few runs, after one that warms up, and the result."""
    work()
    spent = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = work()
        synchronise(device)
        spent.append(time.perf_counter() - started)
    return min(spent), result
