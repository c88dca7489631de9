"""Stage train@variant: train a variant's network. A closed-form variant has none, and only its score is specified.

Outs in data/train/VARIANT: score.json (the specification of the score), and for networks a folder seed-SEED for each of
train.seeds with model.safetensors (the EMA weights), loss.tsv (the loss curve, by noise level) and, for each step of
train.snapshots before the last, snapshot-STEP.safetensors (the EMA weights then). runs.json lists all weights, seed by
seed, each by ascending steps: the runs that the later stages sample and measure. The first seed's last run is the
reference, whose samples the report shows.

A seed determines weights, order of the images, noise levels and noise alike for every variant, so the runs of two
variants with one seed are a pair.
"""

import math
import shutil
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from stages.diffusion.classes import class_list
from stages.diffusion.parameters import NetworkParams, NoiseChoice, OptimizationParams, ScoreSpec, Variant
from stages.diffusion.spread import read_spread, resolve
from stages.files.artifacts import read_json, write_json, write_text
from stages.files.images import read_images
from stages.files.paths import (
    images_of,
    loss_of,
    neighbors_of,
    runs_of,
    score_of,
    snapshot_name,
    snapshot_of,
    weights_of,
)
from stages.protocol import Parts, Shard, StageParams, main


class Params(StageParams):
    """How the networks are trained; the noise levels are also those of the closed-form variants."""

    SECTION: ClassVar[str] = "train"
    SHARED: ClassVar[dict[str, str]] = {"spec": "variants.{variant}"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    noise: NoiseChoice
    network: NetworkParams
    optimization: OptimizationParams
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        min_length=1,
        description="a training for each: seed of weights, order, levels, noise and dropout; 32 bits; the first one's "
        "network is the reference",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")
    processes: int = Field(gt=0, description="processes that share every batch: one per GPU, or on the CPU")
    threads: int | None = Field(gt=0, description="CPU threads of each process; null: OMP_NUM_THREADS or all")
    snapshots: list[int] = Field(description="steps after which the EMA weights are kept, ascending")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed is listed twice, but equal seeds give equal networks: remove one")
        return seeds

    @field_validator("snapshots")
    @classmethod
    def _within_training(cls, steps: list[int], info: ValidationInfo) -> list[int]:
        if steps != sorted(set(steps)):
            raise ValueError("the steps must ascend")
        last = info.data["optimization"].steps if "optimization" in info.data else math.inf
        if wrong := [step for step in steps if not 0 < step <= last]:
            raise ValueError(f"{wrong[0]} is not a step of a training of {last} steps (train.optimization.steps)")
        return steps


def _specification(params: Params) -> dict[str, Any]:
    """Return the content of score.json: what determines the score, and nothing about how it is sampled.

    The levels are resolved here. `start` says how even the chances of the training images are at the largest one;
    `classes` are the labels of a class-conditional network, in the order of its class vectors.
    """
    spread = read_spread()
    noise = resolve(params.noise, spread)
    score = {
        "variant": params.variant,
        "spec": params.spec.model_dump(mode="json", include=set(ScoreSpec.model_fields)),
        "noise": noise.model_dump(mode="json"),
        "start": {
            "chosen": "auto" if params.noise.sigma_max == "auto" else "given",
            "fitting_sigma_max": spread.sigma_max,
            "lead": spread.lead(noise.sigma_max),
            "largest_distance": spread.largest_distance,
        },
    }
    if params.spec.score == "network":
        score["network"] = params.network.model_dump(mode="json")
        score["optimization"] = params.optimization.model_dump(mode="json")
    if params.spec.conditioning == "class":
        labels = read_images(images_of("train")).labels
        score["classes"] = class_list(labels, f"variants.{params.variant}.conditioning")
    return score


def plan(params: Params) -> list[Shard]:
    """Return one shard per seed for a network, none for a closed form."""
    if params.spec.score == "closed-form":
        return []
    inputs = [str(images_of("train"))]
    if (neighbors := params.spec.trained.neighbors) is not None:
        inputs.append(str(neighbors_of(neighbors.space)))
    settings = {**_specification(params), "device": params.device, "processes": params.processes}
    if params.threads is not None:
        settings["threads"] = params.threads
    if params.snapshots and params.spec.form != "consistency":  # they are steps of the teacher's training
        settings["snapshots"] = params.snapshots
    for key in ("variant", "start"):  # left out, so that trainings which are the same share one cached result
        del settings[key]
    name, paths = params.variant, tuple(inputs)
    return [
        Shard("train", "train", f"{name} seed {seed}", {**settings, "seed": seed}, paths, ".safetensors")
        for seed in params.seeds
    ]


def work(shard: Shard) -> Path:
    """Train the network, from the last checkpoint in `shard.scratch` if there is one."""
    from stages.diffusion.train_network import train_network

    return train_network(shard)


def gather(params: Params, parts: Parts) -> None:
    """Write score.json and, for a network, the weights and the loss curve of every seed, and the list of the runs."""
    score, place = _specification(params), score_of(params.variant)
    shutil.rmtree(place.parent, ignore_errors=True)  # an earlier run may have had other seeds and snapshots
    write_json(place, score)
    if parts:
        runs = [run for seed, part in zip(params.seeds, parts["train"]) for run in _unpack(params.variant, seed, part)]
        write_json(runs_of(params.variant), {"runs": runs})


def _unpack(variant: str, seed: int, part: Path) -> list[dict[str, Any]]:
    """Write the files of one seed's training; return its runs."""
    from stages.files.tensors import load_tensors, save_tensors, select

    tensors, notes = load_tensors(part)
    about = {"score": read_json(score_of(variant)), "image_shape": notes["image_shape"], "seed": seed}
    *early, last = notes["steps"]
    paths = {step: snapshot_of(variant, seed, step) for step in early} | {last: weights_of(variant, seed)}
    for step, path in paths.items():
        save_tensors(path, select(tensors, snapshot_name(step)), {**about, "step": step})
    write_text(loss_of(variant, seed), notes["loss"])
    folder = runs_of(variant).parent
    return [{"seed": seed, "step": step, "weights": str(path.relative_to(folder))} for step, path in paths.items()]


if __name__ == "__main__":
    main("train")
