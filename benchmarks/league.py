"""The analytic league on small images: training-free scores beside a trained network, by level and by their samples.

    python -m benchmarks.league [--size 1000] [--seeds 0 1 2] [--steps 400 800 1600 3200] [--keep FOLDER] [--out FILE]
    python -m benchmarks.league --steps 0 --forms BATCHES [--source parquet:PATH --label 1 --sigma-max 8 --levels 16]

Of the samples of each form: copies (r1/r2 < 0.7), blends, and the Frechet distance of their pixels to 1,000 held-out
images; the control is 1,000 other held-out images. Against the network of preset onset (variant plain), trained on the
same images: r2 of the denoised images and cosine of the scores on noised held-out images, by noise level. The network
is the one of the given --steps whose samples are nearest to the control images; those of the table are others, and so
are the images that they are compared with. An evaluation's processor milliseconds are of 100 points; its error is the
largest deviation from the formula (`brute_force`) at 10 of them, over all levels. Means over the seeds, each of which
draws other images, with t-intervals. A line of JSON per seed and form is kept in --out, from which an interrupted run
continues.
"""

import argparse
import copy
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import brute_force, small_models
from benchmarks.league_table import agreement_table, batches_table, samples_table
from benchmarks.places import out_path
from stages.beyond.league import agreement
from stages.beyond.measures import shares
from stages.beyond.points import noised
from stages.beyond.points import rows as image_rows
from stages.diffusion.model import Model, make_model
from stages.diffusion.parameters import NoiseParams, Variant
from stages.diffusion.samplers import Score
from stages.diffusion.sampling import draw_samples
from stages.diffusion.variants import Batch, build_score, kernel_draws, network_score
from stages.features.frechet import frechet_from_features

HELD_OUT, CONTROL, POINTS, SAMPLES, CHECKED = 2000, 1000, 100, 200, 10  # the control is the first half
CHOICE = 10_000  # added to the seed of the samples that a network is chosen by
THRESHOLD = 0.02  # of PCA-locality, as released
BATCHES = (25, 100, 250, 500)
LEVELS = np.geomspace(0.05, 2.5, 6)
HEUN = {"name": "heun", "levels": 12}
ACTUAL = {"name": "actual-noise", "levels": 60, "step": 0.12, "exact_below": 2.5}
FORMS: dict[str, dict[str, Any]] = {
    "empirical": {"form": "conditioning", "sampler": HEUN},
    "wiener": {"form": "wiener", "sampler": HEUN},
    "local-3": {"form": "local", "patch": 3, "sampler": HEUN},
    "pca-locality": {"form": "pca-locality", "mask_threshold": THRESHOLD, "sampler": HEUN},
    "tikhonov": {"form": "tikhonov", "penalty": 0.1, "sampler": HEUN},
    **{f"loader-{n}": {"form": "loader-batches", "loader_batch": n, "sampler": HEUN} for n in BATCHES},
    **{
        f"pca-loader-{n}": {"form": "pca-locality", "mask_threshold": THRESHOLD, "loader_batch": n, "sampler": HEUN}
        for n in BATCHES
    },
    "kernel": {"form": "kernel-smoothed", "kernel": {"h": 0.4, "draws": 32}, "sampler": HEUN},
    "cfdm": {"form": "cfdm", "kernel": {"h": 0.3, "draws": 32}, "sampler": {"name": "cfdm", "levels": 60}},
    "shells": {"form": "unconditioning", "sampler": ACTUAL},
    "temperature": {
        "form": "temperature", "temperature": "d", "smooth_below": 0.25, "neighbors": {"space": "pixel", "k": 6},
        "sampler": ACTUAL,
    },
}  # fmt: skip
ROWS = ("held-out", "network", *FORMS)
OF_BATCHES = ("held-out", "empirical", "pca-locality", *(name for name in FORMS if "loader" in name))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the rows of one table share, but for the seed.

    Attributes:
        source, label, side: the images, of one class or all, and their side.
        size: training images.
        steps: of the network's training, to choose from; none: no network.
        sigma_max, levels: largest noise level, and the number of levels of Heun's sampler.
        mask_threshold: of PCA-locality.
    """

    source: str
    label: int | None
    side: int
    size: int
    steps: tuple[int, ...]
    sigma_max: float
    levels: int
    mask_threshold: float

    @property
    def noise(self) -> NoiseParams:
        """The noise levels."""
        return NoiseParams(sigma_min=small_models.NOISE.sigma_min, sigma_max=self.sigma_max)

    def variant(self, spec: dict[str, Any]) -> Variant:
        """A form with this table's number of levels, where its sampler is Heun's, and threshold, where it has one."""
        own = {"sampler": spec["sampler"] | ({"levels": self.levels} if spec["sampler"] == HEUN else {})}
        own |= {"mask_threshold": self.mask_threshold} if "mask_threshold" in spec else {}
        return Variant(score="closed-form", **{**spec, **own})

    def forms(self) -> dict[str, dict[str, Any]]:
        """The forms but those whose loader batch holds all images, which are another form."""
        return {name: spec for name, spec in FORMS.items() if spec.get("loader_batch", 0) < self.size}


def points(held_out: np.ndarray, sigma: float, seed: int) -> Tensor:
    """Noised held-out images, float32 (POINTS, C, H, W)."""
    return noised(held_out[:POINTS], sigma, seed)


def as_score(model: Model, batch: Batch) -> Score:
    """A closed form's score; cfdm's velocity v at z = tx, t = 1/(1 + sigma), gives t (tv - z)/(1 - t)."""
    built = build_score(model.variant, model.centres, model.sigmas, batch)
    if model.variant.form != "cfdm":
        return built

    def score(x: Tensor, sigma: Tensor) -> Tensor:
        t = 1 / (1 + sigma)
        part = t.to(x.dtype)[:, None, None, None]
        return part * (part * built(part * x, t) - part * x) / (1 - part)

    return score


def deviation(model: Model, batch: Batch, own: Tensor, x: Tensor, sigma: float, train: np.ndarray) -> float:
    """The error of a form's scores at the first of the points; own, x: (B, C, H, W)."""
    some, images = min(CHECKED, len(x)), small_models.flat(train) / 255
    rows = [image_rows(part[:some]) for part in (own, x)]
    draws = None
    if model.variant.kernel is not None:
        drawn = kernel_draws(model.variant, images.shape[1], Batch(batch.seed, batch.indices[:some], batch.shape))
        draws = drawn.take(0, drawn.count).double().numpy()
    return brute_force.error(model.variant, *rows, images, sigma, train.shape[1:], draws)


def by_level(
    model: Model, network: torch.nn.Module | None, train: np.ndarray, held_out: np.ndarray, seed: int
) -> dict[str, Any]:
    """A form's milliseconds and error of an evaluation, and its agreement with a network at each level."""
    found, spent, errors = {"r2": [], "cosine": []}, [], []
    batch = Batch(seed, torch.arange(POINTS), model.shape)
    for sigma in LEVELS.tolist():
        x, level = points(held_out, sigma, seed), torch.full((POINTS,), sigma, dtype=torch.float64)
        with torch.inference_mode():
            score = as_score(model, batch)
            started = time.process_time()
            own = score(x, level)
            spent.append(time.process_time() - started)
            errors.append(deviation(model, batch, own, x, sigma, train))
            if network is not None:
                trained = network_score(network, True)(x, level)
                pair = agreement(*map(image_rows, (own, trained, x)), sigma)
                for name, value in zip(found, pair):
                    found[name].append(round(value, 4))
    cost = {"milliseconds": round(1000 * float(np.median(spent)), 1), "error": max(errors)}
    return cost if network is None else found | cost


def sight(train: np.ndarray, threshold: float) -> dict[str, list[float]]:
    """By level, the mean share of the pixels that a pixel of PCA-locality sees, and the share that see themselves."""
    masks = [brute_force.masks(small_models.flat(train) / 255, sigma, threshold) for sigma in LEVELS.tolist()]
    return {
        "seen": [round(float(sees.mean()), 3) for sees in masks],
        "themselves": [round(float(np.diag(sees).mean()), 3) for sees in masks],
    }


def milliseconds(network: torch.nn.Module, held_out: np.ndarray, seed: int) -> float:
    """Processor milliseconds of a network's evaluation, the median over the levels."""
    spent = []
    for sigma in LEVELS.tolist():
        x, level = points(held_out, sigma, seed), torch.full((POINTS,), sigma, dtype=torch.float64)
        with torch.inference_mode():
            started = time.process_time()
            network_score(network, True)(x, level)
            spent.append(time.process_time() - started)
    return round(1000 * float(np.median(spent)), 1)


def of_samples(images: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """Shares of copies and blends, and the Frechet distance of the pixels to held-out images."""
    found = shares(images, train, held_out)
    return {name: found[name] for name in ("copies", "blends", "fd")}


def chosen(
    train: np.ndarray, held_out: np.ndarray, seed: int, steps: tuple[int, ...], keep: Path | None
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The network of the number of steps whose samples are nearest to the control images, and the distances by step."""
    plain, best, found = small_models.variant("plain"), None, {}
    for step, network in small_models.snapshots("plain", train, seed, steps, keep):
        pixels = small_models.flat(small_models.samples(plain, network, train, SAMPLES, seed + CHOICE)) / 255
        found[step] = frechet_from_features(pixels, small_models.flat(held_out[:CONTROL]) / 255)
        if found[step] == min(found.values()):
            best = copy.deepcopy(network)
    return best, {"step": min(found, key=found.get), "fd_by_step": {k: round(v, 3) for k, v in found.items()}}


def rows(setting: Setting, seed: int, keep: Path | None, wanted: set[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per wanted form, the network and held-out images among them."""
    images = small_models.digits(setting.source, setting.side, setting.label)
    train, held_out = small_models.drawn(setting.size, HELD_OUT, seed, images)
    about = {**dataclasses.asdict(setting), "steps": list(setting.steps), "seed": seed}
    forms = {name: spec for name, spec in setting.forms().items() if name in wanted}
    if "held-out" in wanted:
        yield {**about, "form": "held-out", **of_samples(held_out[:SAMPLES], train, held_out)}
    network = None
    if setting.steps and (forms or "network" in wanted):
        network, choice = chosen(train, held_out, seed, setting.steps, keep)
        if "network" in wanted:
            spent = {"milliseconds": milliseconds(network, held_out, seed)}
            drawn = small_models.samples(small_models.variant("plain"), network, train, SAMPLES, seed)
            yield {**about, "form": "network", **choice, **spent, **of_samples(drawn, train, held_out)}
    for name, spec in forms.items():
        model = make_model(setting.variant(spec), setting.noise, train, None, small_models.CPU)
        found = by_level(model, network, train, held_out, seed)
        if name == "pca-locality":
            found |= sight(train, setting.mask_threshold)
        drawn = draw_samples(model, seed, SAMPLES, 50)
        yield {**about, "form": name, **found, **of_samples(drawn, train, held_out)}


def table(found: list[dict[str, Any]]) -> list[str]:
    """The lines of the tables of one setting."""
    lines = samples_table(found)
    if any("r2" in row for row in found):
        lines += ["", *agreement_table(found, LEVELS, "r2"), "", *agreement_table(found, LEVELS, "cosine")]
    return [*lines, "", *batches_table(found, BATCHES)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="mnist5k", help="images, as ingest.source")
    parser.add_argument("--label", type=int, help="use this class alone")
    parser.add_argument("--side", type=int, default=small_models.SIDE)
    parser.add_argument("--sigma-max", type=float, default=small_models.NOISE.sigma_max)
    parser.add_argument("--levels", type=int, default=HEUN["levels"], help="of Heun's sampler")
    parser.add_argument("--mask-threshold", type=float, default=THRESHOLD, help="of PCA-locality")
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, nargs="+", default=[400, 800, 1600, 3200], help="0: no network")
    parser.add_argument("--forms", nargs="+", default=ROWS, choices=(*ROWS, "BATCHES"))
    parser.add_argument("--keep", type=Path, help="folder that keeps the networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=out_path, default=Path("league.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keys = ("source", "label", "side", "size", "sigma_max", "levels", "mask_threshold")
    steps = tuple(sorted(set(arguments.steps) - {0}))
    setting = Setting(**{key: getattr(arguments, key) for key in keys}, steps=steps)
    forms = set(OF_BATCHES if "BATCHES" in arguments.forms else arguments.forms)
    same = {**dataclasses.asdict(setting), "steps": list(steps)}
    found = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    found = [row for row in found if same.items() <= row.items()]
    for seed in arguments.seeds:
        done = {row["form"] for row in found if row["seed"] == seed}
        for row in rows(setting, seed, arguments.keep, forms - done):
            found.append(row)
            with arguments.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    print("\n".join(table(found)))
    print(json.dumps({"rows": len(found)}))


if __name__ == "__main__":
    main()
