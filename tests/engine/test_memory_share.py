"""Half the memory, the same bits: what a runner halves where work ran out of memory changes no result."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import torch

from stages.diffusion.scores import make_centres
from stages.engine.products import MEMORY_SHARE, affordable
from stages.features.feature_search import nearest_features
from stages.files.images import JoinedTables, image_table
from stages.images.duplicates import feature_pairs, first_rows
from stages.search import nearest as nearest_module
from stages.search import range_search
from stages.search.nearest import nearest
from stages.search.nearest_float import min_distance
from stages.search.range_search import pairs_within

RNG = np.random.default_rng(0)
LOW_RANK = 128 + 40 * RNG.standard_normal((400, 5)) @ RNG.standard_normal((5, 48)) + RNG.normal(0, 3, (400, 48))
PIXELS = np.clip(LOW_RANK, 0, 255).astype(np.uint8)
FEATURES = RNG.normal(size=(400, 37))
POINTS = torch.from_numpy(RNG.random((20, 48), dtype=np.float32))


def _feature_pairs() -> list[np.ndarray]:
    images = JoinedTables([image_table(PIXELS.reshape(-1, 4, 4, 3))])
    rows = np.unique(first_rows(images.ids))
    found = feature_pairs(images, rows, 0.02, lambda x: x.reshape(len(x), -1).astype(np.float32))
    return [found.i, found.j, found.distance]


SEARCHES: dict[str, Callable[[], list[np.ndarray]]] = {
    "nearest": lambda: list(nearest(PIXELS[:100], PIXELS, 7, exclude=np.arange(100))),
    "nearest on a device": lambda: list(nearest(PIXELS[:30], PIXELS, 7, device="cpu:0")),
    "pairs within": lambda: list(pairs_within(PIXELS, 20000)),
    "nearest features": lambda: list(nearest_features(FEATURES, FEATURES, 5, exclude=np.arange(400))),
    "least distance": lambda: [part.numpy() for part in min_distance(POINTS, PIXELS)],
    "feature pairs": _feature_pairs,
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("name", SEARCHES)
def test_less_memory_gives_the_same_bits(name, large, monkeypatch):
    """From everything in one block to blocks of a few rows, in plain products and in the scans of large searches."""
    if large:
        monkeypatch.setattr(nearest_module, "SMALL_SEARCH", 0)
        monkeypatch.setattr(range_search, "SMALL_SEARCH", 0)
    whole = SEARCHES[name]()
    assert len(whole[0])
    for share in ("0.5", "1e-5"):
        monkeypatch.setenv(MEMORY_SHARE, share)
        for before, after in zip(whole, SEARCHES[name](), strict=True):
            np.testing.assert_array_equal(before, after, strict=True)


@pytest.mark.parametrize("name", ["nearest", "pairs within", "nearest features", "feature pairs"])
def test_less_memory_is_really_less(name, monkeypatch):
    SEARCHES[name]()  # imports and compiles
    peaks = []
    for share in ("1", "1e-5"):
        monkeypatch.setenv(MEMORY_SHARE, share)
        tracemalloc.start()
        SEARCHES[name]()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0]


def test_the_share_is_of_the_amount(monkeypatch):
    monkeypatch.delenv(MEMORY_SHARE, raising=False)
    assert affordable(1 << 30) == 1 << 30
    monkeypatch.setenv(MEMORY_SHARE, "0.5")
    assert affordable(1 << 30) == 1 << 29
    assert affordable(1) == 1


def test_blocks_that_decide_on_rounding_stay(monkeypatch):
    """A closed-form score adds its centres up block by block: its last bits depend on the block."""
    images = torch.zeros((3000, 3072), dtype=torch.uint8)
    whole = make_centres(images).block
    monkeypatch.setenv(MEMORY_SHARE, "0.5")
    assert make_centres(images).block == whole
