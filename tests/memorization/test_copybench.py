"""The planted benchmark: what it plants, its thresholds, its table, and detectors against their definitions."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from saved import save
from typer.testing import CliRunner

from pipeline.cli import app
from stages.copybench import Options, run
from stages.errors import InputError
from stages.files.artifacts import sha256_file
from stages.files.images import read_images
from stages.images.sources.open import open_source
from stages.memorization.copybench import measure, plant_benchmark, threshold, variants
from stages.memorization.detectors import cosine_score, encoder, pixel_scores
from stages.memorization.planting import plant
from stages.memorization.statistics import rate_interval


@pytest.fixture
def source(digits, tmp_path):
    """500 digits."""
    return open_source(save(tmp_path / "digits.npy", digits[:500]))


def test_the_benchmark_is_its_seed_and_what_it_says(source, digits):
    bench, again = (plant_benchmark(source, 200, 100, 6, seed=3, resolution=None) for _ in range(2))
    assert bench.about == again.about
    assert np.array_equal(bench.queries, again.queries)
    assert plant_benchmark(source, 200, 100, 6, seed=4, resolution=None).about["digests"] != bench.about["digests"]
    assert (len(bench.train), len(bench.threshold), len(bench.control)) == (200, 50, 50)
    assert len(bench.planted) == 6 * len(variants())
    sets = [{image.tobytes() for image in part} for part in (bench.train, bench.threshold, bench.control)]
    assert len(set.union(*sets)) == len(
        {image.tobytes() for image in np.concatenate([bench.train, bench.queries[:100]])}
    )
    assert set.union(*sets) <= {image.tobytes() for image in digits[:500]}
    exact = bench.kind == "exact"
    assert np.array_equal(bench.planted[exact], bench.train[bench.original[exact]])
    mirrored = bench.kind == "mirrored"
    assert np.array_equal(bench.planted[mirrored], plant(bench.train[bench.original[mirrored]], "mirrored", 3))
    with pytest.raises(InputError, match="holds 500 images, 600 are needed: lower --train or --holdout"):
        plant_benchmark(source, 500, 100, 6, seed=3, resolution=None)


def test_the_threshold_leaves_its_share_below():
    scores = np.random.default_rng(0).permutation(np.arange(1000.0))
    assert (scores < threshold(scores)).sum() == 2  # 0.25 % of 1,000, rounded down
    assert (scores[:300] < threshold(scores[:300])).sum() == 0


def test_recall_and_false_positives_are_counted(source):
    bench = plant_benchmark(source, 100, 40, 5, seed=0, resolution=None)
    scores = np.concatenate([np.full(20, 0.5), np.arange(20) / 20, np.where(bench.kind == "jpeg 60", 0.1, 0.9)])
    found = measure(bench, scores)
    assert found["threshold"] == 0.5
    assert (found["false_positives"]["flagged"], found["false_positives"]["count"]) == (10, 20)
    assert {kind for kind, rate in found["recall"].items() if rate["flagged"]} == {"jpeg 60"}
    assert (found["recall"]["jpeg 60"]["ci_low"], found["recall"]["jpeg 60"]["ci_high"]) == rate_interval(5, 5)
    scores[3] = np.nan
    with pytest.raises(InputError, match="one number for every image"):
        measure(bench, scores)


def test_scores_of_pixels_by_brute_force(source):
    bench = plant_benchmark(source, 120, 20, 3, seed=0, resolution=None)
    found = pixel_scores(bench.train, bench.queries)
    train, images = (some.reshape(len(some), -1).astype(float) / 255 for some in (bench.train, bench.queries))
    distance = np.sqrt(((images[:, None] - train[None]) ** 2).mean(2))
    own = np.sqrt(((train[:, None] - train[None]) ** 2).mean(2)) + np.where(np.eye(120), np.inf, 0)
    near = np.sort(distance, axis=1)
    assert found["distance"] == pytest.approx(near[:, 0])
    assert found["r1/r2"] == pytest.approx(near[:, 0] / near[:, 1])
    assert found["carlini"] == pytest.approx(near[:, 0] / near[:, :50].mean(1))
    assert found["authenticity"] == pytest.approx(near[:, 0] / own[distance.argmin(1)].min(1))
    assert (found["rho*"][20:23] == 0).all()  # the copies "exact"


def test_the_cosine_is_the_nearest_one():
    generator = np.random.default_rng(0)
    train, images = (
        generator.integers(0, 256, (7, 4, 4, 3), np.uint8),
        generator.integers(0, 256, (5, 4, 4, 3), np.uint8),
    )
    found = cosine_score(train, images, encoder("cosine:pixels", 4))
    a, b = (some.reshape(len(some), -1) / 255.0 for some in (images, train))
    expected = [1 - max(x @ y / np.linalg.norm(x) / np.linalg.norm(y) for y in b) for x in a]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_torchscript_file_is_run_only_with_its_digest(tmp_path):
    """With the input that SSCD's files take: resized, three channels, ImageNet's mean and deviation."""
    path = tmp_path / "network.torchscript.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())).save(path)
    name = f"torchscript:{path}?sha256={sha256_file(path)}&size=16"
    image = np.full((1, 8, 8, 1), 128, np.uint8)
    expected = (128 / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert encoder(name, 8, "cpu")(image)[0] == pytest.approx(expected, abs=1e-5)
    for wrong in (name.replace(sha256_file(path), "0" * 64), name.replace("network", "lost")):
        with pytest.raises(InputError, match="there is no file with the sha256"):
            encoder(wrong, 8, "cpu")
    with pytest.raises(InputError, match="write cosine:ENCODER or torchscript:PATH"):
        encoder(f"torchscript:{path}", 8, "cpu")


def test_the_command_writes_everything_and_finds_the_exact_copies(source, tmp_path, capsys):
    options = {"source": source.spec, "train": 200, "holdout": 200, "copies": 5, "detector": ["cosine:pixels"]}
    results = run(Options(**options, out=tmp_path / "python"))
    capsys.readouterr()
    arguments = [part for name, value in options.items() if name != "detector" for part in (f"--{name}", str(value))]
    done = CliRunner().invoke(
        app, ["copybench", *arguments, "--detector", "cosine:pixels", "--out", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {
        "benchmark.json", "results.json", "results.md", "planted.parquet", "train.arrow", "threshold.arrow",
        "control.arrow", "planted.arrow",
    }  # fmt: skip
    for name in ("results.json", "benchmark.json", "planted.arrow"):
        assert (out / name).read_bytes() == (tmp_path / "python" / name).read_bytes()
    planted = pq.read_table(out / "planted.parquet")
    assert planted["planted_id"].to_pylist() == read_images(out / "planted.arrow").ids
    assert (
        planted["train_id"].to_pylist() == read_images(out / "train.arrow").take(planted["train_index"].to_numpy()).ids
    )
    assert {name: found["recall"]["exact"]["rate"] for name, found in results.items()} == dict.fromkeys(results, 1.0)
    assert set(results) == {"rho*", "r1/r2", "carlini", "authenticity", "distance", "cosine:pixels"}
    assert results["rho*"]["recall"]["mirrored"]["rate"] == 1
    assert results["r1/r2"]["recall"]["mirrored"]["rate"] < 0.5
    assert "| exact | 100 [57, 100] |" in (out / "results.md").read_text()
    assert json.loads((out / "benchmark.json").read_text())["version"] == 2
