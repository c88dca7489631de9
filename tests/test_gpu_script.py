"""benchmarks/gpu in its small form on a CPU: all parts, without the dispatch's packages, parts merged over runs."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import step_profile

ROOT = Path(__file__).parent.parent
WITHOUT = ("prefect", "dvc", "faiss", "diffusers", "torchvision", "matplotlib")
START = """
import runpy, sys
for name in {without!r}: sys.modules[name] = None
runpy.run_module("benchmarks.gpu", run_name="__main__", alter_sys=True)
"""


def run(folder, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-c",
        START.format(without=WITHOUT),
        "images.npz",
        "--scale",
        "small",
        "--out",
        "out",
        *arguments,
    ]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("gpu")
    images = np.random.default_rng(0).integers(0, 256, (80, 32, 32, 3), dtype=np.uint8)
    np.savez(place / "images.npz", images=images, labels=np.array([3] * 60 + [5] * 20))
    return place


def test_small_form_measures_every_part_and_merges_them(folder):
    first = run(folder, "--only", "copies", "--minutes", "0.02")
    assert first.returncode == 0, first.stderr[-2000:]
    second = run(folder, "--only", "cost", "samplers", "rate", "closed")
    assert second.returncode == 0, second.stderr[-2000:]
    found = json.loads(second.stdout.splitlines()[-1])
    assert found == json.loads((folder / "out" / "gpu.json").read_text())
    rows = found["copies"]["rows"]
    temperatures = [f"temperature {c}/sigma" for c in (1, 7, 10)]
    assert set(rows) == {"held-out images", "conditioning", "unconditioning", *temperatures}
    for name, row in rows.items():
        assert row["images"] == 30
        assert 0 <= row["mem"] <= 30
        assert 0 < row["min"] <= row["mean"] <= 1
        assert name == "held-out images" or row["steps"] > 0
    assert set(found["cost"]["rows"]) == {"conditioning", "unconditioning", "pixel neighbours", "feature neighbours"}
    assert all(row["seconds_per_step"] > 0 for row in found["cost"]["rows"].values())
    assert len(found["samplers"]["rows"]) == 7
    assert 0 < found["rate"]["rows"]["eager"]["share_of_matrix_rate"] < 1
    assert len(found["closed"]["rows"]) == 8
    assert all(row["cdist_is_off_by"] < 1e-3 for row in found["closed"]["rows"].values())


def test_the_peer_is_asked_for_before_anything_runs(folder):
    missing = run(folder)
    assert missing.returncode == 1
    assert missing.stderr == (
        "error: the part peer needs diffusers: install it, or name the others: "
        "--only cost copies samplers rate closed\n"
    )


def test_time_on_a_gpu_is_counted_once():
    """A profile lists a kernel with the operator that launched it and by itself."""

    def event(key, kind, spent, annotation=False):
        names = {"key": key, "device_type": kind, "self_device_time_total": spent, "is_user_annotation": annotation}
        return types.SimpleNamespace(**names)

    events = [
        event("aten::convolution", DeviceType.CPU, 30.0), event("sm90_xmma_fprop", DeviceType.CUDA, 30.0),
        event("triton_red_fused_convolution_group_norm_0", DeviceType.CPU, 8.0),
        event("triton_red_fused_convolution_group_norm_0", DeviceType.CUDA, 8.0),
        event("Memcpy HtoD", DeviceType.CUDA, 2.0), event("step", DeviceType.CUDA, 40.0, annotation=True),
    ]  # fmt: skip
    spent = step_profile.spent_by_kind(events, torch.device("cuda"))
    assert spent == {
        "convolutions, forward": 30, "fused by the compiler (norms, SiLU, sums)": 8, step_profile.REST: 2
    }  # fmt: skip


def test_training_resumes_from_its_checkpoint_and_other_images_are_refused(folder):
    before = json.loads((folder / "out" / "gpu.json").read_text())["copies"]["rows"]["conditioning"]["steps"]
    again = run(folder, "--only", "copies", "--minutes", "0.02")
    rows = json.loads(again.stdout.splitlines()[-1])["copies"]["rows"]
    assert rows["conditioning"]["steps"] > before
    with np.load(folder / "images.npz") as file:
        np.savez(folder / "images.npz", images=255 - file["images"], labels=file["labels"])
    other = run(folder, "--only", "copies", "--minutes", "0.02")
    assert other.returncode != 0
    assert "belongs to a training with other parameters: images" in other.stderr
