"""--no-images: nothing that is written shows an image or names a file; and the form of audit.json."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from stages.audit import audit_params, run

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "audit.schema.json").read_text())


def write_set(folder: Path, images, name: str) -> str:
    """Images as files whose folder and names tell who is on them, one of them broken, and a text."""
    place = folder / f"secret-{name}" / "dr-jones"
    place.mkdir(parents=True)
    (folder / f"secret-{name}" / "dr-smith").mkdir()
    for row, image in enumerate(images):
        Image.fromarray(image[..., 0]).save((place if row % 2 else place.parent / "dr-smith") / f"patient-{row}.png")
    (place / "patient-x.png").write_bytes(b"broken")
    (place / "notes.patient").write_text("secret")
    return f"folder:{place.parent}"


@pytest.fixture(scope="module")
def audits(digits, tmp_path_factory):
    """Two folders with audits of the same images under other paths: (folder, its audit's out)."""
    found = []
    for name in ("one", "another place"):
        folder = tmp_path_factory.mktemp(name)
        parts = {"train": digits[:200], "samples": digits[190:230], "holdout": digits[300:420]}
        specs = {role: write_set(folder, images, f"{role} {name}") for role, images in parts.items()}
        (folder / "groups.csv").write_text("row,patient\n" + "".join(f"{row},jones {row % 3}\n" for row in range(41)))
        options = {**specs, "encoder": "pixels", "groups": folder / "groups.csv", "no_images": True}
        run(audit_params(**options, out=folder / "out"), quiet=True)
        found.append(folder / "out")
    return found


def contents(path: Path) -> str:
    """A file as text, a table with its metadata."""
    if path.suffix != ".parquet":
        return path.read_text()
    table = pq.read_table(path)
    assert not any(pa.types.is_binary(kind) or pa.types.is_list(kind) for kind in table.schema.types)
    return f"{table.to_pylist()} {table.schema.metadata}"


def test_nothing_shows_an_image_or_names_a_file(audits):
    names = {"audit.json", "pairs.parquet", "report.html", "model-card.md", "samples-kept.txt", "rejected.parquet"}
    for out in audits:
        assert {path.name for path in out.iterdir()} == names
        for path in out.iterdir():
            text = contents(path)
            for word in ("secret", "jones", "smith", "patient-", ".png", "groups.csv", str(out.parent), "data:image"):
                assert word not in text, (path.name, word)
        assert "<img" not in (out / "report.html").read_text()


def test_the_same_images_elsewhere_give_the_same_bytes(audits):
    one, other = audits
    for path in one.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_what_is_kept_and_left_out_is_named_by_rows(audits):
    out = audits[0]
    result = json.loads((out / "audit.json").read_text())
    assert result["metrics"]["byte_identical"]["flagged"] == 10
    assert result["settings"]["seed"] == 0
    assert {entry["group"] for entry in result["groups"]["groups"]} == {"group 1", "group 2", "group 3"}
    assert "1 samples images could not be read and are left out, e.g. samples 20: unreadable" in result["notes"]
    assert all(line.startswith("samples ") for line in (out / "samples-kept.txt").read_text().splitlines())
    assert result["train"]["skipped"] == 1


def test_the_page_works_without_pictures(audits, tmp_path):
    from browser import Browser, find_browser

    if find_browser() is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(tmp_path / "profile") as browser:
        tab = browser.open((audits[0] / "report.html").as_uri())
        assert tab.run("document.images.length") == 0
        assert tab.run("document.querySelectorAll('.sortable th button').length") > 0


@pytest.mark.parametrize("options", [{}, {"no_images": True}])
def test_audit_json_has_the_form_of_its_schema(digits, audit, tmp_path, options):
    Draft202012Validator.check_schema(SCHEMA)
    _, result, _ = audit(digits[:120], digits[115:140], digits[300:400], **options)
    errors = [error.message for error in Draft202012Validator(SCHEMA).iter_errors(result)]
    assert errors == []
    result["metrics"]["calibrated"]["rate"] = "much"
    assert not Draft202012Validator(SCHEMA).is_valid(result)
    card = (tmp_path / "out" / "model-card.md").read_text().splitlines()
    assert len(card) == 10
    assert card[2].startswith(f"- Copies: {result['metrics']['calibrated']['flagged']} of 25 samples copy")
    assert str(tmp_path) not in "".join(card)
