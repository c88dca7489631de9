"""What a run shows in the Prefect UI, and what a reproduction ends with at the terminal."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import server, showcase, summary
from pipeline.params import STAGES, stage_module
from stages.files.images import image_table, write_images
from stages.files.paths import samples_of
from stages.files.png import png_bytes


def decoded(uri: str) -> np.ndarray:
    content = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def test_results_have_a_row_per_variant_and_a_value_per_cell():
    results = {"answer": "a", "metric": {"threshold": 0.7}, "rows": [{"variant": "x", "rate": 1 / 3}, {"variant": "y"}]}
    assert showcase.tables(results) == {
        "": [{"name": "answer", "value": "a"}, {"name": "metric.threshold", "value": "0.7"}],
        "rows": [{"variant": "x", "rate": "0.333333"}, {"variant": "y"}],
    }
    assert showcase.tables({"claims": [{"claim": "c"}]}) == {"": [{"claim": "c"}]}
    assert showcase.tables([1, 2]) == {"": [{"name": "", "value": "[1, 2]"}]}
    assert showcase.tables({"empty": []}) == {"": [{"name": "empty", "value": "[]"}]}


def test_a_small_picture_is_enlarged_pixel_by_pixel_and_a_large_one_halved():
    small = np.random.default_rng(0).integers(0, 256, (16, 20, 1), np.uint8)
    shown = decoded(showcase.data_uri(png_bytes(small)))
    assert shown.shape == (320, 400, 3)
    assert np.array_equal(shown[::20, ::20, :1], small)
    assert np.array_equal(shown[19::20, 19::20, :1], small)
    large = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    assert decoded(showcase.data_uri(png_bytes(large))).shape == (300, 350, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_are_shown_row_by_row(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 5, channels), np.uint8)
    write_images(tmp_path / showcase.SAMPLES, image_table(images))
    sheet = np.asarray(Image.open(io.BytesIO(showcase.contact_sheet(tmp_path / showcase.SAMPLES))))
    sheet = sheet.reshape(10, 48, channels)
    for index, image in enumerate(images):
        top, left = index // 8 * 5, index % 8 * 6
        assert np.array_equal(sheet[top : top + 4, left : left + 5], image)
    assert (sheet[5:, 18:] == 255).all()
    assert samples_of("x").name == showcase.SAMPLES


def test_only_the_report_is_linked_on_the_projects_own_server(monkeypatch):
    monkeypatch.setenv(server.OWN, "http://127.0.0.1:4321/api")
    assert showcase._address(Path("data/report/report.html")) == "http://127.0.0.1:4321/scoresmooth/report.html"
    assert showcase._address(Path("data/filter/x/report.html")).startswith("file:///")
    monkeypatch.delenv(server.OWN)
    assert showcase._address(Path("data/report/report.html")).startswith("file:///")


def test_outs_of_variants_that_are_gone_are_named(tmp_path, monkeypatch, capsys):
    assert {name for name in STAGES if stage_module(name).Params.PER_VARIANT} == set(summary.PER_VARIANT)
    monkeypatch.chdir(tmp_path)
    for name in ("train/kept", "train/gone", "fid/gone", "report"):
        Path("data", name).mkdir(parents=True)
    Path("data/train/file").write_text("")
    assert summary.stale(["kept"]) == [Path("data/train/gone"), Path("data/fid/gone")]
    Path("params.yaml").write_text("variants: {kept: {}}")
    monkeypatch.setattr(summary, "print_results", lambda path: print(path))
    monkeypatch.setattr(server, "where", lambda: "somewhere")
    summary.print_summary_if_any()
    assert capsys.readouterr().out == ""
    summary.RESULTS.write_text(json.dumps({}))
    summary.print_summary_if_any()
    assert capsys.readouterr().out.splitlines() == [
        "data/report/results.json",
        "",
        f"report      {tmp_path}/data/report/report.html",
        "Prefect UI  somewhere",
        "stale       data/train/gone: params.yaml has no variant of this name; to remove it: rm -r data/train/gone",
        "stale       data/fid/gone: params.yaml has no variant of this name; to remove it: rm -r data/fid/gone",
    ]
