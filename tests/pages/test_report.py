"""The report: what it says follows from the artifacts, it is one file, and the same artifacts give the same bytes."""

import base64
import csv
import html
import io
import json
import re
import xml.dom.minidom
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accessible import counts, everywhere, media, missing_names, style_of
from matplotlib.figure import Figure
from page_text import strings, text_of
from PIL import Image
from report_project import COPIED, IMAGES, REPORT, VARIANTS, write_project

from stages.errors import InputError
from stages.files.images import image_table, read_images, write_images
from stages.files.paths import images_of
from stages.protocol import run_plain
from stages.report import Params
from stages.reporting import figures, words
from stages.reporting.answer import answer, rates
from stages.reporting.checks import Check, checks
from stages.reporting.contrasts import ContrastParams, measured, read_contrasts
from stages.reporting.inputs import read_inputs
from stages.reporting.terminal import print_results

FOLDER = Path("data/report")


CONTRASTS = [ContrastParams(**entry) for entry in REPORT["contrasts"]]
EFFECT = re.compile(r"fewer|\bless\b|reduc|lower than|higher than|because of|removes|thanks to|does not overlap", re.I)


def judge(project: Path, **changes) -> tuple[dict[str, Check], str]:
    """Checks by title and the opening, without drawing a page."""
    write_project(project, IMAGES, **changes)
    inputs = read_inputs(project / "data", changes.get("variants", VARIANTS), np.zeros(1))
    contrasts = read_contrasts(CONTRASTS, {variant.name: variant.tree for variant in inputs.variants})
    found = {check.title: check for check in checks(inputs.variants, len(inputs.train))}
    changes = measured(contrasts, {variant.name: variant for variant in inputs.variants})
    return found, " ".join([answer(inputs.variants, changes, []), *rates(inputs.variants, contrasts)])


class Page(HTMLParser):
    """Tags, attributes and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value for name, value in attrs if name == "id"]


def test_the_page_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert parsed.tags.count("img") > 50
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)


def test_pictures_and_headers_have_names_and_wide_tables_scroll(page):
    assert missing_names(page) == []
    assert counts(page)["svg"] >= 3
    assert counts(page)["table"] >= 5
    (copies,) = re.findall(r'<svg role="img" aria-label="(copies: [^"]*)"', page)
    assert copies == (
        "copies: Copy rate, 95 % interval, samples that copy a training image (%); Distance to test images, "
        "FD-efficientnet-lite0; To nearest training image, × held-out images"
    )


def test_a_figures_name_is_escaped():
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure()
        figure.subplots().set(title='a "b" <c>', xlabel="x & y")
        svg = figures.to_svg(figure, "one")
    assert svg.startswith('<svg role="img" aria-label="one: a &quot;b&quot; &lt;c&gt;, x &amp; y" ')
    xml.dom.minidom.parseString(svg)


def test_on_paper_tables_and_figures_take_the_width_of_the_page(page):
    paper, always = media(style_of(page), "print"), everywhere(style_of(page))
    for scrolls in (".figure", ".scroll"):
        assert always[scrolls]["overflow-x"] == "auto"
        assert paper[scrolls]["overflow"] == "visible"
    assert paper[".figure svg"]["min-width"] == paper[".wrap"]["min-width"] == "0"
    assert paper["thead th"]["white-space"] == "normal"
    assert paper["tr"]["break-inside"] == "avoid"
    assert paper["nav"]["display"] == "none"


def test_ids_are_unique_and_links_lead_somewhere(page):
    parsed = Page(page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)


def test_same_artifacts_same_bytes(rendered, project):
    write_project(project, IMAGES)
    run_plain("report")
    first, second = (
        {str(path.relative_to(root / FOLDER)): path.read_bytes() for path in (root / FOLDER).rglob("*.*")}
        for root in (rendered, project)
    )
    assert first == second
    plots = [
        "copy_rate.tsv", "interpolation.png", "learned_levels.tsv", "learned_paths.tsv",
        "learned_temperatures.tsv", "loss.tsv", "runs.tsv"
    ]  # fmt: skip
    assert sorted(first) == ["metrics.json", *(f"plots/{name}" for name in plots), "report.html", "results.json"]


def test_the_answer_has_the_numbers_of_the_trained_models(page):
    results = json.loads((FOLDER / "results.json").read_text())
    answer = " ".join([results["answer"], *results["rates"]])
    plain = answer.replace(words.THIN, " ")
    assert "net-conditioning 75.0 % [68.6, 80.5] and net-temperature 12.5 % [8.6, 17.8]; held-out" in plain
    assert re.search(r"Blends of training images: net-conditioning 5\.0 % \[.*\] and net-temperature 5\.0 % \[", plain)
    assert "broken" not in answer
    shown = re.sub(r"<[^>]+>", " ", html.unescape(page))  # a line per sentence
    assert " ".join(answer.split()) in " ".join(shown.split())


def test_all_checks_pass_when_the_numbers_say_so(page):
    rows = json.loads((FOLDER / "results.json").read_text())["checks"]
    assert [row["title"] for row in rows if not row["passed"]] == []
    assert len(rows) == 5 + len(VARIANTS)
    assert "All 9 checks of the samples pass" in page


@pytest.mark.parametrize(
    ("changes", "title"),
    [
        ({"closed-conditioning": 0.9}, "closed-conditioning copies at least 95%"),
        ({"net-conditioning": 0.01, "net-temperature": 0.0}, "net-conditioning copies clearly more than chance"),
    ],
)
def test_a_check_fails_when_the_numbers_say_so(project, changes, title):
    found, _ = judge(project, copied={**COPIED, **changes})
    assert not found[title].passed


def test_a_contrast_of_sampler_and_form_is_confounded_and_never_an_effect(project, capsys):
    """On the page, in the results and at the terminal: every sentence that names both variants."""
    sampler = {"name": "actual-noise", "levels": 60}
    write_project(project, IMAGES, samplers={"net-temperature": sampler})
    run_plain("report")
    text = text_of((FOLDER / "report.html").read_text(encoding="utf-8"))
    factors = "noise conditioning, sampler and the target's smoothing"
    assert f"net-temperature and net-conditioning are confounded by {factors}" in text
    assert f"says nothing: net-temperature against net-conditioning (by {factors})." in text
    print_results()
    pair = {"net-temperature", "net-conditioning"}
    texts = strings(json.loads((FOLDER / "results.json").read_text()))
    for said in (text, ". ".join(texts), " ".join(capsys.readouterr().out.split())):
        about = [s for s in re.split(r"(?<=[.!?]) ", said) if pair <= set(s.split())]
        assert about
        assert not [s for s in about if EFFECT.search(s)]


def test_no_check_compares_two_variants(project):
    found, sentence = judge(project)
    assert not [title for title in found if sum(name in title for name in VARIANTS) > 1]
    assert not EFFECT.search(sentence)


def test_a_contrast_of_a_variant_that_does_not_exist_is_refused_before_anything_runs():
    wrong = {**REPORT, "contrasts": [{"name": "x", "of": "net-conditioning", "against": "net-nothing"}]}
    with pytest.raises(InputError, match=r"x\.against names 'net-nothing', which is not a variant: choose one of"):
        Params.from_tree({"report": wrong, "variants": VARIANTS})


BLENDS = "46 % of the samples are blends: nearer to the hull, yet no copies"


@pytest.mark.parametrize(
    ("faults", "sound"),
    [({"noisy": "60 % of the samples are noisy", "blend": BLENDS}, False), ({"blend": BLENDS}, True)],
)
def test_few_copies_of_broken_samples_are_no_success(project, faults, sound):
    """What the filter found is said in its words; blends are named and break nothing."""
    write_project(project, IMAGES)
    path = Path("data/filter/net-temperature/filter.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"faults": faults}))
    run_plain("report")
    results = json.loads((FOLDER / "results.json").read_text())
    check = next(row for row in results["checks"] if row["title"] == "net-temperature draws sound samples")
    assert check["passed"] is sound
    assert ("Its samples look broken: 60 % of the samples are noisy. " in check["sentence"]) is not sound
    assert ("its samples look broken" in results["rates"][0]) is not sound
    assert BLENDS in check["sentence"]
    text = text_of((FOLDER / "report.html").read_text(encoding="utf-8"))
    assert BLENDS in text
    assert ("samples look broken" in text) is not sound
    assert not [said for said in re.split(r"(?<=[.!?]) ", text) if "blends" in said and EFFECT.search(said)]


def test_metrics_and_plots_hold_the_artifacts_numbers(page):
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    rows = {row["variant"]: row for row in json.loads((FOLDER / "results.json").read_text())["rows"]}
    own = rows["net-temperature"]
    few = metrics["variants"]["net-temperature"]  # a column each in `dvc exp show`
    assert sorted(few) == ["blends_rate", "calibrated_distance_rate", "copies_rate", "fd_test", "median_multiple"]
    assert few == {key: own[key] for key in few}
    assert (own["copies"], own["copies_rate"], own["copies_count"]) == (25, 0.125, 200)
    assert own["copies_low"] < 0.125 < own["copies_high"]
    assert (own["fd_test"], own["fd_floor"], own["median_multiple"]) == (0.05, 0.021, 0.95)
    assert own["rate_byte_identical"] == 12 / 200
    assert list(metrics["variants"]) == sorted(VARIANTS)
    assert (metrics["theory_failed"], metrics["checks_failed"]) == (1, 0)
    assert (own["blends"], own["blends_rate"]) == (10, 0.05)
    assert (own["vendi"], own["vendi_holdout"]) == (5.5, 6.25)
    with open(FOLDER / "plots" / "loss.tsv", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [len([row for row in rows if row["variant"] == name]) for name in VARIANTS] == [0, 0, 40, 40]
    assert all(float(row["loss_low_sigma"]) == pytest.approx(3 * float(row["loss_high_sigma"])) for row in rows)
    with open(FOLDER / "plots" / "copy_rate.tsv", newline="") as file:
        assert [row["variant"] for row in csv.DictReader(file, delimiter="\t")] == list(VARIANTS)


def test_the_pictures_are_the_first_samples_in_order(page):
    section = page[page.index('id="v-net-temperature"') :]
    found = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="sample (\d+)"', section)[: REPORT["pictures"]]
    assert [int(index) for _, index in found] == list(range(REPORT["pictures"]))
    samples = read_images("data/sample/net-temperature/samples.arrow").images
    for content, index in found:
        assert np.array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))), samples[int(index), :, :, 0]
        )


def test_colour_images_and_closed_forms_alone(project):
    closed = {name: spec for name, spec in VARIANTS.items() if spec["score"] == "closed-form"}
    write_project(project, np.repeat(IMAGES, 3, axis=3), variants=closed, report={**REPORT, "contrasts": []})
    run_plain("report")
    text = (FOLDER / "report.html").read_text()
    assert 'id="training"' not in text
    assert "Copied samples [95 % interval]: closed-conditioning 100" in text
    assert not (FOLDER / "plots" / "loss.tsv").exists()


def test_what_others_wrote_is_escaped(page):
    assert "truncated &lt;PNG&gt; after 120 bytes" in page
    assert "<PNG>" not in page
    assert "b.png" not in page, "one rejected image is listed, as params say"
    assert "The first 1 of 2" in page


def test_failed_claims_and_checks_are_shown(project):
    write_project(project, IMAGES, copied={**COPIED, "closed-conditioning": 0.9})
    run_plain("report")
    page = (FOLDER / "report.html").read_text()
    assert "3 of 4 claims hold" in page
    assert "a claim that fails" in page
    assert "quick mode, images: digits" in page.lower()
    assert page.count('id="shell-mass-axes_1"') == 1, "the block's figure"
    assert "<figcaption>x<sub>i</sub></figcaption>" in page, "and its picture"
    assert "1 of 9 checks fails" in page
    assert page.count('<span class="mark fail">FAILS</span>') == 2


def test_a_folder_of_a_removed_variant_is_not_read(project):
    write_project(project, IMAGES)
    fewer = {name: spec for name, spec in VARIANTS.items() if name != "net-temperature"}
    Path("data/filter/net-temperature/filter.json").write_text("{")
    Path("params.yaml").write_text(json.dumps({"report": {**REPORT, "contrasts": []}, "variants": fewer}))
    run_plain("report")
    assert "net-temperature" not in (FOLDER / "report.html").read_text()


@pytest.mark.parametrize(
    ("file", "stage"),
    [
        ("filter/net-conditioning/filter.json", "filter@net-conditioning"),
        ("fid/closed-temperature/fid.json", "fid@closed-temperature"),
        ("sample/net-conditioning/samples.arrow", "sample@net-conditioning"),
        ("train/net-conditioning/seed-42/loss.tsv", "train@net-conditioning"),
        ("verify/verify.json", "verify"),
        ("deduplicate/groups.parquet", "deduplicate"),
    ],
)
def test_a_missing_artifact_names_the_command(project, file, stage):
    write_project(project, IMAGES)
    Path("data", file).unlink()
    with pytest.raises(
        InputError, match=re.escape(f"data/{file} is missing") + r".*" + re.escape(f"dvc repro {stage})")
    ):
        run_plain("report")
    assert not FOLDER.exists()


def test_stale_or_foreign_artifacts_are_refused(project):
    write_project(project, IMAGES)
    path = Path("data/filter/net-conditioning/filter.json")
    content = json.loads(path.read_text())
    del content["metrics"]["blend"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"filter\.json has no metric 'blend': rerun stage filter"):
        run_plain("report")
    write_project(project, IMAGES)
    path = Path("data/filter/net-conditioning/pairs.parquet")
    pq.write_table(pq.read_table(path).slice(1), path)
    with pytest.raises(InputError, match=r"pairs\.parquet has 199 rows for 200 samples.*filter@net-conditioning"):
        run_plain("report")
    write_project(project, IMAGES)
    path = Path("data/filter/net-conditioning/filter.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "headline": "nn_ratio_near_copy"}))
    with pytest.raises(InputError, match=r"net-conditioning/filter\.json has the headline nn_ratio_near_copy"):
        run_plain("report")
    path.write_text(json.dumps({**content, "headline": "beauty"}))
    with pytest.raises(InputError, match="headline 'beauty' is not among its metrics"):
        run_plain("report")
    del content["ratio"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no key 'ratio': rerun stage filter"):
        run_plain("report")


def test_held_out_ratios_are_exact(project):
    from stages import report as stage

    write_project(project, IMAGES)
    train = np.array([[0, 0], [3, 4], [200, 200]], np.uint8).reshape(3, 1, 2, 1)
    holdout = np.array([[0, 0], [0, 4]], np.uint8).reshape(2, 1, 2, 1)
    write_images(images_of("train"), image_table(train))
    write_images(images_of("holdout"), image_table(holdout))
    (shard,) = stage.plan(stage.Params(**REPORT, variants=VARIANTS))
    part = stage.work(shard.at("part.parquet"))
    assert pq.read_table(part).equals(pa.table({"ratio": [0.0, 3 / 4]}))  # (0, 4) lies 3 from (3, 4), 4 from (0, 0)


def test_figures_follow_the_page(page):
    assert not any(placeholder in page for placeholder in figures.VARIABLES)
    assert "var(--network)" in page
    assert "font-family" not in page[page.index("<svg") : page.rindex("</svg>")]


def test_cumulative_distribution_by_hand():
    x, share = figures.cumulative(np.array([0.5, 0.25, 0.25, 1.0]))
    assert x.tolist() == [0, 0.25, 0.25, 0.5, 1, 1]
    assert share.tolist() == [0, 25, 50, 75, 100, 100]
    many, _ = figures.cumulative(np.linspace(0, 1, 5000))
    assert len(many) == 402


def test_the_page_says_what_a_verdict_is_and_where_the_methods_are_written_down(page):
    assert "filter.ratios.copy_below" in page
    assert "Of the two-stage filter" not in page
    named = re.search(r"written down in (\S+?)<", page)[1]
    text = (Path(__file__).parents[2] / named).read_text(encoding="utf-8")
    for section in set(re.findall(r"METHODS §(\d)", page)):
        assert f"\n## {section}. " in text


def test_pictures_need_no_scrolling_and_their_numbers_no_mouse(page):
    """Pictures loaded lazily have no height before: links into the page miss, and a printed page lacks them."""
    assert 'loading="lazy"' not in page
    pairs = pq.read_table(
        f"data/filter/{next(iter(VARIANTS))}/pairs.parquet", columns=["sample_index", "distance"]
    ).to_pylist()
    first = next(row for row in pairs if row["sample_index"] == 0)
    assert "<tr><th>0</th><td" in page
    assert f"<td>{words.number(first['distance'])}</td>" in page
