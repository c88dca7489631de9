"""The largest noise level fits the images: their spread, `sigma_max: auto`, and what samplers make of it."""

import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from diffusion_project import small_params, write_params
from PIL import Image
from scipy.spatial.distance import pdist

from stages.diffusion.parameters import NoiseChoice, NoiseParams
from stages.diffusion.spread import Spread, read_spread, resolve
from stages.errors import InputError
from stages.files.artifacts import read_json, write_json
from stages.files.images import read_images
from stages.files.paths import SPREAD
from stages.images import spread as spreading
from stages.images.spread import spread
from stages.protocol import load_tree, run_plain
from stages.reporting.checks import even_draws
from stages.search.nearest import nearest
from stages.train import Params, plan

ROOT = Path(__file__).parents[2]
CIFAR = ROOT.parent / "shared" / "data" / "cifar10-jpeg" / "train.parquet"
VARIANT = "closed-conditioning"


@pytest.mark.parametrize("block", [1, 70, 1 << 24])
@pytest.mark.parametrize("shape", [(1, 3, 3, 1), (2, 3, 3, 1), (60, 2, 2, 3), (200, 3, 3, 1)])
def test_the_spread_is_that_of_all_pairs(shape, block, monkeypatch):
    """Of images with and without a common direction of brightness."""
    monkeypatch.setattr(spreading, "BLOCK", block)
    generator = np.random.default_rng(1)
    noise = generator.integers(0, 256, shape, dtype=np.uint8)
    bright = (noise / 8 + np.linspace(0, 220, shape[0])[:, None, None, None]).astype(np.uint8)
    for images in (noise, bright, bright[:, :1, :1, :1] * np.ones(shape, np.uint8)):
        pixels = images.reshape(len(images), -1) / 255
        found, norms = spread(images), np.square(pixels).sum(axis=1)
        assert found["largest_distance"] == pytest.approx(max(pdist(pixels), default=0), rel=1e-12)
        assert (found["least_norm"], found["largest_norm"]) == pytest.approx((norms.min(), norms.max()), rel=1e-12)


def test_auto_reaches_the_largest_distance_and_leaves_a_lead_of_one_nat():
    far, bright = Spread(1.0, 2.0, 7.3612), Spread(100.0, 900.0, 7.3612)
    assert far.sigma_max == 7.37
    assert bright.sigma_max == 20.0
    assert bright.lead(20.0) == 1.0
    assert Spread(0.0, 0.0, 51.67407).sigma_max == 51.7
    assert Spread(0.0, 0.0, 123.4).sigma_max == 124.0
    choice = NoiseChoice(sigma_min=0.05, sigma_max="auto")
    assert resolve(choice, far) == NoiseParams(sigma_min=0.05, sigma_max=7.37)
    assert resolve(NoiseChoice(sigma_min=0.05, sigma_max=3.0), far).sigma_max == 3.0


def test_equal_training_images_have_no_level(project):
    with pytest.raises(InputError, match=r"train\.noise\.sigma_max: auto gives 0.*give a number above it"):
        resolve(NoiseChoice(sigma_min=0.05, sigma_max="auto"), Spread(1.0, 1.0, 0.0))
    write_json(SPREAD, {"largest": 1})
    with pytest.raises(InputError, match=r"spread\.json does not describe .* rerun deduplicate"):
        read_spread()
    SPREAD.unlink()
    with pytest.raises(InputError, match=r"spread\.json is missing"):
        read_spread()


def test_auto_is_resolved_once_and_written_into_the_score(project):
    """A training at `auto` and one at that number are the same work."""
    tree = small_params()
    tree["train"]["noise"]["sigma_max"] = "auto"
    write_params(tree)
    run_plain("train", "net-conditioning")
    score, fitting = read_json("data/train/net-conditioning/score.json"), read_spread().sigma_max
    assert score["noise"] == {"sigma_min": 0.05, "sigma_max": fitting}
    assert score["start"]["chosen"] == "auto"
    assert score["start"]["lead"] <= 1
    planned = plan(Params.from_tree(tree, "net-conditioning"))
    tree["train"]["noise"]["sigma_max"] = fitting
    assert plan(Params.from_tree(tree, "net-conditioning")) == planned
    run_plain("sample", "net-conditioning")


def use_own_images(folder, side, channels, sigma_max, levels, count):
    """params.yaml as README says, for images in a folder; the closed form draws as many samples as there are images."""
    tree = load_tree(ROOT / "params.yaml")
    tree["ingest"] |= {"source": f"folder:{folder}", "resolution": side, "channels": channels, "train": count}
    tree["ingest"] |= {"test": 2, "holdout": 2, "shards": 1}
    tree["train"]["noise"]["sigma_max"] = sigma_max
    tree["sample"] |= {"count": count, "shards": 1}
    tree["variants"][VARIANT]["sampler"]["levels"] = levels
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for stage in ("ingest", "deduplicate"):
        run_plain(stage)
    for stage in ("train", "sample"):
        run_plain(stage, VARIANT)


def distinct_copies():
    """How many samples copy a training image, how many different ones they copy, and how many there are."""
    train = read_images("data/deduplicate/train.arrow")
    row, squared = nearest(read_images(f"data/sample/{VARIANT}/samples.arrow").flat, train.flat, 2)
    copied = squared[:, 0] < squared[:, 1] / 9
    return copied.sum(), len(np.unique(row[copied, 0])), len(train)


def write_folder(pictures):
    for number, picture in enumerate(pictures):
        path = Path(f"own/{number:04d}.png")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture)
    return "own"


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def test_own_images_of_strongly_different_brightness_are_copied_alike(tmp_path, monkeypatch):
    """At sigma_max 3, which fits the digits, a few dark images take all samples."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(4)
    level = np.linspace(10, 210, 64)[:, None, None, None]
    images = (level + generator.integers(0, 40, (64, 16, 16, 3))).astype(np.uint8)
    folder = write_folder(map(png, images))
    use_own_images(folder, 16, 3, "auto", 60, 60)
    copies, distinct, count = distinct_copies()
    expected, deviation = even_draws(60, 60)
    assert (copies, count) == (60, 60)
    assert distinct >= expected - 3 * deviation
    use_own_images(folder, 16, 3, 3.0, 60, 60)
    assert distinct_copies()[1] < 20
    start = read_json(f"data/train/{VARIANT}/score.json")["start"]
    assert start["lead"] > 10
    assert start["fitting_sigma_max"] > 15


@pytest.mark.skipif(not CIFAR.is_file(), reason="needs CIFAR-10 in ../shared/data")
def test_the_recipe_for_own_images_copies_all_of_a_hundred_photographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = pq.read_table(CIFAR, columns=["image"]).slice(0, 104)["image"].to_pylist()
    use_own_images(write_folder(picture["bytes"] for picture in pictures), 32, 3, "auto", 100, 100)
    copies, distinct, count = distinct_copies()
    expected, deviation = even_draws(100, 100)
    assert (copies, count) == (100, 100)
    assert distinct >= expected - 3 * deviation
