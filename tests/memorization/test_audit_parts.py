"""The parts of an audit: thresholds, planted copies, options, the feature stage, verdicts, the page."""

import itertools

import numpy as np
import pytest
import torch
from pictures import pictures, shifted_mean
from PIL import Image

from stages.errors import InputError
from stages.features.encoders import load_encoder
from stages.files.arrays import read_arrays, write_arrays
from stages.images.common_size import common_shape, open_all
from stages.memorization import planting
from stages.memorization.audit_settings import audit_params, encoder_params
from stages.memorization.audit_work import embedded
from stages.memorization.feature_stage import Questions, answer, compared_rows
from stages.memorization.matching import (
    whole_reference,
)
from stages.memorization.scores import Scores
from stages.memorization.thresholds import CANDIDATE_CAP, COPY_CAP, Thresholds, calibrate, copies, cross_fitted
from stages.memorization.verdicts import Evidence, decide, rho_star_rules
from stages.reporting.audit_page.page import chosen
from stages.reporting.progress import SecondsBar


def test_thresholds_let_the_stated_share_of_the_control_pass():
    values = np.random.default_rng(0).permutation(np.linspace(0.2, 1, 2000))
    found = calibrate(values, 2.0)
    assert (values < found.copy).sum() == 10  # a quarter of 2 % of 2000
    assert (values < found.candidate).sum() == 40
    assert calibrate(values + 1, 1.0).copy == COPY_CAP  # unseen images are all far away
    assert calibrate(values + 1, 1.0).candidate == CANDIDATE_CAP
    few = calibrate(values[:10], 1.0)
    assert (values[:10] < few.candidate).sum() == 0
    assert calibrate(np.array([np.nan]), 1.0).copy == COPY_CAP


def test_the_control_is_judged_under_the_other_half_s_threshold():
    best = np.linspace(0.1, 0.9, 20)
    best[0] = 0.01  # alone far below: its own half would have set its threshold there
    flags = cross_fitted(best, 10.0)
    assert flags[0]
    assert not copies(best, calibrate(best, 1.0))[0]
    assert flags.sum() == 1


def test_planted_copies_are_what_their_names_say():
    images = pictures(4, 16, 3)
    assert np.array_equal(planting.plant(images, "exact", 0), images)
    assert np.array_equal(planting.plant(images, "mirrored", 0), images[:, :, ::-1])
    noisy = planting.plant(np.full((4, 32, 32, 3), 128, np.uint8), "noise", 0)
    assert np.std(noisy / 255) == pytest.approx(planting.NOISE, rel=0.05)
    for made, image in zip(planting.plant(images, "shifted", 3), images):
        fitting = [
            shift
            for shift in itertools.product(range(-2, 3), repeat=2)
            if shifted_mean(made[3:-3, 3:-3], image[3:-3, 3:-3], *shift)[0] == 0
        ]
        assert len(fitting) == 1
        assert fitting != [(0, 0)]
    for kind in planting.WORDS:
        np.testing.assert_array_equal(planting.plant(images, kind, 5), planting.plant(images, kind, 5))
        assert planting.plant(images[..., :1], kind, 5).shape == (4, 16, 16, 1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_features_do_not_depend_on_the_number_of_threads(threads, monkeypatch):
    """Nor on which images stand together. A pass on two threads has other last bits than one on one thread."""
    encoder, images = load_encoder(encoder_params("efficientnet-lite0", None, 16), "cpu"), pictures(40, 16, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = encoder(images)
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        np.testing.assert_array_equal(embedded(encoder, images), expected)
        np.testing.assert_array_equal(embedded(encoder, images[7:20]), expected[7:20])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_arrays_are_read_as_they_were_written(tmp_path):
    arrays = {"a": np.arange(5), "b": np.ones((2, 2), bool), "c": np.array(["{}"])}
    found = read_arrays(write_arrays(tmp_path / "x.npz", arrays))
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == values.dtype


def test_a_memory_budget_is_an_amount_of_memory():
    base = {"train": "a", "samples": "b", "out": "c"}
    assert audit_params(**base, memory_budget="5GiB").budget == 2 << 30
    assert audit_params(**base, memory_budget="3GB").budget == (3 * 10**9 - (1 << 30)) // 2
    with pytest.raises(InputError, match="--memory-budget 'much' is not an amount of memory: write e.g. 4GiB"):
        audit_params(**base, memory_budget="much")
    with pytest.raises(InputError, match="--memory-budget 1GiB is too little: give at least 1.25GiB"):
        audit_params(**base, memory_budget="1GiB")
    with pytest.raises(InputError, match="--fail-above: Input should be less than or equal to 1"):
        audit_params(**base, fail_above=2.0)
    with pytest.raises(InputError, match="--out: Field required"):
        audit_params(train="a", samples="b")


@pytest.mark.parametrize("known", [60, 7])
def test_the_feature_spacing_is_the_least_over_the_compared_images(known):
    """With the pixels as features: over all images where all are known, else over those and the nearest by pixels."""
    images = pictures(60)
    group = np.arange(60)
    group[[4, 9]] = 4
    images[9] = np.clip(images[4].astype(int) + 1, 0, 255)
    reference = whole_reference(images, group)
    encoder = load_encoder(encoder_params("pixels", None, 8), "cpu")
    rows = np.arange(60)[:known]
    questions = Questions(np.array([0, 1, 0]), np.array([False, True, False]), np.array([4, 30, 12]))
    samples = pictures(2, seed=5)
    shown = np.stack([samples[0], samples[1][:, ::-1], samples[0]])
    compared = compared_rows(np.unique(questions.row), reference)
    distance, spacing, grouped = answer(
        questions, encoder(shown), reference, lambda some: encoder(images[some]), compared, rows
    )
    flat = images.reshape(60, -1) / 255
    own = np.linalg.norm(flat[:, None] - flat, axis=2)
    for place, row in enumerate(questions.row):
        assert distance[place] == pytest.approx(np.linalg.norm(shown[place].reshape(-1) / 255 - flat[row]), rel=1e-6)
        # the nearest by pixels are compared in any case, so with pixels as features the least is always found
        assert spacing[place] == pytest.approx(np.delete(own[row], row).min(), rel=1e-6)
        assert grouped[place] == pytest.approx(own[row][group != group[row]].min(), rel=1e-6)
    assert spacing[0] < 0.1 < grouped[0]


def test_the_bar_never_runs_over_and_ends_full():
    progress = SecondsBar(quiet=True)
    task = progress.bar.tasks[0]
    progress.expect(3.0)
    shown = []
    for seconds in (1.0, 1.5, 2.0):
        progress.advance(seconds)
        shown.append((task.completed, task.total))
    assert shown == [(1.0, 3.0), (2.5, 3.0), (4.5, 4.5)]
    progress.expect(2.0)
    progress.advance(1.0)
    assert (task.completed, task.total) == (5.5, 6.5)
    progress.finish()
    assert task.finished
    assert task.completed == task.total == 5.5


def test_an_encoder_is_ours_or_one_of_timm():
    assert (encoder_params("resnet18", None, 32).name, encoder_params("resnet18", None, 32).resize) == ("resnet18", 112)
    assert encoder_params("resnet18", None, 256).resize is None
    assert encoder_params("vit_small_patch14_dinov2", None, 32).name == "timm:vit_small_patch14_dinov2"
    assert encoder_params("timm:resnet18", None, 32).name == "timm:resnet18"
    with pytest.raises(InputError, match="--encoder timm:no name: there is no encoder 'timm:no name': use eff"):
        encoder_params("no name", None, 32)
    with pytest.raises(InputError, match="--encoder pixels: encoder pixels takes the images as they are"):
        encoder_params("pixels", "weights.pth", 32)


def test_a_group_of_everything_leaves_nothing_to_compare_with():
    images = pictures(4)
    reference = whole_reference(images, np.zeros(4, np.int64))
    encoder = load_encoder(encoder_params("pixels", None, 8), "cpu")
    questions = Questions(np.array([0]), np.array([False]), np.array([2]))
    compared = compared_rows(questions.row, reference)
    _, spacing, grouped = answer(
        questions, encoder(images[:1]), reference, lambda rows: encoder(images[rows]), compared, np.zeros(0, np.int64)
    )
    assert np.isinf(grouped[0])
    assert np.isfinite(spacing[0])


def test_each_verdict_has_its_rule():
    rho = np.array(
        [[0, 0, 0], [0.9, 0, 0.1], [0.2, 0.9, 0.2], [0.45, 0.5, 0.5], [0.5, 0.9, 0.45], [0.8] * 3, [0.8] * 3, [0.9] * 3]
    )
    rho = np.concatenate([rho, np.full((1, 3), np.nan), [[0.5] * 3, [0.9] * 3]])
    candidate = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 0], bool)
    confirmed = np.array([0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0], bool)
    identical, nothing = np.arange(11) == 0, np.zeros(11, bool)
    blend = np.isin(np.arange(11), (0, 1, 2, 9, 10))  # copies come first
    evidence = Evidence(identical, rho[:, 0], nothing, candidate, confirmed)
    found, reason = decide(rho_star_rules(evidence, Scores(rho[:, 0], rho[:, 0], rho), Thresholds(0.3, 0.6), blend))
    assert found == [
        "copy",
        "copy",
        "copy",
        "near_copy",
        "unsure",
        "same_content",
        "novel",
        "novel",
        "novel",
        "blend",
        "blend",
    ]
    assert reason[:5] == [
        "equals a training image byte for byte",
        "equals a training image byte for byte after mirroring",
        "rho* 0.20 is below 0.30: so near no unseen image should come",
        "rho* 0.45 is below 0.60, and the features agree",
        "shifted, rho* 0.45 is below 0.60, but the features do not agree",
    ]


def test_the_page_shows_some_of_every_verdict():
    verdicts = ["copy"] * 50 + ["unsure"] * 3 + ["novel"] * 100
    rows = chosen(verdicts, 30)
    assert len(rows) == 30
    assert [sum(verdicts[row] == name for row in rows) for name in ("copy", "unsure", "novel")] == [17, 3, 10]
    assert rows.tolist() == [*range(17), 50, 51, 52, *range(53, 63)]
    assert chosen(["novel"] * 4, 30).tolist() == [0, 1, 2, 3]


def test_the_common_size_is_the_smallest_of_the_usual_ones(tmp_path):
    for role, sides in (("train", (30, 30, 12, 30)), ("samples", (24, 40, 24))):
        (tmp_path / role).mkdir()
        for row, side in enumerate(sides):
            Image.new("RGB" if (role, row) == ("samples", 1) else "L", (side + 3, side)).save(
                tmp_path / role / f"{row}.png"
            )
    sources = open_all({role: f"folder:{tmp_path / role}" for role in ("train", "samples")})
    shape = common_shape(sources, None)
    assert (shape.resolution, shape.channels) == (24, 3)
    assert shape.native == {
        "train": "33 × 30 and other sizes, grey",
        "samples": "27 × 24 and other sizes, grey and colour",
    }
    assert common_shape(sources, 16).resolution == 16
