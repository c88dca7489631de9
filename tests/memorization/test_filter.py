"""The filter stage on a small project with planted copies: against brute force, for any number of shards."""

from pathlib import Path

import numpy as np
import pytest
from filter_inputs import TREE, write_index
from small_filter import COUNT, IDENTICAL, NOISY, VERDICTS, decide, run, smooth_images, write_small_project

from stages import filter as stage
from stages.errors import InputError
from stages.files.arrow import read_metadata
from stages.files.features import FeatureTable, write_features
from stages.files.images import image_table, read_images, write_images
from stages.files.png import png_bytes
from stages.memorization.candidates import read_candidates
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.ratios import PUBLISHED
from stages.memorization.scores import scores
from stages.memorization.thresholds import calibrate, copies
from stages.protocol import run_plain


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_project()
    return tmp_path


@pytest.mark.parametrize("percentile_of", ["holdout", "samples"])
def test_against_brute_force(project, percentile_of):
    summary, pairs = run(percentile_of=percentile_of)
    train, samples, holdout = (
        read_images(f"data/{name}.arrow").flat.astype(np.int64)
        for name in ("deduplicate/train", "sample/v/samples", "deduplicate/holdout")
    )

    def distances(images: np.ndarray) -> np.ndarray:
        return np.sort(np.sqrt(np.square(images[:, None] - train[None]).sum(-1)), axis=1)

    held = np.sort(distances(holdout)[:, 0] / distances(holdout)[:, :12].mean(1))

    def rates(images: np.ndarray) -> dict[str, int]:
        r = np.sqrt(np.square(images[:, None] - train[None]).sum(-1))
        nn, near = r.argmin(1), np.sort(r, axis=1)
        among = np.sqrt(np.square(train[:, None] - train[None]).sum(-1))
        own = np.sort(among, axis=1)[nn, 1:]
        ratio = near[:, 0] / near[:, 1]
        rho, candidate = near[:, 0] / near[:, :12].mean(1), np.zeros(len(images), bool)
        candidate[np.argsort(rho, kind="stable")[: len(images) // 10]] = True
        candidate = rho < held[8] if percentile_of == "holdout" else candidate  # a tenth of 80 lie below
        flags = {
            "byte_identical": near[:, 0] == 0,
            "nn_ratio_copy": ratio < 1 / 3,
            "nn_ratio_near_copy": ratio < 0.7,
            "carlini_sample": near[:, 0] < 0.5 * near[:, :8].mean(1),
            "carlini_train": near[:, 0] < 0.5 * own[:, :8].mean(1),
            "two_stage": candidate & (near[:, 0] <= own[:, 0]),  # features are pixels here
            "authenticity": near[:, 0] <= own[:, 0],
        }
        return {name: int(flag.sum()) for name, flag in flags.items()}

    published = {name: m for name, m in summary["metrics"].items() if name in PUBLISHED}
    assert {name: m["flagged"] for name, m in published.items()} == rates(samples)
    assert {name: m["holdout_flagged"] for name, m in published.items()} == rates(holdout)
    assert summary["metrics"]["byte_identical"]["flagged"] == IDENTICAL
    two_stage = summary["metrics"]["two_stage"]
    assert (
        two_stage["flagged"] >= IDENTICAL + NOISY if percentile_of == "holdout" else two_stage["flagged"] <= COUNT // 10
    )
    assert ("held-out" in two_stage["definition"]) is (percentile_of == "holdout")
    assert ("published reading" in two_stage["definition"]) is (percentile_of == "samples")
    assert summary["metrics"]["nn_ratio_copy"]["flagged"] == IDENTICAL + NOISY
    assert summary["metrics"]["nn_ratio_copy"]["excess_low"] > 0.15
    assert summary["verdicts"]["copy"] == IDENTICAL + NOISY
    assert summary["unique_training_images"] >= IDENTICAL + NOISY
    expected = np.sqrt(np.square(samples[:, None] - train[None]).sum(-1).min(1) / 432) / 255
    np.testing.assert_allclose([p["distance"] for p in sorted(pairs, key=lambda p: p["sample_index"])], expected)


def test_ratios_set_the_metrics_as_well_as_the_verdicts(project):
    """filter.ratios moves r1/r2 of a copy and of a near copy, and with them rates, definitions and control."""
    usual, pairs = run()
    low, *_, high, last = sorted({pair["ratio"] for pair in pairs if pair["ratio"] > 0})
    limits = {"nn_ratio_copy": low, "nn_ratio_near_copy": (high + last) / 2}  # images of ratio 0, and all but the last
    summary, pairs = run(ratios=dict(zip(("copy_below", "near_copy_below"), limits.values())))
    for name, value in limits.items():
        found = summary["metrics"][name]
        assert (found["threshold"], found["flagged"]) == (value, sum(pair["ratio"] < value for pair in pairs))
        assert found["flagged"] != usual["metrics"][name]["flagged"]
        assert f"r1/r2 < {value:g}," in found["definition"]
        assert summary["metrics"][f"{name}_grouped"]["threshold"] == value
    assert "r1/r2 < 1/3," in usual["metrics"]["nn_ratio_copy"]["definition"]


def test_held_out_images_as_samples_have_as_many_two_stage_copies(project):
    """Under the held-out percentile it is none by construction, whatever the percentile flags."""
    write_images("data/sample/v/samples.arrow", image_table(smooth_images(np.random.default_rng(9), 200)))
    metric = run()[0]["metrics"]["two_stage"]
    assert metric["excess_low"] <= 0 <= metric["excess_high"]
    assert metric["holdout_rate"] == (metric["holdout_flagged"] + 1) / 81


def test_a_held_out_image_that_is_only_alike_is_no_leak(project):
    """It is far nearer to one training image than to any other, and beyond the distance of re-encoded images."""
    train, held = (read_images(f"data/deduplicate/{name}.arrow") for name in ("train", "holdout"))
    alike = train.images[40:41].astype(int) + np.random.default_rng(3).integers(-16, 17, (1, 12, 12, 3))
    images = np.concatenate([held.images, np.clip(alike, 0, 255).astype(np.uint8)])
    write_images("data/deduplicate/holdout.arrow", image_table(images))
    assert run()[0]["leaks"] == []


def test_held_out_images_that_are_training_images_are_left_out_and_named(project):
    """Three leaks, one of them re-encoded: the samples' copies are found as they are without the leaks."""
    clean = run()[0]
    train, held = (read_images(f"data/deduplicate/{name}.arrow") for name in ("train", "holdout"))
    noisy = train.images[40:41] + np.random.default_rng(3).integers(0, 3, (1, 12, 12, 3)).astype(np.uint8)
    leaky = np.concatenate([train.images[30:31], held.images, train.images[35:36, :, ::-1], noisy])
    write_images("data/deduplicate/holdout.arrow", image_table(leaky))
    found = run()[0]
    assert [leak["train_where"] for leak in found["leaks"]] == [train.ids[row] for row in (30, 35, 40)]
    assert [leak["equal"] for leak in found["leaks"]] == [True, True, False]
    assert clean["leaks"] == []
    assert found["thresholds"] == clean["thresholds"]
    assert found["metrics"] == clean["metrics"]
    write_images("data/deduplicate/holdout.arrow", image_table(np.concatenate([train.images, held.images[:40]])))
    with pytest.raises(InputError, match=r"holdout\.arrow: 60 of its 100 images are training images"):
        run()


def test_a_blend_is_no_copy_by_the_near_copy_ratio(project):
    """filter.ratios.near_copy_below says what is a copy and no blend, in filter.json and in pairs.parquet."""
    train = read_images("data/deduplicate/train.arrow").images.astype(float)
    mixed = np.rint(0.7 * train[:30] + 0.3 * train[30:]).astype(np.uint8)
    write_images("data/sample/v/samples.arrow", image_table(mixed))
    found = [run(ratios={"copy_below": 1 / 3, "near_copy_below": below}) for below in (0.35, 0.99)]
    low, high = ((summary["metrics"]["blend"]["flagged"], sum(p["blend"] for p in pairs)) for summary, pairs in found)
    assert low[0] > high[0]
    assert low[1] > high[1]


def test_mirrored_copies_are_found_by_the_calibrated_rule_only(project):
    """The filter's ρ*, thresholds and groups are those of the audit's functions on all images at once."""
    train, holdout = read_images("data/deduplicate/train.arrow"), read_images("data/deduplicate/holdout.arrow")
    samples = np.concatenate([train.images[:6, :, ::-1], read_images("data/sample/v/samples.arrow").images[40:]])
    write_images("data/sample/v/samples.arrow", image_table(samples))
    summary, pairs = run(shards=3)
    reference = whole_reference(train.images)
    ours, theirs = (
        Matches(**with_groups(match(images, reference), images, reference), dimension=432)
        for images in (samples, holdout.images)
    )
    best, control = scores(ours).best, scores(theirs).best
    thresholds, metric = calibrate(control, 10.0), summary["metrics"]["calibrated"]
    blend = np.sort(theirs.mixture)[len(control) // 100]
    assert summary["thresholds"] == {"copy": thresholds.copy, "candidate": thresholds.candidate, "blend": blend}
    pairs = sorted(pairs, key=lambda pair: pair["sample_index"])
    np.testing.assert_array_equal([pair["rho_star"] for pair in pairs], best)
    assert metric["flagged"] == copies(best, thresholds).sum()
    assert metric["holdout_flagged"] == copies(control, thresholds).sum() == metric["holdout_rate"] == 0
    assert thresholds.calibrated == {"copy_or_near_copy"}  # all held-out images are farther than the cap of copies
    for row, pair in enumerate(pairs[:6]):
        assert (pair["transform"], pair["best_index"], pair["best_distance"]) == ("mirrored", row, 0)
        assert pair["rho_star"] == 0 < pair["distance"]
    assert summary["metrics"]["byte_identical"]["flagged"] == 0


def test_pairs_are_sorted_and_complete(project):
    _, pairs = run()
    ranks = [(stage_rank(p["verdict"]), p["ratio"]) for p in pairs]
    assert ranks == sorted(ranks)
    assert sorted(p["sample_index"] for p in pairs) == list(range(COUNT))
    train, samples = read_images("data/deduplicate/train.arrow"), read_images("data/sample/v/samples.arrow")
    for pair in pairs:
        assert pair["train_id"] == train.ids[pair["train_index"]]
        assert pair["sample_id"] == samples.ids[pair["sample_index"]]
        assert (pair["feature_distance"] is None) == (not pair["candidate"])
    assert IDENTICAL + NOISY <= sum(p["candidate"] for p in pairs) < 50
    assert all(p["train_index"] == p["sample_index"] for p in pairs if p["verdict"] == "copy")


def stage_rank(verdict: str) -> int:
    from stages.memorization.vocabulary import VERDICTS

    return VERDICTS.index(verdict)


def test_any_number_of_shards_gives_the_same_bytes(project):
    outs = []
    for shards in (1, 7):
        run(shards=shards)
        outs.append({path.name: path.read_bytes() for path in Path("data/filter/v").iterdir()})
    assert outs[0] == outs[1]
    assert set(outs[0]) == {"pairs.parquet", "pairs.png", "neighbors.parquet", "candidates.parquet", "filter.json"}


def test_what_only_judges_does_not_search_again(project):
    """Margins, verdict thresholds, headline and grid are gather's: the shards stay as they are."""
    decide(Path(VERDICTS["verdicts"]["v"]), [])
    base = stage.plan(stage.Params.from_tree(TREE, "v"))
    changes = {
        "margin": 2.0,
        "headline": "two_stage",
        "grid": {"rows": 1, "columns": 1},
        "carlini": {"alpha": 0.3, "n": 8},
        "candidates": 3,
        **VERDICTS,
    }
    assert stage.plan(stage.Params.from_tree({**TREE, "filter": {**TREE["filter"], **changes}}, "v")) == base
    more = stage.plan(stage.Params.from_tree({**TREE, "filter": {**TREE["filter"], "neighbors": 13}}, "v"))
    assert more != base


def test_held_out_images_as_samples_have_no_excess(project):
    holdout = read_images("data/deduplicate/holdout.arrow")
    write_images("data/sample/v/samples.arrow", holdout.take(np.arange(40)))
    write_images("data/deduplicate/holdout.arrow", holdout.take(np.arange(40, 80)))
    summary, _ = run()
    assert all(m["excess_low"] <= 0 <= m["excess_high"] for m in summary["metrics"].values())
    assert summary["distance"]["median_multiple"] == pytest.approx(1, abs=0.1)


def test_duplicated_training_images_are_left_to_a_person_or_the_features(project):
    """A copy of an image that repeats has r1/r2 near 1; Carlini's rule still sees it, so it is not called novel."""
    train = read_images("data/deduplicate/train.arrow")
    images = np.array(train.images)
    images[1] = images[0]
    images[1, 0, 0, 0] ^= 1  # alike, not equal
    write_images("data/deduplicate/train.arrow", image_table(images))
    write_index(images)
    copy = np.clip(images[:1].astype(np.int64) + 3, 0, 255).astype(np.uint8)
    write_images(
        "data/sample/v/samples.arrow",
        image_table(np.concatenate([copy, read_images("data/deduplicate/holdout.arrow").images])),
    )
    _, pairs = run()
    found = next(p for p in pairs if p["sample_index"] == 0)
    assert found["ratio"] > 0.9
    assert found["candidate"]
    assert found["verdict"] == "unsure"  # its features are not within the tiny distance between the two alike images


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbors": 61}, r"filter\.neighbors: 61 .* has 60: lower it or raise ingest\.train"),
        ({"carlini": {"alpha": 0.5, "n": 13}}, r"filter\.carlini: n 13 exceeds filter\.neighbors 12"),
        ({"neighbors": 60, "carlini": {"alpha": 0.5, "n": 60}}, r"filter\.carlini\.n: 60 .* leave 59"),
        ({"percentile": 0.0}, r"filter\.percentile"),
        ({"headline": "fid"}, r"filter\.headline"),
        ({"quality": {"quantile": 0.6, "share": 0.25}}, r"filter\.quality\.quantile"),
        ({"verdicts": {"v": "elsewhere.jsonl"}}, r"filter\.verdicts.*elsewhere\.jsonl does not lie in data/verdicts"),
        ({"verdicts": {"v": "data/verdicts/../x.jsonl"}}, r"filter\.verdicts.*does not lie in data/verdicts"),
        ({"ratios": {"copy_below": 0.8, "near_copy_below": 0.7}}, r"filter\.ratios.*copy_below must not exceed"),
    ],
)
def test_wrong_numbers_name_their_key(project, changes, message):
    with pytest.raises(InputError, match=message):
        run(**changes)
    assert not Path("data/filter").exists()


def test_stale_inputs_are_refused(project):
    write_images("data/sample/w/samples.arrow", image_table(np.zeros((3, 5, 5, 3), np.uint8)))
    with pytest.raises(InputError, match=r"data/sample/w/samples\.arrow holds images of shape \(5, 5, 3\)"):
        run_plain("filter", "w")
    features = FeatureTable(np.zeros((2, 3), np.float32), ["a", "b"], {})
    write_features("data/embed/train.arrow", features)
    with pytest.raises(InputError, match=r"embed/train\.arrow does not hold .* rerun stage embed"):
        run()


def test_features_of_another_encoder_are_refused(project):
    train = read_images("data/deduplicate/train.arrow")
    other = FeatureTable(np.zeros((60, 432), np.float32), train.ids, {"encoder": "resnet18"})
    write_features("data/embed/train.arrow", other)
    with pytest.raises(InputError, match=r"made with encoder 'resnet18', the samples' features with 'pixels'"):
        run()


def test_candidates_are_the_suspected_pairs_with_the_training_images_that_follow(project):
    _, pairs = run()
    train = read_images("data/deduplicate/train.arrow")
    samples = read_images("data/sample/v/samples.arrow")
    table = read_candidates("data/filter/v/candidates.parquet")
    found = table.to_pylist()
    suspected = {p["sample_index"] for p in pairs if p["candidate"] or p["verdict"] != "novel"}
    assert {row["sample_index"] for row in found} == suspected
    assert [row["rho"] for row in found] == sorted(row["rho"] for row in found)
    squared = np.square(samples.flat.astype(np.int64)[:, None] - train.flat.astype(np.int64)[None]).sum(-1)
    for row in found:
        nearest = np.argsort(squared[row["sample_index"]], kind="stable")[:5]
        assert row["train_index"] == nearest[0]
        assert row["train_png"] == png_bytes(train.images[nearest[0]])
        assert row["sample_png"] == png_bytes(samples.images[row["sample_index"]])
        assert row["next_pngs"] == [png_bytes(train.images[near]) for near in nearest[1:]]
    assert read_metadata(table.schema) == {"variant": "v", "samples": COUNT, "suspected": len(suspected)}


def test_a_limit_of_candidates_is_said(project):
    run(candidates=4)
    table = read_candidates("data/filter/v/candidates.parquet")
    assert table.num_rows == 4
    assert read_metadata(table.schema)["suspected"] > 4
