"""Mixtures of training images are blends and no copies, whatever change of the family they resemble."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from pictures import smooth

from stages.audit import run
from stages.memorization import mixtures as hulls
from stages.memorization import planting
from stages.memorization.audit_settings import audit_params
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.metrics import Searched, blended, calibrated_by
from stages.memorization.mixtures import SEVERAL
from stages.memorization.scores import scores
from stages.memorization.thresholds import copies

WEIGHTS = {"mean of 2": [0.5, 0.5], "mixture of .6 and .4": [0.6, 0.4], "mean of 8": [1 / 8] * 8}


def mixtures(images: np.ndarray, weights: list[float], count: int, seed: int = 0) -> np.ndarray:
    """Mixtures of images of different rows, drawn with the seed."""
    rows = np.random.default_rng(seed).permuted(np.tile(np.arange(len(images)), (count, 1)), axis=1)[:, : len(weights)]
    return np.rint(np.einsum("k,nkhwc->nhwc", weights, images[rows].astype(float))).astype(np.uint8)


@pytest.fixture(scope="module")
def reference():
    """130 images, and a second copy of the first 10 with noise, in one group with it."""
    images = smooth(130, 32, 3)
    again = planting.plant(images[:10], "noise", 3, 0.01)
    return whole_reference(np.concatenate([images, again]), np.concatenate([np.arange(130), np.arange(10)]))


@pytest.fixture(scope="module")
def searched(reference):
    """Images to what is found of them."""
    return lambda images: Searched.of(
        Matches(**with_groups(match(images, reference), images, reference), dimension=images[0].size), 1.0
    )


@pytest.fixture(scope="module")
def thresholds(searched):
    return calibrated_by(searched(smooth(120, 32, 3, 7)), 1.0)


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_mixtures_are_blends_and_no_copies(reference, searched, thresholds, weights):
    found = searched(mixtures(reference.images[10:130], weights, 100))
    assert copies(found.scores.best, thresholds).mean() <= 0.01
    near = found.matches.hull < thresholds.blend  # what the filter calls blends
    assert near.mean() > 0.5
    assert blended(found, thresholds)[near].mean() >= 0.9


def test_the_size_of_a_block_changes_no_bit(reference, monkeypatch):
    """Blocks without a suspect, too: the first images are of another set."""
    plain = [smooth(20, 32, 3, 5), mixtures(reference.images[10:130], [0.5, 0.5], 25)]
    images = np.concatenate([*plain, planting.plant(reference.images[:20], "grey", 3)])
    found = match(images, reference)
    whole = with_groups(found, images, reference)
    monkeypatch.setattr(hulls, "BLOCK", 7)
    parts = with_groups(found, images, reference)
    assert (whole["mixture"] != whole["hull"]).any()
    assert whole.keys() == parts.keys()
    for name, values in whole.items():
        assert values.tobytes() == parts[name].tobytes(), name


@pytest.mark.parametrize("kind", ["exact", "noise", "jpeg", "grey", "contrast", "boxed"])
def test_a_copy_of_a_repeated_image_is_made_of_one(reference, searched, thresholds, kind):
    """Its group counts as one image of the hull."""
    found = searched(planting.plant(reference.images[:10], kind, 1))
    assert copies(found.scores.best, thresholds).all()
    if kind in ("exact", "noise", "jpeg"):
        assert (found.matches.effective < SEVERAL).all()


def test_an_audit_counts_blends(tmp_path):
    train, unseen = smooth(120, 16, 3), smooth(160, 16, 3, 9)
    means = [mixtures(train, weights, 10, seed) for seed, weights in enumerate(WEIGHTS.values())]
    samples = np.concatenate([planting.plant(train[:10], "grey", 0), train[10:20], *means, unseen[100:]])
    sets = {"train": train, "samples": samples, "holdout": unseen[:100]}
    for role, images in sets.items():
        np.save(tmp_path / f"{role}.npy", images)
    specs = {role: f"npz:{tmp_path / role}.npy" for role in sets}
    run(audit_params(**specs, out=str(tmp_path / "out"), encoder="pixels"), quiet=True)
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    pairs = pq.read_table(tmp_path / "out" / "pairs.parquet").sort_by("sample_index").to_pylist()
    verdicts = [pair["verdict"] for pair in pairs]
    assert verdicts[:20] == ["copy"] * 20
    assert not {"copy", "near_copy"} & set(verdicts[20:50])
    assert verdicts[20:50].count("blend") >= 27
    assert verdicts.count("blend") == result["verdicts"]["blend"]
    assert all(pair["mixture_effective_number"] > SEVERAL for pair in pairs if pair["verdict"] == "blend")
    assert all(pair["mixture_distance"] < result["thresholds"]["blend"] for pair in pairs if pair["verdict"] == "blend")
    words = f"{result['verdicts']['blend']} blend"
    assert words in (tmp_path / "out" / "model-card.md").read_text()
    assert "blends" in (tmp_path / "out" / "report.html").read_text()


def test_scores_of_a_change_stand_where_it_explains_more(reference, searched):
    """A grey copy leaves nothing unexplained, so no hull, though near, takes its place."""
    found = searched(planting.plant(reference.images[20:40], "grey", 1))
    assert not np.isnan(scores(found.matches).rho[:, 4]).any()
