"""Seconds per step and peak memory of each kind of training."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.setup import OPTIMIZATION, Scale, make_trainer, spec, synchronise
from stages.diffusion.trainer import Trainer


def cost(size: Scale, device: torch.device, compiled: bool) -> dict[str, Any]:
    """Seconds per step and peak memory of the four kinds of training, taking turns. Images and lists are random: which
    rows a step gathers costs the same whatever they show, and lists are ready before training in both spaces."""
    network, count, batch, k, steps, turns = size.cost
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    optimization = OPTIMIZATION.model_copy(update={"batch": batch, "compile": compiled, "precision": "auto"})
    temperature = {"form": "temperature", "temperature": "1/sigma"}
    rows = {
        "conditioning": {"form": "conditioning"},
        "unconditioning": {"form": "unconditioning"},
        "pixel neighbours": {**temperature, "neighbors": {"space": "pixel", "k": k}},
        "feature neighbours": {**temperature, "neighbors": {"space": "feature", "k": k}},
    }
    trainers, own, seconds, peaks = {}, {}, {name: [] for name in rows}, {name: 0 for name in rows}
    for name, model in rows.items():
        before = allocated(device)
        lists = None
        if "neighbors" in model:
            lists = np.concatenate([np.arange(count)[:, None], generator.integers(0, count, (count, k - 1))], axis=1)
        variant = spec(model, {"name": "euler", "levels": 2})
        trainers[name] = make_trainer(variant, network, optimization, images, lists, device, Path("unused"))
        for _ in range(2):  # compiles, and makes the optimizer's state
            advance(trainers[name])
        synchronise(device)
        own[name] = allocated(device) - before
    for _ in range(turns):
        for name, trainer in trainers.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            for _ in range(steps):
                advance(trainer)
            synchronise(device)
            seconds[name].append((time.perf_counter() - started) / steps)
            if device.type == "cuda":
                others = sum(own.values()) - own[name]
                peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated(device) - others)
    table = {
        name: {
            "seconds_per_step": round(min(values), 5),
            "over_conditioning": round(min(values) / min(seconds["conditioning"]), 4),
            "peak_gb": round(peaks[name] / 1e9, 2) if device.type == "cuda" else None,
        }
        for name, values in seconds.items()
    }
    return {"batch": batch, "images": count, "k": k, "compile": compiled, "rows": table}


def advance(trainer: Trainer) -> None:
    """One training step, and nothing read back from the GPU."""
    next(trainer.steps())


def allocated(device: torch.device) -> int:
    """Bytes of GPU memory in use by tensors."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
