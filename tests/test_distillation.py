"""Teachers and students of the benchmark of distillation: what is compared, on rows whose answer is known."""

import argparse

import pytest
import torch

from benchmarks import adaptive, distillation, small_models
from stages.diffusion.parameters import ScoreSpec, Variant
from stages.reporting.runs import RATIO


def row(target, model, seed, copied, fd):
    measures = {RATIO: copied, "calibrated_distance": copied / 2, "blend": 0, "fd": fd}
    return {"target": target, "model": model, "seed": seed, **measures}


def rows():
    """Of 200 samples the plain teacher copies 100 and its students 90; the smoothed teacher 40, its students 50."""
    copied = {("plain", False): 100, ("plain", True): 90, ("smoothed", False): 40, ("smoothed", True): 50}
    return [
        row(target, model, seed, copied[target, "student" in model] + seed, 1.0 + (target == "smoothed"))
        for target in distillation.TARGETS
        for model in distillation.MODELS
        for seed in range(3)
    ]


def points(name, *terms):
    return distillation.mean_of(rows(), name, *terms)


def test_what_distillation_does_to_what_smoothing_does_is_a_difference_of_paired_differences():
    own, student = distillation.OWN, "student, 4"
    without = points(RATIO, (1, "smoothed", own), (-1, "plain", own))
    assert without.points == pytest.approx((-0.3, -0.3, -0.3))
    after = points(RATIO, (1, "smoothed", student), (-1, "plain", student))
    assert after.points == pytest.approx((-0.2, -0.2, -0.2))
    both = points(RATIO, *((1, "smoothed", student), (-1, "plain", student), (-1, "smoothed", own), (1, "plain", own)))
    assert both.points == pytest.approx((0.1, 0.1, 0.1))
    # three seeds that agree have no spread: the interval is that of sampling 200 images four times in each seed
    shares = [(c + seed + 1) / 202 for c in (100, 90, 40, 50) for seed in range(3)]
    least = 1.96 * sum(p * (1 - p) / 202 for p in shares) ** 0.5 / 3
    assert both.high - both.mean == pytest.approx(least, rel=1e-3)
    assert points("fd", (1, "smoothed", own), (-1, "plain", own)).points == (1.0, 1.0, 1.0)


def test_the_table_has_a_row_for_every_model_and_every_change():
    lines = list(distillation.table(rows()))
    assert len(lines) == 2 + 8 + 4 + 3 + 6
    found = {line.split(" | ")[0]: line for line in lines}
    assert found["| plain: student, 4"].startswith("| plain: student, 4 | 45.5 [")
    assert "| 10.0 [" in found["| smoothing: student, 4 less teacher, 60 evaluations"]
    assert "| 5.0 [" in found["| smoothed: student, 1 less teacher, 60 evaluations"]


@pytest.mark.parametrize("target", distillation.TARGETS)
def test_a_seed_gives_a_row_per_model_and_its_networks_are_kept(tmp_path, monkeypatch, target):
    monkeypatch.setattr(adaptive, "SAMPLES", 12)
    monkeypatch.setattr(distillation, "SAMPLES", 12)
    options = argparse.Namespace(keep=tmp_path, size=12, steps=3, distillation=2)
    found = list(distillation.measured(target, 0, options))
    assert [each["model"] for each in found] == list(distillation.MODELS)
    monkeypatch.setattr(distillation, "train_network", None)  # nothing is trained again
    assert list(distillation.measured(target, 0, options)) == found


def test_the_teacher_is_the_network_that_small_models_trains(tmp_path, monkeypatch):
    """By another loop: the same images, order, noise and average."""
    options = argparse.Namespace(keep=tmp_path, size=12, steps=3, distillation=1)
    train, _ = small_models.drawn(12, distillation.HELD_OUT, 0)
    own = distillation.shard("smoothed", train, 0, options)
    distillation.train_network(own)
    student = ScoreSpec(**distillation.student_of("smoothed", 1))
    teacher = Variant(score="network", **distillation.TARGETS["smoothed"], sampler=distillation.TEACHER)
    place = distillation.teacher_shard(own, student).path
    kept = distillation.network(teacher, place, (1, 8, 8)).state_dict()
    how = small_models.NOISE, small_models.network(), small_models.optimization(steps=3)
    training = small_models.small.new_training(teacher, *how, train, 0)
    ((_, average),) = small_models.small.trained(training, [3])
    assert all(torch.equal(kept[name], tensor) for name, tensor in average.state_dict().items())
