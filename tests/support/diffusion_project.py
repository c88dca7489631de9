"""A project of thirty 8 x 8 images with small networks, on which stages train and sample run in a second."""

import os
from pathlib import Path

import numpy as np
import pytest
import yaml

from stages.files.artifacts import sha256_file, write_json
from stages.files.images import image_table, write_images
from stages.files.neighbors import NeighborTable, write_neighbors
from stages.files.paths import SPREAD
from stages.images.spread import spread
from stages.protocol import load_tree
from stages.search.nearest import nearest

ROOT = Path(__file__).parents[2]
COUNT, K = 30, 8
VARIANT = "net-conditioning"


def small_params():
    tree = load_tree(ROOT / "params.yaml")
    network = {"channels": 8, "multipliers": [1, 1], "patch": 2}
    optimization = {"steps": 20, "batch": 4, "checkpoint_every": 5, "log_every": 5, "warmup": 2}
    tree["train"]["network"] |= network
    tree["train"]["optimization"] |= optimization
    tree["train"] |= {"seeds": [42], "snapshots": []}
    tree["sample"] |= {"count": 23, "batch": 4, "shards": 3}
    for variant in tree["variants"].values():
        variant["sampler"]["levels"] = 6
        if variant.get("neighbors"):
            variant["neighbors"]["k"] = K
        if variant.get("kernel"):
            variant["kernel"]["draws"] = 4
    return tree


def write_params(tree):
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def with_processes(count, **optimization):
    """Write parameters with which so many processes train in float32."""
    tree = small_params()
    tree["train"]["processes"] = count
    tree["train"]["optimization"] |= {"precision": "float32", **optimization}
    write_params(tree)
    return tree


def outs(*variants):
    return {
        path: sha256_file(path) for v in variants for path in sorted(Path("data").glob(f"*/{v}/**/*")) if path.is_file()
    }


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The project's folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8, 1), dtype=np.uint8)
    table = image_table(pixels)
    write_images("data/deduplicate/train.arrow", table)
    write_json(SPREAD, spread(pixels))
    flat = pixels.reshape(COUNT, -1)
    rows, squared = nearest(flat, flat, K, exclude=np.arange(COUNT))
    lists = NeighborTable(rows.astype(np.int32), np.sqrt(squared / 64).astype(np.float32) / 255, table.ids, None, {})
    for space in ("pixel", "feature"):
        write_neighbors(f"data/index/{space}_neighbors.arrow", lists)
    write_params(small_params())
    return tmp_path


@pytest.fixture
def environment(monkeypatch):
    """The environment of processes that a test starts."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return dict(os.environ)
