"""What users give an audit: damaged files, other sizes and colours, few images, any paths; and its command."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from saved import save
from typer.testing import CliRunner

from pipeline.cli import app
from stages import audit as stage
from stages.audit import COPIES_ABOVE_LIMIT, INTERRUPTED, audit_params, run
from stages.errors import InputError
from stages.memorization.statistics import rate_interval

ROOT = Path(__file__).parents[2]


def test_corrupt_files_are_left_out_listed_and_said(digits, audit, tmp_path):
    folder = tmp_path / "with broken"
    folder.mkdir()
    for row in range(40):
        Image.fromarray(digits[row, :, :, 0]).save(folder / f"{row:02}.png")
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:60])
    (folder / "06.png").write_bytes(b"")
    _, result, _ = audit(f"folder:{folder}", digits[:8], digits[100:130])
    assert (result["train"]["count"], result["train"]["rejected"]) == (38, 2)
    assert result["coverage"] == pytest.approx(38 / 40)
    assert any(note.startswith("2 train images could not be read and are left out, e.g. ") for note in result["notes"])
    assert any(note.startswith("coverage 0.9500") for note in result["notes"])
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [(r["set"], Path(r["where"]).name) for r in rejected] == [("train", "05.png"), ("train", "06.png")]
    assert rejected[1]["reason"] == "the file is empty"
    assert result["metrics"]["byte_identical"]["flagged"] == 6


def test_only_corrupt_files_are_an_error(digits, audit, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="--samples folder:.*broken: none of its first images can be read"):
        audit(digits[:20], f"folder:{folder}", digits[100:130])


def test_mixed_sizes_are_brought_to_the_smaller_one_and_that_is_said(digits, audit, tmp_path):
    large = np.stack([np.asarray(Image.fromarray(d[:, :, 0]).resize((28, 28), 0)) for d in digits[:60]])
    _, result, _ = audit(large, digits[:10], digits[100:150])
    assert result["resolution"] == [14, 14, 1]
    assert result["train"]["resized"] == 60
    assert result["samples"]["resized"] == 0
    assert "60 of 60 train images (28 × 28, grey) were resized to 14 × 14" in result["notes"]
    assert result["metrics"]["calibrated"]["flagged"] >= 8  # enlarged and reduced again


def test_grey_and_colour_meet_in_colour_and_that_is_said(digits, audit):
    colour = np.repeat(digits[:10], 3, axis=3)
    _, result, _ = audit(digits[:60], colour, digits[100:150])
    assert result["resolution"] == [14, 14, 3]
    assert "60 of 60 train images were turned to colour" in result["notes"]
    assert result["metrics"]["byte_identical"]["flagged"] == 10


def test_one_sample_and_one_held_out_image_are_enough(digits, audit):
    _, result, pairs = audit(digits[:30], digits[:1], digits[40:41])
    assert pairs["verdict"].to_pylist() == ["copy"]
    assert result["metrics"]["calibrated"]["rate"] == 1
    assert result["metrics"]["calibrated"]["ci_low"] == rate_interval(1, 1)[0]
    assert result["frechet"]["value"] is None
    assert result["c_t"]["value"] is None


def test_one_training_image_is_an_error(digits, audit):
    message = r"--train holds 1 readable image\(s\), too few: r1/r2 needs a second training image: give at least 2"
    with pytest.raises(InputError, match=message):
        audit(digits[:1], digits[:5], digits[40:45])
    with pytest.raises(InputError, match=r"each half of it needs two, without --holdout: give at least 4"):
        audit(digits[:3], digits[:5])


def test_two_training_images_are_enough(digits, audit):
    _, result, _ = audit(digits[:2], digits[:5], digits[40:45])
    assert result["metrics"]["byte_identical"]["flagged"] == 2


def test_all_black_images_are_copies_of_each_other(audit):
    black = np.zeros((30, 8, 8, 1), np.uint8)
    unseen = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), np.uint8)
    _, result, pairs = audit(black, black[:6], unseen)
    assert result["train"]["duplicates_groups"] == 1
    assert result["train"]["duplicates_images"] == 30
    assert set(pairs["verdict"].to_pylist()) == {"copy"}
    assert result["metrics"]["byte_identical"]["rate"] == result["metrics"]["calibrated"]["rate"] == 1
    assert result["metrics"]["byte_identical"]["holdout_rate"] == 0
    with pytest.raises(InputError, match="its images are all near duplicates .* give --holdout, or a smaller --near"):
        audit(black, black[:6])


def test_samples_identical_to_the_training_set(digits, audit):
    _, result, _ = audit(digits[:80], digits[:80], digits[100:160])
    assert result["metrics"]["byte_identical"]["rate"] == 1
    assert result["verdicts"]["copy"] == 80
    assert result["extraction"]["unique_training_images"] == 80
    assert result["frechet"]["value"] == pytest.approx(0, abs=1e-9)
    assert (result["c_t"]["value"] or -9) < -3


def test_more_samples_than_training_images(digits, audit):
    _, result, pairs = audit(digits[:20], digits[200:420], digits[500:560])
    assert (result["train"]["count"], pairs.num_rows) == (20, 220)


def test_paths_in_any_script(digits, audit, tmp_path):
    folder = tmp_path / "données ✓ 画像"
    folder.mkdir()
    with zipfile.ZipFile(folder / "échantillons.zip", "w") as archive:
        for row in range(5):
            buffer = io.BytesIO()
            Image.fromarray(digits[row, :, :, 0]).save(buffer, "PNG")
            archive.writestr(f"ñ/{row}.png", buffer.getvalue())
    out = folder / "résultat"
    _, result, pairs = audit(digits[:40], f"zip:{folder / 'échantillons.zip'}", digits[100:130], out=out)
    assert result["samples"]["source"].endswith("échantillons.zip")
    assert pairs["sample_where"].to_pylist()[0].endswith("échantillons.zip!ñ/0.png")
    assert "échantillons.zip" in (out / "report.html").read_text()


def test_an_output_folder_that_cannot_be_written_is_told_before_any_work(digits, tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(stage.Path, "mkdir", refused)  # root may write everywhere: chmod would test nothing
    with pytest.raises(InputError, match="--out .*/out cannot be written .Permission denied.: choose a folder that"):
        run(audit_params(train="no", samples="no", out=str(tmp_path / "out")), quiet=True)


def test_a_file_in_the_place_of_the_output_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="--out .*/out cannot be written .Not a directory.: choose a folder that"):
        run(audit_params(train="no", samples="no", out=str(tmp_path / "out")), quiet=True)
    assert (tmp_path / "out").read_text() == "mine"


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "audit", *arguments], env=environment, capture_output=True, text=True
    )


def test_the_command_ends_with_2_and_one_line_for_wrong_input(tmp_path):
    done = command("--train", "folder:nowhere", "--samples", "npz:x", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --train: image source: nowhere does not exist")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupted_command_says_how_to_go_on(monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.audit.run", interrupted)
    done = CliRunner().invoke(app, ["audit", "--train", "a", "--samples", "b", "--out", "c"])
    assert (done.exit_code, done.stderr) == (INTERRUPTED, "interrupted: the same command resumes where it stopped\n")


def test_the_command_answers_and_needs_no_prefect(digits, tmp_path):
    """`python -m stages.audit` is the same command; a module that raises on import stands in the place of Prefect."""
    (tmp_path / "prefect.py").write_text("raise ImportError('prefect is not here')")
    specs = [f"--{role}={save(tmp_path / f'{role}.npy', images)}" for role, images in
             (("train", digits[:60]), ("samples", digits[:20]), ("holdout", digits[100:150]))]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    arguments = [*specs, f"--out={tmp_path / 'out'}", "--encoder=pixels", "--fail-above=0.5"]
    done = subprocess.run(
        [sys.executable, "-m", "stages.audit", *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == COPIES_ABOVE_LIMIT, done.stderr
    assert "20 of 20 samples are copies: 100.00% [83.89%, 100.00%]" in done.stdout
    assert f"report: {tmp_path / 'out' / 'report.html'}" in done.stdout


@pytest.mark.parametrize("out", ["", "  ", "a" * 300, f"here/{'ä' * 200}/there"])
def test_a_name_that_is_no_folder_is_refused(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--out: "):
        audit_params(train="folder:a", samples="folder:b", out=out)
    assert list(tmp_path.iterdir()) == []


def test_squashed_samples_are_found_with_the_fit_that_was_used(digits, audit):
    def wide(image):
        return Image.fromarray(image[:, :, 0]).resize((25, 20), Image.Resampling.LANCZOS)

    def array(images):
        return np.stack([np.asarray(image) for image in images])

    train, unseen = array(map(wide, digits[:200])), array(map(wide, digits[300:400]))
    samples = array(wide(image).resize((20, 20), Image.Resampling.LANCZOS) for image in digits[:30])
    found = {}
    for fit in ("crop", "squash"):
        _, result, _ = audit(train, samples, unseen, fit=fit)
        found[fit] = result["verdicts"]["copy"]
        assert result["train"]["reshaped"] == 200
        assert result["samples"]["reshaped"] == 0
        (note,) = (note for note in result["notes"] if note.startswith("200 of 200 train images are not square"))
        assert ("were cropped to the centred square" if fit == "crop" else "were squashed to a square") in note
        assert "images that were brought to a square in another way are not found" in note
    assert found["squash"] == 30 > found["crop"]


def test_what_a_folder_holds_besides_is_counted_everywhere(digits, audit, tmp_path, capsys):
    folder = tmp_path / "samples"
    folder.mkdir()
    for row in range(8):
        Image.fromarray(digits[row, :, :, 0]).save(folder / f"{row}.png")
    for name in ("a.txt", "b.txt", "c"):
        (folder / name).write_text("no image")
    with zipfile.ZipFile(folder / "part.zip", "w") as archive:
        archive.write(folder / "0.png", "inside.png")
    _, result, _ = audit(digits[:60], f"folder:{folder}", digits[100:150])
    note = "samples: 4 files are not images and were skipped: 2 .txt, 1 .zip, 1 without ending"
    assert note in result["notes"]
    assert (result["samples"]["count"], result["samples"]["skipped"]) == (8, 4)
    assert f"note: {note}" in capsys.readouterr().out
    assert note in (tmp_path / "out" / "report.html").read_text()


def test_labels_stop_no_audit(digits, audit, tmp_path):
    np.savez(tmp_path / "train.npz", images=digits[:60], labels=np.array(["a"] * 60))
    code, result, _ = audit(f"npz:{tmp_path / 'train.npz'}", digits[:8], digits[100:150])
    assert code in (0, 4)
    assert result["metrics"]["byte_identical"]["flagged"] == 8
    assert any(note.startswith("train: its labels are not used: ") for note in result["notes"])
