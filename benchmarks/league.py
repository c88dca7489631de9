"""The analytic league on small digits: training-free scores beside a trained network, by level and by their samples.

    python -m benchmarks.league [--size 1000] [--seeds 0 1 2] [--steps 1000] [--keep FOLDER] [--out league.jsonl]

Against the network of preset onset (variant plain), trained on the same images: r2 of the denoised images and cosine of
the scores on noised held-out images, by noise level. Of the samples of each form: copies (r1/r2 < 0.7), blends, and the
Frechet distance of their pixels to 1,000 held-out images; the control is 1,000 other held-out images. Processor
milliseconds per evaluation of 100 points. Means over the seeds, each of which draws other images. A line of JSON per
seed and form is kept in --out, from which an interrupted run continues.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import small_models
from benchmarks.places import out_path
from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import Variant
from stages.diffusion.sampling import draw_samples
from stages.diffusion.variants import Batch, build_score, network_score, pixel_rows
from stages.features.frechet import frechet_from_features
from stages.memorization.calibrated_metrics import Nearness, calibrated_table, hull_arrays
from stages.memorization.ratios import nn_ratio
from stages.memorization.seeds import over_seeds
from stages.search.nearest import nearest
from stages.search.pixel_distance import pixel_distance

RATIO, HELD_OUT, CONTROL, POINTS, SAMPLES = 0.7, 2000, 1000, 100, 200
LEVELS = np.geomspace(0.05, 2.5, 6)
HEUN = {"name": "heun", "levels": 12}
ACTUAL = {"name": "actual-noise", "levels": 60, "step": 0.12, "exact_below": 2.5}
FORMS: dict[str, dict[str, Any]] = {
    "empirical": {"form": "conditioning", "sampler": HEUN},
    "wiener": {"form": "wiener", "sampler": HEUN},
    "local-3": {"form": "local", "patch": 3, "sampler": HEUN},
    "pca-locality": {"form": "pca-locality", "mask_threshold": 0.02, "sampler": HEUN},
    "tikhonov": {"form": "tikhonov", "penalty": 0.1, "sampler": HEUN},
    "loader-25": {"form": "loader-batches", "loader_batch": 25, "sampler": HEUN},
    "loader-100": {"form": "loader-batches", "loader_batch": 100, "sampler": HEUN},
    "loader-250": {"form": "loader-batches", "loader_batch": 250, "sampler": HEUN},
    "loader-500": {"form": "loader-batches", "loader_batch": 500, "sampler": HEUN},
    "kernel": {"form": "kernel-smoothed", "kernel": {"h": 0.4, "draws": 32}, "sampler": HEUN},
    "cfdm": {"form": "cfdm", "kernel": {"h": 0.3, "draws": 32}, "sampler": {"name": "cfdm", "levels": 60}},
    "shells": {"form": "unconditioning", "sampler": ACTUAL},
    "temperature": {
        "form": "temperature", "temperature": "d", "smooth_below": 0.25, "neighbors": {"space": "pixel", "k": 6},
        "sampler": ACTUAL,
    },
}  # fmt: skip
ROWS = ("held-out", "network", *FORMS)


def points(held_out: np.ndarray, sigma: float, seed: int) -> Tensor:
    """Noised held-out images, float32 (POINTS, C, H, W)."""
    clean = torch.from_numpy(held_out[:POINTS]).movedim(-1, 1).float() / 255
    noise = np.random.default_rng([seed, round(1e6 * sigma)]).standard_normal(clean.shape)
    return clean + sigma * torch.from_numpy(noise).float()


def agreement(own: Tensor, other: Tensor, x: Tensor, sigma: float) -> tuple[float, float]:
    """r2 of the denoised images x + sigma^2 s of two scores, and the mean cosine of the scores; all (B, d)."""
    denoised, wanted = x + sigma**2 * own, x + sigma**2 * other
    left = (denoised - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    return float(1 - left), float(torch.nn.functional.cosine_similarity(own, other).mean())


def by_level(model: Model, network: torch.nn.Module, held_out: np.ndarray, seed: int) -> dict[str, Any]:
    """Agreement of a form with the network at each level, and the processor time of an evaluation."""
    trained, found, spent = network_score(network, True), {"r2": [], "cosine": []}, 0.0
    batch = Batch(seed, torch.arange(POINTS), model.shape)
    for sigma in LEVELS.tolist():
        x, level = points(held_out, sigma, seed), torch.full((POINTS,), sigma, dtype=torch.float64)
        with torch.inference_mode():
            score = build_score(model.variant, model.centres, model.sigmas, batch)
            started = time.process_time()
            own = score(x, level)
            spent += time.process_time() - started
            pair = agreement(*(pixel_rows(s).double() for s in (own, trained(x, level), x)), sigma)
        for name, value in zip(found, pair):
            found[name].append(round(value, 4))
    return found | {"milliseconds": round(1000 * spent / len(LEVELS), 1)}


def nearness(images: np.ndarray, train: np.ndarray) -> Nearness:
    """Distances of images to the nearest training image and to the hull of the nearest, and which are copies."""
    flat, reference = small_models.flat(images), small_models.flat(train)
    index, squared = nearest(flat, reference, 8)
    hull = hull_arrays(flat, reference, index, 1 << 28)["hull"]
    return Nearness(pixel_distance(squared[:, 0], flat.shape[1]), hull, nn_ratio(squared) < RATIO)


def of_samples(images: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Shares of copies and blends, and the Frechet distance of the pixels to held-out images."""
    own, control = nearness(images, train), nearness(held_out[:CONTROL], train)
    pixels = [small_models.flat(part) / 255 for part in (images, held_out[CONTROL:])]
    blend = calibrated_table(own, control)["blend"]
    return {"copies": float(own.copied.mean()), "blends": blend["rate"], "fd": frechet_from_features(*pixels)}


def rows(size: int, seed: int, steps: int, keep: Path | None, done: set[str]) -> Any:
    """Yield one row per form that is not done, the network and held-out images among them."""
    train, held_out = small_models.drawn(size, HELD_OUT, seed)
    plain = small_models.variant("plain")
    about = {"size": size, "seed": seed, "steps": steps}
    if "held-out" not in done:
        yield {**about, "form": "held-out", **of_samples(held_out[:SAMPLES], train, held_out)}
    network = small_models.network_of("plain", train, seed, steps, keep) if steps else None
    if network is not None and "network" not in done:
        drawn = small_models.samples(plain, network, train, SAMPLES, seed)
        yield {**about, "form": "network", **of_samples(drawn, train, held_out)}
    for name, spec in FORMS.items():
        if name not in done:
            model = make_model(Variant(score="closed-form", **spec), small_models.NOISE, train, None, small_models.CPU)
            alone = network is None or spec["form"] == "cfdm"
            found = {} if alone else by_level(model, network, held_out, seed)
            drawn = draw_samples(model, seed, SAMPLES, 50)
            yield {**about, "form": name, **found, **of_samples(drawn, train, held_out)}


def table(found: list[dict[str, Any]]) -> list[str]:
    """A line per form: means over the seeds, copies with their t-interval."""
    lines = [f"{'form':13} copies %             blends %  FD-pixels  ms   r2 by level | cosine by level"]
    for name in dict.fromkeys(row["form"] for row in found):
        own = [row for row in found if row["form"] == name]
        copied = over_seeds([100 * row["copies"] for row in own])
        ends = "" if copied.low is None else f" [{max(0, copied.low):.1f}, {min(100, copied.high):.1f}]"
        blends, fd = (np.mean([row[key] for row in own]) for key in ("blends", "fd"))
        line = f"{name:13} {f'{copied.mean:.1f}{ends}':20} {100 * blends:8.1f} {fd:10.2f}"
        if "r2" in own[0]:
            levels = (
                " ".join(f"{v:.2f}" for v in np.mean([row[key] for row in own], axis=0)) for key in ("r2", "cosine")
            )
            line += f"  {np.median([row['milliseconds'] for row in own]):5.1f}  {' | '.join(levels)}"
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000, help="of the network's training; 0: samples alone")
    parser.add_argument("--forms", nargs="+", default=ROWS, choices=ROWS)
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=out_path, default=Path("league.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    for seed in arguments.seeds:
        same = {"size": arguments.size, "seed": seed, "steps": arguments.steps}
        done = {row["form"] for row in found if same.items() <= row.items()} | set(ROWS) - set(arguments.forms)
        for row in rows(arguments.size, seed, arguments.steps, arguments.keep, done):
            found.append(row)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    found = [row for row in found if (row["size"], row["steps"]) == (arguments.size, arguments.steps)]
    print("levels", " ".join(f"{sigma:.2f}" for sigma in LEVELS))
    print("\n".join(table(found)))
    print(json.dumps({"rows": len(found)}))


if __name__ == "__main__":
    main()
