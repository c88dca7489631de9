"""The paths of the stages' outs, relative to the project's root. Each path is written only here."""

import hashlib
import os
from pathlib import Path

DATA = Path("data")
"""The stages' outs, which DVC tracks."""

LOCAL = Path(".scoresmooth")
"""What belongs to this working directory alone: its stages' locks, records and logs."""


def shared_state(folder: Path) -> Path:
    """The main project's `.scoresmooth` if `folder` lies in an experiment's copy of it (.dvc/tmp/exps), else `LOCAL`.

    DVC deletes the copy when the experiment ends: a server or a cache inside would be lost, or stay running.
    """
    for place in folder.parents:
        if place.parts[-3:] == (".dvc", "tmp", "exps"):
            return place.parents[2] / LOCAL
    return LOCAL


CACHE = shared_state(Path.cwd())
"""The shard cache, which a project and its experiments share."""

STATE_VARIABLE = "SCORESMOOTH_STATE"
"""Environment variable: a folder of the user's own on a local disk, for `STATE` of all projects."""


def machine_state(cache: Path) -> Path:
    """A project's own folder below `STATE_VARIABLE`, or `cache`, its `.scoresmooth`, where that is not set."""
    place, own = os.environ.get(STATE_VARIABLE), cache.absolute()
    if not place:
        return cache
    return Path(place).expanduser().absolute() / f"{own.parent.name}-{hashlib.sha256(bytes(own)).hexdigest()[:8]}"


STATE = machine_state(CACHE)
"""The servers' state and the remembered digests: SQLite and sockets, which do not work on a network file system."""

SPLITS = ("train", "test", "holdout")
VERDICTS = DATA / "verdicts"
"""People's verdicts. Git tracks them; the filter stage depends on them, so that DVC notices a change."""


def ingested(split: str) -> Path:
    """The decoded images of a split, before duplicates are removed."""
    return DATA / "ingest" / f"{split}.arrow"


def images_of(split: str) -> Path:
    """The images of a split."""
    return DATA / "deduplicate" / f"{split}.arrow"


SPREAD = DATA / "deduplicate" / "spread.json"
"""How far the training images spread, from which stage train takes the largest noise level."""


def features_of(split: str) -> Path:
    """The feature table of a split, with the rows of its image table."""
    return DATA / "embed" / f"{split}.arrow"


NEIGHBOR_FEATURES = DATA / "embed" / "neighbors.arrow"
"""The training images' features of index.encoder; the file exists only where that is set."""


def neighbors_of(space: str) -> Path:
    """The neighbour table of the training images in a space, "pixel" or "feature"."""
    return DATA / "index" / f"{space}_neighbors.arrow"


def score_of(variant: str) -> Path:
    """The specification of a variant's score."""
    return DATA / "train" / variant / "score.json"


def runs_of(variant: str) -> Path:
    """The list of a network's runs: the seed, the step and the weights of each."""
    return DATA / "train" / variant / "runs.json"


def choice_of(variant: str) -> Path:
    """Which of a network's runs are sampled, and why."""
    return DATA / "choose" / variant / "choice.json"


def chosen_runs_of(variant: str) -> Path:
    """A network's runs up to the chosen one of each seed; the file exists only with sample.checkpoint `best_fid`."""
    return DATA / "choose" / variant / "runs.json"


def training_of(variant: str, seed: int) -> Path:
    """The folder of the training with one seed: the averaged weights at its end and at its snapshots, its losses."""
    return DATA / "train" / variant / f"seed-{seed}"


def weights_of(variant: str, seed: int) -> Path:
    """The averaged weights of a variant's network at the end of the training with a seed."""
    return training_of(variant, seed) / "model.safetensors"


def loss_of(variant: str, seed: int) -> Path:
    """The loss curve of a variant's network in the training with a seed."""
    return training_of(variant, seed) / "loss.tsv"


def snapshot_name(step: int) -> str:
    """The name of the averaged weights at a step of the training; the names sort by step."""
    return f"snapshot-{step:010d}"


def snapshot_of(variant: str, seed: int, step: int) -> Path:
    """The averaged weights of a variant's network at a step before the end of the training with a seed."""
    return training_of(variant, seed) / f"{snapshot_name(step)}.safetensors"


def samples_of(variant: str) -> Path:
    """The samples of a variant."""
    return DATA / "sample" / variant / "samples.arrow"


def run_samples_of(variant: str) -> Path:
    """The samples of every run of a network; closed forms have no such file."""
    return DATA / "sample" / variant / "runs.arrow"
