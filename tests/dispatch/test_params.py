"""params.yaml: every mistake is reported in one line that names the key, with exit code 2, before anything runs."""

import copy
import importlib
import re
import string
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import ROOT, SmallProject

from pipeline.params import STAGES, load_params, load_stage
from stages.errors import InputError
from stages.protocol import load_tree

TREE: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
TREE["verify"]["blocks"] = yaml.safe_load((ROOT / TREE["verify"]["blocks"]).read_text())


def load(tree: Any, folder: Path) -> Any:
    path = folder / "params.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree, sort_keys=False))
    return load_params(path)


def message(tree: Any, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(tree, folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def leaves(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all keys of nested mappings, sections included."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, key)
        yield from leaves(value, (*path, key))


def changed(path: tuple[str, ...], change: Any) -> dict[str, Any]:
    """The tree with `change(parent, key)` done at one place."""
    tree = copy.deepcopy(TREE)
    node = tree
    for part in path[:-1]:
        node = node[part]
    change(node, path[-1])
    return tree


def test_the_default_is_valid_and_complete(tmp_path):
    parameters = load(TREE, tmp_path)
    assert parameters.variants == tuple(TREE["variants"])
    for name in STAGES:
        variants = TREE["variants"] if importlib.import_module(f"stages.{name}").Params.PER_VARIANT else [None]
        for variant in variants:
            assert name == parameters.stages[name, variant].SECTION


def test_the_variant_that_the_readme_adds_is_valid_with_the_default(tmp_path):
    blocks = re.findall(r"\n\n((?:    [^\n]*\n)+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    (example,) = (yaml.safe_load(textwrap.dedent(block)) for block in blocks if "form: " in block)
    parameters = load({**TREE, "variants": {**TREE["variants"], **example}}, tmp_path)
    assert set(example) <= set(parameters.variants)


def of_variant(path: tuple[str, ...]) -> bool:
    """Whether a key names a variant or is one of its own, or a sampler's, which need other keys by form and name."""
    node, within = TREE, [TREE]
    for part in path:
        node = node[part]
        within.append(node)
    specs = [n for n in within if isinstance(n, dict) and ({"score", "form"} <= set(n) or {"name", "levels"} <= set(n))]
    return path[0] == "variants" or (bool(specs) and path[-1] not in ("sampler", "variant", "plain", "smoothed"))


@pytest.mark.parametrize("path", [path for path in leaves(TREE) if not of_variant(path)], ids=".".join)
def test_every_key_is_needed_and_named_when_missing(path, tmp_path):
    text = message(changed(path, lambda node, key: node.pop(key)), tmp_path)
    assert "missing key" in text or "Field required" in text
    assert ".".join(path) in text


@pytest.mark.parametrize("section", list(TREE))
def test_unknown_key_in_every_section(section, tmp_path):
    if section == "variants":
        tree = changed(("variants", next(iter(TREE["variants"]))), lambda node, key: node[key].update(sigmas=3))
    else:
        tree = changed((section,), lambda node, key: node.__setitem__(key, {**(node[key] or {}), "sigmas": 3}))
    text = message(tree, tmp_path)
    assert "unknown key" in text
    assert f"{section}." in text
    assert "sigmas" in text


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("ingest.train", 0),
        ("ingest.holdout", 1),
        ("ingest.seed", -1),
        ("ingest.channels", 2),
        ("ingest.resolution", "large"),
        ("execution.jobs", 0),
        ("execution.server_timeout", -3),
        ("execution.processes", ["trian"]),
    ],
)
def test_value_out_of_range_names_key_and_value(path, value, tmp_path):
    text = message(changed(tuple(path.split(".")), lambda node, key: node.__setitem__(key, value)), tmp_path)
    assert path in text
    assert str(value[0] if isinstance(value, list) else value) in text


T = "variants.net-temperature-pixel"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{T}.temperature", float("nan")),
        (f"{T}.temperature", float("inf")),
        (f"{T}.temperature", True),
        (f"{T}.temperature", [30]),
        (f"{T}.temperature", "0/sigma"),
        (f"{T}.sampler.exact_below", float("inf")),
        ("train.noise.sigma_max", float("inf")),
        ("train.optimization.learning_rate", float("nan")),
        ("train.optimization.steps", True),
        ("train.seeds", [2**32]),
        ("train.seeds", [42, 42]),
        ("train.seeds", []),
        ("train.optimization.betas", [1.5, 0.9]),
        ("train.network.multipliers", [1, 0]),
        ("train.network.attention", [-8]),
        ("train.network.channels", 30),
        ("sample.seed", 2**64),
        ("verify.seed", 2**63),
        ("ingest.classes", [["cat"]]),
    ],
)
def test_no_nan_infinity_or_yes_and_no_pseudo_key(path, value, tmp_path):
    """The message ends the key where it ends in the file, and does not repeat a whole section."""
    text = message(changed(tuple(path.split(".")), lambda node, key: node.__setitem__(key, value)), tmp_path)
    assert text.startswith("params.yaml: ")
    assert len(text) < 200
    key = text.split(": ")[1]
    assert key in (path, f"{path}.0", f"{path}.1", path.rpartition(".")[0])
    assert "Value error" not in text


N, K = TREE["ingest"]["train"], TREE["filter"]["neighbors"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"filter.neighbors": N + 1}, f"filter.neighbors needs {N + 1} training images, ingest.train is {N}"),
        ({"index.neighbors": N}, f"index.neighbors needs {N + 1} training images, ingest.train is {N}"),
        ({"filter.carlini.n": K + 1}, f"filter.carlini: n {K + 1} exceeds filter.neighbors {K}: lower it"),
        ({"ingest.train": K}, f"ingest.train is {K}"),
        ({f"{T}.neighbors.k": K + 2}, f"{T}.neighbors.k: {K + 2} needs {K + 1} neighbours besides the image itself"),
        ({"ingest.resolution": 15}, "resolution 15 is not a multiple of 4"),
        ({"train.network.attention": [7]}, "no maps of side 7, only 8, 4"),
    ],
)
def test_contradicting_values_are_found_before_anything_runs(changes, expected, tmp_path):
    tree = copy.deepcopy(TREE)
    for path, value in changes.items():
        node = tree
        *parts, last = path.split(".")
        for part in parts:
            node = node[part]
        node[last] = value
    assert expected in message(tree, tmp_path)


def test_a_file_that_is_no_text(tmp_path):
    (tmp_path / "params.yaml").write_bytes(b"ingest: \xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        load_params(tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sampel": {}}, "unknown key sampel"),
        ({"sample": 3}, "sample must be a mapping"),
        ({"variants": {}}, "variants must be a mapping"),
        ({"variants": {"Net 1": {}}}, "variants.Net 1"),
        ({"execution": None}, "execution must be a mapping"),
        ({3: {}}, "unknown key 3"),
    ],
)
def test_malformed_sections(change, expected, tmp_path):
    assert expected in message({**TREE, **change}, tmp_path)


@pytest.mark.parametrize("value", ["../pictures", "folder:../pictures", "zip:a/../../b.zip", "torchvision:X?root=../y"])
def test_a_relative_path_cannot_leave_the_project(value, tmp_path):
    tree = changed(("ingest", "source"), lambda node, key: node.__setitem__(key, value))
    assert f"ingest.source: {value} leaves the project by '..'" in message(tree, tmp_path)


def test_a_path_in_the_blocks_file_cannot_leave_the_project(tmp_path):
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text(yaml.safe_dump({**TREE["verify"]["blocks"], "smoothed_images": {"dataset": "folder:../y"}}))
    text = message(changed(("verify", "blocks"), lambda node, key: node.__setitem__(key, str(blocks))), tmp_path)
    assert text.startswith(f"{blocks}: smoothed_images.dataset: folder:../y leaves the project by '..'")


def test_absolute_paths_lie_below_the_allowed_folders_where_there_are_any(tmp_path, monkeypatch):
    def source(path: Path) -> dict[str, Any]:
        return changed(("ingest", "source"), lambda node, key: node.__setitem__(key, f"folder:{path}"))

    monkeypatch.setenv("SCORESMOOTH_PATHS", f"/nowhere:{tmp_path / 'good'}")
    text = message(source(tmp_path / "good2"), tmp_path)
    assert f"ingest.source: {tmp_path / 'good2'} is outside SCORESMOOTH_PATHS=" in text
    for place in (tmp_path / "good" / "pictures", Path("pictures..old")):
        file = tmp_path / "params.yaml"
        file.write_text(yaml.safe_dump(source(place)))
        load_params(file)


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    text = yaml.safe_dump(TREE, sort_keys=False).replace("  jobs: null\n", "  jobs: null\n  jobs: 2\n")
    assert "execution.jobs is repeated" in message(text, tmp_path)


def test_the_blocks_of_verify_are_part_of_what_is_found_valid(tmp_path, monkeypatch):
    """The stages' code decides what is valid: a change of the file that verify.blocks names must be seen, too."""
    blocks = tmp_path / "blocks.yaml"
    blocks.write_text((ROOT / "stages/theory/blocks.yaml").read_text())
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(changed(("verify", "blocks"), lambda node, key: node.__setitem__(key, str(blocks)))))
    monkeypatch.chdir(tmp_path)
    load_stage("report", None, path)
    blocks.write_text(blocks.read_text().replace("noise: 0.001", "noise: -1"))
    with pytest.raises(InputError, match=r"blocks\.yaml: jacobian\.noise"):
        load_stage("report", None, path)
    blocks.write_text("jacobian: {}\njacobian: {}\n")
    with pytest.raises(InputError, match=r"blocks\.yaml: key jacobian is repeated"):
        load_stage("report", None, path)


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [\n"])
def test_no_mapping_or_no_yaml(text, tmp_path):
    assert "params.yaml" in message(text, tmp_path)


def test_one_stage_is_read_only_after_all_of_the_file_was_valid(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TREE))
    assert load_stage("ingest", None)[0].train == TREE["ingest"]["train"]
    assert load_stage("ingest", None)[0].train == TREE["ingest"]["train"]  # from the remembered version
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(changed(("sample", "count"), lambda n, k: n.pop(k))))
    with pytest.raises(InputError, match=r"sample\.count"):
        load_stage("ingest", None)


@pytest.mark.parametrize(
    ("name", "variant", "expected"),
    [
        ("nope", None, "unknown stage nope"),
        ("sample", None, "--variant"),
        ("sample", "x", "variants.x"),
        ("ingest", "x", "drop"),
    ],
)
def test_unknown_stage_or_variant(name, variant, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(TREE))
    with pytest.raises(InputError, match=expected):
        load_stage(name, variant)


@pytest.mark.parametrize(
    ("change", "expected"),
    [({"ingest": {"train": 0}}, "ingest.train"), ({"ingest": {}}, "ingest.train"), ({"sampel": {}}, "sampel")],
)
def test_the_command_ends_with_code_2_and_one_line_and_runs_nothing(change, expected, tmp_path):
    project = SmallProject(tmp_path)
    project.params.update(change)
    project.write_params()
    for command in (["stage", "report"], ["params"]):
        lines = project.run(*command, code=2).strip().splitlines()
        assert len(lines) == 1
        assert expected in lines[0]
    assert project.log() == []
    assert not (tmp_path / ".scoresmooth" / "prefect").exists()
    assert not (tmp_path / "data").exists()


NAMES = string.ascii_lowercase
BOMBS = {
    "aliases": "a: &a [1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip(NAMES, NAMES[1:])),
    "merged": "a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{p: *{a}, q: *{a}}}\n" for a, b in zip(NAMES, NAMES[1:])),
    "self": "a: &a [*a]\n",
    "self in a mapping": "a: &a\n  b: *a\n",
    "deep lists": "a: " + "[" * 100_000,
    "deep mappings": "a: " + "{a: " * 100_000,
    "deep blocks": "".join(" " * depth + "a:\n" for depth in range(1000)),
    "deep keys": "? " * 100_000 + "a",
    "long": "a: 1\n" + "# comment\n" * 200_000,
    "many": "a: [" + "1," * 100_000 + "]",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_a_file_that_would_take_the_parser_forever_is_one_line(text, tmp_path):
    """In a process of its own: such a file can end the interpreter."""
    path = tmp_path / "params.yaml"
    path.write_text(text)
    code = "import sys; from stages.protocol import load_tree; load_tree(sys.argv[1])"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("stages.errors.InputError: ")
    assert "params.yaml" in last


def test_an_alias_is_fine(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n")
    assert load_tree(path) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("value", ["0100", "-0100", "1:40", "1:40.5", "1_000", "0b11", "00.5", "0x_1f"])
def test_a_number_that_dvc_reads_otherwise_is_one_line(value, tmp_path):
    text = yaml.safe_dump({**TREE, "ingest": {**TREE["ingest"], "test": "VALUE"}}).replace("VALUE", value)
    found = message(text, tmp_path)
    assert f"params.yaml: ingest.test: {value} is another number" in found


@pytest.mark.parametrize("value", ["0", "100", "-1", "0.5", "1e3", "'0100'", "0100 files", "2020-01-02", "10:99"])
def test_other_values_are_no_such_number(value, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(f"a: [{value}]\n")
    load_tree(path)


@pytest.mark.parametrize("value", ["2001-13-45", "!!int ''", "!!bool maybe", "!!timestamp x", "!!float x", "9" * 5000])
def test_a_value_that_its_tag_does_not_fit_is_one_line(value, tmp_path):
    assert "params.yaml" in message(f"a: {value}\n", tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"0" * 64, None])
def test_a_damaged_record_of_the_validation_is_written_anew(content, tmp_path, monkeypatch):
    project = SmallProject(tmp_path)
    project.run("params", "--quiet")
    code = "from pipeline.params import load_stage; load_stage('ingest', None)"
    record = tmp_path / ".scoresmooth" / "params.valid"

    def validate() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=project.environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    validate()
    good = record.read_bytes()
    record.unlink() if content is None else record.write_bytes(content)
    validate()
    assert record.read_bytes() == good
