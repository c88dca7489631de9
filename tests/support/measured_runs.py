"""Networks of two seeds with two snapshots each, from train to filter and fid; features are pixels."""

import csv

import numpy as np
import pytest
from diffusion_project import small_params, write_params
from filter_inputs import TREE, write_index

from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.protocol import run_plain

VARIANT, SEEDS, STEPS, COUNT = "net-temperature-pixel", [7, 3], [7, 12], 10
RUNS = [(seed, step) for seed in SEEDS for step in (*STEPS, 20)]


def set_runs(seeds=SEEDS, snapshots=STEPS, **optimization):
    tree = small_params() | {key: TREE[key] for key in ("embed", "filter")}
    tree["train"] |= {"seeds": seeds, "snapshots": snapshots}
    tree["train"]["optimization"] |= {"decay": "constant", "precision": "float32", **optimization}
    tree["sample"] |= {"precision": "float32", "curve_count": COUNT}
    tree["fid"] |= {"neighbors": 5, "shards": 2}
    tree["filter"] = {**tree["filter"], "shards": 3}
    write_params(tree)


def measure(*stages):
    for stage in stages or ("train", "sample", "filter", "fid"):
        run_plain(stage, VARIANT)


@pytest.fixture
def measurable(project):
    """What filter and fid need beside the training images; features are pixels."""
    train_images = read_images("data/deduplicate/train.arrow").images
    write_index(train_images)
    encoder, rng = load_encoder(EncoderParams(**TREE["embed"]["encoder"]), "cpu"), np.random.default_rng(5)
    for split in ("test", "holdout"):
        table = image_table(rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8))
        write_images(f"data/deduplicate/{split}.arrow", table)
        write_features(f"data/embed/{split}.arrow", FeatureTable(encoder(table.images), table.ids, encoder.metadata))


def rows(stage):
    with open(f"data/{stage}/{VARIANT}/runs.tsv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def pixels(split):
    return read_images(f"data/deduplicate/{split}.arrow").flat.astype(np.float64)
