"""A control that holds training images: they are found, named and left out; a useless control ends the audit."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from saved import save

from stages.audit import DONE, SELF_TEST_FAILED, audit_params, run
from stages.errors import InputError
from stages.images.sources.open import open_source
from stages.memorization import leaks
from stages.memorization.leaks import find_leaks
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.metrics import Searched
from stages.memorization.planting import jpeg, plant
from stages.memorization.self_test import failure


def searched(images: np.ndarray, train: np.ndarray) -> Searched:
    reference = whole_reference(train)
    return Searched.of(Matches(**with_groups(match(images, reference), images, reference), dimension=train[0].size), 1)


def found(images: np.ndarray, train: np.ndarray) -> list[int]:
    return np.flatnonzero(find_leaks(searched(images, train), str, str)[0]).tolist()


@pytest.mark.parametrize("kind", ["exact", "mirrored", "noise", "jpeg", "shifted"])
def test_training_images_among_unseen_ones_are_found(digits, kind):
    unseen = digits[300:500].copy()
    unseen[40:60] = plant(digits[:20], kind, 0)
    leaked = set(found(unseen, digits[:300]))
    assert len(leaked & set(range(40, 60))) >= 16  # JPEG changes 14 × 14 pixels much
    assert leaked <= set(range(40, 60))


def test_unseen_images_stay_in_the_control(digits):
    assert len(found(digits[300:], digits[:300])) <= 1  # the digit 1, which looks the same in many hands


@pytest.mark.parametrize("count", [2, 5, 20])
def test_copies_are_found_although_the_control_holds_training_images(digits, audit, tmp_path, count, capsys):
    unseen, samples = digits[300:500].copy(), digits[600:650].copy()
    unseen[-count:] = digits[280 : 280 + count]
    unseen[-1] = jpeg(digits[280], 90)
    samples[:20] = [jpeg(image, 90) for image in digits[:20]]
    code, result, pairs = audit(digits[:300], samples, unseen)
    assert code == DONE
    assert result["holdout"]["leaked"] == count
    assert result["holdout"]["used"] == 200 - count == result["metrics"]["calibrated"]["holdout_count"]
    copied = [pair["sample_index"] for pair in pairs.to_pylist() if pair["flag_calibrated"]]
    assert set(range(20)) <= set(copied)
    assert len(copied) <= 21
    note, printed = f"{count} of the 200 unseen images are training images", capsys.readouterr().out
    assert note in printed
    assert f"unseen real images ({count} training images among them left out) under the same rule" in printed
    assert note in (tmp_path / "out" / "report.html").read_text()
    assert f"without {count} that are training images" in result["holdout"]["control"]
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [row["where"].split("#")[1] for row in rejected] == [str(row) for row in range(200 - count, 200)]
    assert rejected[-1]["reason"].startswith("not unseen: it is a re-encoded or changed copy (rho* 0.")
    assert rejected[0]["reason"].endswith("train.npy#280")


def test_training_images_as_unseen_ones_are_an_error(digits, audit):
    with pytest.raises(InputError, match=r"--holdout .*: 100 of its 100 images are training images, e\.g\. .*#0"):
        audit(digits[:300], digits[300:350], digits[:100])


def test_an_unseen_set_inside_the_training_set_is_an_error_before_any_work(digits, tmp_path):
    for row in range(40):
        path = tmp_path / "all" / "ab"[row % 2] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[row, :, :, 0]).save(path)
    samples, out = save(tmp_path / "samples.npy", digits[:10]), str(tmp_path / "out")
    (tmp_path / "linked").symlink_to(tmp_path / "all" / "b")
    for inside in ("all", "all/b", "linked"):
        specs = {"train": f"folder:{tmp_path / 'all'}", "samples": samples, "holdout": f"folder:{tmp_path / inside}"}
        with pytest.raises(InputError, match="--holdout .* lies inside --train .*: give images that the model was not"):
            run(audit_params(**specs, out=out, encoder="pixels"), quiet=True)
    # two halves of one folder are apart
    specs["train"] = f"folder:{tmp_path / 'all' / 'a'}"
    assert len(open_source(specs["train"])) == 20
    run(audit_params(**specs, out=out, encoder="pixels"), quiet=True)


def test_a_self_test_that_misses_copies_ends_the_audit(digits, audit, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(leaks, "COPY_CAP", 0)  # so that re-encoded training images stay in the control
    unseen = digits[300:500].copy()
    unseen[:5] = [jpeg(image, 98) for image in digits[:5]]
    code, result, _ = audit(digits[:300], digits[600:650], unseen)
    assert code == SELF_TEST_FAILED
    printed = capsys.readouterr()
    assert "samples are copies" not in printed.out
    assert "error: the self-test found only " in printed.err
    assert "jpeg of the planted copies (95% are required)" in printed.err
    assert result["failure"].startswith("the self-test found only ")
    assert "No answer: the self-test found only " in (tmp_path / "out" / "report.html").read_text()


def test_the_self_test_fails_below_95_percent_of_each_certain_kind():
    def tested(**recall):
        planted = {kind: {"count": 20} for kind in recall}
        return {"planted": planted, "control": 100, "metrics": {"calibrated": {"recall": recall}}}

    assert failure(tested(exact=1.0, jpeg=0.95, mirrored=1.0, cropped=0.1), 0.2) is None
    assert "19 of 20" not in failure(tested(exact=1.0, jpeg=0.9, mirrored=1.0), 0.2)
    assert "found only 18 of 20 jpeg of" in failure(tested(exact=1.0, jpeg=0.9, mirrored=0.95), 0.2)
