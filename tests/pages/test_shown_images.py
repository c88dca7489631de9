"""Which images the report shows beside each other, and with which numbers."""

import base64
import io
import re

import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from report_project import COPIED, REPORT, VARIANTS

from stages.files.images import read_images
from stages.files.paths import images_of
from stages.reporting import words


def test_sample_i_of_every_variant_stands_in_one_column_with_its_ratio(page):
    block = page[page.index('<div class="beside') : page.index("Variant by variant")]
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
