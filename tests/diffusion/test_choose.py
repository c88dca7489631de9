"""Which of a network's runs are sampled: the last ones, or the best on held-out images that are not reported."""

from pathlib import Path

import numpy as np
import pytest
from diffusion_project import outs, write_params
from measured_runs import RUNS, SEEDS, STEPS, VARIANT, measure, pixels, rows, set_runs
from scipy.linalg import sqrtm

from stages import choose
from stages.diffusion.model import load_model
from stages.diffusion.sampling import draw_samples
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.images import read_images
from stages.files.runs import read_runs
from stages.protocol import load_tree, run_plain

CHOICE = {"checkpoint": "best_fid", "choice_samples": 12, "choice_images": 15}


def set_choice(reference="test", **changes):
    set_runs()
    tree = load_tree()
    tree["sample"] |= CHOICE | changes
    tree["fid"] |= {"reference": reference}
    write_params(tree)


def frechet(one, two):
    """The squared Fréchet distance of two sets of rows, by its formula."""
    a, b = np.cov(one.T), np.cov(two.T)
    return ((one.mean(0) - two.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)


def test_the_network_of_least_distance_to_held_out_images_set_aside_is_chosen(measurable):
    """By hand: samples that are not reported, the last 15 held-out images, and the least distance of each seed."""
    set_choice()
    measure("train", "choose", "sample", "fid")
    score, images = read_json(f"data/train/{VARIANT}/score.json"), read_images("data/deduplicate/train.arrow").images
    sampler, aside = load_tree()["variants"][VARIANT]["sampler"], pixels("holdout")[25:] / 255
    found, expected = {}, {}
    for run in read_runs(Path(f"data/train/{VARIANT}/runs.json")):
        drawn = draw_samples(load_model(score, sampler, images, run.weights, "cpu"), 0, 12, 4, start=choose.CHOICE)
        found[run.seed, run.step] = frechet(drawn.reshape(12, -1) / 255, aside)
    for seed in SEEDS:
        expected[seed] = min((*STEPS, 20), key=lambda step: found[seed, step])
    choice = read_json(f"data/choose/{VARIANT}/choice.json")
    assert [tuple(row[key] for key in ("seed", "step")) for row in choice["candidates"]] == RUNS
    assert [row["fd"] for row in choice["candidates"]] == pytest.approx(list(found.values()), rel=1e-5, abs=1e-6)
    assert {row["seed"]: row["step"] for row in choice["chosen"]} == expected
    assert (choice["split"], choice["images"], choice["samples"]) == ("the last 15 held-out images", 15, 12)
    kept = [(seed, step) for seed, step in RUNS if step <= expected[seed]]
    assert [(run.seed, run.step) for run in read_runs(Path(f"data/choose/{VARIANT}/runs.json"))] == kept
    assert [(row["seed"], row["step"]) for row in rows("fid")] == kept
    (chosen,) = (r for r in read_runs(Path(f"data/train/{VARIANT}/runs.json")) if r.key == choice["chosen"][0])
    own = draw_samples(load_model(score, sampler, images, chosen.weights, "cpu"), 0, 23, 4)
    assert np.array_equal(read_images(f"data/sample/{VARIANT}/samples.arrow").images, own)
    assert read_json(f"data/sample/{VARIANT}/sample.json")["choice"] == choice


def test_the_images_that_chose_are_in_no_reported_distance(measurable):
    set_choice("test+holdout")
    measure("train", "choose", "sample", "fid")
    found = read_json(f"data/fid/{VARIANT}/fid.json")
    drawn = read_images(f"data/sample/{VARIANT}/samples.arrow").flat / 255
    beside = np.concatenate([pixels("test"), pixels("holdout")[:25]]) / 255
    assert found["held_out_for_the_choice"] == 15
    assert found["test"]["count"] == 65
    assert found["test"]["distance"] == pytest.approx(frechet(drawn, beside), rel=1e-4)
    assert found["floor"]["count"] == 23
    measure("filter")  # its control are all held-out images: no distance of theirs is of the chosen network's samples
    assert read_json(f"data/filter/{VARIANT}/filter.json")["metrics"]["nn_ratio_copy"]["holdout_count"] == 40


def test_with_the_last_network_nothing_is_chosen(measurable):
    set_choice()
    measure("train", "choose")
    set_choice(checkpoint="last")
    measure("choose", "sample")
    assert [path.name for path in Path(f"data/choose/{VARIANT}").iterdir()] == ["choice.json"]
    assert read_json(f"data/choose/{VARIANT}/choice.json") == {"checkpoint": "last"}
    one = outs(VARIANT)
    set_runs()
    measure("sample")
    assert outs(VARIANT) == one
    run_plain("choose", "closed-kernel")
    assert read_json("data/choose/closed-kernel/choice.json") == {"checkpoint": None}


def test_too_few_held_out_images_to_choose_and_report_are_an_error(measurable):
    set_choice(choice_images=21)
    measure("train")
    with pytest.raises(InputError, match=r"sample\.choice_images: 21 held-out images were asked for, and there are 40"):
        measure("choose")


def test_at_equal_distances_the_first_step_is_chosen():
    rows = [
        {"seed": seed, "step": step, "fd": fd}
        for seed, step, fd in ((1, 5, 2.0), (1, 9, 1.0), (1, 12, 1.0), (2, 5, 3.0))
    ]
    assert choose.best_steps(rows) == {1: 9, 2: 5}
