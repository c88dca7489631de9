"""`scoresmooth.audit` from Python: the inputs that it takes, and that it is the audit of the command line."""

import gc
import inspect
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from saved import save

import scoresmooth
from pipeline.audit_command import audit as command
from scoresmooth.images import as_source
from stages.audit import audit_params, run
from stages.images.decode import to_pixels
from stages.images.sources.open import open_source
from stages.memorization import audit_work
from stages.memorization.audit_settings import AuditParams

COLOURS = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), np.uint8)
LABELS = np.arange(12) % 3


def read(spec: str) -> tuple[np.ndarray, list[int]]:
    """Pixels uint8 (N, 6, 6, 3) and labels of a source."""
    items = list(open_source(spec))
    return np.stack([to_pixels(item.picture(), 6, 3) for item in items]), [item.label for item in items]


class Pictures(torch.utils.data.Dataset):
    """A data set of PyTorch whose iteration would not end: it has no IndexError."""

    classes = ("cat", "dog", "owl")

    def __init__(self, convert):
        self.convert = convert

    def __len__(self) -> int:
        return len(COLOURS)

    def __getitem__(self, row):
        return self.convert(COLOURS[row % 12]), torch.tensor(int(LABELS[row % 12]))


def of_datasets():
    """A `datasets.Dataset` with encoded pictures and classes, shuffled and put back in order."""
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "owl"])}
    features = datasets.Features({"prompt": datasets.Value("string"), **kinds})
    values = {"image": list(map(Image.fromarray, COLOURS[::-1])), "label": LABELS[::-1].tolist(), "prompt": ["a"] * 12}
    return datasets.Dataset.from_dict(values, features).select(range(11, -1, -1))


ARRAYS = {
    "numpy": (lambda: COLOURS, "NHWC"),
    "channels first": (lambda: COLOURS.transpose(0, 3, 1, 2), "NCHW"),
    "torch": (lambda: torch.from_numpy(COLOURS).permute(0, 3, 1, 2), "NCHW"),
    "pictures": (lambda: list(map(Image.fromarray, COLOURS)), None),
    "generator": (lambda: (Image.fromarray(image) for image in COLOURS), None),
    "list of arrays": (lambda: list(COLOURS), "NHWC"),
    "mappings": (lambda: [{"img": Image.fromarray(image)} for image in COLOURS], None),
}
LABELLED = {
    "data set of pictures": (lambda: Pictures(Image.fromarray), None),
    "data set of tensors": (lambda: Pictures(lambda image: torch.from_numpy(image).permute(2, 0, 1)), "NCHW"),
    "datasets": (of_datasets, None),
}


@pytest.mark.parametrize("name", [*ARRAYS, *LABELLED])
def test_every_kind_of_input_gives_the_same_pixels(name, tmp_path):
    make, layout = (ARRAYS | LABELLED)[name]
    pixels, labels = read(as_source("train", make(), layout, tmp_path / "inputs"))
    assert np.array_equal(pixels, COLOURS)
    assert labels == (LABELS.tolist() if name in LABELLED else [-1] * 12)
    if name in LABELLED:
        assert open_source(f"parquet:{tmp_path}/inputs/train.parquet").classes == ["cat", "dog", "owl"]


def test_paths_and_source_strings_are_taken_as_they_are(tmp_path):
    np.save(tmp_path / "a.npy", COLOURS)
    (tmp_path / "pictures").mkdir()
    for path in (tmp_path / "a.npy", str(tmp_path / "a.npy"), f"npz:{tmp_path}/a.npy"):
        assert as_source("train", path, None, tmp_path) == f"npz:{tmp_path}/a.npy"
    assert as_source("train", tmp_path / "pictures", None, tmp_path) == f"folder:{tmp_path}/pictures"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "pictures"]


def test_a_picture_of_a_camera_is_turned_upright_as_its_file_would_be(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOURS[0]).save(tmp_path / "a.png", exif=exif)
    source = as_source("train", [Image.open(tmp_path / "a.png")], None, tmp_path / "inputs")
    (tmp_path / "files").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "files" / "a.png")
    assert np.array_equal(read(source)[0], read(f"folder:{tmp_path}/files")[0])
    assert np.array_equal(read(source)[0][0], np.rot90(COLOURS[0], -1))


@pytest.mark.parametrize(
    ("images", "layout", "words"),
    [
        (COLOURS, None, r"train: an array of shape \(12, 6, 6, 3\) needs layout=: NHWC or NCHW"),
        (COLOURS, "NCHW", "has 6 channels as NCHW: correct layout="),
        (COLOURS, "HWC", "layout='HWC': it is one of NHWC, NCHW"),
        (COLOURS / 255, "NHWC", "its images are float64: convert them to uint8"),
        (torch.rand(3, 3, 6, 6), "NCHW", "its images are float32: convert them to uint8"),
        (COLOURS[0, 0], "NHWC", "holds no images"),
        (list(COLOURS), None, r"train\[0\]: an array of shape \(6, 6, 3\) needs layout="),
        ([], None, "train: it holds no images"),
        ([Image.new("CMYK", (6, 6))], None, r"train\[0\] is a picture of mode CMYK: convert it"),
        ([b"bytes"], None, r"train\[0\] is bytes, no picture"),
        ([{"picture": 1}], None, r"train\[0\] is NoneType, no picture"),
    ],
)
def test_what_is_no_images_is_refused_and_nothing_is_guessed(images, layout, words, tmp_path):
    with pytest.raises(scoresmooth.InputError, match=words):
        as_source("train", images, layout, tmp_path / "inputs")


def test_a_data_set_of_several_splits_or_columns_is_refused(tmp_path):
    datasets, rows = pytest.importorskip("datasets"), of_datasets()
    with pytest.raises(scoresmooth.InputError, match="holds the splits train: give one of them"):
        as_source("train", datasets.DatasetDict({"train": rows}), None, tmp_path)
    with pytest.raises(scoresmooth.InputError, match="image columns are .*: select_columns leaves one"):
        second = rows.select_columns(["image"]).rename_column("image", "second")
        as_source("train", datasets.concatenate_datasets([rows, second], axis=1), None, tmp_path)


def test_the_arguments_are_the_options_of_the_command():
    own = inspect.signature(scoresmooth.audit).parameters
    fields = AuditParams.model_fields
    assert set(own) == {*fields, "layout", "progress"}
    for name, field in fields.items():
        if name not in ("out", "train", "samples"):
            assert own[name].default == field.default, name


@pytest.fixture(scope="module")
def sets(digits):
    """Samples of which 6 are copies."""
    samples = np.concatenate([digits[300:330], digits[:6]])
    return {"train": digits[:200], "samples": samples, "holdout": digits[330:450]}


def test_it_is_the_audit_of_the_command_line(sets, tmp_path):
    found = scoresmooth.audit(**sets, layout="NHWC", encoder="pixels", out=tmp_path / "python")
    specs = {role: save(tmp_path / f"{role}.npy", images) for role, images in sets.items()}
    run(audit_params(**specs, encoder="pixels", out=tmp_path / "command"), quiet=True)
    theirs = json.loads((tmp_path / "command" / "audit.json").read_text())
    assert found.result["digests"] == theirs["digests"]
    assert found.result["metrics"] == theirs["metrics"]
    assert found.to_json() == (tmp_path / "python" / "audit.json").read_text()
    places = [name for name in found.pairs.column_names if not name.endswith("_where")]
    assert found.pairs.select(places) == pq.read_table(tmp_path / "command" / "pairs.parquet").select(places)
    metric = theirs["metrics"]["calibrated"]
    assert (found.copies, found.rate) == (metric["flagged"], metric["rate"])
    assert found.interval == (metric["ci_low"], metric["ci_high"])
    assert found.excess == (metric["excess"], metric["excess_low"], metric["excess_high"])
    assert f"{found.copies} of 36 samples are copies: 16.67%" in str(found)
    assert found.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert set(found.kept) == set(range(36)) - set(range(30, 36))


def test_kept_counts_positions_of_what_was_given_and_the_files_vanish(sets, tmp_path):
    for row, image in enumerate(sets["samples"]):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{row:02}.png")
    (tmp_path / "00.png").write_bytes(b"broken")
    found = scoresmooth.audit(
        sets["train"][..., 0], tmp_path, torch.from_numpy(sets["holdout"]), layout={"holdout": "NHWC"}, encoder="pixels"
    )
    assert set(found.kept) == set(range(1, 30))
    folder = found.folder
    assert folder.is_dir()
    del found
    gc.collect()
    assert not folder.exists()


def test_groups_are_given_in_order(sets):
    groups = ["real"] * 30 + [7] * 6
    found = scoresmooth.audit(**sets, layout="NHWC", encoder="pixels", groups=groups, group_by="kind", no_images=True)
    assert [entry["flagged"] for entry in found.result["groups"]["groups"]] == [6, 0]
    assert found.result["groups"]["column"] == "kind"
    assert not (found.folder / ".work").exists()


def test_audits_with_one_folder_of_partial_results_search_the_training_set_once(sets, tmp_path, monkeypatch):
    options = {"layout": "NHWC", "encoder": "pixels", "work": tmp_path / "work"}
    scoresmooth.audit(**sets, **options, out=tmp_path / "step-1")
    searched, match, own_neighbors = [], audit_work.match, audit_work.own_neighbors
    monkeypatch.setattr(audit_work, "match", lambda q, *rest: searched.append(len(q)) or match(q, *rest))
    monkeypatch.setattr(
        audit_work, "own_neighbors", lambda f, *rest: searched.append(-len(f)) or own_neighbors(f, *rest)
    )
    later = scoresmooth.audit(**{**sets, "samples": sets["samples"][:35]}, **options, out=tmp_path / "step-2")
    assert searched == [-35, 35]  # the samples alone
    assert later.copies == 5
    alone = scoresmooth.audit(**{**sets, "samples": sets["samples"][:35]}, layout="NHWC", encoder="pixels")
    assert alone.result["metrics"] == later.result["metrics"]


def test_without_an_answer_it_raises():
    """JPEG changes pure noise beyond recognition."""
    noise = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    with pytest.raises(scoresmooth.SelfTestFailed, match="the self-test found only") as caught:
        scoresmooth.audit(noise[:100], noise[100:110], noise[110:], layout="NHWC", encoder="pixels")
    assert caught.value.audit.result["failure"] == str(caught.value)


def test_the_command_repeats_the_options():
    """Names, defaults and words; --help of the command is quick because it imports neither pydantic nor numpy."""
    own = inspect.signature(command).parameters
    assert set(own) == set(AuditParams.model_fields)
    for name, field in AuditParams.model_fields.items():
        option = own[name].annotation.__metadata__[0]
        assert option.help.replace("...", "…") == field.description, name
        assert field.is_required() or own[name].default == field.default, name
