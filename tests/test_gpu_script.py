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
from benchmarks.gpu import aims

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
    second = run(folder, "--only", "cost", "samplers", "rate", "closed", "search")
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
    assert len(found["samplers"]["rows"]) == 8
    assert 0 < found["rate"]["rows"]["eager"]["share_of_matrix_rate"] < 1
    assert set(found["search"]["rows"]) == {"ours"}  # there is no faiss
    assert len(found["closed"]["rows"]) == 8
    assert all(row["cdist_is_off_by"] < 1e-3 for row in found["closed"]["rows"].values())


def test_the_same_command_again_measures_only_what_is_missing_and_shows_the_aims(folder):
    again = run(folder, "--minutes", "1")
    assert again.returncode == 0, again.stderr[-2000:]
    lines = again.stdout.splitlines()
    for part in ("cost", "closed", "search", "copies"):
        assert any(line.startswith(f"{part}: measured before") for line in lines)
    assert "peer: not measured: install diffusers" in lines
    aimed = [line for line in lines if line.endswith(("met", "MISSED", "not measured"))]
    assert sum(line.startswith("cost") for line in aimed) == 6
    assert any(line.startswith("closed") and not line.endswith("not measured") for line in aimed)
    assert any(line.startswith("search") and line.endswith("not measured") for line in aimed)


def test_a_part_that_does_not_fit_waits_for_the_next_run(tmp_path, folder):
    out = tmp_path / "other"
    late = run(folder, "--minutes", "0", "--out", str(out))
    assert late.returncode == 0, late.stderr[-2000:]
    assert "cost: no time left: run the same command again" in late.stdout


def test_results_of_another_device_are_not_mixed(folder):
    text = (folder / "out" / "gpu.json").read_text()
    (folder / "out" / "gpu.json").write_text(text.replace('"device": "cpu"', '"device": "a GPU"'))
    mixed = run(folder, "--only", "closed")
    (folder / "out" / "gpu.json").write_text(text)
    assert "is of another device, scale or torch" in mixed.stderr


def test_aims_are_met_missed_or_not_measured():
    rows = {
        "conditioning": {"over_conditioning": 1.0, "peak_gb": 16.0},
        "unconditioning": {"over_conditioning": 0.95, "peak_gb": 15.9},
        "pixel neighbours": {"over_conditioning": 1.3, "peak_gb": 17.5},
    }
    mem = {"conditioning": 128, "unconditioning": 9, "temperature 1/sigma": 11, "temperature 7/sigma": 4}
    results = {"cost": {"rows": rows}, "copies": {"rows": {name: {"mem": n} for name, n in mem.items()}}}
    found = {(aim.part, aim.what.split(",")[-1].strip()): aim.met for aim in aims.aims(results)}
    seconds = [aim.met for aim in aims.aims(results) if aim.what.startswith("seconds")]
    assert seconds == [True, False, None]
    assert [aim.met for aim in aims.aims(results) if aim.part == "copies"] == [True, False]
    assert None in found.values()


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
