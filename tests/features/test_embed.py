"""The feature table, and stage embed."""

import sys

import numpy as np
import pytest
from encoder_inputs import parameters, pictures

from stages import embed
from stages.errors import InputError
from stages.features import weights as weights_module
from stages.features.encoders import load_encoder
from stages.files.features import FeatureTable, concatenate, read_features, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.paths import NEIGHBOR_FEATURES, SPLITS, features_of, images_of
from stages.protocol import run_stage


def test_table_round_trip_is_zero_copy(tmp_path):
    table = FeatureTable(np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32), list("abcdefg"), {"k": [1]})
    back = read_features(write_features(tmp_path / "f.arrow", table))
    np.testing.assert_array_equal(back.features, table.features)
    assert (back.ids, back.metadata) == (table.ids, table.metadata)
    assert not back.features.flags.writeable
    assert not back.features.flags.owndata


def test_broken_tables_are_refused(tmp_path):
    with pytest.raises(InputError, match="image b is not finite"):
        write_features(tmp_path / "f.arrow", FeatureTable(np.array([[1.0], [np.nan]], np.float32), ["a", "b"]))
    assert not (tmp_path / "f.arrow").exists()
    with pytest.raises(InputError, match=r"f\.arrow is missing"):
        read_features(tmp_path / "f.arrow")
    path = write_features(tmp_path / "f.arrow", FeatureTable(np.ones((50, 9), np.float32), ["a"] * 50))
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(InputError, match=r"f\.arrow is not an Arrow feature table"):
        read_features(path)
    write_images(path, image_table(pictures(2)))
    with pytest.raises(InputError, match="it is not an Arrow feature table"):
        read_features(path)


def test_features_made_differently_are_not_joined(tmp_path):
    parts = [
        write_features(tmp_path / f"{p}.arrow", FeatureTable(np.ones((2, 3), np.float32), ["a", "b"], {"precision": p}))
        for p in ("float32", "bfloat16")
    ]
    with pytest.raises(InputError, match="precision 'float32' and 'bfloat16' were mixed"):
        concatenate(parts, "train")


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, (split, count) in enumerate((("train", 21), ("test", 5), ("holdout", 1))):
        write_images(images_of(split), image_table(pictures(count, channels=1, seed=seed)))
    return tmp_path


def run(folder, shards):
    encoder = parameters("efficientnet-lite0", resize=32)
    params = embed.Params(encoder=encoder, device="cpu", shards=shards, neighbor_encoder=None)
    run_stage(embed, params)
    return {path.name: path.read_bytes() for path in sorted((folder / "data/embed").iterdir())}


def test_stage_embeds_every_split_the_same_for_any_number_of_shards(project):
    one, three = run(project, 1), run(project, 3)
    assert one == three
    assert sorted(one) == ["holdout.arrow", "test.arrow", "train.arrow"]
    encoder = load_encoder(parameters("efficientnet-lite0", resize=32), "cpu")
    for split in SPLITS:
        images, table = read_images(images_of(split)), read_features(features_of(split))
        assert table.ids == images.ids
        assert table.metadata == encoder.metadata
        np.testing.assert_array_equal(table.features, encoder(images.images))


def test_a_second_encoder_embeds_the_training_images_alone(project):
    encoder, second = parameters("efficientnet-lite0", resize=32), parameters("efficientnet-lite0", resize=48)
    run_stage(embed, embed.Params(encoder=encoder, device="cpu", shards=2, neighbor_encoder=second))
    images, table = read_images(images_of("train")), read_features(NEIGHBOR_FEATURES)
    np.testing.assert_array_equal(table.features, load_encoder(second, "cpu")(images.images))
    assert sorted(run(project, 1)) == ["holdout.arrow", "test.arrow", "train.arrow"]  # the second one is gone


def test_plan_knows_the_weights_and_refuses_an_empty_split(project):
    params = embed.Params(
        encoder=parameters("efficientnet-lite0", resize=32), device="cpu", shards=2, neighbor_encoder=None
    )
    shards = embed.plan(params)
    assert {shard.settings["encoder"]["sha256"] for shard in shards} == {weights_module.PACKAGED_SHA256}
    assert [shard.name for shard in shards] == ["train 1/2", "train 2/2", "test 1/2", "test 2/2", "holdout 1/1"]
    assert not any("shards" in shard.settings for shard in shards)
    write_images(images_of("test"), image_table(pictures(0)))
    with pytest.raises(InputError, match=r"test\.arrow holds no images: raise ingest\.test"):
        embed.plan(params)


def test_planning_does_not_wait_for_torch():
    import subprocess

    code = (
        "import sys, stages.embed, stages.index, stages.fid; sys.exit('torch' in sys.modules or 'faiss' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
