"""Stage train@variant: train a variant's network; a closed-form variant has none and only states its score.

Outs in data/train/VARIANT: score.json (what the score is), and for networks model.safetensors (the EMA weights),
loss.tsv (the loss curve, by noise level).
"""

import contextlib
import csv
import io
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.artifacts import sha256_file, write_json, write_text
from stages.device import pick_device
from stages.diffusion.parameters import NetworkParams, NoiseParams, OptimizationParams, Variant
from stages.errors import InputError
from stages.protocol import DATA, Shard, StageParams, main

if TYPE_CHECKING:
    import numpy as np

    from stages.diffusion.network import NCSNpp
    from stages.diffusion.training import Trainer
    from stages.diffusion.world import World

TRAIN_IMAGES = DATA / "deduplicate" / "train.arrow"
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
    settings = {**_score(params), "device": params.device, "processes": params.processes}
    del settings["variant"]  # two names for the same thing share their training
    return [Shard("train", params.variant, settings, tuple(inputs), ".safetensors")]


def work(shard: Shard) -> Path:
    """Train, going on from the last checkpoint in `shard.scratch`; by torchrun's processes where there are several."""
    from stages.diffusion.world import World, join, started_by_torchrun

    processes = shard.settings["processes"]
    World(0, processes).span(shard.settings["optimization"]["batch"])
    if processes > 1 and not started_by_torchrun():
        return _torchrun(shard, processes)
    with join(processes, pick_device(shard.settings["device"])) as (world, device), _told(shard, world):
        _train(shard, _trainer(shard, device, world), world)
        world.wait()
    return shard.path


def _train(shard: Shard, trainer: "Trainer", world: "World") -> None:
    from tqdm import tqdm

    from stages.diffusion.checkpoint import save_tensors

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
        for found in trainer.run():
            if not world.leads:
                continue
            loss.append([found.step, found.loss, found.low, found.middle, found.high])
            write_text(shard.scratch / LOSS, _format_curve(LOSS_COLUMNS, loss))
            bar.update(found.step * params.batch - bar.n)
            bar.set_postfix(loss=f"{found.loss:.4f}")
    if world.leads:
        notes = {"loss": _format_curve(LOSS_COLUMNS, loss), "image_shape": list(trainer.data.shape)}
        save_tensors(shard.path, trainer.state.average.state_dict(), notes)


def gather(params: Params, parts: list[Path]) -> None:
    """Write score.json and, for a network, its weights and loss curve."""
    out, score = DATA / "train" / params.variant, _score(params)
    if parts:
        from stages.diffusion.checkpoint import load_tensors, save_tensors

        tensors, notes = load_tensors(parts[0])
        save_tensors(out / "model.safetensors", tensors, {"score": score, "image_shape": notes["image_shape"]})
        write_text(out / LOSS, notes["loss"])
    write_json(out / "score.json", score)


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
    from stages.diffusion.empirical_score import shell_power
    from stages.diffusion.losses import denoising_target, temperature_target
    from stages.diffusion.network import NCSNpp
    from stages.diffusion.training import Trainer
    from stages.diffusion.training_set import open_training_set
    from stages.diffusion.variants import temperature_rule
    from stages.images.store import read_images

    settings = shard.settings
    spec = Variant(**settings["spec"], sampler={"name": "euler", "levels": 2})  # the sampler plays no part here
    noise, network = NoiseParams(**settings["noise"]), NetworkParams(**settings["network"])
    table = read_images(shard.inputs[0])
    target = denoising_target
    if spec.temperature is not None:
        target = temperature_target(
            temperature_rule(spec.temperature, table.dimension),
            spec.smooth_below,
            shell_power(table.dimension),
            spec.precision,
            spec.neighbors.radius,
        )
    data = open_training_set(table.images, _neighbors(spec, shard.inputs, len(table)), device)
    identity = {**settings, "inputs": {path: sha256_file(path) for path in shard.inputs}}

    def build() -> "NCSNpp":
        channels, height, _ = data.shape
        return NCSNpp(network, channels, height, spec.conditioned, noise.sigma_min, noise.sigma_max)

    optimization = OptimizationParams(**settings["optimization"])
    return Trainer(optimization, noise, build, data, target, spec.conditioned, shard.scratch, identity, world)


def _neighbors(spec: Variant, inputs: tuple[str, ...], count: int) -> "np.ndarray | None":
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
