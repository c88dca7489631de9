"""Stage sample@variant: draw samples from a variant's score; sample i depends on (seed, i) and the model only.

Outs in data/sample/VARIANT: samples.arrow (an image table) and sample.json (of gradient ascent also where each sample
stopped); for a trained network also how its score
compares with the empirical one: alignment.json, and the images of its interpolations, interpolation.arrow; and, where
train kept snapshots, curve.arrow: samples 0..curve_count-1 of each snapshot, one after the other in the order of their
steps, which its metadata lists.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.diffusion.alignment import Alignment
from stages.diffusion.parameters import Variant
from stages.files.artifacts import read_json, write_json
from stages.files.paths import DATA, curve_of, images_of, samples_of, score_of, snapshots_of, weights_of
from stages.protocol import Parts, Shard, StageParams, main, spans

if TYPE_CHECKING:
    from stages.files.images import ImageTable


class Params(StageParams):
    """How many samples are drawn, and how the work is cut."""

    SECTION: ClassVar[str] = "sample"
    SHARED: ClassVar[dict[str, str]] = {"spec": "variants.{variant}"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    count: int = Field(gt=0, description="samples per variant")
    seed: int = Field(ge=0, lt=2**63, description="sample i is drawn from (seed, i)")
    batch: int = Field(
        gt=0, description="samples computed together; the last batch is filled up, so that rounding is the same"
    )
    shards: int = Field(gt=0, description="pieces of work, cut between batches")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="of a network's products; auto: bfloat16 where the device has instructions for it"
    )
    compile: bool = Field(description="torch.compile of a network, worth it on a GPU")
    curve_count: int = Field(ge=2, description="samples from each of train's snapshots, where there are any")
    alignment: Alignment


def plan(params: Params) -> list[Shard]:
    """Shards of whole batches, one that compares a trained score with the empirical one, then those of snapshots."""
    inputs = [score_of(params.variant), images_of("train")]
    if params.spec.score == "closed-form":
        return _draws(params, "samples", params.count, params.variant, inputs)
    weights = weights_of(params.variant)
    shards = _draws(params, "samples", params.count, params.variant, [*inputs, weights])
    shards.append(_alignment(params, [*inputs, weights]))
    for step, path in snapshots_of(params.variant).items():
        shards += _draws(params, "curve", params.curve_count, f"{params.variant} step {step}", [*inputs, path])
    return shards


def _draws(params: Params, task: str, count: int, name: str, inputs: list[Path]) -> list[Shard]:
    """Samples 0..count-1, in shards of whole batches."""
    common = {
        "sampler": params.spec.sampler.model_dump(mode="json"),
        "seed": params.seed,
        "batch": params.batch,
        "device": params.device,
        "precision": params.precision,
        "compile": params.compile,
    }
    cuts = spans(-(-count // params.batch), params.shards)
    return [
        Shard(
            "sample",
            task,
            f"{name} {n}/{len(cuts)}",
            {**common, "start": a * params.batch, "stop": min(b * params.batch, count)},
            tuple(map(str, inputs)),
        )
        for n, (a, b) in enumerate(cuts, 1)
    ]


def _alignment(params: Params, inputs: list[Path]) -> Shard:
    settings = {"alignment": params.alignment.model_dump(mode="json"), "seed": params.seed, "device": params.device}
    sampler = params.spec.sampler.model_dump(mode="json")
    name = f"{params.variant} alignment"
    return Shard("sample", "alignment", name, {**settings, "sampler": sampler}, tuple(map(str, inputs)))


def work(shard: Shard) -> Path:
    """Draw samples start..stop of the run, or compare the scores."""
    return _align(shard) if shard.task == "alignment" else _sample(shard)


def _sample(shard: Shard) -> Path:
    import numpy as np
    import torch
    from tqdm import tqdm

    from stages.diffusion.sampling import last_states, load_model, to_uint8
    from stages.files.images import image_table, read_images, write_images

    settings = shard.settings
    table = read_images(shard.inputs[1])
    weights = shard.inputs[2] if len(shard.inputs) > 2 else None
    how = settings["device"], settings["precision"], settings["compile"]
    model = load_model(read_json(shard.inputs[0]), settings["sampler"], table.images, weights, *how)
    images, stops, stop_below = [], [], settings["sampler"]["stop_below"]
    with tqdm(
        total=settings["stop"] - settings["start"], desc=f"sample {shard.name}", unit="img", mininterval=2
    ) as bar:
        for indices, keep in _batches(settings["start"], settings["stop"], settings["batch"]):
            ends, steps = last_states(model, settings["seed"], torch.from_numpy(indices))
            images.append(to_uint8(ends)[:keep])
            if stop_below is not None:
                stops += list(zip(steps.tolist(), model.actual_level(ends).tolist()))[:keep]
            bar.update(keep)
    return write_images(shard.path, image_table(np.concatenate(images), metadata={"stops": stops}))


def _align(shard: Shard) -> Path:
    """The images of the interpolations, with everything that was measured as the table's metadata."""
    from stages.diffusion.alignment import align
    from stages.diffusion.sampling import load_model
    from stages.files.images import image_table, read_images, write_images

    settings = shard.settings
    score, images = read_json(shard.inputs[0]), read_images(shard.inputs[1]).images
    model = load_model(score, settings["sampler"], images, shard.inputs[2], settings["device"])  # in float32
    found = align(model, Alignment(**settings["alignment"]), settings["seed"])
    measured = {"levels": found.levels, "paths": found.paths, "grid": list(found.images.shape[:3])}
    table = image_table(found.images.reshape(-1, *found.images.shape[3:]), metadata={"measured": measured})
    return write_images(shard.path, table)


def _batches(start: int, stop: int, batch: int) -> Iterator[tuple[Any, int]]:
    """(indices, how many to keep): always `batch` indices, so that rounding does not depend on where a shard ends."""
    import numpy as np

    for first in range(start, stop, batch):
        yield np.arange(first, first + batch, dtype=np.int64), min(batch, stop - first)


def gather(params: Params, parts: Parts) -> None:
    """Join the shards into one image table, in order; write what was measured of a trained score beside it."""
    from stages.files.images import image_table, read_images, write_images

    out, sampler = DATA / "sample" / params.variant, params.spec.sampler
    curve_of(params.variant).unlink(missing_ok=True)  # of an earlier run that had snapshots
    if "alignment" in parts:
        aligned = read_images(parts["alignment"][0])
        write_images(out / "interpolation.arrow", image_table(aligned.images))
        settings = params.alignment.model_dump(mode="json")
        write_json(out / "alignment.json", {**aligned.metadata["measured"], "settings": settings})
    if "curve" in parts:
        steps = list(snapshots_of(params.variant))
        write_images(curve_of(params.variant), _joined(parts["curve"], {"steps": steps}))
    metadata = {"variant": params.variant, "seed": params.seed, "sampler": sampler.model_dump(mode="json")}
    joined = _joined(parts["samples"], metadata)
    write_images(samples_of(params.variant), joined)
    summary = {"count": len(joined), "nfe": sampler.evaluations, "seed": params.seed, "sampler": metadata["sampler"]}
    stops = [stop for part in parts["samples"] for stop in read_images(part).metadata["stops"]]
    write_json(out / "sample.json", {**summary, **_stopped(stops, sampler.stop_below)})


def _stopped(stops: list[tuple[int, float]], stop_below: float | None) -> dict[str, Any]:
    """Where each sample of a gradient ascent stopped (METHODS §5): its step, its actual noise level there."""
    if stop_below is None:
        return {}
    steps, levels = zip(*stops)
    return {"stopped": {"step": steps, "level": levels, "below": sum(level < stop_below for level in levels)}}


def _joined(parts: list[Path], metadata: dict[str, Any]) -> "ImageTable":
    import numpy as np

    from stages.files.images import ImageTable, read_images

    tables = [read_images(part) for part in parts]
    return ImageTable(
        np.concatenate([table.images for table in tables]),
        [identity for table in tables for identity in table.ids],
        np.concatenate([table.labels for table in tables]),
        metadata,
    )


if __name__ == "__main__":
    main("sample")
