"""Copies and Fréchet distance while a network learns (train.curve), against the samples drawn afterwards."""

import csv
from pathlib import Path

import numpy as np
import pytest
from scipy.linalg import sqrtm
from test_train_sample import project, small_params, write_params

from stages import train
from stages.diffusion.checkpoint import load_tensors
from stages.errors import InputError
from stages.features.encoders import EncoderParams, load_encoder
from stages.features.table import FeatureTable, write_features
from stages.images.store import read_images
from stages.protocol import load_tree, run_plain

__all__ = ["project"]
VARIANT, COUNT = "net-temperature-pixel", 23
PIXELS = {"name": "pixels", "weights": None, "sha256": None, "resize": None}
CURVE = {"steps": [7, 20], "samples": COUNT, "batch": 4, "seed": 0, "ratio_below": 0.7, "encoder": PIXELS}


@pytest.fixture
def curve(project):
    """Switches the curve on; the test images' features are pixels."""
    rest = np.random.default_rng(5).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    encoder = load_encoder(EncoderParams(**PIXELS), "cpu")
    features = encoder(rest)
    write_features("data/embed/test.arrow", FeatureTable(features, [str(n) for n in range(40)], encoder.metadata))
    set_curve(CURVE)
    return features.astype(np.float64)


def set_curve(value):
    tree = small_params()
    tree["train"]["curve"] = value
    tree["train"]["optimization"]["precision"] = tree["sample"]["precision"] = "float32"
    write_params(tree)


def rows():
    with open(f"data/train/{VARIANT}/curve.tsv", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file, delimiter="\t")]


def test_last_row_is_what_the_finished_networks_samples_give_and_the_weights_do_not_notice(curve):
    run_plain("train", VARIANT)
    run_plain("sample", VARIANT)
    found = rows()
    assert [row["step"] for row in found] == [7, 20]
    samples = read_images(f"data/sample/{VARIANT}/samples.arrow").flat.astype(np.float64)
    images = read_images("data/deduplicate/train.arrow").flat.astype(np.float64)
    distance = np.sort(np.sqrt(((samples[:, None] - images) ** 2).sum(2)), axis=1)
    ratio = distance[:, 0] / distance[:, 1]
    last = found[-1]
    assert (last["samples"], last["copies"]) == (COUNT, (ratio < 0.7).sum())
    assert last["ratio_mean"] == pytest.approx(ratio.mean(), rel=1e-5)
    assert last["ratio_min"] == pytest.approx(ratio.min(), rel=1e-5)
    scaled = samples / 255
    one, two = np.cov(scaled.T), np.cov(curve.T)
    gap = ((scaled.mean(0) - curve.mean(0)) ** 2).sum()
    wanted = gap + np.trace(one) + np.trace(two) - 2 * np.trace(sqrtm(one @ two).real)
    assert last["fd_test"] == pytest.approx(wanted, rel=1e-3)
    assert found[0]["fd_test"] != last["fd_test"]
    with_curve = load_tensors(f"data/train/{VARIANT}/model.safetensors")[0]
    set_curve(None)
    run_plain("train", VARIANT)
    assert not Path(f"data/train/{VARIANT}/curve.tsv").exists()
    without = load_tensors(f"data/train/{VARIANT}/model.safetensors")[0]
    assert all((with_curve[name] == without[name]).all() for name in without)


def test_an_interrupted_curve_keeps_its_rows(curve, monkeypatch):
    """It stops while it measures the last step, after the checkpoint of that step: only that row is measured again."""
    run_plain("train", VARIANT)
    whole, measured, original = rows(), [], train._measured

    def stopping(shard, step, *rest):
        measured.append(step)
        if measured == [7, 20]:
            raise RuntimeError("the machine stopped")
        return original(shard, step, *rest)

    monkeypatch.setattr(train, "_measured", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        run_plain("train", VARIANT)
    run_plain("train", VARIANT)
    assert measured == [7, 20, 20]
    assert rows() == whole


def test_features_of_another_encoder_and_steps_past_the_end_are_refused(curve):
    write_features("data/embed/test.arrow", FeatureTable(np.zeros((5, 8), np.float32), list("abcde"), {"encoder": "x"}))
    with pytest.raises(InputError, match=r"train\.curve\.encoder and data/embed/test\.arrow: features with encoder"):
        run_plain("train", VARIANT)
    set_curve({**CURVE, "steps": [7, 21]})
    with pytest.raises(InputError, match=r"curve\.steps: 21 is not a step of a training of 20 steps"):
        train.Params.from_tree(load_tree(), VARIANT)


def test_a_change_of_the_sampler_concerns_the_training_only_with_a_curve(curve):
    plans = {}
    for on in (True, False):
        set_curve(CURVE if on else None)
        tree = load_tree()
        before = train.plan(train.Params.from_tree(tree, VARIANT))
        tree["variants"][VARIANT]["sampler"]["levels"] = 17
        plans[on] = before == train.plan(train.Params.from_tree(tree, VARIANT))
    assert plans == {True: False, False: True}
