"""Features are taken of the candidates, not of every sample, and of each candidate whatever the control leaves out."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from filter_inputs import TREE, write_index

from stages import filter as stage
from stages.features import encoders
from stages.files.images import image_table, write_images
from stages.memorization.calibrated_rates import below, limit
from stages.memorization.embedded import FIRST, embedded, highest_threshold
from stages.protocol import run_plain


def pictures(rng, count):
    coarse = rng.integers(20, 236, (count, 3, 3, 3)).astype(np.float64)
    return np.rint(np.kron(coarse, np.ones((1, 4, 4, 1)))).astype(np.uint8)


def write_sets(train, holdout, samples):
    for path, images in (("deduplicate/train", train), ("deduplicate/holdout", holdout), ("sample/v/samples", samples)):
        write_images(Path("data") / f"{path}.arrow", image_table(images))
    write_index(train)


def rhos(images, train, neighbors):
    """ρ and the distance to the nearest training image, per √d, written out."""
    a, b = (some.reshape(len(some), -1) / 255.0 for some in (images, train))
    distance = np.sort(np.sqrt(np.square(a[:, None] - b[None]).sum(2)), axis=1)
    return distance[:, 0] / distance[:, :neighbors].mean(1), distance[:, 0] / a.shape[1] ** 0.5


@pytest.mark.parametrize("seed", range(6))
def test_no_threshold_is_above_the_bound_whichever_images_are_left_out(seed):
    rng = np.random.default_rng(seed)
    train, held = pictures(rng, 40), pictures(rng, 60)
    held[:5], held[5:9] = train[:5], train[5:9, :, ::-1]
    held[9:12] = np.clip(train[9:12] + rng.normal(0, 3, train[9:12].shape), 0, 255)
    percentile = [1.0, 5.0, 10.0, 30.0][seed % 4]
    bound = highest_threshold(held, train, 12, percentile, 0.02)
    rho, plain = rhos(held, train, 12)
    removable = np.flatnonzero(np.minimum(plain, rhos(held[:, :, ::-1], train, 12)[1]) <= 0.02)
    assert set(range(12)) <= set(removable)
    for _ in range(200):
        left_out = rng.choice(removable, rng.integers(len(removable) + 1), replace=False)
        assert limit(np.delete(rho, left_out), percentile / 100) <= bound * (1 + 1e-12)
    certain = np.sort(np.delete(rho, removable))
    assert bound == pytest.approx(certain[int(60 * percentile / 100 + 1e-9)])  # attained, so no lower one would do


def test_without_images_that_may_be_left_out_the_bound_is_the_threshold_itself():
    rng = np.random.default_rng(0)
    train, held = pictures(rng, 40), pictures(rng, 60)
    rho, _ = rhos(held, train, 12)
    assert highest_threshold(held, train, 12, 5.0, 0.02) == pytest.approx(limit(rho, 0.05))


def test_where_hardly_any_image_is_certainly_unseen_every_sample_has_features():
    train = pictures(np.random.default_rng(0), 40)
    assert highest_threshold(train[:20], train, 12, 10.0, 0.02) == np.inf


def test_the_first_samples_have_features_wherever_a_shard_begins():
    squared = np.tile(np.arange(100, 112) ** 2, (8, 1))
    squared[6, 0] = 0
    for start in range(6):
        rows = embedded(squared, 1e-3, start)
        assert rows.tolist() == [*range(max(0, FIRST - start)), 6]
    assert below(np.zeros(1), 0.0).all()


def test_the_filter_embeds_its_candidates_and_the_first_samples_alone(tmp_path, monkeypatch):
    """In every shard, and the held-out images likewise; what it finds is as if all had features."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    train, held, new = pictures(rng, 60), pictures(rng, 80), pictures(rng, 80)
    held[:3] = train[:3]  # left out of the control, which moves the threshold
    samples = np.concatenate([new[:40], train[10:16], new[40:]])
    write_sets(train, held, samples)
    tree = {**TREE, "filter": {**TREE["filter"], "percentile_of": "holdout", "shards": 3}}
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    counts, load = [], encoders.load_encoder

    def counting(*arguments):
        encoder = load(*arguments)

        def encode(images):
            counts.append(len(images))
            return encoder(images)

        encode.metadata = encoder.metadata
        return encode

    monkeypatch.setattr(encoders, "load_encoder", counting)
    run_plain("filter", "v")
    pairs = pq.read_table("data/filter/v/pairs.parquet").to_pylist()
    candidates = {pair["sample_index"] for pair in pairs if pair["candidate"]}
    assert set(range(40, 46)) <= candidates
    assert all((pair["feature_distance"] is not None) == pair["candidate"] for pair in pairs)
    least = len(candidates | set(range(FIRST)))  # the three images that are left out move the bound by a few images
    assert least <= sum(counts[:3]) <= least + 3
    assert counts[3] < 20  # of 80 held-out ones
    assert json.loads(Path("data/filter/v/filter.json").read_text())["metrics"]["two_stage"]["flagged"] >= 6
    listed = pq.read_table("data/filter/v/neighbors.parquet").to_pylist()
    assert {row["sample_index"] for row in listed if row["space"] == "feature"} == set(range(FIRST))


@pytest.mark.parametrize("change", [{"percentile": 20.0}, {"repeated_within": 0.1}, {"percentile_of": "samples"}])
def test_which_samples_are_candidates_takes_other_features_and_searches_nothing_again(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    write_sets(**{name: pictures(np.random.default_rng(0), 60) for name in ("train", "holdout", "samples")})

    def plan(**changes):
        shards = stage.plan(stage.Params.from_tree({**TREE, "filter": {**TREE["filter"], **changes}}, "v"))
        return [[shard for shard in shards if shard.task.endswith("features") is embeds] for embeds in (False, True)]

    (searches, features), (searches_now, features_now) = plan(), plan(**change)
    assert searches_now == searches
    assert features_now != features
