"""Sets of samples whose answer is known, through the stages filter, fid and report: numbers, words and page."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from filter_inputs import TREE, write_index
from page_text import strings, text_of
from planted_images import blank, blended, digits, mean_image, noised
from report_project import write_project

from stages.files.images import image_table, write_images
from stages.protocol import run_plain

SIZE, SEEDS, STEPS = 300, (42, 43, 44), (100, 4000)
FID = {
    "reference": "test", "reference_count": None, "per_class": False, "samples": None, "seed": 0, "neighbors": 5,
    "shards": 1,
}  # fmt: skip


def small(images: np.ndarray) -> np.ndarray:
    """Each 2 x 2 pixels' mean, uint8."""
    count, height, width, channels = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2, channels)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def half_copied(train: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Copies and unseen images in turn."""
    return np.where(np.arange(len(train))[:, None, None, None] % 2, fresh, train)


Planted = Callable[[np.ndarray, np.ndarray], np.ndarray]  # training images and as many unseen ones -> as many samples
NETWORKS: dict[str, Planted] = {
    "copies": lambda train, fresh: noised(train, 0.01),
    "half-copied": half_copied,
    "blends-of-2": lambda train, fresh: blended(train, len(train), 2),
    "blends-of-8": lambda train, fresh: blended(train, len(train), 8),
    "unseen": lambda train, fresh: fresh,
    "noisy": lambda train, fresh: noised(fresh),
}
CLOSED: dict[str, Planted] = {
    "closed-copies": NETWORKS["copies"],
    "closed-blends": NETWORKS["blends-of-8"],
    "blank": lambda train, fresh: blank(fresh),
    "mean": lambda train, fresh: mean_image(train, len(train)),
    "collapsed": lambda train, fresh: np.repeat(train[:1], len(train), axis=0),
}
PLAIN = ("copies", "closed-copies")
BLENDS = ("blends-of-2", "blends-of-8", "closed-blends")


def variants() -> dict[str, dict]:
    """The first of each kind is the plain one; the others differ from it in the target's smoothing alone."""
    smooth = {"form": "temperature", "temperature": 9.0, "noise_conditioning": True}
    smooth["neighbors"] = {"space": "pixel", "k": 8}
    kinds = {**dict.fromkeys(NETWORKS, "network"), **dict.fromkeys(CLOSED, "closed-form")}
    return {
        name: {"score": kind, **({"form": "conditioning"} if name in PLAIN else smooth)} for name, kind in kinds.items()
    }


def write_samples(name: str, train: np.ndarray, fresh: np.ndarray) -> None:
    """The samples; of a network also each seed's: noise early in the training, then a third of the samples."""
    folder, planted = Path("data/sample") / name, {**NETWORKS, **CLOSED}[name](train, fresh)
    write_images(folder / "samples.arrow", image_table(planted))
    if name in NETWORKS:
        runs = [{"seed": seed, "step": step} for seed in SEEDS for step in STEPS]
        thirds = np.split(planted, len(SEEDS))
        parts = [part for own, early in zip(thirds, np.split(noised(fresh, 0.3), len(SEEDS))) for part in (early, own)]
        write_images(folder / "runs.arrow", image_table(np.concatenate(parts), metadata={"runs": runs}))


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The results, the page and its text; filter.json of every variant."""
    images = small(digits()[: 4 * SIZE])
    train, fresh = images[:SIZE], images[3 * SIZE :]  # neither training nor control holds the last ones
    root, chosen = tmp_path_factory.mktemp("planted"), variants()
    plain = {name: PLAIN[name in CLOSED] for name in chosen if name not in PLAIN}
    report = {"pictures": 4, "duplicate_groups": 0, "rejected_images": 0, "published": None}
    report["contrasts"] = [{"name": name, "of": name, "against": against} for name, against in plain.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        half = dict.fromkeys(chosen, 0.5)
        write_project(root, images, train=SIZE, count=SIZE, variants=chosen, copied=half, report=report)
        tree = {**TREE, "report": report, "variants": chosen, "index": {"encoder": None}, "fid": FID}
        tree["sample"] = {"checkpoint": "last", "choice_images": 10, "curve_count": SIZE}
        tree["embed"] = {**TREE["embed"], "shards": 1}
        Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        write_index(train)
        run_plain("embed")
        for name in chosen:
            write_samples(name, train, fresh)
            for stage in ("filter", "fid"):
                run_plain(stage, name)
        run_plain("report")
        results = json.loads(Path("data/report/results.json").read_text())
        page = Path("data/report/report.html").read_text(encoding="utf-8")
        found = {name: json.loads(Path(f"data/filter/{name}/filter.json").read_text()) for name in chosen}
    return results, page, found


MEASURED = {  # name -> copied, nearer than held-out images, and blends: the least and the largest share
    "copies": ((1, 1), (1, 1), (0, 0)),
    "half-copied": ((0.5, 0.6), (0.5, 0.55), (0, 0.03)),
    "blends-of-2": ((0, 0.01), (0.05, 0.3), (0.9, 1)),
    "blends-of-8": ((0, 0.03), (0.02, 0.15), (0.7, 1)),
    "unseen": ((0, 0.06), (0, 0.02), (0, 0.03)),
    "noisy": ((0, 0.06), (0, 0.02), (0, 0.02)),
    "blank": ((0, 0), (0, 0), (0, 0)),
    "mean": ((0, 0), (0, 0), (0, 0)),
    "collapsed": ((1, 1), (1, 1), (0, 0)),
}
MEASURED |= {"closed-copies": MEASURED["copies"], "closed-blends": MEASURED["blends-of-8"]}
FAULTS = {"noisy": {"noisy", "sharp"}, "mean": {"blank", "collapsed"}, "collapsed": {"collapsed"}}
FAULTS |= {"blank": {"blank", "smooth", "collapsed"}, **{name: {"blend"} for name in BLENDS}}
BROKEN = set(FAULTS) - set(BLENDS)
OUTCOMES = dict.fromkeys(("half-copied", "unseen", "noisy", "blank", "mean"), "fewer copied samples")
OUTCOMES |= {**dict.fromkeys(BLENDS, "by blending"), "collapsed": "no change of the copied share"}
FEWER = re.compile(r"fewer|reduc|remov|less copied|cop(y|ies) less|copied less", re.I)


@pytest.mark.parametrize("name", MEASURED)
def test_every_measure_says_what_it_should(planted, name):
    results, _, found = planted
    row = next(row for row in results["rows"] if row["variant"] == name)
    for key, (least, largest) in zip(("copies", "calibrated_distance", "blends"), MEASURED[name]):
        assert least <= row[f"{key}_rate"] <= largest, key
        assert f"{key}_mean" not in row or least <= row[f"{key}_mean"] <= largest, key
    assert set(found[name]["faults"]) == FAULTS.get(name, set())


def test_quality_and_diversity_of_the_sets(planted):
    """Images like unseen ones lie at the floor; the more is averaged, the farther and the more alike the samples."""
    rows = {row["variant"]: row for row in planted[0]["rows"]}
    far = {name: row["fd_test"] / row["fd_floor"] for name, row in rows.items()}
    assert max(far[name] for name in ("copies", "half-copied", "unseen")) < 1.1
    assert 1.1 < far["blends-of-2"] < far["blends-of-8"] < far["mean"] < far["collapsed"]
    assert far["noisy"] > 2
    assert rows["unseen"]["vendi"] > rows["blends-of-2"]["vendi"] > rows["blends-of-8"]["vendi"] > 2
    assert [rows[name]["vendi"] for name in ("mean", "collapsed", "blank")] == [1, 1, None]  # no direction in features
    assert rows["unseen"]["recall"] > 0.9 > rows["blends-of-2"]["recall"] > rows["blends-of-8"]["recall"]
    assert max(rows[name]["recall"] for name in ("mean", "collapsed", "blank")) == 0


def test_the_checks_name_the_broken_sets_and_no_others(planted):
    failed = {check["title"] for check in planted[0]["checks"] if not check["passed"]}
    assert failed == {f"{name} draws sound samples" for name in BROKEN}


@pytest.mark.parametrize("name", OUTCOMES)
def test_a_contrast_says_what_the_samples_are(planted, name):
    """A copy rate that falls because samples are broken is said to be that of broken samples."""
    said = next(row["sentence"] for row in planted[0]["contrasts"] if row["of"] == name)
    against = PLAIN[name in CLOSED]
    assert f"From {against} to {name}: {OUTCOMES[name]}" in said
    assert (f"the samples of {name} look broken" in said) == (name in BROKEN)


def test_at_equal_distance_blends_are_blends_and_noise_is_broken(planted):
    rows = {row["of"]: row for row in planted[0]["frontier"]}
    assert rows["blends-of-2"]["outcome"] == rows["blends-of-8"]["outcome"] == "blending"
    assert rows["unseen"]["outcome"] == rows["noisy"]["outcome"] == "fewer"
    assert {name for name, row in rows.items() if "look broken" in row["at_equal_distance"]} == {"noisy"}


def test_no_sentence_calls_blends_fewer_copies(planted):
    """On the page and in the results, clause by clause; the sets that have fewer copies are called so there."""
    results, page, _ = planted
    for said in (text_of(page), ". ".join(strings(results))):
        clauses = re.split(r"(?<=[.;:!?]) ", said)
        about = [clause for clause in clauses if any(name in clause for name in BLENDS)]
        assert len(about) > 10
        assert [clause for clause in about if FEWER.search(clause)] == []
        assert any("fewer copied samples with unseen" in clause for clause in clauses)
        assert any(re.search("more blends, which .* with blends-of-2", clause) for clause in clauses)
