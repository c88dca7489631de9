"""Training by several processes (gloo on the CPU) against one, and checkpoints that belong elsewhere."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusion_project import ROOT, VARIANT, with_processes

from stages import train
from stages.diffusion.checkpoint import newest
from stages.diffusion.distributed import World, reported_error
from stages.errors import InputError
from stages.files.images import image_table, write_images
from stages.files.tensors import load_tensors, save_tensors
from stages.protocol import Shard, load_tree, main, run_plain

LEARNING_RATE, STEPS = 2e-3, 20


def trained():
    tensors, metadata = load_tensors(f"data/train/{VARIANT}/seed-42/model.safetensors")
    assert metadata["image_shape"] == [1, 8, 8]
    return tensors, Path(f"data/train/{VARIANT}/seed-42/loss.tsv").read_text()


def test_two_processes_give_the_weights_of_one(project, environment):
    """The same global batches, levels and noise: only the order of summation differs. Started by torchrun by hand.

    The gradients agree to float32 rounding (1e-7, summed over 4 images and all-reduced). AdamW divides them by their
    own size, so where a gradient is itself of the size of its rounding the steps may differ by all of 2 x learning
    rate; elsewhere by about 1e-6 of a step. Hence two bounds: 2 x 20 steps x rate for every weight, and a
    hundredth of one step for 99 % of them. The loss curve agrees to 4 digits.
    """
    runs = {}
    with_processes(1)
    run_plain("train", VARIANT)
    runs[1] = trained()
    with_processes(2)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    subprocess.run([*command, "stages.train", "--variant", VARIANT], check=True, capture_output=True)
    runs[2] = trained()
    assert not list(Path(".scoresmooth/plain").glob("train-*"))
    assert runs[1][0].keys() == runs[2][0].keys()
    difference = torch.cat([(runs[1][0][name] - runs[2][0][name]).abs().flatten() for name in runs[1][0]])
    assert 0 < float(difference.max()) < 2 * STEPS * LEARNING_RATE
    assert float(difference.quantile(0.99)) < 0.01 * LEARNING_RATE
    rows = [[line.split("\t") for line in runs[count][1].splitlines()[1:]] for count in (1, 2)]
    for one, two in zip(*rows, strict=True):
        assert [float(v) for v in one] == pytest.approx([float(v) for v in two], rel=1e-4, nan_ok=True)


@pytest.mark.faults
def test_a_terminated_run_of_two_processes_saves_where_it_stopped(project, environment):
    """SIGTERM to the process that started torchrun reaches both; the first one writes the checkpoint."""
    with_processes(2, steps=100000, checkpoint_every=100000, log_every=5)
    child = subprocess.Popen([sys.executable, "-m", "stages.train", "--variant", VARIANT], stderr=subprocess.PIPE)
    scratch = Path(".scoresmooth/plain")
    while not list(scratch.glob("train-*/*.scratch/loss.tsv")):
        assert child.poll() is None, child.stderr.read().decode()[-2000:]
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    _, words = child.communicate(timeout=100)
    assert child.returncode == 143, words.decode()[-2000:]
    (folder,) = scratch.glob("train-*/*.scratch")
    assert load_tensors(newest(folder))[1]["step"] >= 5
    assert not Path(f"data/train/{VARIANT}").exists()


def test_a_batch_that_cannot_be_split_is_refused_before_any_process_starts(project):
    with_processes(3)
    with pytest.raises(InputError, match=r"train\.optimization\.batch 4 cannot be split evenly over 3 processes"):
        run_plain("train", VARIANT)


@pytest.mark.parametrize(("rank", "written"), [(0, True), (1, False)])
def test_wrong_input_in_the_processes_is_left_for_the_one_that_started_them(project, rank, written):
    with_processes(2)
    (shard,) = train.plan(train.Params.from_tree(load_tree(), VARIANT))
    shard = shard.at(project / "out.safetensors")
    with pytest.raises(InputError), reported_error(shard.scratch / "error.txt", World(rank, 2)):
        raise InputError("x is wrong")
    assert (shard.scratch / "error.txt").exists() == written


def test_the_number_of_processes_is_the_one_asked_for(project, environment, monkeypatch):
    with_processes(4)
    (shard,) = train.plan(train.Params.from_tree(load_tree(), VARIANT))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"train\.processes is 4 and torchrun started 2: make them equal"):
        train.work(shard.at(project / "out.safetensors"))


@pytest.mark.parametrize(("size", "batch"), [(1, 7), (2, 8), (4, 8)])
def test_parts_of_a_batch_cover_it(size, batch):
    spans = [World(rank, size).span(batch) for rank in range(size)]
    assert [n for start, stop in spans for n in range(start, stop)] == list(range(batch))


def test_another_variants_weights_are_refused_by_name(project):
    for name in ("net-conditioning", "net-unconditioning"):
        run_plain("train", name)
    one, other = (
        Path(f"data/train/{name}/seed-42/model.safetensors") for name in ("net-conditioning", "net-unconditioning")
    )
    one.write_bytes(other.read_bytes())
    words = (
        r"net-conditioning/seed-42/model\.safetensors holds the weights of another score \(net-unconditioning\): "
        r'spec\.form "unconditioning" there, "conditioning" here: rerun train'
    )
    with pytest.raises(InputError, match=words):
        run_plain("sample", "net-conditioning")
    assert not Path("data/sample").exists()


def test_weights_for_another_resolution_are_refused_by_name(project):
    run_plain("train", VARIANT)
    pixels = torch.randint(0, 256, (30, 16, 16, 1), dtype=torch.uint8).numpy()
    write_images("data/deduplicate/train.arrow", image_table(pixels))
    words = r"seed-42/model\.safetensors was trained on images of 8 x 8 x 1, these are 16 x 16 x 1: rerun train"
    with pytest.raises(InputError, match=words):
        run_plain("sample", VARIANT)


def test_a_truncated_model_is_refused_by_name(project, monkeypatch, capsys):
    """One line, exit code 2 and no samples, wherever the file ends."""
    run_plain("train", VARIANT)
    path = Path(f"data/train/{VARIANT}/seed-42/model.safetensors")
    whole = path.read_bytes()
    monkeypatch.setattr(sys, "argv", ["stages.sample", "--variant", VARIANT])
    for size in (0, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SystemExit) as stopped:
            main("sample")
        assert stopped.value.code == 2
        assert f"error: {path} is damaged" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("data/sample").exists()


def test_weights_that_are_not_finite_are_refused_by_name(project):
    run_plain("train", VARIANT)
    path = f"data/train/{VARIANT}/seed-42/model.safetensors"
    tensors, metadata = load_tensors(path)
    tensors["head.weight"][0, 0, 0, 0] = float("nan")
    save_tensors(path, tensors, metadata)
    with pytest.raises(
        InputError, match=r"model\.safetensors holds weights that are not finite \(head\.weight\): rerun"
    ):
        run_plain("sample", VARIANT)
    assert not Path("data/sample").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_diverges_is_one_line_and_leaves_no_model(project, environment, monkeypatch, capsys, processes):
    with_processes(processes, learning_rate=1e30)
    monkeypatch.setattr(sys, "argv", ["stages.train", "--variant", VARIANT])
    with pytest.raises(SystemExit) as stopped:
        main("train")
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"error: the (loss|gradient) is (nan|inf) at step \d+.*: lower train.optimization.learning_rate", last
    )
    assert not Path("data/train").exists()


def test_a_foreign_safetensors_file_is_refused_by_name(project):
    run_plain("train", VARIANT)
    save_tensors(f"data/train/{VARIANT}/seed-42/model.safetensors", {"x": torch.zeros(2)}, {})
    with pytest.raises(InputError, match=r"model\.safetensors does not say which score it holds: rerun its train"):
        run_plain("sample", VARIANT)


def test_one_shard_resumes_only_under_its_own_parameters(project):
    """The shard of a changed params.yaml, given the old one's scratch folder."""
    shards = []
    for rate in (2e-3, 3e-3):
        with_processes(1, learning_rate=rate)
        (shard,) = train.plan(train.Params.from_tree(load_tree(), VARIANT))
        shards.append(shard.at(project / "out.safetensors"))
    train.work(shards[0])
    assert newest(shards[0].scratch) is not None
    with pytest.raises(InputError, match=r"optimization\.learning_rate 0\.002 there, 0\.003 here"):
        train.work(Shard.from_json(json.dumps(json.loads(shards[1].to_json()))))


HANGS = """
import sys, time
import torch
from stages.diffusion.distributed import join
with join(2, "cpu") as (world, _):
    if world.rank == 1:
        time.sleep(600)
    world.all_gather(torch.ones(1))
"""


@pytest.mark.parametrize("joined", [True, False], ids=["in the training", "before it"])
def test_a_process_that_hangs_is_named_after_a_limit(joined):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    world = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "SCORESMOOTH_COLLECTIVE_LIMIT": "5"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", HANGS],
            env={**os.environ, **place, **world, "RANK": str(rank)},
            stderr=subprocess.PIPE,
        )
        for rank in range(2 if joined else 1)
    ]
    try:
        _, words = ranks[0].communicate(timeout=120)
        assert "TimeoutError: another process of the training did not answer for 5 s" in words.decode()
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
