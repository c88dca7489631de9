"""Which images the report shows beside each other, and with which numbers."""

import base64
import io
import re
import types
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from report_project import COPIED, IMAGES, REPORT, VARIANTS, write_project

from stages.files.artifacts import read_json, write_json
from stages.files.images import read_images
from stages.files.paths import images_of
from stages.protocol import run_plain
from stages.reporting import words
from stages.reporting.most_copied import most_copied


def test_sample_i_of_every_variant_stands_in_one_column_with_its_ratio(page):
    block = page[page.index('<div class="beside') : page.index("One training image across the variants")]
    rows = block.split('<div class="row">')[1:]
    assert len(rows) == len(VARIANTS)
    for name, row in zip(VARIANTS, rows):
        found = re.findall(r'base64,([^"]+)" alt="(\S+), sample (\d+)"><small>([\d.]+)<', row)
        assert [(own, int(index)) for _, own, index, _ in found] == [(name, i) for i in range(REPORT["pictures"])]
        pairs = pq.read_table(f"data/filter/{name}/pairs.parquet").sort_by("sample_index")["ratio"].to_pylist()
        assert [ratio for *_, ratio in found] == [f"{ratio:.2f}" for ratio in pairs[: len(found)]]
        samples = read_images(f"data/sample/{name}/samples.arrow").images
        for content, _, index, _ in found:
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
            assert np.array_equal(shown, samples[int(index), :, :, 0])


def test_the_nearest_training_images_are_those_of_the_network_that_copies_most(page):
    block = page[page.index('<div class="beside nearest') : page.index("Variant by variant")]
    assert COPIED["net-conditioning"] > COPIED["net-temperature"]
    assert "samples of net-conditioning, the network" in page
    table = pq.read_table("data/filter/net-conditioning/neighbors.parquet").to_pylist()
    train, samples = (
        read_images(path).images for path in (images_of("train"), "data/sample/net-conditioning/samples.arrow")
    )
    rows = re.findall(r'<div class="row (\w+)"><span>sample (\d), in \w+</span>(.*)</div>', block)
    assert [(int(sample), space) for space, sample, _ in rows] == [
        *((sample, space) for sample in range(3) for space in ("pixel", "feature")),
        (3, "pixel"),
    ]
    for space, sample, text in rows:
        found = re.findall(r'base64,([^"]+)" alt="([a-z ]+) (\d+)"><small>([^<]+)<', text)
        own = [row for row in table if (row["sample_index"], row["space"]) == (int(sample), space)]
        assert [(kind, int(index), said) for _, kind, index, said in found] == [
            ("sample", int(sample), "&nbsp;"),
            *(
                ("training image", row["train_index"], words.number(row["distance"], {"pixel": 2, "feature": 3}[space]))
                for row in own
            ),
        ]
        for content, kind, index, _ in found:
            shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
            assert np.array_equal(shown, (train if kind == "training image" else samples)[int(index), :, :, 0])
    assert "Where the second row is missing" in page


def test_the_page_says_which_network_was_chosen_and_by_what(project):
    write_project(Path(), IMAGES)
    path = Path("data/sample/net-conditioning/sample.json")
    candidates = [{"seed": 1, "step": step, "fd": fd} for step, fd in ((100, 30.0), (200, 12.5), (400, 17.0))]
    choice = {"images": 15, "samples": 12, "split": "the last 15 held-out images", "candidates": candidates}
    write_json(path, {**read_json(path), "choice": {**choice, "chosen": [{"seed": 1, "step": 200}]}})
    run_plain("report")
    text = " ".join(re.sub(r"<[^>]+>", " ", Path("data/report/report.html").read_text()).split())
    assert "FD-efficientnet-lite0 to 15 held-out images that no reported distance uses" in text
    assert "chosen by 12 samples that are not reported, against the last 15 held-out images" in text
    assert "1 100 30.0 1 200 12.5 chosen 1 400 17.0" in text


def copied_images():
    """Training image -> (variants that copy it, samples in all), counted with plain loops."""
    found = {}
    for name in VARIANTS:
        for pair in pq.read_table(f"data/filter/{name}/pairs.parquet").to_pylist():
            if pair["ratio"] < 0.7:
                names, number = found.get(pair["train_index"], (set(), 0))
                found[pair["train_index"]] = (names | {name}, number + 1)
    return {row: (len(names), number) for row, (names, number) in found.items()}


def test_the_images_that_most_variants_copy_stand_above_the_nearest_sample_of_each(page):
    counted = copied_images()
    expected = sorted(counted, key=lambda row: (-counted[row][0], -counted[row][1], row))[:12]
    block = page[page.index('<div class="beside copied') : page.index('<div class="beside nearest')]
    head, *rows = block.split('<div class="row across">')
    shown = re.findall(r'title="training image (\d+): copied by (\d) of 4 variants, in (\d+) samples"', head)
    assert [tuple(map(int, texts)) for texts in shown] == [(row, *counted[row]) for row in expected]
    train = read_images(images_of("train")).images
    assert len(rows) == len(VARIANTS)
    for name, text in zip(VARIANTS, rows, strict=True):
        samples = read_images(f"data/sample/{name}/samples.arrow").images
        tiles = re.findall(r'class="tile (\w*)".*?base64,([^"]+)" alt="(\S+), sample (\d+)"><small>([\d.]+)<', text)
        pairs = {pair["sample_index"]: pair for pair in pq.read_table(f"data/filter/{name}/pairs.parquet").to_pylist()}
        for row, (bar, content, own, index, distance) in zip(expected, tiles, strict=True):
            away = ((samples.astype(np.int64) - train[row]) ** 2).sum((1, 2, 3))
            assert (own, int(index)) == (name, away.argmin())
            assert distance == words.number(float(np.sqrt(away.min() / samples[0].size)) / 255, 2)
            pair = pairs[int(index)]
            assert bar == (pair["verdict"] if pair["train_index"] == row else "")
            picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
            assert np.array_equal(picture, samples[int(index), :, :, 0])


def test_where_nothing_is_copied_no_image_is_shown():
    pairs = pa.table({"train_index": [0, 1], "ratio": [0.7, 0.9]})
    variant = types.SimpleNamespace(pairs=pairs, limits=[1 / 3, 0.7])
    assert most_copied([variant, variant]) == []


def test_a_run_in_which_nothing_is_copied_has_a_page(project):
    write_project(Path(), IMAGES, copied=dict.fromkeys(VARIANTS, 0.0), report=REPORT)
    for path in Path("data/filter").glob("*/pairs.parquet"):
        pairs = pq.read_table(path)
        place = pairs.column_names.index("ratio")
        pq.write_table(pairs.set_column(place, "ratio", pa.array([0.9] * len(pairs))), path)
    assert copied_images() == {}
    run_plain("report")
    page = Path("data/report/report.html").read_text()
    assert "One training image across the variants" in page
    assert '<div class="beside copied' not in page


def test_an_image_of_more_variants_goes_before_one_of_more_samples():
    def variant(*rows):
        table = pa.table({"train_index": rows, "ratio": [0.1] * len(rows)})
        return types.SimpleNamespace(pairs=table, limits=[1 / 3, 0.7])

    found = most_copied([variant(5, 5, 5, 2, 4), variant(2, 3, 3), variant(2, 4)], count=3)
    assert [(image.row, image.variants, image.samples) for image in found] == [(2, 3, 3), (4, 2, 2), (5, 1, 3)]
