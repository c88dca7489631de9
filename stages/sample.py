"""Stage sample@variant: draw samples from a variant's score; sample i depends on (seed, i) and the model only.

Outs in data/sample/VARIANT:

- samples.arrow, an image table, and sample.json; for gradient ascent it says where each sample stopped;
- the samples of a class-conditional network have labels: the classes take turns, sample by sample;
- for a trained network, alignment.json compares its score with the empirical one and reads its temperature, and
  interpolation.arrow holds the images of its interpolations;
- for a trained network, runs.arrow holds samples 0..curve_count-1 of every run (each seed's network, at each snapshot
  and at the end), in the order of its metadata `runs`. All the rest is of the reference run.

Which networks these are is said by stage train, or with checkpoint `best_fid` by stage choose.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from stages.diffusion.parameters import AlignmentParams, Variant
from stages.files.artifacts import read_json, write_json
from stages.files.paths import DATA, choice_of, chosen_runs_of, images_of, run_samples_of, runs_of, samples_of, score_of
from stages.files.runs import Run, read_runs, reference
from stages.protocol import Parts, Shard, StageParams, main, spans

if TYPE_CHECKING:
    import numpy as np

    from stages.diffusion.model import Model
    from stages.files.images import ImageTable


class Params(StageParams):
    """How many samples are drawn, and how the work is divided."""

    SECTION: ClassVar[str] = "sample"
    SHARED: ClassVar[dict[str, str]] = {"spec": "variants.{variant}"}
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    count: int = Field(gt=0, description="samples of each variant whose own `count` is not set")
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
    checkpoint: Literal["last", "best_fid"] = Field(
        description="which of a training's networks is sampled: the last, or of those that it kept the best by Fréchet "
        "distance (stage choose)"
    )
    choice_samples: int = Field(ge=2, description="samples of each kept network for the choice; they are not reported")
    choice_images: int = Field(ge=2, description="held-out images for the choice, the last ones, then not reported")
    curve_count: int = Field(ge=2, description="samples of each run of a network, at most `count`")
    alignment: AlignmentParams

    @property
    def runs(self) -> Path:
        """The list of the runs that are sampled."""
        return chosen_runs_of(self.variant) if self.checkpoint == "best_fid" else runs_of(self.variant)

    @property
    def drawn(self) -> int:
        """The samples of this variant."""
        return self.spec.count or self.count


def plan(params: Params) -> list[Shard]:
    """Return shards of samples, one that compares a trained score with the empirical one, and one of runs per seed."""
    name, inputs = params.variant, [score_of(params.variant), images_of("train")]
    if params.spec.score == "closed-form":
        return _draws(params, name, *inputs)
    runs = _sampled_runs(params)
    trained = [*inputs, reference(runs).weights]
    shards = _draws(params, name, *trained)
    if params.spec.form != "consistency":  # its F is no score
        shards.append(_shard("alignment", f"{name} alignment", _settings(params, "alignment"), *trained))
    settings = {**_settings(params, "batch", "precision", "compile"), "start": 0, "stop": _run_count(params)}
    for seed, own in _drawn_runs(runs).items():
        shards.append(_shard("runs", f"{name} seed {seed}", settings, *inputs, *(run.weights for run in own)))
    return shards


def _sampled_runs(params: Params) -> list[Run]:
    """Return the runs in their order: all, or without the variant's `curve` the end of every seed's training."""
    runs = read_runs(params.runs)
    return runs if params.spec.curve else list({run.seed: run for run in runs}.values())


def _run_count(params: Params) -> int:
    return min(params.curve_count, params.drawn)


def _drawn_runs(runs: list[Run]) -> dict[int, list[Run]]:
    """Return the runs by seed; the reference is left out, since its first samples are there already."""
    rest = [run for run in runs if run != reference(runs)]
    return {seed: [run for run in rest if run.seed == seed] for seed in dict.fromkeys(run.seed for run in rest)}


def _draws(params: Params, name: str, *inputs: Path) -> list[Shard]:
    """Return shards of whole batches for samples 0..count-1."""
    common, batch, count = _settings(params, "batch", "precision", "compile"), params.batch, params.drawn
    cuts = spans(-(-count // batch), params.shards)
    return [
        _shard(
            "samples", f"{name} {n}/{len(cuts)}", {**common, "start": a * batch, "stop": min(b * batch, count)}, *inputs
        )
        for n, (a, b) in enumerate(cuts, 1)
    ]


def _settings(params: Params, *keys: str) -> dict[str, Any]:
    own = params.model_dump(mode="json", include={"seed", "device", *keys})
    return {"sampler": params.spec.sampler.model_dump(mode="json"), **own}


def _shard(task: str, name: str, settings: dict[str, Any], *inputs: Path) -> Shard:
    return Shard("sample", task, name, settings, tuple(map(str, inputs)))


def work(shard: Shard) -> Path:
    """Draw samples start..stop of every network of the shard, or compare the scores."""
    import numpy as np

    from stages.files.images import image_table, write_images

    weights = shard.inputs[2:] or (None,)
    if shard.task == "alignment":
        return _align(shard, _load(shard, *weights))
    drawn = [_sample(shard, _load(shard, path)) for path in weights]
    notes = {"stops": [stop for _, stopped, _ in drawn for stop in stopped], "precision": drawn[0][2]}
    labels = np.concatenate([_labels(shard, len(images)) for images, _, _ in drawn])
    return write_images(shard.path, image_table(np.concatenate([images for images, _, _ in drawn]), labels, notes))


def _labels(shard: Shard, count: int) -> "np.ndarray":
    """Return the labels of the shard's samples, int64 (count,); -1 where the score has no classes."""
    from stages.diffusion.classes import sample_labels

    classes, start = read_json(shard.inputs[0]).get("classes", [-1]), shard.settings["start"]
    return sample_labels(classes, start + count)[start:]


def _load(shard: Shard, weights: str | None) -> "Model":
    from stages.diffusion.model import load_model
    from stages.files.images import read_images

    settings, table = shard.settings, read_images(shard.inputs[1])
    how = settings["device"], settings.get("precision", "float32"), settings.get("compile", False)
    return load_model(read_json(shard.inputs[0]), settings["sampler"], table.images, weights, *how, labels=table.labels)


def _sample(shard: Shard, model: "Model") -> tuple["np.ndarray", list[tuple[int, float]], str]:
    """Return the samples, for gradient ascent where each one stopped, and the type of a network's products."""
    import numpy as np
    from tqdm import tqdm

    from stages.diffusion.sampling import batches, last_states, to_uint8

    settings, images, stops = shard.settings, [], []
    start, stop, ascends = settings["start"], settings["stop"], settings["sampler"]["stop_below"] is not None
    with tqdm(total=stop - start, desc=f"sample {shard.name}", unit="img", mininterval=2) as bar:
        for indices, keep in batches(start, stop, settings["batch"]):
            ends, steps = last_states(model, settings["seed"], indices)
            images.append(to_uint8(ends)[:keep])
            if ascends:
                stops += list(zip(steps.tolist(), model.level(indices)(ends).tolist()))[:keep]
            bar.update(keep)
    return np.concatenate(images), stops, "bfloat16" if model.bfloat16 else "float32"


def _align(shard: Shard, model: "Model") -> Path:
    """Write the images of the interpolations, with all measurements as the table's metadata.

    A class-conditional score is compared with the empirical one within the most frequent class, which it is told.
    """
    from stages.diffusion.alignment import align
    from stages.diffusion.classes import most_frequent
    from stages.files.images import image_table, write_images

    place = most_frequent(model.labels) if model.labels is not None else None
    own = model if place is None else model.of_class(place)
    found = align(own, AlignmentParams(**shard.settings["alignment"]), shard.settings["seed"])
    measured = {name: getattr(found, name) for name in ("levels", "temperatures", "paths")}
    measured["grid"] = list(found.images.shape[:3])
    if place is not None:
        measured["class"] = read_json(shard.inputs[0])["classes"][place]
    table = image_table(found.images.reshape(-1, *found.images.shape[3:]), metadata={"measured": measured})
    return write_images(shard.path, table)


def gather(params: Params, parts: Parts) -> None:
    """Join the shards into one image table, in order; write the measurements of a trained score beside it."""
    from stages.files.images import image_table, read_images, write_images

    out, sampler = DATA / "sample" / params.variant, params.spec.sampler
    run_samples_of(params.variant).unlink(missing_ok=True)  # from an earlier run, when it was a network
    if "alignment" in parts:
        aligned = read_images(parts["alignment"][0])
        write_images(out / "interpolation.arrow", image_table(aligned.images))
        settings = params.alignment.model_dump(mode="json")
        write_json(out / "alignment.json", {**aligned.metadata["measured"], "settings": settings})
    metadata = {"variant": params.variant, "seed": params.seed, "sampler": sampler.model_dump(mode="json")}
    joined = _joined(parts["samples"], metadata)
    write_images(samples_of(params.variant), joined)
    if params.spec.score == "network":
        write_images(run_samples_of(params.variant), _run_table(params, joined, parts.get("runs", [])))
    summary = {"count": len(joined), "nfe": sampler.evaluations, "seed": params.seed, "sampler": metadata["sampler"]}
    notes = [read_images(part).metadata for part in parts["samples"]]
    if params.spec.score == "network":  # what `precision: auto` came to
        summary["precision"] = " and ".join(sorted({note["precision"] for note in notes}))
        summary["checkpoint"] = params.checkpoint
        if params.checkpoint == "best_fid":
            summary["choice"] = read_json(choice_of(params.variant))
    stops = [stop for note in notes for stop in note["stops"]]
    write_json(out / "sample.json", {**summary, **_stopped(stops, sampler.stop_below)})


def _run_table(params: Params, samples: "ImageTable", parts: list[Path]) -> "ImageTable":
    """Return the samples of all runs in order; `samples` are those of the reference, `parts` those of the others."""
    import numpy as np

    from stages.files.images import image_table, read_images

    runs, count = _sampled_runs(params), _run_count(params)
    drawn = [read_images(part).images for part in parts]
    place = runs.index(reference(runs)) * count
    others = np.concatenate([samples.images[:0], *drawn])
    images = np.concatenate([others[:place], samples.images[:count], others[place:]])
    labels = np.tile(samples.labels[:count], len(runs))  # sample i is of the same class in every run
    return image_table(images, labels, {"runs": [run.key for run in runs]})


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
