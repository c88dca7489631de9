"""Images and audits that the tests of this folder share."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from saved import save

from stages.audit import audit_params, run
from stages.images.decode import to_pixels
from stages.images.sources.open import open_source


@pytest.fixture(scope="session")
def digits() -> np.ndarray:
    """900 digits of 14 × 14 in random order, uint8 (900, 14, 14, 1)."""
    source = open_source("mnist5k")
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[:900])
    images = np.stack([to_pixels(item.image, 14, 1) for item in source.read(rows)])
    return images[np.random.default_rng(1).permutation(900)]


@pytest.fixture
def audit(tmp_path):
    """audit(train, samples, holdout, **options) -> (exit code, audit.json, pairs by sample)."""

    def call(train, samples, holdout=None, **options):
        sets = {"train": train, "samples": samples, "holdout": holdout}
        specs = {
            role: images if isinstance(images, str) else save(tmp_path / f"{role}.npy", images)
            for role, images in sets.items()
            if images is not None
        }
        out = options.pop("out", tmp_path / "out")
        code = run(audit_params(**specs, out=str(out), encoder="pixels", **options), quiet=True)
        return code, json.loads((out / "audit.json").read_text()), pq.read_table(out / "pairs.parquet")

    return call
