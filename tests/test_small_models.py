"""The small networks that several benchmarks share: their variants are those of the presets, of any size."""

import numpy as np
import pytest

from benchmarks import small_models
from stages.protocol import load_tree

GPU = "onset-cifar10"


@pytest.fixture
def of_gpu_size():
    small_models.use(GPU)
    yield
    small_models.use(small_models.DEFAULT)


def test_the_variants_are_those_of_the_presets():
    for name in ("onset", "adaptive-temperature"):
        own = load_tree(small_models.ROOT / "pipeline" / "presets" / f"{name}.yaml")["variants"]
        assert {key: small_models.ENTRIES[key] for key in own} == own


def test_another_preset_brings_its_images_levels_network_and_variants(of_gpu_size):
    assert (small_models.SIDE, small_models.NOISE.sigma_max) == (32, 20.0)
    assert small_models.network().channels == 64
    assert small_models.variant("smoothed").temperature == 100
    assert small_models.variant("nonexpansive").smooth_below == small_models.variant("smoothed").smooth_below
    assert small_models.optimization().decay == "constant", "a snapshot equals the network of a shorter training"
    assert small_models.TREE["ingest"]["source"] == "torchvision:CIFAR10"


def test_a_network_of_the_larger_preset_trains_and_draws(of_gpu_size, tmp_path):
    train = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3)).astype(np.uint8)
    ((step, network),) = small_models.snapshots("smoothed", train, 0, [1], tmp_path)
    assert step == 1
    assert small_models.samples(small_models.variant("smoothed"), network, train, 2).shape == (2, 32, 32, 3)
    assert len(list(tmp_path.iterdir())) == 1
    small_models.use(small_models.DEFAULT)
    train = small_models.drawn(12, 10, 0)[0]
    assert train.shape == (12, 8, 8, 1)
    list(small_models.snapshots("smoothed", train, 0, [1], tmp_path))
    assert len(list(tmp_path.iterdir())) == 2, "networks of one preset never stand for those of another"
