"""The work of stage train: from its shard to one file with the trained weights, the snapshots and the loss curve."""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from stages.device import pick_device
from stages.diffusion.checkpoint import snapshot_path
from stages.diffusion.classes import places
from stages.diffusion.distributed import World, join, reported_error, started_by_torchrun, torchrun
from stages.diffusion.loss_curve import format_curve
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, ScoreSpec
from stages.diffusion.targets import consistency_target
from stages.diffusion.trainer import Trainer
from stages.diffusion.training import Training, build_training
from stages.errors import InputError
from stages.files.artifacts import sha256_file, write_text
from stages.files.images import read_images
from stages.files.neighbors import read_neighbors
from stages.files.paths import snapshot_name
from stages.files.tensors import load_tensors, prefixed, save_tensors, select
from stages.protocol import Shard

LOSS, ERROR = "loss.tsv", "error.txt"


def train_network(shard: Shard) -> Path:
    """Train from the last checkpoint in `shard.scratch`, with torchrun where there are several processes."""
    settings, processes = shard.settings, shard.settings["processes"]
    World(0, processes).span(settings["optimization"]["batch"])  # refuse before any process starts
    if processes > 1 and not started_by_torchrun():
        description = write_text(shard.scratch / "shard.json", shard.to_json())
        torchrun(["stages.train", "--shard", str(description)], processes, shard.scratch / ERROR)
        return shard.path
    if settings.get("threads") is not None:
        torch.set_num_threads(settings["threads"])  # the weights depend on it in their last bits
    with join(processes, pick_device(settings["device"])) as (world, device):
        with reported_error(shard.scratch / ERROR, world):
            spec = ScoreSpec(**settings["spec"])
            if spec.form == "consistency":
                _distill(shard, spec, device, world)
            else:
                _train(shard, make_trainer(shard, device, world))
        world.barrier()
    return shard.path


def make_trainer(shard: Shard, device: torch.device, world: World) -> Trainer:
    """Return the trainer that a shard of stage train describes."""
    settings, table = shard.settings, read_images(shard.inputs[0])
    spec = ScoreSpec(**settings["spec"]).trained
    training = build_training(
        spec,
        NoiseParams(**settings["noise"]),
        NetworkParams(**settings["network"]),
        OptimizationParams(**settings["optimization"]),
        table.images,
        _neighbors(spec, shard.inputs, table.ids),
        device,
        settings["seed"],
        world,
        places(table.labels, settings["classes"]) if "classes" in settings else None,
    )
    identity = {**settings, "inputs": {path: sha256_file(path) for path in shard.inputs}}
    return Trainer(training, shard.scratch, identity)


def teacher_shard(shard: Shard, spec: ScoreSpec) -> Shard:
    """Return the training of a consistency function's teacher, as the teacher's own variant has it, in its scratch."""
    settings = {**shard.settings, "spec": spec.trained.model_dump(mode="json")}
    own = dataclasses.replace(shard, name=f"{shard.name} teacher", settings=settings)
    return own.at(shard.scratch / f"teacher{shard.suffix}")


def _distill(shard: Shard, spec: ScoreSpec, device: torch.device, world: World) -> None:
    """Train the teacher, where it is not there yet, and then its consistency function."""
    teacher = teacher_shard(shard, spec)
    if not Path(teacher.path).exists():
        _train(teacher, make_trainer(teacher, device, world))
        world.barrier()
    _train(shard, make_student(shard, spec, Path(teacher.path), device, world))


def make_student(shard: Shard, spec: ScoreSpec, teacher: Path, device: torch.device, world: World) -> Trainer:
    """Return the trainer of a consistency function that starts as its teacher, whose weights are in that file."""
    steps = {"optimization": {**shard.settings["optimization"], "steps": spec.distillation.steps}}
    trainer = make_trainer(dataclasses.replace(shard, settings={**shard.settings, **steps}), device, world)
    training, (tensors, notes) = trainer.training, load_tensors(teacher)
    final = select(tensors, snapshot_name(notes["steps"][-1]))
    for network in (training.network, trainer.average):
        network.load_state_dict(final)
    frozen = copy.deepcopy(trainer.average)
    smallest = shard.settings["noise"]["sigma_min"]
    teach, own = (_in_precision_of(training, network) for network in (frozen, trainer.average))
    training.target = consistency_target(teach, own, spec.distillation.step, smallest)
    return trainer


def _in_precision_of(training: Training, network: nn.Module) -> Callable[[Tensor], Tensor]:
    def evaluate(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=training.bfloat16):
            return network(x, None)

    return evaluate


def _neighbors(spec: ScoreSpec, inputs: tuple[str, ...], ids: list[str]) -> np.ndarray | None:
    """Return rows of the K nearest centres, the image itself first, int64 (M, K); None without neighbours.

    inputs: paths of the training images and their neighbour table; ids: those of the images (M).
    """
    if spec.neighbors is None:
        return None
    table = read_neighbors(inputs[1])
    if table.ids != ids:
        raise InputError(f"{inputs[1]} does not list the images of {inputs[0]}, row by row: rerun stage index")
    lists, k, count = table.neighbors, spec.neighbors.k, len(ids)
    spec.neighbors.check_count(count)
    if k - 1 > lists.shape[1]:
        raise InputError(f"neighbors.k is {k} but {inputs[1]} lists {lists.shape[1]}: raise index.neighbors to {k - 1}")
    return np.concatenate([np.arange(count)[:, None], lists[:, : k - 1]], axis=1).astype(np.int64)


def _train(shard: Shard, trainer: Trainer) -> None:
    training, snapshots = trainer.training, shard.settings.get("snapshots", ())
    main, batch, steps = training.world.is_main, training.params.batch, training.params.steps
    start = trainer.resume(snapshots)
    bar = {"initial": start * batch, "unit": "img", "unit_scale": True, "mininterval": 2, "disable": not main}
    with tqdm(total=steps * batch, desc=f"train {shard.name}", **bar) as progress:
        for row in trainer.run(snapshots, lambda step: keep_snapshot(shard, step, trainer)):
            if main:
                write_text(shard.scratch / LOSS, format_curve(trainer.rows))
                progress.update(row.step * batch - progress.n)
                progress.set_postfix(loss=f"{row.loss:.4f}")
    if main:
        _save(shard, trainer, [step for step in snapshots if step < training.step])


def keep_snapshot(shard: Shard, step: int, trainer: Trainer) -> None:
    """Write the average of the weights at a step beside the checkpoints, where an interrupted training finds it."""
    if trainer.training.world.is_main:
        tensors = prefixed(snapshot_name(step), trainer.average.state_dict())
        save_tensors(snapshot_path(shard.scratch, step), tensors, {})


def _save(shard: Shard, trainer: Trainer, early: list[int]) -> None:
    """Write the average of the weights at the end, and at the `early` snapshots, each under its step's name."""
    training = trainer.training
    tensors = prefixed(snapshot_name(training.step), trainer.average.state_dict())
    for step in early:
        tensors |= load_tensors(snapshot_path(shard.scratch, step))[0]
    notes = {"loss": format_curve(trainer.rows), "image_shape": list(training.data.shape)}
    save_tensors(shard.path, tensors, notes | {"steps": [*early, training.step]})
