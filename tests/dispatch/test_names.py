"""A variant's name reaches the shell of dvc.yaml's commands: only harmless names may."""

import subprocess

import pytest
import yaml
from small_project import ROOT, SmallProject

from pipeline.params import load_params
from pipeline.stage_run import split_address
from stages.errors import InputError
from stages.protocol import load_tree

HOSTILE = [
    "x; touch F; #",
    "$(touch F)",
    "`touch F`",
    "x' ; touch F ; '",
    'x" ; touch F ; "',
    "x\ntouch F",
    "x & touch F",
    "A",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A DVC project whose stages before the trainings are up to date."""
    project = SmallProject(tmp_path_factory.mktemp("names"))
    project.write_dvc()
    (project.folder / "data/ingest").mkdir(parents=True)
    (project.folder / "data/ingest/train.txt").write_text("x" * 20)
    project.dvc("commit", "-f", "-q", "ingest")
    return project


def reproduce(project: SmallProject, *targets: str) -> str:
    """Run `dvc repro`, which must fail without having run the name; return what it printed."""
    command = [*project.dvc_command(), "repro", *targets]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert not (project.folder / "F").exists()
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", HOSTILE)
def test_dvc_itself_refuses_a_name_before_anything_runs(project, name):
    (project.folder / ".dvcignore").write_text((ROOT / ".dvcignore").read_text())
    project.params["variants"] = {name: {"network": False, "temperature": 1.0}}
    project.write_params()
    for targets in ((), ("--single-item", f"train@{name}")):
        output = reproduce(project, *targets)
        assert "/data/train/*[ -,.:-`{-~]*" in output
        assert "Running stage" not in output


@pytest.mark.parametrize("name", ["x; touch F; #", "$(touch F)"])
def test_no_name_is_run_even_if_dvc_lets_it_pass(project, name):
    (project.folder / ".dvcignore").write_text("")
    project.params["variants"] = {name: {"network": False, "temperature": 1.0}}
    project.write_params()
    lines = reproduce(project, f"train@{name}").splitlines()
    assert f"error: params.yaml: variants.{name}: use at most 100 lowercase letters, digits and single dashes" in str(
        lines
    )


@pytest.mark.parametrize("name", ["x" * 101, "-x", "x-", "x--y", "x.y", "../x", "\x1b[2J"])
def test_a_name_of_other_or_too_many_letters_is_one_printable_line(tmp_path, name):
    tree = load_tree(ROOT / "params.yaml")
    tree["variants"][name] = next(iter(tree["variants"].values()))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match="at most 100 lowercase letters, digits and single dashes") as raised:
        load_params(tmp_path / "params.yaml")
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 250


@pytest.mark.parametrize(
    ("address", "found"),
    [("train@net-1", ("train", "net-1")), ("ingest", ("ingest", None)), ("../dvc.yaml:train@a", ("train", "a"))],
)
def test_the_address_of_a_stage_names_stage_and_variant(address, found):
    assert split_address(address) == found
