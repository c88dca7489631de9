"""Stage choose@variant: which of the networks that training kept are sampled, the last or the best by Fréchet distance.

With sample.checkpoint `best_fid` every kept network (train.snapshots and the end) draws sample.choice_samples samples
of its own, numbered from CHOICE on, so that none of them is reported. Their Fréchet distance is taken to
sample.choice_images held-out images that stage fid leaves out of all its references. For each seed the least distance
wins, at equal ones the earlier step.

Outs in data/choose/VARIANT: choice.json says what was chosen and how; with `best_fid` runs.json lists the runs of every
seed up to the chosen one, which is thereby the end of its training for all later stages. With `last`, and for closed
forms, nothing is drawn and the runs are those of stage train.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stages.diffusion.parameters import Variant
from stages.features.embedding import embedding_settings
from stages.features.weights import EncoderParams
from stages.files.artifacts import read_json, write_json
from stages.files.held_out import for_the_choice
from stages.files.paths import choice_of, chosen_runs_of, features_of, images_of, runs_of, score_of
from stages.files.runs import Run, read_runs
from stages.protocol import Parts, Shard, StageParams, main

if TYPE_CHECKING:
    import numpy as np

OF_SAMPLE = ("checkpoint", "choice_samples", "choice_images", "seed", "batch", "device", "precision", "compile")
"""Keys of the section sample that are read here."""

CHOICE = 1 << 40
"""The number of the first sample that is drawn for the choice; reported ones are numbered from 0."""


class Params(StageParams):
    """How the networks to sample are chosen: all of it is read from other sections."""

    SECTION: ClassVar[str] = "choose"
    SHARED: ClassVar[dict[str, str]] = {
        "spec": "variants.{variant}",
        **{key: f"sample.{key}" for key in OF_SAMPLE},
        "encoder": "embed.encoder",
        "encoder_device": "embed.device",
    }
    PER_VARIANT: ClassVar[bool] = True

    variant: str
    spec: Variant
    checkpoint: Literal["last", "best_fid"]
    choice_samples: int
    choice_images: int
    seed: int
    batch: int
    device: str
    precision: str
    compile: bool
    encoder: EncoderParams
    encoder_device: Literal["auto", "cpu", "cuda"]

    @property
    def chooses(self) -> bool:
        """Whether there is anything to choose from."""
        return self.spec.score == "network" and self.checkpoint == "best_fid"


def plan(params: Params) -> list[Shard]:
    """Return one shard per kept network; none where nothing is chosen. Too few held-out images raise InputError."""
    if not params.chooses:
        return []
    _held_out(params)
    settings = {
        "sampler": params.spec.sampler.model_dump(mode="json"),
        **params.model_dump(mode="json", include={"seed", "batch", "device", "precision", "compile"}),
        "count": params.choice_samples,
        "embedding": embedding_settings(params.encoder, params.encoder_device),
    }
    inputs = score_of(params.variant), images_of("train")
    return [
        Shard(
            "choose", "run", f"{params.variant} seed {run.seed} step {run.step}", settings, _texts(*inputs, run.weights)
        )
        for run in read_runs(runs_of(params.variant))
    ]


def _texts(*paths: Path) -> tuple[str, ...]:
    return tuple(map(str, paths))


def work(shard: Shard) -> Path:
    """Write the features of one network's samples."""
    from stages.diffusion.model import load_model
    from stages.diffusion.sampling import draw_samples
    from stages.features.encoders import embed_rows, load_encoder
    from stages.files.features import write_features
    from stages.files.images import image_table, read_images

    settings, train = shard.settings, read_images(shard.inputs[1])
    how = settings["device"], settings["precision"], settings["compile"]
    score, weights = read_json(shard.inputs[0]), shard.inputs[2]
    model = load_model(score, settings["sampler"], train.images, weights, *how, labels=train.labels)
    drawn = draw_samples(model, settings["seed"], settings["count"], settings["batch"], start=CHOICE)
    embedding = settings["embedding"]
    encoder = load_encoder(EncoderParams(**embedding["encoder"]), embedding["device"])
    features = embed_rows(encoder, image_table(drawn), slice(0, len(drawn)), f"choose {shard.name}")
    return write_features(shard.path, features)


def gather(params: Params, parts: Parts) -> None:
    """Write choice.json and, where something was chosen, runs.json."""
    chosen_runs_of(params.variant).unlink(missing_ok=True)
    if not params.chooses:
        checkpoint = "last" if params.spec.score == "network" else None
        write_json(choice_of(params.variant), {"checkpoint": checkpoint})
        return
    runs = read_runs(runs_of(params.variant))
    reference = _held_out(params)
    candidates = [{**run.key, "fd": _distance(part, reference)} for run, part in zip(runs, parts["run"], strict=True)]
    chosen = best_steps(candidates)
    write_json(
        choice_of(params.variant),
        {
            "checkpoint": "best_fid",
            "encoder": params.encoder.name,
            "split": f"the last {len(reference)} held-out images",
            "images": len(reference),
            "samples": params.choice_samples,
            "candidates": candidates,
            "chosen": [{"seed": seed, "step": step} for seed, step in chosen.items()],
        },
    )
    kept = [run for run in runs if run.step <= chosen[run.seed]]
    write_json(chosen_runs_of(params.variant), {"runs": [_entry(params.variant, run) for run in kept]})


def _entry(variant: str, run: Run) -> dict[str, Any]:
    return {**run.key, "weights": os.path.relpath(run.weights, chosen_runs_of(variant).parent)}


def best_steps(candidates: list[dict[str, Any]]) -> dict[int, int]:
    """Return each seed's step of the least distance, at equal ones the first. candidates: rows of seed, step, fd."""
    found: dict[int, dict[str, Any]] = {}
    for row in candidates:
        if row["seed"] not in found or row["fd"] < found[row["seed"]]["fd"]:
            found[row["seed"]] = row
    return {seed: row["step"] for seed, row in found.items()}


def _held_out(params: Params) -> "np.ndarray":
    """Return the features of the held-out images that are set aside, float32 (N, D)."""
    from stages.files.features import read_features

    table = read_features(features_of("holdout"))
    return table.features[for_the_choice(len(table), params.choice_images)]


def _distance(part: Path, reference: "np.ndarray") -> float:
    """Return the Fréchet distance of a shard's features to those of the held-out images."""
    from stages.features.frechet import frechet_from_features
    from stages.features.set_measures import rounded
    from stages.files.features import read_features

    return rounded(frechet_from_features(read_features(part).features, reference))


if __name__ == "__main__":
    main("choose")
