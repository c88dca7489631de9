"""Stage train@variant: train a variant's network; a closed-form variant has none and only states its score.

Outs in data/train/VARIANT: score.json (what the score is), and for networks model.safetensors (the EMA weights) and
loss.tsv (the loss curve).
"""

import csv
import io
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.artifacts import sha256_file, sha256_json, write_json, write_text
from stages.device import pick_device
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.errors import InputError
from stages.protocol import DATA, Shard, StageParams, main

TRAIN_IMAGES = DATA / "deduplicate" / "train.arrow"


class Params(StageParams):
    """How the networks are trained; the noise levels hold for closed-form variants, too."""

    SECTION: ClassVar[str] = "train"
    SHARED: ClassVar[dict[str, str]] = {"spec": "variants.{variant}"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    noise: NoiseParams
    network: NetworkParams
    optimization: OptimizationParams
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")


def _score(params: Params) -> dict[str, Any]:
    """What determines the score, and nothing of how it is sampled."""
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
    """One shard for a network, none for a closed form."""
    if params.spec.score == "closed-form":
        return []
    inputs = [str(TRAIN_IMAGES)]
    if params.spec.neighbors is not None:
        inputs.append(str(DATA / "index" / f"{params.spec.neighbors.space}_neighbors.arrow"))
    settings = {**_score(params), "device": params.device}
    del settings["variant"]  # two names for the same thing share their training
    return [Shard("train", params.variant, settings, tuple(inputs), ".safetensors")]


def work(shard: Shard) -> Path:
    """Train, resuming from a checkpoint in `shard.scratch` that belongs to the same settings and inputs."""
    import torch
    from tqdm import tqdm

    from stages.diffusion.checkpoint import save_tensors

    settings = shard.settings
    optimization = OptimizationParams(**settings["optimization"])
    trainer = _trainer(shard, optimization, torch.device(pick_device(settings["device"])))
    start = trainer.resume()
    curve = _load_curve(shard.scratch / "loss.tsv", start)
    with tqdm(
        total=optimization.steps * optimization.batch,
        initial=start * optimization.batch,
        unit="img",
        unit_scale=True,
        desc=f"train {shard.name}",
        mininterval=2,
    ) as bar:
        for progress in trainer.run():
            curve.append([progress.step, progress.loss, progress.low, progress.middle, progress.high])
            write_text(shard.scratch / "loss.tsv", _format_curve(curve))
            bar.update(progress.step * optimization.batch - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.4f}")
    return save_tensors(shard.path, trainer.state.average.state_dict(), {"loss": _format_curve(curve)})


def gather(params: Params, parts: list[Path]) -> None:
    """Write score.json and, for a network, its weights and loss curve."""
    out = DATA / "train" / params.variant
    if parts:
        from stages.diffusion.checkpoint import load_tensors, save_tensors

        tensors, metadata = load_tensors(parts[0])
        save_tensors(out / "model.safetensors", tensors, {})
        write_text(out / "loss.tsv", metadata["loss"])
    write_json(out / "score.json", _score(params))


def _trainer(shard: Shard, optimization: OptimizationParams, device: Any) -> Any:
    import torch

    from stages.diffusion.empirical_score import shell_power
    from stages.diffusion.losses import denoising_target, temperature_target
    from stages.diffusion.network import NCSNpp
    from stages.diffusion.training import Trainer, TrainingSet
    from stages.diffusion.variants import temperature_rule
    from stages.images.store import read_images

    settings = shard.settings
    spec = Variant(**settings["spec"], sampler={"name": "euler", "levels": 2})  # the sampler plays no part here
    noise, network = NoiseParams(**settings["noise"]), NetworkParams(**settings["network"])
    table = read_images(shard.inputs[0])
    images = torch.from_numpy(table.images.copy()).permute(0, 3, 1, 2).contiguous().to(device)
    neighbors = _neighbors(spec, shard.inputs, len(table))
    target = denoising_target
    if spec.temperature is not None:
        target = temperature_target(
            temperature_rule(spec.temperature, table.dimension),
            spec.smooth_below,
            shell_power(table.dimension),
            spec.precision,
            spec.neighbors.radius,
        )
    data = TrainingSet(images, None if neighbors is None else torch.from_numpy(neighbors).to(device))
    key = sha256_json([settings, [sha256_file(path) for path in shard.inputs]])

    def build() -> NCSNpp:
        return NCSNpp(network, images.shape[1], images.shape[2], spec.conditioned, noise.sigma_min, noise.sigma_max)

    return Trainer(optimization, noise, build, data, target, spec.conditioned, shard.scratch, key)


def _neighbors(spec: Variant, inputs: tuple[str, ...], count: int) -> Any:
    """int64 (M, K) rows of the K nearest centres, the image itself first; None without neighbours."""
    if spec.neighbors is None:
        return None
    import numpy as np

    from stages.search.neighbor_table import read_neighbors

    lists = read_neighbors(inputs[1]).neighbors
    k = spec.neighbors.k
    if k > count:
        raise InputError(f"neighbors.k is {k} but the training set has {count} images: lower k or ingest.train more")
    if k - 1 > lists.shape[1]:
        raise InputError(f"neighbors.k is {k} but {inputs[1]} lists {lists.shape[1]}: raise index.neighbors to {k - 1}")
    return np.concatenate([np.arange(count)[:, None], lists[:, : k - 1]], axis=1).astype(np.int64)


def _format_curve(curve: list[list[float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(["step", "loss", "loss_low_sigma", "loss_middle_sigma", "loss_high_sigma"])
    writer.writerows([[step, *(f"{value:.6g}" for value in values)] for step, *values in curve])
    return text.getvalue()


def _load_curve(path: Path, step: int) -> list[list[float]]:
    """The rows up to `step` of an interrupted run's curve."""
    if step == 0 or not path.exists():
        return []
    rows = list(csv.reader(path.read_text().splitlines(), delimiter="\t"))[1:]
    return [[int(row[0]), *map(float, row[1:])] for row in rows if int(row[0]) <= step]


if __name__ == "__main__":
    main("train")
