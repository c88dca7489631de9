"""Contrasts: which factors two variants differ in, and that no sentence says more than the measures do."""

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planted_images import blended, digits

from stages.diffusion.parameters import Variant
from stages.errors import InputError
from stages.memorization.blends import hull_distance, is_blend
from stages.memorization.calibrated_rates import below, limit
from stages.memorization.seeds import SeedMean, paired_rates
from stages.reporting.changes import Change, direction, points
from stages.reporting.contrasts import (
    NOISE_CONDITIONING,
    TARGET,
    Contrast,
    ContrastParams,
    contrast,
    differences,
    read_contrasts,
    sentence,
)
from stages.search.nearest import nearest

SDE = {"name": "reverse-sde", "levels": 60, "snr": 0.16}
ACTUAL = {"name": "actual-noise", "levels": 60, "step": 0.12, "exact_below": 3.0}
SMOOTH = {
    "form": "temperature", "temperature": 30, "smooth_below": 1.0, "neighbors": {"space": "pixel", "k": 8}
}  # fmt: skip
DOWN, UP, FLAT = SeedMean(-0.2, -0.3, -0.1, ()), SeedMean(0.2, 0.1, 0.3, ()), SeedMean(0.01, -0.1, 0.12, ())
ONE_SEED = SeedMean(-0.5, None, None, (-0.5,))
EFFECT_WORDS = re.compile(r"effect|fewer|more|less|reduc|lower|higher|increas|remov|because|turn into|blending", re.I)


def tree(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A variant's full parameters: the spec with its defaults, and training, sampling and data with `changes`."""
    full = {
        "spec": Variant(**{"score": "network", "sampler": SDE, **spec}).model_dump(mode="json"),
        "train": {
            "noise": {"sigma_min": 0.05, "sigma_max": 3.0},
            "network": {"channels": 64, "blocks": 1},
            "optimization": {"steps": 1100, "batch": 32, "seed": 42, "betas": [0.9, 0.999]},
            "seeds": [1, 2, 3],
        },
        "sample": {"count": 300, "seed": 0},
        "data": {"source": "mnist5k", "train": 100, "seed": 42},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = full
        for parent in parents:
            place = place[parent]
        place[last] = value
    return full


def compared(of: dict[str, Any], against: dict[str, Any]) -> Contrast:
    return contrast(ContrastParams(name="c", of="A", against="B"), of, against)


CONDITIONED, BLIND = tree({"form": "conditioning"}), tree({"form": "unconditioning"})
SMOOTHED_BLIND = tree(SMOOTH)
SMOOTHED_CONDITIONED = tree({**SMOOTH, "noise_conditioning": True})


@pytest.mark.parametrize(
    ("of", "against", "expected"),
    [
        (BLIND, CONDITIONED, {NOISE_CONDITIONING}),
        (SMOOTHED_BLIND, BLIND, {TARGET}),
        (SMOOTHED_CONDITIONED, CONDITIONED, {TARGET}),
        (SMOOTHED_CONDITIONED, SMOOTHED_BLIND, {NOISE_CONDITIONING}),
        (SMOOTHED_BLIND, CONDITIONED, {TARGET, NOISE_CONDITIONING}),
        (tree({"form": "unconditioning", "sampler": ACTUAL}), BLIND, {"sampler"}),
        (tree({"form": "unconditioning", "sampler": ACTUAL}), CONDITIONED, {NOISE_CONDITIONING, "sampler"}),
        (tree({**SMOOTH, "sampler": ACTUAL}), BLIND, {TARGET, "sampler"}),
        (tree({**SMOOTH, "temperature": 10}), SMOOTHED_BLIND, {"temperature"}),
        (tree({**SMOOTH, "smooth_below": 0.5}), SMOOTHED_BLIND, {"the levels that are smoothed"}),
        (tree({**SMOOTH, "neighbors": {"space": "feature", "k": 8}}), SMOOTHED_BLIND, {"the neighbours' space"}),
        (tree({**SMOOTH, "neighbors": {"space": "pixel", "k": 4}}), SMOOTHED_BLIND, {"the number of neighbours"}),
        (
            tree({**SMOOTH, "neighbors": {"space": "feature", "k": 4}}),
            SMOOTHED_BLIND,
            {"the neighbours' space", "the number of neighbours"},
        ),
        (tree({**SMOOTH, "precision": "scheduled"}), SMOOTHED_BLIND, {"the shells' convention"}),
        (tree({**SMOOTH, "precision": "scheduled"}), BLIND, {TARGET}),
        (tree({"form": "conditioning"}, train__optimization__steps=600), CONDITIONED, {"training length"}),
        (tree({"form": "conditioning"}, train__stopped_at=600), CONDITIONED, {"training length"}),
        (tree({"form": "conditioning"}, train__seeds=[4, 5]), CONDITIONED, {"seeds"}),
        (tree({"form": "conditioning"}, data__train=50, data__seed=1), CONDITIONED, {"data"}),
        (tree({"form": "conditioning"}, train__network__channels=32), CONDITIONED, {"network"}),
        (tree({"form": "conditioning"}, train__optimization__batch=8), CONDITIONED, {"train.optimization.batch"}),
        (tree({"form": "conditioning"}, train__device="cuda"), CONDITIONED, {"train.device"}),
        (tree({"form": "conditioning", "noise_conditioning": True}), CONDITIONED, set()),
        (CONDITIONED, CONDITIONED, set()),
    ],
)
def test_the_factors_of_two_networks(of, against, expected):
    for one, other in ((of, against), (against, of)):
        assert set(compared(one, other).factors) == expected
        assert compared(one, other).confounded == (len(expected) > 1)
        assert compared(one, other).supports_claims == (len(expected) == 1)


def closed(form: str, **keys: Any) -> dict[str, Any]:
    return tree({"score": "closed-form", "form": form, **keys})


@pytest.mark.parametrize(
    ("of", "against", "expected"),
    [
        (closed("unconditioning"), closed("conditioning"), {NOISE_CONDITIONING}),
        (closed("temperature", temperature="d"), closed("unconditioning"), {TARGET}),
        (closed("temperature", temperature="d"), closed("conditioning"), {TARGET, NOISE_CONDITIONING}),
        (closed("kernel-smoothed", kernel={"h": 0.8, "draws": 16}), closed("conditioning"), {TARGET}),
        (
            closed("kernel-smoothed", kernel={"h": 0.8, "draws": 16}),
            closed("kernel-smoothed", kernel={"h": 0.4, "draws": 16}),
            {"the kernel's width"},
        ),
        (closed("kernel-density", kernel={"h": 0.4}), closed("conditioning"), {TARGET}),
        (
            closed("kernel-smoothed", kernel={"h": 0.4, "draws": 16}),
            closed("kernel-density", kernel={"h": 0.4}),
            {TARGET},
        ),
        (closed("conditioning"), CONDITIONED, {"network or closed form"}),
        # the plain shells have a power, too, which the comparison must leave alone
        (
            closed("temperature", temperature="d", power="d"),
            closed("unconditioning"),
            {TARGET, "the shells' convention"},
        ),
        (closed("temperature", temperature="d", power="d"), closed("unconditioning", power="d"), {TARGET}),
        (closed("unconditioning", power="d"), closed("conditioning"), {NOISE_CONDITIONING}),
        (
            closed("cfdm", kernel={"h": 0.6, "draws": 16}, sampler={"name": "cfdm", "levels": 60}),
            closed("kernel-smoothed", kernel={"h": 0.8, "draws": 16}),
            {TARGET, "the kernel's width", "sampler"},
        ),
    ],
)
def test_the_factors_of_closed_forms(of, against, expected):
    assert set(compared(of, against).factors) == expected


def test_every_key_that_differs_is_stated_with_both_values():
    of = tree({**SMOOTH, "sampler": ACTUAL}, train__optimization__steps=600)
    found = compared(of, CONDITIONED)
    assert found.differences == {
        "spec.form": ("temperature", "conditioning"),
        "spec.neighbors.k": (8, None),
        "spec.neighbors.space": ("pixel", None),
        "spec.sampler.exact_below": (3.0, None),
        "spec.sampler.name": ("actual-noise", "reverse-sde"),
        "spec.sampler.snr": (None, 0.16),
        "spec.sampler.step": (0.12, None),
        "spec.smooth_below": (1.0, None),
        "spec.temperature": (30.0, None),
        "train.optimization.steps": (600, 1100),
    }
    assert all(key in sentence(found) for key in found.differences)


def test_absent_and_null_are_equal_and_0_and_false_are_not_null():
    assert differences({"a": None, "b": {"c": 1}}, {"b": {"c": 1, "d": None}}) == {}
    assert differences({"a": 0, "b": False, "c": (1, 2)}, {"c": [1, 2]}) == {"a": (0, None), "b": (False, None)}


def leaves(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in values.items():
        found += leaves(value, (*prefix, key)) if isinstance(value, dict) else [(*prefix, key)]
    return found


def test_no_key_of_a_run_can_differ_unseen():
    """Change each key of the project's own parameters in turn: it is a difference and one factor."""
    project = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text())
    full = {**tree(SMOOTH), "train": project["train"], "sample": project["sample"], "data": project["ingest"]}
    for path in leaves(full):
        if path in (("spec", "form"), ("spec", "noise_conditioning"), ("spec", "teacher")):  # tested by themselves
            continue
        changed = copy.deepcopy(full)
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = "changed"
        found = compared(changed, full)
        assert list(found.differences) == [".".join(path)]
        assert len(found.factors) == 1, path


@pytest.mark.parametrize("change", [None, *itertools.starmap(Change, itertools.product([DOWN, UP, FLAT], repeat=3))])
def test_a_confounded_pair_is_never_worded_as_an_effect(change):
    found = compared(tree({**SMOOTH, "sampler": ACTUAL}), CONDITIONED)
    text = sentence(found, change)
    assert f"confounded by {NOISE_CONDITIONING}, sampler and {TARGET}" in text
    assert not EFFECT_WORDS.search(text)


def test_equal_variants_and_missing_measures_are_said():
    assert "do not differ in any parameter" in sentence(compared(CONDITIONED, CONDITIONED), Change(DOWN, DOWN, FLAT))
    assert "is not measured" in sentence(compared(BLIND, CONDITIONED))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((DOWN, DOWN, FLAT), "fewer copied samples ("),
        ((DOWN, DOWN, DOWN), "fewer copied samples ("),
        ((DOWN, DOWN, UP), "by blending"),
        ((DOWN, UP, UP), "by blending"),
        ((DOWN, FLAT, UP), "by blending"),
        ((FLAT, UP, UP), "by blending"),
        ((UP, UP, FLAT), "more copied samples ("),
        ((UP, UP, UP), "more copied samples and more blends ("),
        ((DOWN, UP, FLAT), "contradict each other"),
        ((UP, DOWN, UP), "contradict each other"),
        ((DOWN, FLAT, FLAT), "no change of the copied share that r₁/r₂ and distance both show clearly"),
        ((FLAT, DOWN, FLAT), "no change of the copied share that r₁/r₂ and distance both show clearly"),
        ((UP, FLAT, UP), "no change of the copied share that r₁/r₂ and distance both show clearly"),
        ((ONE_SEED, ONE_SEED, FLAT), "no change of the copied share that r₁/r₂ and distance both show clearly"),
        ((ONE_SEED, ONE_SEED, ONE_SEED), "without an interval no direction is claimed"),
    ],
)
def test_the_words_follow_the_measures(change, said):
    text = sentence(compared(SMOOTHED_BLIND, BLIND), Change(*change))
    assert f"differ in {TARGET} alone" in text
    assert said in text
    assert ("fewer copied samples" in text) == (said == "fewer copied samples (")


def test_fewer_copies_needs_both_measures_and_no_rise_of_blends():
    for ratio, distance, blend in itertools.product([DOWN, UP, FLAT, ONE_SEED], repeat=3):
        text = sentence(compared(SMOOTHED_BLIND, BLIND), Change(ratio, distance, blend))
        agreed = direction(ratio) == direction(distance) == -1
        assert ("fewer" in text) == (agreed and direction(blend) <= 0)
        assert ("by blending" in text) == (direction(blend) > 0 and direction(ratio) <= 0)


def test_directions_and_numbers():
    assert [direction(value) for value in (DOWN, UP, FLAT, ONE_SEED)] == [-1, 1, 0, 0]
    assert direction(SeedMean(0.1, 0.0, 0.2, ())) == 0
    assert points(DOWN) == "−20.0 points [−30.0, −10.0]"
    assert points(ONE_SEED) == "−50.0 points (one seed, no interval)"


def test_planted_blends_are_never_called_fewer_copies():
    """Three seeds: one variant draws copies, the other the means of an image and its nearest ones. r₁/r₂ sees 0."""
    train, held_out = digits()[:400], digits()[400:1200]
    limits = [limit(values) for values in measured(held_out, train)[1:]]
    counts = {}
    for parts in (1, 2, 8):
        ratio, distance, hull = measured(blended(train, 100, parts), train)
        copied = ratio < 0.7
        counts[parts] = copied.sum(), below(distance, limits[0]).sum(), is_blend(hull, limits[1], copied).sum()
    for parts in (2, 8):
        change = Change(*(paired_rates([a] * 3, [b] * 3, 100) for a, b in zip(counts[parts], counts[1])))
        assert direction(change.ratio) == -1
        assert direction(change.blend) == 1
        text = sentence(compared(SMOOTHED_BLIND, BLIND), change)
        assert "by blending" in text
        assert "fewer" not in text


def measured(images: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """r₁/r₂, ‖a−b‖ to the nearest training image and d_hull."""
    rows, reference = images.reshape(len(images), -1), train.reshape(len(train), -1)
    index, squared = nearest(rows, reference, 8)
    first, second = np.sqrt(squared[:, :2].T)
    return first / second, first, hull_distance(rows, reference, index).distance


def test_contrasts_are_read_by_name():
    entries = [ContrastParams(name="smoothing", of="smoothed", against="plain")]
    trees = {"smoothed": SMOOTHED_BLIND, "plain": BLIND}
    (found,) = read_contrasts(entries, trees)
    assert (found.name, found.of, found.against, found.factors) == ("smoothing", "smoothed", "plain", (TARGET,))
    with pytest.raises(InputError, match=r"report\.contrasts: smoothing\.against names 'plain', .*one of smoothed"):
        read_contrasts(entries, {"smoothed": SMOOTHED_BLIND})
