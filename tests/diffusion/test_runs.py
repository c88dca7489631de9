"""Runs: every training seed's network at every snapshot, from train to filter and fid, against direct computation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusion_project import outs
from measured_runs import COUNT, RUNS, SEEDS, STEPS, VARIANT, measure, pixels, rows, set_runs
from scipy.linalg import sqrtm

from stages import sample, train
from stages.diffusion import train_network
from stages.diffusion.distributed import ALONE
from stages.diffusion.model import load_model
from stages.diffusion.sampling import draw_samples
from stages.diffusion.training import draw_batch
from stages.errors import InputError
from stages.features.coverage import precision_recall_density_coverage
from stages.features.diversity import vendi_score
from stages.files.artifacts import read_json
from stages.files.images import image_table, read_images, write_images
from stages.files.runs import read_runs, reference, rows_of_runs
from stages.files.tensors import load_tensors
from stages.memorization.blends import hull_distance
from stages.memorization.calibrated_rates import cross_fitted
from stages.protocol import load_tree, run_plain

SNAPSHOT = "snapshot-{:010d}".format


def weights(name, seed=7):
    return load_tensors(f"data/train/{VARIANT}/seed-{seed}/{name}.safetensors")[0]


def same(a, b):
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_every_seed_has_its_own_training_and_a_snapshot_is_the_end_of_a_shorter_one(project):
    set_runs()
    run_plain("train", VARIANT)
    found, first = outs(VARIANT), {step: weights(SNAPSHOT(step)) for step in STEPS}
    runs = read_runs(Path(f"data/train/{VARIANT}/runs.json"))
    assert [(run.seed, run.step) for run in runs] == RUNS
    assert (reference(runs).seed, reference(runs).step) == (7, 20)
    assert all(
        same(load_tensors(run.weights)[0], weights(SNAPSHOT(run.step), run.seed)) for run in runs if run.step < 20
    )
    for seed in SEEDS:  # a seed's files are the same alone, and without snapshots
        set_runs([seed], [])
        run_plain("train", VARIANT)
        alone = outs(VARIANT)
        assert {path.name for path in alone} == {"model.safetensors", "loss.tsv", "score.json", "runs.json"}
        assert all(found[path] == digest for path, digest in alone.items() if path.name != "runs.json")
    assert not same(weights("model", 3), first[12])
    for step in STEPS:
        set_runs([7], [], steps=step)
        run_plain("train", VARIANT)
        assert same(first[step], weights("model"))


def test_one_seed_gives_all_variants_the_same_batches_levels_and_noise(project):
    """So the runs of two variants with one seed are a pair."""
    set_runs()
    drawn = {}
    for name in ("net-conditioning", "net-unconditioning", VARIANT):
        for seed, shard in zip(SEEDS, train.plan(train.Params.from_tree(load_tree(), name))):
            training = train_network.make_trainer(shard.at("out.safetensors"), torch.device("cpu"), ALONE).training
            x0, _, level, z = draw_batch(training, 0, 4)
            drawn[name, seed] = [part.numpy().tobytes() for part in (x0, level, z)]
    for seed in SEEDS:
        assert len({tuple(found) for (_, own), found in drawn.items() if own == seed}) == 1
    assert drawn[VARIANT, 7] != drawn[VARIANT, 3]


def test_an_interrupted_training_keeps_its_snapshots(project, monkeypatch):
    """It stops at the snapshot of step 12, after the checkpoint of step 10: the one of step 7 is not made again."""
    set_runs([7], [7, 12, 20])
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
    assert [run.step for run in read_runs(Path(f"data/train/{VARIANT}/runs.json"))] == [7, 12, 20]


@pytest.mark.parametrize("damage", ["flipped", "removed"])
def test_a_damaged_snapshot_of_an_interrupted_training_is_made_again(project, monkeypatch, capsys, damage):
    """It stops after the checkpoint of step 15; only those of steps 5 and before lead to the snapshot of step 7."""
    set_runs([7], [7, 12, 20], checkpoint_every=5, keep=3)
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


def test_a_training_that_runs_out_of_time_lists_the_step_that_it_reached(project):
    set_runs(SEEDS, [1, 20], max_seconds=1e-9)
    run_plain("train", VARIANT)
    runs = read_runs(Path(f"data/train/{VARIANT}/runs.json"))
    assert [(run.seed, run.step, run.weights.name) for run in runs] == [(s, 1, "model.safetensors") for s in SEEDS]


def test_two_seeds_and_two_snapshots_are_measured_as_by_hand(measurable):
    set_runs()
    measure()
    score, images = read_json(f"data/train/{VARIANT}/score.json"), read_images("data/deduplicate/train.arrow").images
    sampler = load_tree()["variants"][VARIANT]["sampler"]
    flat, test, held = (pixels(split) for split in ("train", "test", "holdout"))
    tables = rows("filter"), rows("fid")
    for table in tables:
        assert [(row["seed"], row["step"], row["count"]) for row in table] == [(*run, COUNT) for run in RUNS]
    samples = read_images(f"data/sample/{VARIANT}/runs.arrow")
    assert [tuple(key.values()) for key in samples.metadata["runs"]] == RUNS
    held_nearest, held_hull = distances(held, flat)[0][:, 0], hulls(held, flat)
    for run, copies, quality in zip(read_runs(Path(f"data/train/{VARIANT}/runs.json")), *tables):
        model = load_model(score, sampler, images, run.weights, "cpu")
        drawn = draw_samples(model, 0, COUNT, 4)
        place = RUNS.index((run.seed, run.step)) * COUNT
        assert (samples.images[place : place + COUNT] == drawn).all()
        own = drawn.reshape(COUNT, -1).astype(np.float64)
        r, index = distances(own, flat)
        ratio = r[:, 0] / r[:, 1]
        assert (copies["nn_ratio_near_copy"], copies["nn_ratio_copy"]) == ((ratio < 0.7).sum(), (ratio < 1 / 3).sum())
        around = distances(flat, flat)[0][:, 1:9].mean(1)
        assert copies["carlini_train"] == (r[:, 0] < 0.5 * around[index[:, 0]]).sum()
        wanted = {
            "calibrated_distance": cross_fitted(r[:, 0], held_nearest),
            "blend": cross_fitted(np.where(ratio < 0.7, np.inf, hulls(own, flat)), held_hull),
        }
        for name, found in wanted.items():
            assert copies[name] == pytest.approx(found.share * COUNT, abs=1e-9)
        assert copies["unique_training_images"] == len(set(index[ratio < 0.7, 0]))
        one, two = np.cov(own.T / 255), np.cov(test.T / 255)
        gap = ((own.mean(0) - test.mean(0)) ** 2).sum() / 255**2
        frechet = gap + np.trace(one) + np.trace(two) - 2 * np.trace(sqrtm(one @ two).real)
        assert quality["fd"] == pytest.approx(frechet, rel=1e-3)
        assert quality["fd_low"] < quality["fd"] < quality["fd_high"]
        inside = precision_recall_density_coverage(test, own, 5)
        assert (quality["recall"], quality["coverage"]) == (inside["recall"], inside["coverage"])
        assert quality["vendi"] == pytest.approx(vendi_score(own), rel=1e-5)
        assert quality["sharpness"] == pytest.approx(variation(own) / variation(held))
    assert len({row["fd"] for row in tables[1]}) == len(RUNS)


def distances(images, reference):
    """Sorted distances and their order; an image's own row leads where the sets are equal."""
    r = np.sqrt(((images[:, None] - reference) ** 2).sum(2))
    order = np.argsort(r, axis=1, kind="stable")
    return np.take_along_axis(r, order, 1), order


def hulls(images, reference):
    index = distances(images, reference)[1][:, :8]
    return hull_distance(images.astype(np.uint8), reference.astype(np.uint8), index).distance


def variation(flat):
    images = flat.reshape(-1, 8, 8)
    return np.mean([(abs(np.diff(x, axis=0)).sum() + abs(np.diff(x, axis=1)).sum()) / 112 for x in images])


def test_the_reference_run_and_its_numbers_do_not_depend_on_other_runs(measurable):
    set_runs([7], [])
    measure()
    alone = outs(VARIANT)
    set_runs()
    measure()
    more = outs(VARIANT)
    changed = {path.name for path in alone if alone[path] != more[path]}
    assert changed == {"runs.json", "runs.arrow", "runs.tsv"}
    samples = read_images(f"data/sample/{VARIANT}/samples.arrow").images
    runs = read_images(f"data/sample/{VARIANT}/runs.arrow")
    ((_, place),) = [pair for pair in rows_of_runs(runs, Path("x")) if tuple(pair[0].values()) == (7, 20)]
    assert (runs.images[place] == samples[:COUNT]).all()


def test_without_its_curve_a_variant_is_measured_at_the_end_of_each_seed_alone(measurable):
    set_runs(SEEDS, STEPS)
    measure()
    whole, path = read_images(f"data/sample/{VARIANT}/runs.arrow"), Path("params.yaml")
    trained = [p.read_bytes() for p in sorted(Path("data/train").rglob("*.safetensors"))]
    tree = load_tree()
    tree["variants"][VARIANT]["curve"] = False
    path.write_text(yaml.safe_dump(tree))
    measure()
    ends = read_images(f"data/sample/{VARIANT}/runs.arrow")
    assert [key["seed"] for key, _ in rows_of_runs(ends, path)] == SEEDS
    named = {tuple(key.values()): rows for key, rows in rows_of_runs(whole, path)}
    for key, own in rows_of_runs(ends, path):
        assert (ends.images[own] == whole.images[named[tuple(key.values())]]).all()
    assert [p.read_bytes() for p in sorted(Path("data/train").rglob("*.safetensors"))] == trained
    for stage in ("filter", "fid"):
        assert len(Path(f"data/{stage}/{VARIANT}/runs.tsv").read_text().splitlines()) == 1 + len(SEEDS)


def test_a_new_seed_leaves_the_cached_shards_of_the_others(project):
    """Their settings and their inputs' bytes are the same."""
    plans = []
    for seeds in ([7], SEEDS):
        set_runs(seeds, [])
        run_plain("train", VARIANT)
        shards = sample.plan(sample.Params.from_tree(load_tree(), VARIANT))
        plans.append(
            [(shard.task, shard.settings, [Path(path).read_bytes() for path in shard.inputs]) for shard in shards]
        )
    assert all(shard in plans[1] for shard in plans[0])
    assert len(plans[1]) == len(plans[0]) + 1


def test_runs_of_copies_of_blends_and_of_other_images_are_told_apart(measurable):
    """Planted: 10 held-out images, 10 copies of two images, 10 averages of two neighbours."""
    set_runs([7], STEPS)
    measure("train", "sample")
    images = read_images("data/deduplicate/train.arrow").images
    runs = read_images(f"data/sample/{VARIANT}/runs.arrow")
    planted = np.array(read_images("data/deduplicate/holdout.arrow").images[:30])
    index = distances(pixels("train"), pixels("train"))[1]
    planted[10:20] = images[[3, 4] * 5]
    planted[20:] = (images[index[:10, 0]].astype(int) + images[index[:10, 1]]) // 2
    write_images(f"data/sample/{VARIANT}/runs.arrow", image_table(planted, metadata=runs.metadata))
    measure("filter", "fid")
    found = rows("filter")
    assert [row["nn_ratio_near_copy"] for row in found] == [0, 10, 0]
    assert [row["unique_training_images"] for row in found] == [0, 2, 0]
    assert [row["blend"] for row in found] == [0, 0, 10]
    assert found[1]["calibrated_distance"] == found[2]["calibrated_distance"] == 10
    assert [round(row["median_effective"]) for row in found][1:] == [1, 2]
    quality = rows("fid")
    assert 1 < quality[1]["vendi"] < 2  # two images
    assert quality[1]["vendi"] < quality[2]["vendi"] < quality[0]["vendi"]
    assert quality[2]["sharpness"] < quality[0]["sharpness"] == pytest.approx(1, abs=0.1)
    assert read_json(f"data/fid/{VARIANT}/fid.json")["first_holdout"]["count"] == COUNT


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([7, 21], r"train\.snapshots: .*21 is not a step of a training of 20 steps \(train\.optimization\.steps\)"),
        ([0], r"train\.snapshots: .*0 is not a step"),
        ([9, 7], r"train\.snapshots: .*must ascend"),
    ],
)
def test_steps_that_training_does_not_reach_are_refused_by_key(project, steps, message):
    set_runs([7], steps)
    with pytest.raises(InputError, match=message):
        train.Params.from_tree(load_tree(), VARIANT)


def test_only_seeds_and_snapshots_train_anew(project):
    """Neither the sampler nor how many samples a run has concerns training."""
    set_runs()
    tree = load_tree()
    before = train.plan(train.Params.from_tree(tree, VARIANT))
    tree["sample"]["curve_count"] = 50
    tree["variants"][VARIANT]["sampler"]["levels"] = 17
    assert train.plan(train.Params.from_tree(tree, VARIANT)) == before
    tree["train"]["seeds"] = [3]
    assert train.plan(train.Params.from_tree(tree, VARIANT)) == before[1:]
    tree["train"]["snapshots"] = []
    assert "snapshots" not in json.loads(train.plan(train.Params.from_tree(tree, VARIANT))[0].to_json())["settings"]


def test_a_closed_form_has_no_runs(measurable):
    set_runs()
    for stage in ("train", "sample", "filter", "fid"):
        run_plain(stage, "closed-conditioning")
    assert not [path for path in Path("data").glob("*/closed-conditioning/*") if path.name.startswith("runs")]
