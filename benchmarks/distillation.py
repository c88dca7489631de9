"""Does distillation keep, undo or add to the fewer copies of a smoothed target? Consistency functions on a few digits.

    python -m benchmarks.distillation --keep FOLDER [--size 40] [--seeds 0 1 2 3 4 5 6 7] [--out distillation.jsonl]

Noise-blind networks of preset onset learn the plain target, and one that is smoothed over pixel neighbours at a
temperature; from each a consistency function is distilled (form consistency, by the code of stage train). A seed draws
the images, the weights, the batches and the noise, so that both targets are a pair. 200 samples of every teacher, by
its own sampler and in as many evaluations as its student, and of every student: copies (r1/r2 < 0.7), nearer than all
but 1 % of held-out images, blends, and the Frechet distance of their pixels to 500 held-out images; 500 others are the
control. Prints what smoothing changes without distillation and after it, the difference of these two changes, and what
distillation changes, each with the paired t-interval over seeds. Networks stay in the folder --keep and rows in --out,
from which an interrupted run continues.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import small_models
from benchmarks.adaptive import HELD_OUT, SAMPLES, Row, measure
from benchmarks.places import out_path
from benchmarks.samplers import MEASURES, cell
from stages.diffusion.network import build_network
from stages.diffusion.parameters import ScoreSpec, Variant
from stages.diffusion.train_network import teacher_shard, train_network
from stages.files.images import image_table, write_images
from stages.files.neighbors import NeighborTable, write_neighbors
from stages.files.paths import snapshot_name
from stages.files.tensors import load_tensors, select
from stages.memorization.seeds import SHARE, SeedMean, over_seeds, rate_variance
from stages.protocol import Shard
from stages.reporting.runs import RATIO
from stages.search.nearest import nearest

PLAIN, SMOOTHED = "plain", "smoothed"
NEIGHBORS = 8
TARGETS = {
    PLAIN: {"form": "unconditioning"},
    SMOOTHED: {
        "form": "temperature",
        "temperature": 7.5,
        "smooth_below": 0.5,
        "neighbors": {"space": "pixel", "k": NEIGHBORS},
    },
}
ALPHA = 0.12
TEACHER = {"name": "actual-noise", "levels": 60, "step": ALPHA, "exact_below": small_models.NOISE.sigma_max}
MODELS = {  # name -> (whose network, its sampler)
    "teacher, 60 evaluations": ("teacher", TEACHER),
    "teacher, 4": ("teacher", {"name": "consistency", "levels": 4}),
    "student, 4": ("student", {"name": "consistency", "levels": 4}),
    "student, 1": ("student", {"name": "consistency", "levels": 1}),
}
OWN = "teacher, 60 evaluations"
COUNTED = {RATIO: "copied", "calibrated_distance": "calibrated_distance", "blend": "blend", "fd": "fd"}


def student_of(target: str, steps: int) -> dict:
    """The specification of a consistency function."""
    return {
        "score": "network",
        "form": "consistency",
        "teacher": TARGETS[target],
        "distillation": {"steps": steps, "step": ALPHA},
    }


def shard(target: str, train: np.ndarray, seed: int, options: argparse.Namespace) -> Shard:
    """The training of a teacher and its student as a shard of stage train, with its inputs in the folder --keep."""
    folder = options.keep / f"{len(train)}-{seed}"
    images, near = folder / "images.arrow", folder / "neighbors.arrow"
    table, flat = image_table(train), small_models.flat(train)
    if not near.exists():
        index, squared = nearest(flat, flat, NEIGHBORS - 1, exclude=np.arange(len(flat)))
        distance = np.sqrt(squared).astype(np.float32)
        write_images(images, table)
        write_neighbors(near, NeighborTable(index.astype(np.int32), distance, table.ids, distance[:, 0]))
    settings = {
        "spec": ScoreSpec(**student_of(target, options.distillation)).model_dump(mode="json"),
        "noise": small_models.NOISE.model_dump(),
        "network": small_models.network().model_dump(),
        "optimization": small_models.optimization(steps=options.steps).model_dump(mode="json"),
        "device": "cpu",
        "processes": 1,
        "threads": 1,
        "seed": seed,
    }
    inputs = (str(images), *([str(near)] if target == SMOOTHED else []))
    place = folder / f"{target}-{options.steps}-{options.distillation}.safetensors"
    return Shard("train", "train", f"{target} {len(train)} seed {seed}", settings, inputs, ".safetensors", str(place))


def network(spec: Variant, place: Path, shape: tuple[int, int, int]) -> torch.nn.Module:
    """The averaged network at the end of a training."""
    tensors, notes = load_tensors(place)
    made = build_network(small_models.network(), spec, small_models.NOISE, shape)
    made.load_state_dict(select(tensors, snapshot_name(notes["steps"][-1])))
    return made.requires_grad_(False).eval()


def measured(target: str, seed: int, options: argparse.Namespace) -> Iterator[Row]:
    """A row for each of MODELS."""
    train, held_out = small_models.drawn(options.size, HELD_OUT, seed)
    own = shard(target, train, seed, options)
    if not own.path.exists():
        train_network(own)
    shape = (train.shape[3], *train.shape[1:3])
    student = student_of(target, options.distillation)
    places = {"teacher": teacher_shard(own, ScoreSpec(**student)).path, "student": own.path}
    for name, (whose, sampler) in MODELS.items():
        spec = Variant(**(student if whose == "student" else {"score": "network", **TARGETS[target]}), sampler=sampler)
        images = small_models.samples(spec, network(spec, places[whose], shape), train, SAMPLES, seed)
        yield {"target": target, "model": name, "seed": seed, **measure(images, train, held_out)}


def values(rows: list[Row], target: str, model: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A measure by seed, float64 (n,), shares of 1; and the sampling variance of each, 0 for distances."""
    own = sorted((row for row in rows if (row["target"], row["model"]) == (target, model)), key=lambda row: row["seed"])
    found = np.array([row[name] for row in own], np.float64)
    return (found, np.zeros_like(found)) if name == "fd" else (found / SAMPLES, rate_variance(found, SAMPLES))


def mean_of(rows: list[Row], name: str, *terms: tuple[int, str, str]) -> SeedMean:
    """The mean over seeds of a sum of measures, each (sign, target, model)."""
    parts = [(sign, *values(rows, target, model, name)) for sign, target, model in terms]
    total = sum(sign * found for sign, found, _ in parts)
    within = SHARE if len(terms) == 1 and name != "fd" else (-np.inf, np.inf)
    return over_seeds(total, sum(variance for *_, variance in parts), within)


def line(rows: list[Row], title: str, *terms: tuple[int, str, str]) -> str:
    """A Markdown row: a sum of measures, for each of COUNTED."""
    scales = [(1, 2) if name == "fd" else (100, 1) for name in COUNTED]
    cells = [cell(mean_of(rows, name, *terms), *scale) for name, scale in zip(COUNTED, scales)]
    return f"| {title} | {' | '.join(cells)} |"


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown lines: every model, what smoothing changes, and what distillation changes."""
    yield f"| | {' | '.join(MEASURES[name] for name in COUNTED.values())} |"
    yield "|---" * (1 + len(COUNTED)) + "|"
    for target in TARGETS:
        for model in MODELS:
            yield line(rows, f"{target}: {model}", (1, target, model))
    for model in MODELS:
        yield line(rows, f"smoothing: {model}", (1, SMOOTHED, model), (-1, PLAIN, model))
    for model in list(MODELS)[1:]:
        terms = (1, SMOOTHED, model), (-1, PLAIN, model), (-1, SMOOTHED, OWN), (1, PLAIN, OWN)
        yield line(rows, f"smoothing: {model} less {OWN}", *terms)
    for target in TARGETS:
        for model in list(MODELS)[1:]:
            yield line(rows, f"{target}: {model} less {OWN}", (1, target, model), (-1, target, OWN))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", type=Path, required=True, help="folder of the networks")
    parser.add_argument("--size", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(8)))
    parser.add_argument("--steps", type=int, default=800, help="of the teachers")
    parser.add_argument("--distillation", type=int, default=800, help="steps of the students")
    parser.add_argument("--out", type=out_path, default=Path("distillation.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(row["target"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for target in [target for target in TARGETS if (target, seed) not in done]:
            found = list(measured(target, seed, options))
            rows += found
            with options.out.open("a") as file:
                file.write("".join(json.dumps(row) + "\n" for row in found))
    rows = [row for row in rows if row["seed"] in options.seeds]
    print("\n".join(table(rows)))
    print(json.dumps({"seeds": len(options.seeds)}))


if __name__ == "__main__":
    main()
