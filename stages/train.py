"""Stage train@variant: train a variant's network. A closed-form variant has none, and only its score is specified.

Outs in data/train/VARIANT: score.json (the specification of the score), and for networks model.safetensors (the EMA
weights), loss.tsv (the loss curve, by noise level) and, for each step of train.snapshots, snapshot-STEP.safetensors
(the EMA weights then), from which the later stages measure how copies appear while the network learns.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.files.artifacts import write_json, write_text
from stages.files.paths import (
    images_of,
    loss_of,
    neighbors_of,
    score_of,
    snapshot_name,
    snapshot_of,
    snapshots_of,
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
    noise: NoiseParams
    network: NetworkParams
    optimization: OptimizationParams
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")
    processes: int = Field(gt=0, description="processes that share every batch: one per GPU, or on the CPU")
    threads: int | None = Field(gt=0, description="CPU threads of each process; null: OMP_NUM_THREADS or all")
    snapshots: list[int] = Field(description="steps after which the EMA weights are kept, ascending")

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
    """Return the content of score.json: what determines the score, and nothing about how it is sampled."""
    score = {
        "variant": params.variant,
        "spec": params.spec.model_dump(mode="json", exclude={"sampler"}),
        "noise": params.noise.model_dump(mode="json"),
    }
    if params.spec.score == "network":
        score["network"] = params.network.model_dump(mode="json")
        score["optimization"] = params.optimization.model_dump(mode="json")
    return score


def plan(params: Params) -> list[Shard]:
    """Return one shard for a network, none for a closed form."""
    if params.spec.score == "closed-form":
        return []
    inputs = [str(images_of("train"))]
    if params.spec.neighbors is not None:
        inputs.append(str(neighbors_of(params.spec.neighbors.space)))
    settings = {**_specification(params), "device": params.device, "processes": params.processes}
    if params.threads is not None:
        settings["threads"] = params.threads
    if params.snapshots:
        settings["snapshots"] = params.snapshots
    del settings["variant"]  # the name is left out so that identical variants share one cached training
    return [Shard("train", "train", params.variant, settings, tuple(inputs), ".safetensors")]


def work(shard: Shard) -> Path:
    """Train the network, from the last checkpoint in `shard.scratch` if there is one."""
    from stages.diffusion.train_network import train_network

    return train_network(shard)


def gather(params: Params, parts: Parts) -> None:
    """Write score.json and, for a network, its weights, its snapshots and its loss curve."""
    score = _specification(params)
    for old in snapshots_of(params.variant).values():  # from an earlier run that kept others
        old.unlink()
    if parts:
        from stages.files.tensors import load_tensors, save_tensors, select

        tensors, notes = load_tensors(parts["train"][0])
        about = {"score": score, "image_shape": notes["image_shape"]}
        for step in notes.get("snapshots", ()):
            kept = select(tensors, snapshot_name(step))
            save_tensors(snapshot_of(params.variant, step), kept, {**about, "step": step})
        final = {name: tensor for name, tensor in tensors.items() if not name.startswith("snapshot-")}
        save_tensors(weights_of(params.variant), final, about)
        write_text(loss_of(params.variant), notes["loss"])
    write_json(score_of(params.variant), score)


if __name__ == "__main__":
    main("train")
