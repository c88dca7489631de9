"""Which stages have changed: what DVC says, in one reading of its files."""

import subprocess
import sys

import pytest
from dvc.repo import Repo
from dvc.utils.serialize import _yaml
from small_project import ROOT, SmallProject

from pipeline.graph import StageGraph

STAGES = ("ingest", "train@closed", "train@net", "sample@closed", "sample@net")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A DVC project whose outs are recorded, in the working directory."""
    made = SmallProject(tmp_path)
    made.write_dvc()
    for out in ("ingest", "train/closed", "train/net", "sample/closed", "sample/net"):
        (tmp_path / "data" / out).mkdir(parents=True)
        (tmp_path / "data" / out / "out.txt").write_text(out)
    made.dvc("commit", "-f", "-q")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return made


def status() -> set[str]:
    """The stages that `dvc status` lists."""
    return {name.removeprefix("dvc.yaml:") for name in Repo().status()}


def test_the_changed_stages_are_those_of_dvc_status(project):
    """Also those that change after the graph was read."""
    graph = StageGraph()
    assert graph.changed_first == status() == set()
    project.params["sample"]["seed"] += 1
    project.write_params()
    (project.folder / "data/ingest/out.txt").write_text("damaged")
    changed = {"ingest", "train@closed", "train@net", "sample@closed", "sample@net"}
    assert graph.changed(STAGES) == StageGraph().changed_first == status() == changed
    assert graph.changed(["train@net"]) == StageGraph(["train@net"]).changed_first - {"ingest"} == {"train@net"}
    (project.folder / "data/ingest/out.txt").write_text("ingest")
    assert graph.changed(STAGES) == StageGraph().changed_first == status() == {"sample@closed", "sample@net"}
    assert StageGraph(["train@net"]).changed_first == set()


def test_a_check_parses_the_parameters_once_for_the_templates_and_once_for_all_stages(project, monkeypatch):
    parsed, parse = [], _yaml.parse_yaml
    monkeypatch.setattr(_yaml, "parse_yaml", lambda text, path: parsed.append(str(path)) or parse(text, path))
    StageGraph()
    assert [path for path in parsed if path.endswith("params.yaml")] == [
        "params.yaml",
        str(project.folder / "params.yaml"),
    ]


def test_a_check_imports_neither_tables_nor_flows():
    """They take longer than the check."""
    code = "import sys, pipeline.dispatch, pipeline.graph, pipeline.summary; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "pyarrow", "prefect", "torch", "matplotlib"} & set(done.stdout.split())
