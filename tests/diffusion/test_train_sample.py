"""Stages train and sample on a small project: shards change nothing, kills cost nothing, wrong sizes are named."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_project import COUNT, ROOT, K, outs, small_params, write_params

from stages import sample, train
from stages.diffusion.distributed import ALONE
from stages.diffusion.model import load_model
from stages.diffusion.sampling import trajectory
from stages.diffusion.scores import make_centres, unconditioning
from stages.diffusion.train_network import make_trainer
from stages.diffusion.trainer import Trainer
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import read_images
from stages.files.neighbors import read_neighbors, write_neighbors
from stages.protocol import load_tree, run_plain


def names(score):
    return [name for name, spec in load_tree(ROOT / "params.yaml")["variants"].items() if spec["score"] == score]


def test_training_uses_the_threads_of_its_parameters(project, monkeypatch):
    """And they are part of what its result is found by, where they are given."""
    seen, run, before = [], Trainer.run, torch.get_num_threads()
    monkeypatch.setattr(Trainer, "run", lambda self, *rest: (seen.append(torch.get_num_threads()), run(self, *rest))[1])
    settings = []
    try:
        for threads in (None, 3, 1):
            tree = small_params()
            tree["train"]["threads"] = threads
            write_params(tree)
            settings.append(train.plan(train.Params.from_tree(tree, "net-conditioning"))[0].settings)
            run_plain("train", "net-conditioning")
    finally:
        torch.set_num_threads(before)
    assert seen == [before, 3, 1]
    assert [found.get("threads") for found in settings] == [None, 3, 1]


def test_every_default_variant_trains_and_samples(project):
    for name in (*names("closed-form"), *names("network")):
        run_plain("train", name)
        run_plain("sample", name)
        table = read_images(f"data/sample/{name}/samples.arrow")
        assert table.images.shape == (23, 8, 8, 1)
        assert table.images.std() > 0
        score = json.loads(Path(f"data/train/{name}/score.json").read_text())
        assert score["spec"]["form"] == load_tree()["variants"][name]["form"]
        trained = Path(f"data/train/{name}/seed-42/model.safetensors").exists()
        assert trained == (score["spec"]["score"] == "network")
        if trained:
            steps = [
                line.split("\t")[0] for line in Path(f"data/train/{name}/seed-42/loss.tsv").read_text().splitlines()
            ]
            assert steps == ["step", "5", "10", "15", "20"]


@pytest.mark.parametrize("name", ["closed-kernel", "net-conditioning"])
def test_the_number_of_shards_changes_nothing(project, name):
    run_plain("train", name)
    digests = []
    for shards in (1, 7):
        tree = load_tree()
        tree["sample"]["shards"] = shards
        write_params(tree)
        run_plain("sample", name)
        digests.append(outs(name))
    assert digests[0] == digests[1]


def test_running_twice_gives_identical_files(project):
    digests = []
    for _ in range(2):
        run_plain("train", "net-temperature-pixel")
        run_plain("sample", "net-temperature-pixel")
        digests.append(outs("net-temperature-pixel"))
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"power": "d"},
        {"precision": "scheduled"},
        {"smooth_below": 0.5},
        {"temperature": "2/sigma"},
        {"radius": 1.02},
    ],
)
def test_a_networks_target_is_the_one_that_its_variant_describes(project, options):
    """sigma s_T over the listed neighbours in float64, at levels below and above smooth_below."""
    tree, options = load_tree(), dict(options)
    spec = tree["variants"]["net-temperature-pixel"]
    spec["neighbors"]["radius"] = options.pop("radius", None)
    spec |= {"smooth_below": None, **options}
    shard = train.plan(train.Params.from_tree(tree, "net-temperature-pixel"))[0].at("out.safetensors")
    training = make_trainer(shard, torch.device("cpu"), ALONE).training
    x0, near = training.data.take(torch.arange(6))
    sigma, z = torch.tensor([0.1, 0.3, 0.45, 0.6, 1.5, 2.9]), torch.randn(x0.shape)
    got = training.target(x0, sigma, z, near)
    for i in range(6):
        temperature = max(2 / float(sigma[i]), 1.0) if "temperature" in options else 30.0
        wanted = -z[i].double().flatten()
        if sigma[i] < options.get("smooth_below", 100.0) and temperature > 1:
            x = (x0[i] + sigma[i] * z[i]).double().reshape(1, -1)
            wanted = sigma[i] * unconditioning(
                make_centres(near[i]), x, temperature, power={"d": 64}.get(options.get("power"), 62), nearest=K,
                precision=spec.get("precision", "optimal"), sigma=sigma[i : i + 1].double(),
                radius=spec["neighbors"]["radius"],
            )[0]  # fmt: skip
        torch.testing.assert_close(got[i].flatten().double(), wanted, rtol=1e-4, atol=1e-4)


def test_a_change_of_the_sampler_trains_nothing_again(project):
    tree = load_tree()
    before = train.plan(train.Params.from_tree(tree, "net-conditioning"))
    tree["variants"]["net-conditioning"]["sampler"]["levels"] = 17
    assert train.plan(train.Params.from_tree(tree, "net-conditioning")) == before
    tree["train"]["optimization"]["steps"] = 21
    assert train.plan(train.Params.from_tree(tree, "net-conditioning")) != before


def test_shards_cut_between_batches(project):
    params = sample.Params.from_tree(load_tree(), "closed-conditioning")
    cuts = [(shard.settings["start"], shard.settings["stop"]) for shard in sample.plan(params)]
    assert cuts == [(0, 8), (8, 16), (16, 23)]


@pytest.mark.parametrize(
    ("k", "message"),
    [
        (COUNT + 1, r"neighbors.k is 31 but the training set has 30 images.*ingest.train"),
        (K + 2, r"neighbors.k is 10 but .*pixel_neighbors.arrow lists 8.*index.neighbors to 9"),
    ],
)
def test_more_neighbours_than_there_are_is_one_clear_line(project, k, message):
    tree = load_tree()
    tree["variants"]["net-temperature-pixel"]["neighbors"]["k"] = k
    write_params(tree)
    with pytest.raises(ValueError, match=message):
        run_plain("train", "net-temperature-pixel")


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("train", "data/deduplicate/train.arrow"),
        ("train", "data/index/pixel_neighbors.arrow"),
        ("sample", "data/train/net-temperature-pixel/seed-42/model.safetensors"),
        ("sample", "data/train/net-temperature-pixel/score.json"),
    ],
)
def test_an_input_that_is_not_there_is_one_clear_line(project, stage, gone):
    if stage == "sample":
        run_plain("train", "net-temperature-pixel")
    Path(gone).unlink()
    with pytest.raises(InputError, match=rf"^{gone} is missing: run the stage that writes it"):
        run_plain(stage, "net-temperature-pixel")
    assert not Path(f"data/{stage}/net-temperature-pixel/samples.arrow").exists()


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"spec": {"score": "closed-form"}, "noise": {}}', '{"spec": 3, "noise": 4}']
)
@pytest.mark.parametrize("name", ["closed-conditioning", "net-conditioning"])
def test_a_score_json_that_describes_no_score_is_one_clear_line(project, name, text):
    run_plain("train", name)
    Path(f"data/train/{name}/score.json").write_text(text)
    with pytest.raises(InputError, match=r"score\.json does not describe a score .*: rerun its train stage"):
        run_plain("sample", name)


def test_gradient_ascent_says_where_each_sample_stopped(project):
    """By hand: the first step after which the distance to the nearest training image over sqrt d is below the bound."""
    tree = load_tree()
    sampler = {"name": "gradient-ascent", "levels": 60, "step": 0.2, "stop_below": 0.05}
    tree["variants"] = {"ascent": {"score": "closed-form", "form": "unconditioning", "sampler": sampler}}
    write_params(tree)
    run_plain("train", "ascent")
    run_plain("sample", "ascent")
    stopped = json.loads(Path("data/sample/ascent/sample.json").read_text())["stopped"]
    images, score = read_images("data/deduplicate/train.arrow").images, read_json("data/train/ascent/score.json")
    model = load_model(score, {**sampler, "snr": None, "exact_below": None}, images, None, "cpu")
    flat = images.reshape(COUNT, -1) / 255
    states = torch.stack(list(trajectory(model, tree["sample"]["seed"], torch.arange(23)))).double().numpy()
    gaps = states.reshape(*states.shape[:2], 1, -1) - flat
    level = np.sqrt(np.square(gaps).sum(-1).min(-1) / 64)
    first = (level < 0.05).argmax(0)
    assert stopped["step"] == (first + 1).tolist()
    np.testing.assert_allclose(stopped["level"], level[first, np.arange(23)], rtol=1e-5)
    assert stopped["below"] == 23
    assert len(set(first)) > 1


def test_neighbours_of_other_images_are_not_trained_on(project):
    """Lists are rows: of another order of the same images they would be other neighbours."""
    path = "data/index/pixel_neighbors.arrow"
    lists = read_neighbors(path)
    write_neighbors(path, dataclasses.replace(lists, ids=lists.ids[::-1]))
    with pytest.raises(InputError, match=r"pixel_neighbors.arrow does not list the images of .*rerun stage index"):
        run_plain("train", "net-temperature-pixel")


@pytest.mark.faults
def test_killed_training_resumes_and_ends_with_identical_weights(project):
    """kill -9 after a checkpoint: the next run starts from it, not from the beginning."""
    tree = load_tree()
    tree["train"]["optimization"]["steps"] = 120
    write_params(tree)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "stages.train", "--variant", "net-conditioning"]
    child = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    plain = Path(".scoresmooth/plain")
    while not list(plain.glob("train-*/*.scratch/checkpoint-*.safetensors")):
        assert child.poll() is None, "training ended before it could be killed"
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not Path("data/train/net-conditioning/seed-42/model.safetensors").exists()
    resumed = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=True)
    assert "  0%" not in resumed.stderr.splitlines()[0].split("\r")[0], resumed.stderr[:200]
    killed = outs("net-conditioning")
    subprocess.run(command, env=environment, stderr=subprocess.DEVNULL, check=True)
    assert outs("net-conditioning") == killed
