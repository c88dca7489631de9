"""The filter stage on sets of samples whose faults are known: each measure says what it should."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from filter_inputs import TREE, write_index
from planted_images import blank, blended, digits, noised

from stages.errors import InputError
from stages.files.images import image_table, write_images
from stages.protocol import run_plain

COUNT = 120


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """300 training and 1,000 held-out digits."""
    root = tmp_path_factory.mktemp("planted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        train, holdout = digits()[:300], digits()[300:1300]
        write_images("data/deduplicate/train.arrow", image_table(train))
        write_images("data/deduplicate/holdout.arrow", image_table(holdout))
        write_index(train)
        Path("params.yaml").write_text(yaml.safe_dump(TREE))
        yield train


def filtered(samples: np.ndarray, faults: set[str] | None = None) -> tuple[dict, list[dict]]:
    """The metrics and pairs of the samples; filter.json must name exactly these faults."""
    write_images("data/sample/v/samples.arrow", image_table(samples))
    run_plain("filter", "v")
    summary = json.loads(Path("data/filter/v/filter.json").read_text())
    assert faults is None or set(summary["faults"]) == faults
    assert summary["leaks"] == []  # some held-out digits are much like a training image
    return summary["metrics"], pq.read_table("data/filter/v/pairs.parquet").to_pylist()


def rates(metrics: dict) -> tuple[float, float, float]:
    return tuple(metrics[name]["rate"] for name in ("nn_ratio_near_copy", "calibrated_distance", "blend"))


def test_copies_are_near_one_image_and_no_blends(project):
    metrics, pairs = filtered(noised(project[:COUNT], 0.01), set())
    assert rates(metrics) == (1, 1, 0)
    assert not any(pair["blend"] for pair in pairs)
    assert max(pair["effective_number"] for pair in pairs) < 1.2


@pytest.mark.parametrize("parts", [2, 8])
def test_blends_are_seen_where_the_ratio_sees_nothing(project, parts):
    metrics, pairs = filtered(blended(project, COUNT, parts))
    assert "yet no copies" in json.loads(Path("data/filter/v/filter.json").read_text())["faults"]["blend"]
    ratio, _, blend = rates(metrics)
    assert ratio < 0.05
    assert blend > 0.9
    assert metrics["blend"]["excess_low"] > 0.8
    assert np.mean([pair["blend"] for pair in pairs]) == pytest.approx(blend, abs=0.05)
    assert np.median([pair["effective_number"] for pair in pairs]) == pytest.approx(parts, rel=0.35)


@pytest.mark.parametrize("kind", ["held-out", "noisy", "blank"])
def test_what_takes_nothing_from_the_training_set_is_neither(project, kind):
    """The held-out images as samples are others than the control's."""
    fresh = digits()[1300 : 1300 + COUNT]
    samples = {"held-out": fresh, "noisy": noised(fresh), "blank": blank(fresh)}[kind]
    faults = {"held-out": set(), "noisy": {"sharp", "noisy"}, "blank": {"blank", "smooth", "collapsed"}}[kind]
    metrics, _ = filtered(samples, faults)
    assert all(rate < 0.06 for rate in rates(metrics))
    if kind == "held-out":
        for name in ("calibrated_distance", "blend"):
            assert metrics[name]["excess_low"] <= 0 <= metrics[name]["excess_high"]


def test_collapsed_samples_count_by_what_they_are(project):
    metrics, pairs = filtered(np.repeat(project[:1], COUNT, axis=0), {"collapsed"})
    assert rates(metrics) == (1, 1, 0)
    assert {pair["train_index"] for pair in pairs} == {0}


def test_one_held_out_image_calibrates_nothing(project):
    write_images("data/deduplicate/holdout.arrow", image_table(digits()[300:301]))
    write_images("data/sample/w/samples.arrow", image_table(digits()[1300:1310]))
    with pytest.raises(InputError, match=r"holds one image, .* raise ingest\.holdout"):
        run_plain("filter", "w")
    write_images("data/deduplicate/holdout.arrow", image_table(digits()[300:1300]))
