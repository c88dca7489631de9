"""The nearest training images of the first samples, as stage filter lists them, against brute force."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from filter_inputs import PIXELS, TREE, write_index

from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams
from stages.files.images import image_table, write_images
from stages.protocol import run_plain

SETS = {"deduplicate/train": 30, "deduplicate/holdout": 40, "sample/v/samples": 12}


@pytest.fixture
def images(tmp_path, monkeypatch) -> dict[str, np.ndarray]:
    """A project of random images; samples 1, 7 and 11 equal training images."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    found = {name: rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8) for name, count in SETS.items()}
    train, _, samples = found.values()
    samples[[1, 7, 11]] = train[[4, 5, 6]]
    for name, own in found.items():
        write_images(f"data/{name}.arrow", image_table(own))
    write_index(train)
    return {"train": train, "samples": samples}


def listed(**changes) -> list[dict]:
    Path("params.yaml").write_text(yaml.safe_dump({**TREE, "filter": {**TREE["filter"], **changes}}))
    run_plain("filter", "v")
    return pq.read_table("data/filter/v/neighbors.parquet").to_pylist()


@pytest.mark.parametrize(("neighbors", "shards"), [(12, 1), (12, 7), (9, 1)])
def test_against_brute_force(images, neighbors, shards):
    table = listed(neighbors=neighbors, shards=shards)
    encoder = load_encoder(EncoderParams(**PIXELS), "cpu")
    unit = {"pixel": np.sqrt(6 * 6 * 3), "feature": 1}
    sets = {"pixel": [own.reshape(len(own), -1) / 255 for own in images.values()]}
    sets["feature"] = [encoder(own).astype(np.float64) for own in images.values()]
    keys = [(space, sample) for space in ("pixel", "feature") for sample in range(4)]
    assert list(dict.fromkeys((row["space"], row["sample_index"]) for row in table)) == keys
    for space, sample in keys:
        rows = [row for row in table if (row["space"], row["sample_index"]) == (space, sample)]
        train, samples = sets[space]
        distance = np.linalg.norm(samples[sample] - train, axis=1) / unit[space]
        nearest = np.argsort(distance, kind="stable")[: min(10, neighbors) if space == "pixel" else 10]
        assert [(row["rank"], row["train_index"]) for row in rows] == list(enumerate(nearest.tolist(), 1))
        np.testing.assert_allclose([row["distance"] for row in rows], distance[nearest], rtol=1e-6, atol=1e-6)
    assert [row["train_index"] for row in table if row["sample_index"] == 1 and row["rank"] == 1] == [4, 4]


def test_samples_whose_features_nobody_took_have_pixel_neighbours_alone(images):
    """With the samples' own percentile only the likely candidates have features: of the first four, the copy alone."""
    table = listed(percentile_of="samples", percentile=20.0)
    found = {(row["space"], row["sample_index"]) for row in table}
    assert found == {("feature", 1), *(("pixel", sample) for sample in range(4))}
