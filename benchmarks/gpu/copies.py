"""How many samples of small networks copy their training images."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.setup import MODELS, Scale, forget, make_trainer, show, spec
from benchmarks.published import NOISE
from stages.diffusion.model import make_model
from stages.diffusion.sampling import draw_samples
from stages.memorization.ratios import nn_ratio
from stages.search.nearest import nearest


def copies(
    size: Scale, device: torch.device, train: np.ndarray, held_out: np.ndarray, out: Path, minutes: float
) -> dict[str, Any]:
    """Train, sample and count: one row per model, and the held-out images' row."""
    network, optimization, _, _ = size.small
    flat = train.reshape(len(train), -1)
    lists = np.concatenate([np.arange(len(train))[:, None],
                            nearest(flat, flat, 9, exclude=np.arange(len(train)))[0]], axis=1)  # fmt: skip
    optimization = optimization.model_copy(update={"max_seconds": 60 * minutes / len(MODELS)})
    sampler = {"name": "reverse-sde", "levels": size.levels, "snr": 0.16}
    rows = {"held-out images": ratios(held_out, flat)}
    for name, model in MODELS.items():
        variant = spec(model, sampler)
        scratch = out / "checkpoints" / name.replace("/", "-over-").replace(" ", "-")
        trainer = make_trainer(variant, network, optimization, train, lists if variant.neighbors else None, device,
                               scratch)  # fmt: skip
        trainer.resume()
        started, last = time.perf_counter(), None
        for row in trainer.run():
            last = row
        trained = time.perf_counter() - started
        how = optimization.precision, optimization.compile
        model_ = make_model(variant, NOISE, train, trainer.average, device, *how)
        started = time.perf_counter()
        samples = draw_samples(model_, 0, size.samples, size.batch)
        rows[name] = ratios(samples, flat) | {
            "steps": trainer.training.step,
            "seconds_training": round(trained, 1),
            "seconds_sampling": round(time.perf_counter() - started, 1),
            "loss": None if last is None else round(last.loss, 5),
        }
        picture(out / f"samples {name.replace('/', ' over ')}.png", samples[:64])
        show(name, rows[name])
        del trainer, model_
        forget()
    return {"images": len(train), "levels": size.levels, "evaluations": 2 * size.levels, "rows": rows}


def ratios(images: np.ndarray, train: np.ndarray) -> dict[str, Any]:
    """#mem (r1/r2 < 0.7), mean and min of r1/r2. images: uint8 (N, H, W, C); train: uint8 (M, d)."""
    ratio = nn_ratio(nearest(images.reshape(len(images), -1), train, 2)[1])
    summary = {"mean": round(float(ratio.mean()), 4), "min": round(float(ratio.min()), 4)}
    return {"images": len(images), "mem": int((ratio < 0.7).sum()), **summary}


def picture(path: Path, images: np.ndarray) -> None:
    """A strip of rows of eight. images: uint8 (N, H, W, C)."""
    images = images[: len(images) // 8 * 8]
    rows = images.reshape(-1, 8, *images.shape[1:]).transpose(0, 2, 1, 3, 4)
    Image.fromarray(rows.reshape(-1, 8 * images.shape[2], images.shape[3])).save(path)
