"""Stage sample@variant: draw samples from a variant's score; sample i depends on (seed, i) and the model only.

Outs in data/sample/VARIANT:

- samples.arrow, an image table, and sample.json; for gradient ascent it says where each sample stopped;
- for a trained network, alignment.json compares its score with the empirical one, and interpolation.arrow holds the
  images of its interpolations;
- where train kept snapshots, curve.arrow holds samples 0..curve_count-1 of each, in the order of their steps, which its
  metadata lists.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.diffusion.parameters import AlignmentParams, Variant
from stages.files.artifacts import read_json, write_json
from stages.files.paths import DATA, curve_of, images_of, samples_of, score_of, snapshots_of, weights_of
from stages.protocol import Parts, Shard, StageParams, main, spans

if TYPE_CHECKING:
    from stages.diffusion.model import Model
    from stages.files.images import ImageTable


class Params(StageParams):
    """How many samples are drawn, and how the work is divided."""

    SECTION: ClassVar[str] = "sample"
    SHARED: ClassVar[dict[str, str]] = {"spec": "variants.{variant}"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    count: int = Field(gt=0, description="samples per variant")
    seed: int = Field(ge=0, lt=2**63, description="sample i is drawn from (seed, i)")
    batch: int = Field(
        gt=0, description="samples computed together; the last batch is filled up, so that its rounding is the same"
    )
    shards: int = Field(gt=0, description="pieces of work, divided between batches")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto: a GPU when there is one")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        description="type of a network's products; auto: bfloat16 where the device has instructions for it"
    )
    compile: bool = Field(description="use torch.compile for a network, worth it on a GPU")
    curve_count: int = Field(ge=2, description="samples from each of train's snapshots, if there are any")
    alignment: AlignmentParams


def plan(params: Params) -> list[Shard]:
    """Return shards of samples, one that compares a trained score with the empirical one, and shards of snapshots."""
    name, inputs = params.variant, [score_of(params.variant), images_of("train")]
    if params.spec.score == "closed-form":
        return _draws(params, "samples", params.count, name, *inputs)
    trained = [*inputs, weights_of(name)]
    shards = _draws(params, "samples", params.count, name, *trained)
    shards.append(_shard("alignment", f"{name} alignment", _settings(params, "alignment"), *trained))
    for step, path in snapshots_of(name).items():
        shards += _draws(params, "curve", params.curve_count, f"{name} step {step}", *inputs, path)
    return shards


def _draws(params: Params, task: str, count: int, name: str, *inputs: Path) -> list[Shard]:
    """Return shards of whole batches for samples 0..count-1."""
    common, batch = _settings(params, "batch", "precision", "compile"), params.batch
    cuts = spans(-(-count // batch), params.shards)
    return [
        _shard(task, f"{name} {n}/{len(cuts)}", {**common, "start": a * batch, "stop": min(b * batch, count)}, *inputs)
        for n, (a, b) in enumerate(cuts, 1)
    ]


def _settings(params: Params, *keys: str) -> dict[str, Any]:
    own = params.model_dump(mode="json", include={"seed", "device", *keys})
    return {"sampler": params.spec.sampler.model_dump(mode="json"), **own}


def _shard(task: str, name: str, settings: dict[str, Any], *inputs: Path) -> Shard:
    return Shard("sample", task, name, settings, tuple(map(str, inputs)))


def work(shard: Shard) -> Path:
    """Draw samples start..stop of the run, or compare the scores."""
    from stages.diffusion.model import load_model
    from stages.files.images import read_images

    settings, images = shard.settings, read_images(shard.inputs[1]).images
    weights = shard.inputs[2] if len(shard.inputs) > 2 else None
    how = settings["device"], settings.get("precision", "float32"), settings.get("compile", False)
    model = load_model(read_json(shard.inputs[0]), settings["sampler"], images, weights, *how)
    return _align(shard, model) if shard.task == "alignment" else _sample(shard, model)


def _sample(shard: Shard, model: "Model") -> Path:
    import numpy as np
    from tqdm import tqdm

    from stages.diffusion.sampling import batches, last_states, to_uint8
    from stages.files.images import image_table, write_images

    settings, images, stops = shard.settings, [], []
    start, stop, ascends = settings["start"], settings["stop"], settings["sampler"]["stop_below"] is not None
    with tqdm(total=stop - start, desc=f"sample {shard.name}", unit="img", mininterval=2) as bar:
        for indices, keep in batches(start, stop, settings["batch"]):
            ends, steps = last_states(model, settings["seed"], indices)
            images.append(to_uint8(ends)[:keep])
            if ascends:
                stops += list(zip(steps.tolist(), model.actual_level(ends).tolist()))[:keep]
            bar.update(keep)
    return write_images(shard.path, image_table(np.concatenate(images), metadata={"stops": stops}))


def _align(shard: Shard, model: "Model") -> Path:
    """Write the images of the interpolations, with all measurements as the table's metadata."""
    from stages.diffusion.alignment import align
    from stages.files.images import image_table, write_images

    found = align(model, AlignmentParams(**shard.settings["alignment"]), shard.settings["seed"])
    measured = {"levels": found.levels, "paths": found.paths, "grid": list(found.images.shape[:3])}
    table = image_table(found.images.reshape(-1, *found.images.shape[3:]), metadata={"measured": measured})
    return write_images(shard.path, table)


def gather(params: Params, parts: Parts) -> None:
    """Join the shards into one image table, in order; write the measurements of a trained score beside it."""
    from stages.files.images import image_table, read_images, write_images

    out, sampler = DATA / "sample" / params.variant, params.spec.sampler
    curve_of(params.variant).unlink(missing_ok=True)  # from an earlier run that had snapshots
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
    """Return where each sample of a gradient ascent stopped (METHODS §5): its step, and its actual noise level."""
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
