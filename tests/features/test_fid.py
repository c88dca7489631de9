"""The Fréchet distance against closed forms and scipy; the fid stage against the formula on its own inputs."""

import json
import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import fid
from stages.errors import InputError
from stages.features.diversity import vendi_score
from stages.features.encoders import load_encoder
from stages.features.frechet import frechet_distance, frechet_from_features, moments
from stages.features.weights import EncoderParams
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.paths import features_of, images_of, samples_of
from stages.protocol import run_stage, spans

PIXELS = {"name": "pixels", "weights": None, "sha256": None, "resize": None}


def covariance(rng, dimension, rank=None):
    factor = rng.normal(size=(dimension, rank or 2 * dimension))
    return factor @ factor.T / factor.shape[1]


def textbook(mean1, cov1, mean2, cov2):
    """The formula as it stands in the literature, with scipy's matrix square root."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(cov1 @ cov2)
    return np.square(mean1 - mean2).sum() + np.trace(cov1 + cov2 - 2 * np.real(root))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_closed_form_for_commuting_covariances(seed, dimension):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
    a, b = rng.uniform(0, 5, size=(2, dimension))
    mean1, mean2 = rng.normal(size=(2, dimension))
    exact = np.square(mean1 - mean2).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    got = frechet_distance(mean1, basis * a @ basis.T, mean2, basis * b @ basis.T)
    assert got == pytest.approx(exact, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dimension", [2, 17, 64])
def test_against_scipys_matrix_square_root(dimension):
    rng = np.random.default_rng(dimension)
    arguments = (
        rng.normal(size=dimension),
        covariance(rng, dimension),
        rng.normal(size=dimension),
        covariance(rng, dimension),
    )
    assert frechet_distance(*arguments) == pytest.approx(textbook(*arguments), rel=1e-9)


def test_invariant_under_rotation_shift_and_order_and_scales_with_the_square():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 9)), 0.5 + 1.3 * rng.normal(size=(200, 9))
    distance = frechet_from_features(a, b)
    rotation = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    assert frechet_from_features(b, a) == pytest.approx(distance, rel=1e-10)
    assert frechet_from_features(a @ rotation + 3, b @ rotation + 3) == pytest.approx(distance, rel=1e-10)
    assert frechet_from_features(a[rng.permutation(300)], b) == pytest.approx(distance, rel=1e-10)
    assert frechet_from_features(7 * a, 7 * b) == pytest.approx(49 * distance, rel=1e-10)


@pytest.mark.parametrize(("count", "dimension"), [(500, 20), (20, 20), (20, 300)])
def test_zero_for_equal_sets_and_the_shift_squared_for_shifted_ones(count, dimension):
    a = np.random.default_rng(1).normal(size=(count, dimension))
    scale = a.var(axis=0).sum()
    assert 0 <= frechet_from_features(a, a) < 1e-12 * scale
    assert frechet_from_features(a, a + 2) == pytest.approx(4 * dimension, rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (10, 400), (400, 10), (2, 2), (40, 41)])
def test_the_way_for_few_images_agrees_with_the_way_by_covariances(n, m):
    rng = np.random.default_rng(n * 1000 + m)
    a, b = rng.normal(size=(n, 40)), rng.normal(size=(m, 40)) + 0.3
    assert frechet_from_features(a, b) == pytest.approx(frechet_distance(*moments(a), *moments(b)), rel=1e-9)


def test_rank_deficient_covariances_keep_their_digits():
    # Two sets in orthogonal subspaces: the cross term is exactly zero. Roots of rounded eigenvalues would not be.
    rng = np.random.default_rng(5)
    a, b = np.zeros((30, 600)), np.zeros((30, 600))
    a[:, :20], b[:, 300:320] = rng.normal(size=(2, 30, 20))
    exact = np.square(a.mean(0) - b.mean(0)).sum() + a.var(0, ddof=1).sum() + b.var(0, ddof=1).sum()
    assert frechet_from_features(a, b) == pytest.approx(exact, rel=1e-13)
    assert frechet_distance(*moments(a), *moments(b)) == pytest.approx(exact, rel=1e-12)


def test_moments_are_numpys_in_float64_also_across_blocks():
    features = (1000 + np.random.default_rng(2).normal(size=(9001, 5))).astype(np.float32)
    mean, cov = moments(features)
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-14)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-10)


def test_what_is_no_covariance_or_no_set_is_refused():
    zero = np.zeros(2)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance(zero, np.array([[1.0, 0.5], [0.0, 1.0]]), zero, np.eye(2))
    with pytest.raises(ValueError, match="semi-definite"):
        frechet_distance(zero, np.diag([1.0, -0.1]), zero, np.eye(2))
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(zero, np.diag([1.0, np.nan]), zero, np.eye(2))
    with pytest.raises(InputError, match="at least 2 images"):
        frechet_from_features(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(InputError, match="3 and 4 dimensions"):
        frechet_from_features(np.zeros((5, 3)), np.zeros((5, 4)))


# The stage, on pixels as features: 3×2 grey images.

COUNTS = {"train": 30, "test": 40, "holdout": 12}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    encoder = load_encoder(EncoderParams(**PIXELS))
    for split, count in COUNTS.items():
        table = image_table(rng.integers(0, 256, size=(count, 3, 2, 1), dtype=np.uint8), np.arange(count) % 3)
        write_images(images_of(split), table)
        write_features(features_of(split), FeatureTable(encoder(table.images), table.ids, encoder.metadata))
    samples = image_table(rng.integers(0, 256, size=(25, 3, 2, 1), dtype=np.uint8))
    write_images(samples_of("v"), samples)
    return tmp_path


PARAMS = {
    "variant": "v", "encoder": EncoderParams(**PIXELS), "device": "cpu", "checkpoint": "last", "choice_images": 10,
    "curve_count": 8, "reference": "test", "reference_count": None,
    "per_class": False, "samples": None, "seed": 0, "neighbors": 5, "shards": 1,
}  # fmt: skip


def run(folder, **changes):
    run_stage(fid, fid.Params(**{**PARAMS, **changes}))
    return json.loads((folder / "data/fid/v/fid.json").read_text())


def pixels(path):
    return read_images(path).flat.astype(np.float64) / 255


def test_stage_reports_the_formula_and_its_counts(project):
    result = run(project)
    samples, test = pixels(samples_of("v")), pixels(images_of("test"))
    assert result["name"] == "FD-pixels"  # never FID without Inception
    assert result["samples"] == 25
    assert [result[key]["count"] for key in ("train", "test", "floor")] == [30, 40, 12]
    for name, path in (("samples", samples_of("v")), ("holdout", images_of("holdout"))):
        assert result["vendi"][name] == pytest.approx(vendi_score(pixels(path)), rel=1e-5)
    for key, a, b in (
        ("train", samples, pixels(images_of("train"))),
        ("test", samples, test),
        ("floor", pixels(images_of("holdout")), test),
    ):
        exact = textbook(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
        assert result[key]["distance"] == pytest.approx(exact, rel=1e-5)  # features are float32


def test_a_closed_form_is_also_measured_on_as_many_samples_as_a_networks_run_has(project):
    """A smaller set has a larger distance and a smaller coverage: what stands in one column must count alike."""
    found = run(project)
    images = read_images(samples_of("v"))
    write_images(samples_of("v"), image_table(images.images[:8]))
    few = run(project)
    assert found["first"]["count"] == found["first_holdout"]["count"] == 8
    assert found["first"]["fd"] == few["test"]["distance"] > found["test"]["distance"]
    assert found["first_holdout"]["fd"] == few["floor"]["distance"]
    assert found["first"]["coverage"] == few["coverage"]["samples"]


def test_stage_is_the_same_for_any_number_of_shards(project):
    one = (run(project, shards=1), (project / "data/fid/v/fid.json").read_bytes())
    seven = (run(project, shards=7), (project / "data/fid/v/fid.json").read_bytes())
    assert one == seven


def test_reference_counts_are_drawn_by_seed_and_too_many_are_refused(project):
    result = run(project, reference_count=20)
    assert (result["train"]["count"], result["test"]["count"]) == (20, 20)
    assert run(project, reference_count=20, seed=1)["train"] != result["train"]
    with pytest.raises(InputError, match="31 train images were asked for, there are 30"):
        run(project, reference_count=31)


def test_per_class_takes_equal_numbers(project):
    labels = np.array([0] * 9 + [1] * 4 + [2] * 7)
    rows = fid.balanced_rows(labels, None, 0, "test")
    assert np.bincount(labels[rows]).tolist() == [4, 4, 4]
    assert np.bincount(labels[fid.balanced_rows(labels, 6, 0, "test")]).tolist() == [2, 2, 2]
    assert (np.diff(rows) > 0).all()
    result = run(project, per_class=True)  # 40 test images in 3 classes: 14, 13, 13
    assert [result[key]["count"] for key in ("train", "test", "floor")] == [30, 39, 12]
    with pytest.raises(InputError, match="5 test images per class were asked for, the smallest of 3 classes has 4"):
        fid.balanced_rows(labels, 15, 0, "test")
    with pytest.raises(InputError, match="have no label"):
        fid.balanced_rows(np.array([0, -1]), None, 0, "test")


def test_the_reference_may_be_test_and_holdout_together_and_the_floor_never_meets_itself(project):
    result = run(project, reference="test+holdout", samples=20)
    samples, train = pixels(samples_of("v"))[:20], pixels(images_of("train"))
    test, holdout = pixels(images_of("test")), pixels(images_of("holdout"))
    both = np.concatenate([test, holdout])
    assert result["samples"] == 20
    assert [result[key]["count"] for key in ("train", "test", "floor")] == [30, 52, 12]
    for key, a, b in (("train", samples, train), ("test", samples, both), ("floor", holdout, test)):
        exact = textbook(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False))
        assert result[key]["distance"] == pytest.approx(exact, rel=1e-5)
    equal = run(project, reference="test+holdout", per_class=True, reference_count=30)
    assert [equal[key]["count"] for key in ("train", "test")] == [30, 30]
    with pytest.raises(InputError, match="53 test.holdout images were asked for, there are 52"):
        fid._drawn(fid.Params(**{**PARAMS, "reference": "test+holdout"}), "test+holdout", 53)


def test_features_of_another_encoder_are_refused(project):
    table = FeatureTable(np.ones((30, 6), np.float32), [str(i) for i in range(30)], {"encoder": "resnet18"})
    write_features(features_of("train"), table)
    with pytest.raises(InputError, match="encoder 'pixels' and 'resnet18' were mixed"):
        run(project)


def test_one_sample_is_refused_before_any_work(project):
    write_images(samples_of("v"), image_table(np.zeros((1, 3, 2, 1), np.uint8)))
    with pytest.raises(
        InputError, match=r"more than 5 images on each side \(fid.neighbors\), got 1: raise sample.count"
    ):
        run(project)


@pytest.mark.parametrize("split", ["test", "holdout"])
def test_one_real_image_is_refused_before_any_work(project, split):
    """Deduplication may leave one of several; the message names what to raise."""
    write_features(features_of(split), FeatureTable(np.ones((1, 6), np.float32), ["a"], {"encoder": "pixels"}))
    with pytest.raises(
        InputError, match=rf"more than 5 images on each side .*, got 1: raise ingest\.{split}, or lower fid"
    ):
        run(project)
    assert not (project / "data/fid").exists()


def test_spans_of_the_plan_cover_every_sample_once(project):
    params = fid.Params(**{**PARAMS, "shards": 4})
    cut = [(shard.settings["start"], shard.settings["stop"]) for shard in fid.plan(params)]
    assert cut == spans(25, 4)
    assert not any("shards" in shard.settings for shard in fid.plan(params))
