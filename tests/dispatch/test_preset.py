"""Presets: complete and valid once applied, the published numbers in them, never over edits."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pipeline import preset, toy
from pipeline.cli import app
from pipeline.params import load_params
from stages.diffusion.network import NCSNpp
from stages.errors import InputError
from stages.protocol import load_tree
from stages.reporting.contrasts import TARGET, ContrastParams, read_contrasts

ROOT = Path(__file__).parents[2]
EXPECTED = {  # METHODS §4: sigma_max, steps, batch, resolution
    "cifar10": (50.0, 1_000_000, 128, 32),
    "cifar10-deduplicated": (50.0, 1_000_000, 128, 32),
    "cifar10-ablations": (50.0, 1_000_000, 128, 32),
    "cifar10-consistency": (50.0, 1_000_000, 128, 32),
    "cifar10-classes": (50.0, 1_000_000, 128, 32),
    "celeba64": (90.0, 700_000, 64, 64),
    "celebahq256": (348.0, 500_000, 36, 256),
    "imagenet64": (90.0, 700_000, 64, 64),
    "two-class": (90.0, 40_000, 64, 64),
}
KERNELS = ("fashion-kernel", "mnist-kernel")  # closed forms, no network
LEAGUE = "analytic-league"  # closed forms of others beside ours, on digits
ONSET, ADAPTIVE, CHOICE = "onset", "adaptive-temperature", "default-temperature"  # small networks on digits
LARGER = "onset-cifar10"  # the first of them at a GPU's size
COSTS = [name for name in EXPECTED if not name.startswith("cifar10-")] + ["onset-cifar10"]  # others: cifar10's network


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder under git with the project's params.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    for blocks in (load_tree("params.yaml")["verify"]["blocks"], toy.BLOCKS):
        Path(blocks).parent.mkdir(parents=True)
        shutil.copy(ROOT / blocks, blocks)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    return tmp_path


def test_the_presets_are_those_of_the_plan():
    assert preset.names() == sorted([*EXPECTED, *KERNELS, LEAGUE, ONSET, LARGER, ADAPTIVE, CHOICE])


@pytest.mark.parametrize("name", EXPECTED)
def test_applied_preset_is_a_complete_valid_file_with_the_published_numbers(project, name):
    before = Path("params.yaml").read_text()
    preset.apply(name)
    parameters = load_params("params.yaml")
    variant = parameters.variants[0]
    train, ingest = parameters.stages["train", variant], parameters.stages["ingest", None]
    found = (train.noise.sigma_max, train.optimization.steps, train.optimization.batch, ingest.resolution)
    assert found == EXPECTED[name]
    assert train.optimization.learning_rate == 2e-4
    assert train.optimization.ema == 0.9999
    assert load_tree("params.yaml").keys() == yaml.safe_load(before).keys()
    assert "closed-conditioning" not in parameters.variants
    assert (
        max(s.neighbors.k for s in _specs(parameters) if s.neighbors) - 1 <= parameters.stages["index", None].neighbors
    )
    comments = [line for line in before.splitlines() if line.startswith("#")]
    assert all(line in Path("params.yaml").read_text() for line in comments)


def _specs(parameters):
    return [parameters.stages["train", variant].spec for variant in parameters.variants]


@pytest.mark.parametrize("name", COSTS)
def test_every_network_of_a_preset_can_be_built_and_its_cost_is_the_one_stated(project, name):
    """Shapes without memory (meta device); GFLOP per image and hours are those of the preset's comment."""
    from torch.utils.flop_counter import FlopCounterMode

    preset.apply(name)
    parameters = load_params("params.yaml")
    train = parameters.stages["train", parameters.variants[0]]
    side, channels = parameters.stages["ingest", None].resolution, parameters.stages["ingest", None].channels
    with torch.device("meta"):
        for conditioned in (False, True):
            network = NCSNpp(train.network, channels, side, conditioned)
            x = torch.empty(1, channels, side, side)
            with FlopCounterMode(display=False) as counter:
                assert network(x, torch.ones(1) if conditioned else None).shape == x.shape
    forward = counter.get_total_flops()
    text = " ".join(
        re.sub(r"^#", "", line).strip() for line in (preset.FOLDER / f"{name}.yaml").read_text().splitlines()
    )
    stated, hours = re.search(r"([\d.]+) GFLOP forward", text), re.search(r"EFLOP, ([\d.]+) h at 250 TFLOP/s", text)
    assert float(stated[1]) == pytest.approx(forward / 1e9, rel=1e-3)
    work = 3 * forward * train.optimization.batch * train.optimization.steps
    assert float(hours[1]) == pytest.approx(work / 250e12 / 3600, abs=0.06)


def test_the_leagues_contrasts_have_one_factor(project):
    """Every peer is drawn by the sampler of the score that it is compared with."""
    preset.apply(LEAGUE)
    parameters, tree = load_params("params.yaml"), load_tree("params.yaml")
    assert {spec.score for spec in _specs(parameters)} == {"closed-form"}
    for pair in tree["report"]["contrasts"]:
        of, against = (tree["variants"][pair[key]] for key in ("of", "against"))
        assert of["sampler"] == against["sampler"]


def contrasted(name):
    """Contrast -> what its two variants differ in, by the report's own rule."""
    preset.apply(name)
    parameters, tree = load_params("params.yaml"), load_tree("params.yaml")
    specs = {v: {"spec": parameters.stages["train", v].spec.model_dump(mode="json")} for v in parameters.variants}
    entries = [ContrastParams(**entry) for entry in tree["report"]["contrasts"]]
    return {found.name: found.factors for found in read_contrasts(entries, specs)}


def test_the_preset_of_classes_tells_the_class_alone_and_lists_neighbours_within_it(project):
    found = contrasted("cifar10-classes")
    assert {name for name, factors in found.items() if factors == ("class conditioning",)} == {
        "the class with the noise level", "the class without the noise level", "the class with a smoothed target",
    }  # fmt: skip
    assert {name for name, factors in found.items() if factors == (TARGET,)} == {
        "smoothing with the class", "smoothing without the class"
    }  # fmt: skip
    parameters = load_params("params.yaml")
    assert parameters.stages["index", None].within_class


def test_the_preset_of_consistency_has_students_of_either_target_beside_their_teachers(project):
    found = contrasted("cifar10-consistency")
    assert found == {
        "smoothing without distillation": (TARGET,),
        "smoothing after distillation": (TARGET,),
        "distillation of the plain network": ("distillation",),
        "distillation of the smoothed network": ("distillation",),
        "smoothing in four evaluations": (TARGET,),
        "one evaluation against four": ("sampler",),
    }
    parameters = load_params("params.yaml")
    evaluations = {parameters.stages["sample", v].spec.sampler.evaluations for v in parameters.variants}
    assert evaluations == {1, 2, 4, 100}


def test_the_papers_presets_measure_the_expansion_on_as_many_pairs_as_the_paper(project):
    for name in EXPECTED:
        assert applied(name)["sample"]["alignment"]["expansion_pairs"] == 10_000, name


def test_adaptive_temperatures_differ_from_a_schedule_in_the_temperature_alone(project):
    preset.apply(ADAPTIVE)
    load_params("params.yaml")
    plain, *smoothed = load_tree("params.yaml")["variants"].values()
    rules = [entry.pop("temperature") for entry in smoothed]
    assert rules == ["5/sigma", "nonexpansive", "perplexity(3)"]
    assert smoothed.count(smoothed[0]) == len(smoothed)
    assert smoothed[0]["sampler"] == plain["sampler"]
    assert smoothed[0]["noise_conditioning"], "as plain, which is conditioned by its form"


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_with_published_fids_chooses_among_snapshots_on_images_that_it_does_not_report(project, name):
    tree = applied(name)
    published = tree["report"]["published"]
    compared = published and any(table["measure"] == "fid_train" for table in published["tables"])
    extends = name.startswith("cifar10") and name != "cifar10-consistency"  # a student has one network
    assert (tree["sample"]["checkpoint"] == "best_fid") == bool(compared or extends)
    if compared:
        assert len(tree["train"]["snapshots"]) > 3
        assert 2 * tree["sample"]["choice_images"] <= tree["ingest"]["holdout"]
        tables = [table for table in published["tables"] if table["measure"] == "fid_train"]
        assert all(table["protocol"]["sample.checkpoint"] == "best_fid" for table in tables)


def applied(name, toy=False):
    return preset._plain(preset._applied(name, "params.yaml", toy))


@pytest.mark.parametrize("name", [*EXPECTED, *KERNELS])
def test_a_presets_toy_is_valid_and_has_the_same_variants_and_tables(project, name):
    whole = applied(name)
    preset.apply(name, toy=True)
    parameters, tree = load_params("params.yaml"), load_tree("params.yaml")
    assert list(tree["variants"]) == list(whole["variants"])
    assert tree["report"]["published"] == whole["report"]["published"]
    assert whole["verify"] | {"cifar10": name.startswith("cifar10"), "mode": "full"} == whole["verify"]
    assert not tree["verify"]["cifar10"]
    network = parameters.stages["train", parameters.variants[0]].network
    assert (network.channels, network.blocks) == (4, 1)
    assert tree["ingest"]["train"] <= 2000
    assert tree["train"]["optimization"]["steps"] <= 100


def test_the_published_numbers_are_those_of_the_methods(project):
    """Every number that a preset states stands in docs/METHODS.md, and the tables have the paper's rows."""
    text = (ROOT / "docs" / "METHODS.md").read_text()
    counts = {}
    for name in preset.names():
        published = applied(name)["report"]["published"]
        for table in published["tables"] if published else ():
            counts[name, table["table"]] = len(table["numbers"])
            for number in table["numbers"].values():
                assert f"{number:g}".lstrip("0") in text, (name, table["table"], number)
    assert counts["cifar10", "Table 1, SDE, FID against train"] == 14
    assert counts["celeba64", "Table 1, SDE, FID"] == 10


def test_a_preset_that_extends_another_changes_what_it_names_alone(project):
    found = list(preset._differences(applied("cifar10"), applied("cifar10-deduplicated"), ""))
    assert found == ["deduplicate.exact: False -> True", "deduplicate.near: None -> 0.02"]


def test_uncommitted_edits_are_never_overwritten(project):
    text = Path("params.yaml").read_text().replace("count: 300", "count: 301")
    Path("params.yaml").write_text(text)
    with pytest.raises(InputError, match=r"params\.yaml has uncommitted changes, which would be lost: commit it"):
        preset.apply("cifar10")
    assert Path("params.yaml").read_text() == text
    Path("other.yaml").write_text(text)
    with pytest.raises(InputError, match=r"other\.yaml is not in git"):
        preset.apply("cifar10", "other.yaml")


def test_command_lists_shows_and_writes(project):
    before = Path("params.yaml").read_text()
    run = CliRunner().invoke
    assert [line.split()[0] for line in run(app, ["preset"]).stdout.splitlines()] == preset.names()
    shown = run(app, ["preset", "cifar10"]).stdout
    assert "train.noise.sigma_max: 5.0 -> 50.0" in shown
    assert "nothing was written" in shown
    assert Path("params.yaml").read_text() == before
    assert "params.yaml changed" in run(app, ["preset", "cifar10", "--write"]).stdout
    assert load_tree("params.yaml")["train"]["noise"]["sigma_max"] == 50.0


def test_the_output_names_the_variants_that_go_and_the_gpu_hours(project):
    before = list(load_tree("params.yaml")["variants"])
    shown = CliRunner().invoke(app, ["preset", "cifar10"]).stdout
    written = CliRunner().invoke(app, ["preset", "cifar10", "--write"]).stdout
    gone = [name for name in before if name not in load_tree("params.yaml")["variants"]]
    assert len(gone) > 5
    assert f"variants that --write removes: {', '.join(gone)}\n" in shown
    assert f"variants removed: {', '.join(gone)}\n" in written
    for output in (shown, written):
        hours = next(
            line for line in output.splitlines() if line.startswith("GPU hours of one network, by arithmetic:")
        )
        assert " 9.3 h at 250 TFLOP/s, " in hours


@pytest.mark.parametrize(("name", "hours"), [("cifar10-ablations", "9.3 h"), ("two-class", "0.7 h"), (LEAGUE, None)])
def test_a_preset_states_its_own_gpu_hours_or_those_of_the_preset_that_it_extends(name, hours):
    found = preset.gpu_hours(name)
    assert found is None if hours is None else f" {hours} at " in found


def test_a_toy_preset_states_no_gpu_hours(project):
    assert "GPU hours" not in CliRunner().invoke(app, ["preset", "cifar10", "--scale", "toy"]).stdout


def test_an_unknown_preset_and_a_key_that_is_gone_are_named(project):
    with pytest.raises(InputError, match="unknown preset cifar: choose one of adaptive-temperature, "):
        preset.apply("cifar")
    tree = load_tree("params.yaml")
    del tree["train"]["noise"]["sigma_max"]
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(InputError, match=r"preset cifar10: params\.yaml has no key train\.noise\.sigma_max"):
        preset.changes("cifar10")


def test_an_invalid_result_is_not_written(project):
    """The rest of the file is checked with the preset's keys in it."""
    text = Path("params.yaml").read_text().replace("percentile: 1.0", "percentile: -1.0")
    Path("params.yaml").write_text(text)
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "x"], check=True)
    with pytest.raises(InputError, match="filter.percentile"):
        preset.apply("cifar10")
    assert Path("params.yaml").read_text() == text
