"""Copies and Fréchet distance while a network learns (train.snapshots), against weights and samples made directly."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from diffusion_project import outs, small_params, write_params
from filter_inputs import TREE, write_index
from scipy.linalg import sqrtm

from stages import train
from stages.diffusion import train_network
from stages.diffusion.model import load_model
from stages.diffusion.sampling import draw_samples
from stages.errors import InputError
from stages.features.encoders import load_encoder
from stages.features.weights import EncoderParams
from stages.files.artifacts import read_json
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.tensors import load_tensors
from stages.memorization.statistics import wilson
from stages.protocol import load_tree, run_plain

VARIANT, STEPS, COUNT = "net-temperature-pixel", [7, 12, 20], 10


def set_snapshots(snapshots, **optimization):
    tree = small_params() | {key: TREE[key] for key in ("embed", "filter")}
    tree["train"]["snapshots"] = snapshots
    tree["train"]["optimization"] |= {"decay": "constant", "precision": "float32", **optimization}
    tree["sample"] |= {"precision": "float32", "curve_count": COUNT}
    tree["fid"] = {"reference_count": None, "per_class": False, "seed": 0, "shards": 2}
    tree["filter"] = {**tree["filter"], "shards": 3}
    write_params(tree)


def weights(name):
    return load_tensors(f"data/train/{VARIANT}/{name}.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


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
    with open(f"data/{stage}/{VARIANT}/curve.tsv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def test_a_snapshot_is_the_average_of_a_training_that_ends_there_and_the_training_does_not_notice(project):
    set_snapshots(STEPS)
    run_plain("train", VARIANT)
    snapshots = {step: weights(f"snapshot-{step:010d}") for step in STEPS}
    with_snapshots = outs(VARIANT)
    assert same(snapshots[20], weights("model"))
    set_snapshots([])
    run_plain("train", VARIANT)
    without = outs(VARIANT)
    assert {path.name for path in without} == {"model.safetensors", "loss.tsv", "score.json"}
    assert without.items() <= with_snapshots.items()
    for step in STEPS[:2]:
        set_snapshots([], steps=step)
        run_plain("train", VARIANT)
        assert same(snapshots[step], weights("model"))
    assert not same(snapshots[7], snapshots[12])


def test_an_interrupted_training_keeps_its_snapshots(project, monkeypatch):
    """It stops at the snapshot of step 12, after the checkpoint of step 10: the one of step 7 is not made again."""
    set_snapshots(STEPS)
    run_plain("train", VARIANT)
    whole, kept, original = outs(VARIANT), [], train_network.keep_snapshot

    def stopping(shard, step, trainer):
        kept.append(step)
        if kept == [7, 12]:
            raise RuntimeError("the machine stopped")
        original(shard, step, trainer)

    monkeypatch.setattr(train_network, "keep_snapshot", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        run_plain("train", VARIANT)
    run_plain("train", VARIANT)
    assert kept == [7, 12, 12, 20]
    assert outs(VARIANT) == whole


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_damaged_snapshot_of_an_interrupted_training_is_made_again(project, monkeypatch, capsys, damage):
    """It stops after the checkpoint of step 15; only those of steps 5 and before lead to the snapshot of step 7."""
    set_snapshots(STEPS, checkpoint_every=5, keep=3)
    run_plain("train", VARIANT)
    whole = outs(VARIANT)
    scratch = stopped_at(20, monkeypatch)
    (scratch / "loss.tsv").write_text("step\tloss\n1\tdamaged")
    snapshot = scratch / "snapshot-0000000007.safetensors"
    content = bytearray(snapshot.read_bytes())
    content[-9] ^= 4
    snapshot.write_bytes(content) if damage == "flipped" else snapshot.unlink()
    capsys.readouterr()
    run_plain("train", VARIANT)
    assert "checkpoint-0000000010.safetensors lacks the snapshot of step 7: removed" in capsys.readouterr().err
    assert outs(VARIANT) == whole


def stopped_at(last, monkeypatch):
    """Train until the snapshot of step `last` is due; return the scratch folder."""
    folders, original = [], train_network.keep_snapshot

    def stopping(shard, step, trainer):
        folders.append(shard.scratch)
        if step == last:
            raise RuntimeError("the machine stopped")
        original(shard, step, trainer)

    with monkeypatch.context() as patch:
        patch.setattr(train_network, "keep_snapshot", stopping)
        with pytest.raises(RuntimeError, match="stopped"):
            run_plain("train", VARIANT)
    return folders[0]


def test_a_training_that_runs_out_of_time_keeps_the_snapshots_that_it_reached(project):
    set_snapshots([1, 20], max_seconds=1e-9)
    run_plain("train", VARIANT)
    assert sorted(Path(f"data/train/{VARIANT}").glob("snapshot-*")) == [
        Path(f"data/train/{VARIANT}/snapshot-0000000001.safetensors")
    ]


def test_the_curve_is_what_samples_drawn_from_the_snapshots_give(measurable):
    set_snapshots(STEPS)
    for stage in ("train", "sample", "filter", "fid"):
        run_plain(stage, VARIANT)
    score, images = read_json(f"data/train/{VARIANT}/score.json"), read_images("data/deduplicate/train.arrow").images
    sampler = load_tree()["variants"][VARIANT]["sampler"]
    flat = images.reshape(len(images), -1).astype(np.float64)
    test = read_images("data/deduplicate/test.arrow").flat / 255
    shares, distances = rows("filter"), rows("fid")
    assert [row["step"] for row in shares] == [row["step"] for row in distances] == STEPS
    for step, share, distance in zip(STEPS, shares, distances):
        model = load_model(score, sampler, images, f"data/train/{VARIANT}/snapshot-{step:010d}.safetensors", "cpu")
        drawn = draw_samples(model, 0, COUNT, 4).reshape(COUNT, -1).astype(np.float64)
        r = np.sort(np.sqrt(((drawn[:, None] - flat) ** 2).sum(2)), axis=1)
        flagged = int((r[:, 0] / r[:, 1] < 0.7).sum())
        assert (share["count"], share["flagged"], share["share"]) == (COUNT, flagged, flagged / COUNT)
        assert (share["low"], share["high"]) == wilson(flagged, COUNT)
        one, two = np.cov(drawn.T / 255), np.cov(test.T)
        gap = ((drawn.mean(0) / 255 - test.mean(0)) ** 2).sum()
        wanted = gap + np.trace(one) + np.trace(two) - 2 * np.trace(sqrtm(one @ two).real)
        assert (distance["count"], distance["fd"]) == (COUNT, pytest.approx(wanted, rel=1e-3))
    assert len({row["fd"] for row in distances}) == len(STEPS)
    samples = read_images(f"data/sample/{VARIANT}/samples.arrow").images
    curve = read_images(f"data/sample/{VARIANT}/curve.arrow")
    assert (curve.images[-COUNT:] == samples[:COUNT]).all()  # the last snapshot is the finished network


def test_without_snapshots_nothing_is_measured_and_no_other_number_changes(measurable):
    results = {}
    for steps in (STEPS, []):
        set_snapshots(steps)
        for stage in ("train", "sample", "filter", "fid"):
            run_plain(stage, VARIANT)
        results[bool(steps)] = outs(VARIANT)
    more = {path.name for path in results[True].keys() - results[False].keys()}
    assert more == {*(f"snapshot-{step:010d}.safetensors" for step in STEPS), "curve.arrow", "curve.tsv"}
    assert results[False].items() <= results[True].items()


def test_copies_are_counted_at_every_snapshot(measurable):
    """Of three snapshots' samples 0, 2 and 10 of 10 are training images."""
    set_snapshots(STEPS)
    run_plain("train", VARIANT)
    run_plain("sample", VARIANT)
    images = read_images("data/deduplicate/train.arrow").images
    curve = read_images(f"data/sample/{VARIANT}/curve.arrow")
    planted = np.array(read_images("data/deduplicate/holdout.arrow").images[:30])
    planted[10:12], planted[20:] = images[:2], images[5:15]
    write_images(f"data/sample/{VARIANT}/curve.arrow", image_table(planted, metadata=curve.metadata))
    run_plain("filter", VARIANT)
    assert [row["flagged"] for row in rows("filter")] == [0, 2, 10]


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([7, 21], r"train\.snapshots: .*21 is not a step of a training of 20 steps \(train\.optimization\.steps\)"),
        ([0], r"train\.snapshots: .*0 is not a step"),
        ([9, 7], r"train\.snapshots: .*must ascend"),
    ],
)
def test_steps_that_training_does_not_reach_are_refused_by_key(project, steps, message):
    set_snapshots(steps)
    with pytest.raises(InputError, match=message):
        train.Params.from_tree(load_tree(), VARIANT)


def test_only_the_list_of_snapshots_trains_anew(project):
    """Neither the sampler nor how many samples the curve takes concerns training."""
    set_snapshots(STEPS)
    tree = load_tree()
    before = train.plan(train.Params.from_tree(tree, VARIANT))
    tree["sample"]["curve_count"] = 50
    tree["variants"][VARIANT]["sampler"]["levels"] = 17
    assert train.plan(train.Params.from_tree(tree, VARIANT)) == before
    tree["train"]["snapshots"] = []
    assert "snapshots" not in json.loads(train.plan(train.Params.from_tree(tree, VARIANT))[0].to_json())["settings"]
