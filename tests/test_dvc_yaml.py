"""dvc.yaml says what the code does: deps, params, outs and commands follow from the stages."""

import hashlib
import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo

from pipeline import closure, dag
from pipeline.params import STAGES
from stages.files import paths

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def listed(stage: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a stage of dvc.yaml lists: deps and params."""
    body = stage.get("do", stage)
    return body["deps"], body.get("params", [])


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_speaks_the_protocol(name):
    module = importlib.import_module(f"stages.{name}")
    assert name == module.Params.SECTION
    assert all(callable(getattr(module, function)) for function in ("plan", "work", "gather"))
    for field, info in module.Params.model_fields.items():
        assert info.is_required(), f"{name}.{field} has a default: params.yaml spells every key"


def test_dvc_yaml_is_what_the_code_says(document):
    assert dag.update(write=False) == [], "run: scoresmooth dag --write"
    assert document["stages"]["code"]["deps"] == ["stages"]
    for name in STAGES:
        deps, _ = listed(document["stages"][name])
        assert [dep for dep in deps if dep.startswith("data/code/")] == [f"data/code/{name}.txt"]


def test_what_dvc_yaml_lacks_or_has_too_much_is_said_and_corrected(tmp_path, document):
    path = tmp_path / "dvc.yaml"
    path.write_text((ROOT / "dvc.yaml").read_text().replace("data/code/fid.txt", "data/code/index.txt"))
    assert set(dag.update(write=True, path=path)) == {
        "code: outs + data/code/fid.txt",
        "fid: deps + data/code/fid.txt",
        "fid: deps - data/code/index.txt",
    }
    assert yaml.safe_load(path.read_text()) == document


def test_a_stages_code_list_holds_its_import_closure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dag.write_code_lists()
    lists = {name: (tmp_path / "data" / "code" / f"{name}.txt").read_text() for name in STAGES}
    for name, text in lists.items():
        digests = dict(reversed(line.split("  ")) for line in text.splitlines())
        assert list(digests) == closure.code_files(name)
        assert all(digests[file] == hashlib.sha256((ROOT / file).read_bytes()).hexdigest() for file in digests)
    reached = {name for name, text in lists.items() if "stages/diffusion/targets.py" in text}
    assert reached == {"train", "verify"}  # a claim of the theory calls the training's own loss


def test_compiled_code_and_documentation_are_no_dependency():
    with Repo(str(ROOT)) as repo:
        assert repo.dvcignore.is_ignored_file(str(ROOT / "stages" / "theory" / "README.md"))
        assert not repo.dvcignore.is_ignored_file(str(ROOT / "stages" / "theory" / "claims.py"))
        assert repo.dvcignore.is_ignored_dir(str(ROOT / "stages" / "diffusion" / "__pycache__"))
        assert not repo.dvcignore.is_ignored_dir(str(ROOT / "stages" / "diffusion"))


def test_dvc_ignores_the_outs_of_misnamed_variants_only():
    """Checked on names, on folders that exist (a slash follows) and on the files in them."""
    with Repo(str(ROOT)) as repo:
        for stage in ("train", "sample", "filter", "fid"):
            for name in ("closed-conditioning", "net-temperature-5-over-sigma", "x"):
                folder = ROOT / "data" / stage / name
                assert not repo.dvcignore.is_ignored_dir(str(folder))
                assert not repo.dvcignore.is_ignored_file(str(folder / "a b_C.json"))
            for name in ("x;", "$(x)", "a b", "x'", 'x"', "X", "x`y`", "x_y", "x&y", "x|y", "x>y", "{x}", "~x", "x\\y"):
                assert repo.dvcignore.is_ignored_dir(str(ROOT / "data" / stage / name)), name


def test_documentation_is_no_dependency():
    assert (ROOT / "stages" / "theory" / "README.md").is_file()
    assert not [path for path in closure.code_files("verify") if path.endswith(".md")]


@pytest.mark.parametrize("name", STAGES)
def test_params_in_dvc_yaml_are_what_the_stage_reads(name, document):
    _, params = listed(document["stages"][name])
    assert params == importlib.import_module(f"stages.{name}").Params.keys("${key}"), "run: scoresmooth dag --write"


def test_peoples_verdicts_are_a_dependency_that_git_keeps(document):
    """filter.verdicts names files in this folder; DVC needs it to exist, and must not make it or remove it."""
    folder = str(paths.VERDICTS)
    assert folder in listed(document["stages"]["filter"])[0]
    assert (ROOT / folder / "README.md").is_file()
    outs = [str(out) for stage in document["stages"].values() for out in stage.get("do", stage)["outs"]]
    assert not [out for out in outs if out == "data" or out.startswith(folder)]
    ignored = subprocess.run(["git", "check-ignore", "-q", f"{folder}/net/verdicts.jsonl"], cwd=ROOT, check=False)
    assert ignored.returncode == 1 or not (ROOT / ".git").exists()


def test_execution_is_no_dependency(document):
    keys = {key for stage in document["stages"].values() for key in listed(stage)[1]}
    assert not {key for key in keys if key.split(".")[0] == "execution"}


@pytest.mark.parametrize("name", STAGES)
def test_commands_and_outs_follow_the_names(name, document):
    stage = document["stages"][name]
    per_variant = importlib.import_module(f"stages.{name}").Params.PER_VARIANT
    assert ("foreach" in stage) == per_variant
    body = stage.get("do", stage)
    # the code of the working directory, and no name as text for the shell
    assert body["cmd"] == "python -m pipeline.cli stage " + ('"$DVC_STAGE"' if per_variant else name)
    own = f"data/{name}/${{key}}" if per_variant else f"data/{name}"
    outs = [out if isinstance(out, str) else next(iter(out)) for out in body["outs"] + body.get("metrics", [])]
    assert all(out == own or out.startswith(f"{own}/") for out in outs)
    assert not [dep for dep in listed(stage)[0] if not dep.startswith(("data/", "${verify.blocks}"))]


def test_a_change_of_one_variant_reaches_its_own_stages_and_the_report_only(monkeypatch):
    """Counted on DVC's own graph of stages."""
    monkeypatch.chdir(ROOT)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    with Repo(str(ROOT)) as repo:
        index = repo.index.graph
        stages = {stage.addressing: stage for stage in repo.index.stages}
        for variant in tree["variants"]:
            reading = {
                name
                for name, stage in stages.items()
                for params in stage.params
                if {f"variants.{variant}", "variants"} & set(params.params)
            }
            assert reading == {f"train@{variant}", f"choose@{variant}", f"sample@{variant}", "report"}
            assert "report" in reading
            # DVC's arrows go from a stage to what it depends on
            after = {stage.addressing for stage in index if any(stages[n] in _reached(index, stage) for n in reading)}
            own = {f"{name}@{variant}" for name in ("train", "choose", "sample", "filter", "fid")}
            assert after | reading == own | {"report"}


def _reached(graph: Any, stage: Any) -> set[Any]:
    seen, waiting = set(), list(graph.successors(stage))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(graph.successors(node))
    return seen


def test_a_copy_without_the_folder_of_verdicts_gets_it_before_the_filter_needs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dag.write_code_lists()
    assert (tmp_path / "data" / "verdicts").is_dir()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {"data/verdicts", "data/code/filter.txt"} <= set(stages["filter"]["do"]["deps"])
