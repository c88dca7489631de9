"""Stage train@variant: train a variant's network; a closed-form variant has none and only states its score.

Outs in data/train/VARIANT: score.json (what the score is), and for networks model.safetensors (the EMA weights),
loss.tsv (the loss curve, by noise level) and, for each step of train.snapshots, snapshot-STEP.safetensors (the EMA
weights then), from which the later stages measure how copies come about while the network learns.
"""

import contextlib
import csv
import io
import math
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from stages.device import pick_device
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.errors import InputError
from stages.files.artifacts import sha256_file, write_json, write_text
from stages.files.paths import images_of, loss_of, neighbors_of, score_of, snapshot_of, snapshots_of, weights_of
from stages.protocol import Parts, Shard, StageParams, main

if TYPE_CHECKING:
    import numpy as np

    from stages.diffusion.distributed import World
    from stages.diffusion.network import NCSNpp
    from stages.diffusion.training import Trainer

LOSS, ERROR = "loss.tsv", "error.txt"
LOSS_COLUMNS = ["step", "loss", "loss_low_sigma", "loss_middle_sigma", "loss_high_sigma"]


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
    inputs = [str(images_of("train"))]
    if params.spec.neighbors is not None:
        inputs.append(str(neighbors_of(params.spec.neighbors.space)))
    settings = {**_score(params), "device": params.device, "processes": params.processes}
    if params.threads is not None:
        settings["threads"] = params.threads
    if params.snapshots:
        settings["snapshots"] = params.snapshots
    del settings["variant"]  # two names for the same thing share their training
    return [Shard("train", "train", params.variant, settings, tuple(inputs), ".safetensors")]


def work(shard: Shard) -> Path:
    """Train, going on from the last checkpoint in `shard.scratch`; by torchrun's processes where there are several."""
    from stages.diffusion.distributed import World, join, started_by_torchrun

    processes = shard.settings["processes"]
    World(0, processes).span(shard.settings["optimization"]["batch"])
    if processes > 1 and not started_by_torchrun():
        return _torchrun(shard, processes)
    _use_threads(shard.settings.get("threads"))
    with join(processes, pick_device(shard.settings["device"])) as (world, device), _told(shard, world):
        _train(shard, _trainer(shard, device, world), world)
        world.wait()
    return shard.path


def _use_threads(count: int | None) -> None:
    """Compute with so many threads, so that the weights do not depend on how many processors there are."""
    if count is not None:
        import torch

        torch.set_num_threads(count)


def _train(shard: Shard, trainer: "Trainer", world: "World") -> None:
    from tqdm import tqdm

    from stages.diffusion.training import Snapshot

    params, start = trainer.params, trainer.resume()
    loss = _load_curve(shard.scratch / LOSS, start)
    with tqdm(
        total=params.steps * params.batch,
        initial=start * params.batch,
        unit="img",
        unit_scale=True,
        desc=f"train {shard.name}",
        mininterval=2,
        disable=not world.leads,
    ) as bar:
        for found in trainer.run(shard.settings.get("snapshots", ())):
            if not world.leads:
                continue
            if isinstance(found, Snapshot):
                _keep(shard, found.step, trainer)
                continue
            loss.append([found.step, found.loss, found.low, found.middle, found.high])
            write_text(shard.scratch / LOSS, _format_curve(LOSS_COLUMNS, loss))
            bar.update(found.step * params.batch - bar.n)
            bar.set_postfix(loss=f"{found.loss:.4f}")
    if world.leads:
        _finish(shard, trainer, _format_curve(LOSS_COLUMNS, loss))


def _keep(shard: Shard, step: int, trainer: "Trainer") -> None:
    """The average of the weights at this step, beside the checkpoints: a training that goes on finds it there."""
    from stages.diffusion.checkpoint import module_tensors
    from stages.files.tensors import save_tensors

    save_tensors(_snapshot(shard.scratch, step), module_tensors(trainer.state.average, _snapshot_name(step)), {})


def _finish(shard: Shard, trainer: "Trainer", loss: str) -> None:
    """One file with the weights, the snapshots (of the steps before `max_seconds` ended the training) and the loss."""
    from stages.files.tensors import load_tensors, save_tensors

    tensors = trainer.state.average.state_dict()
    notes = {"loss": loss, "image_shape": list(trainer.data.shape)}
    if steps := [step for step in shard.settings.get("snapshots", ()) if step <= trainer.state.step]:
        notes["snapshots"] = steps
        for step in steps:
            tensors |= load_tensors(_snapshot(shard.scratch, step))[0]
    save_tensors(shard.path, tensors, notes)


def _snapshot_name(step: int) -> str:
    return f"snapshot-{step:010d}"  # the names sort by step


def _snapshot(folder: Path, step: int) -> Path:
    return folder / f"{_snapshot_name(step)}.safetensors"


def gather(params: Params, parts: Parts) -> None:
    """Write score.json and, for a network, its weights, its snapshots and its loss curve."""
    score = _score(params)
    for old in snapshots_of(params.variant).values():  # of an earlier run that kept others
        old.unlink()
    if parts:
        from stages.files.tensors import load_tensors, save_tensors, select

        tensors, notes = load_tensors(parts["train"][0])
        about = {"score": score, "image_shape": notes["image_shape"]}
        for step in notes.get("snapshots", ()):
            kept = select(tensors, _snapshot_name(step))
            save_tensors(snapshot_of(params.variant, step), kept, {**about, "step": step})
        final = {name: tensor for name, tensor in tensors.items() if not name.startswith("snapshot-")}
        save_tensors(weights_of(params.variant), final, about)
        write_text(loss_of(params.variant), notes["loss"])
    write_json(score_of(params.variant), score)


@contextlib.contextmanager
def _told(shard: Shard, world: "World") -> Iterator[None]:
    """Wrong input that one of torchrun's processes finds reaches the process that started torchrun."""
    try:
        yield
    except InputError as error:
        if world.size > 1 and world.leads:
            write_text(shard.scratch / ERROR, str(error))
        raise


def _torchrun(shard: Shard, processes: int) -> Path:
    """Have `processes` processes of this machine do the work; SIGTERM is passed on to them."""
    (shard.scratch / ERROR).unlink(missing_ok=True)
    description = write_text(shard.scratch / "shard.json", shard.to_json())
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    child = subprocess.Popen([sys.executable, *command, "-m", "stages.train", "--shard", str(description)])
    handler, asked = None, []

    def stop(number: int, _: object) -> None:
        asked.append(number)
        child.terminate()

    if threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGTERM, stop)
    try:
        code = child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
    if (shard.scratch / ERROR).exists():
        raise InputError((shard.scratch / ERROR).read_text(encoding="utf-8"))
    if asked:
        raise SystemExit(128 + asked[0])
    if code:
        raise RuntimeError(f"train {shard.name}: torchrun ended with exit code {code}")
    return shard.path


def _trainer(shard: Shard, device: Any, world: "World") -> "Trainer":
    from stages.diffusion.losses import denoising_target, temperature_target
    from stages.diffusion.network import NCSNpp
    from stages.diffusion.scores import shell_power
    from stages.diffusion.training import Trainer
    from stages.diffusion.training_set import open_training_set
    from stages.diffusion.variants import temperature_rule
    from stages.files.images import read_images

    settings = shard.settings
    spec = Variant(**settings["spec"], sampler={"name": "euler", "levels": 2})  # the sampler plays no part here
    noise, network = NoiseParams(**settings["noise"]), NetworkParams(**settings["network"])
    table = read_images(shard.inputs[0])
    target = denoising_target
    if spec.temperature is not None:
        target = temperature_target(
            temperature_rule(spec.temperature, table.dimension),
            spec.smooth_below,
            shell_power(table.dimension, spec.power),
            spec.precision,
            spec.neighbors.radius,
        )
    data = open_training_set(table.images, _neighbors(spec, shard.inputs, table.ids), device)
    identity = {**settings, "inputs": {path: sha256_file(path) for path in shard.inputs}}

    def build() -> "NCSNpp":
        channels, height, _ = data.shape
        return NCSNpp(network, channels, height, spec.conditioned, noise.sigma_min, noise.sigma_max)

    optimization = OptimizationParams(**settings["optimization"])
    return Trainer(optimization, noise, build, data, target, spec.conditioned, shard.scratch, identity, world)


def _neighbors(spec: Variant, inputs: tuple[str, ...], ids: list[str]) -> "np.ndarray | None":
    """int64 (M, K) rows of the K nearest centres, the image itself first; None without neighbours.

    inputs: the training images and their neighbour lists; ids: of the images (M).
    """
    if spec.neighbors is None:
        return None
    import numpy as np

    from stages.files.neighbors import read_neighbors

    table = read_neighbors(inputs[1])
    if table.ids != ids:
        raise InputError(f"{inputs[1]} does not list the images of {inputs[0]}, row by row: rerun stage index")
    lists, k, count = table.neighbors, spec.neighbors.k, len(ids)
    if k > count:
        raise InputError(f"neighbors.k is {k} but the training set has {count} images: lower k or ingest.train more")
    if k - 1 > lists.shape[1]:
        raise InputError(f"neighbors.k is {k} but {inputs[1]} lists {lists.shape[1]}: raise index.neighbors to {k - 1}")
    return np.concatenate([np.arange(count)[:, None], lists[:, : k - 1]], axis=1).astype(np.int64)


def _format_curve(columns: list[str], rows: list[list[float]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[step, *(f"{value:.6g}" for value in values)] for step, *values in rows])
    return text.getvalue()


def _load_curve(path: Path, step: int) -> list[list[float]]:
    """The rows up to `step` of an interrupted run's curve."""
    if step == 0 or not path.exists():
        return []
    rows = list(csv.reader(path.read_text().splitlines(), delimiter="\t"))[1:]
    return [[int(row[0]), *map(float, row[1:])] for row in rows if int(row[0]) <= step]


if __name__ == "__main__":
    main("train")
