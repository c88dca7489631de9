"""The walls of the house: which part may import which, and that dvc.yaml says what the code does."""

import ast
import hashlib
import importlib
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from pipeline import closure, dag
from pipeline.params import STAGES
from stages.files import paths

ROOT = Path(__file__).parent.parent
CORE = (
    "files",
    "engine",
    "images",
    "features",
    "search",
    "diffusion",
    "memorization",
    "theory",
    "reporting",
    "auditing",
)
ENTRIES = ("audit",)  # commands that are no stage of the pipeline
BASE = ("errors", "protocol", "device")

# part -> parts of the core that it may import, besides the base
ARROWS = {
    "files": set(),
    "engine": set(),
    "search": {"engine"},
    "images": {"search", "engine", "files"},
    "features": {"files", "engine"},
    "diffusion": {"search", "engine", "files"},
    "memorization": {"search", "files"},
    "theory": {"diffusion", "features", "search"},
    "reporting": {"images", "memorization", "files"},
    "auditing": {"images", "features", "search", "memorization", "reporting", "files", "engine"},
}


def listed(stage: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What a stage of dvc.yaml lists: deps and params."""
    body = stage.get("do", stage)
    return body["deps"], body.get("params", [])


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("stages", "pipeline", include_external_packages=True, cache_dir=None)


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "dvc.yaml").read_text())


def part(module: str) -> str:
    """The part of `stages` that a module belongs to: stages.files.images -> images."""
    return module.split(".")[1] if "." in module else ""


def imports(graph: grimp.ImportGraph, prefix: str) -> list[tuple[str, str]]:
    """(importer, imported) of all direct imports in modules below `prefix`."""
    modules = [module for module in graph.modules if module == prefix or module.startswith(f"{prefix}.")]
    return [(module, other) for module in modules for other in graph.find_modules_directly_imported_by(module)]


def test_every_part_of_the_core_is_known(graph):
    parts = {part(module) for module in graph.modules if module.startswith("stages.")}
    assert parts == {*CORE, *BASE, *STAGES, *ENTRIES}


@pytest.mark.parametrize("name", CORE)
def test_parts_of_the_core_import_only_what_lies_below_them(name, graph):
    for importer, imported in imports(graph, f"stages.{name}"):
        if imported.startswith("stages."):
            assert part(imported) in {name, *ARROWS[name], *BASE}, f"{importer} imports {imported}"


@pytest.mark.parametrize("name", ["files", "engine"])
def test_files_and_engine_are_the_floor(name, graph):
    for importer, imported in imports(graph, f"stages.{name}"):
        if imported.startswith("stages.") and part(imported) != name:
            assert part(imported) == "errors", f"{importer} imports {imported}"


def test_parameters_and_noise_are_the_floor_of_diffusion(graph):
    for name, allowed in (("parameters", set()), ("noise", {"stages.diffusion.parameters"})):
        below = {module for _, module in imports(graph, f"stages.diffusion.{name}") if module.startswith("stages.")}
        assert {part(module) for module in below - allowed} <= set(BASE)


def test_parameters_are_read_without_torch(graph):
    """plan and the validation of params.yaml start in no time; torch alone takes seconds to import."""
    script = "import sys\nfor name in sys.argv[1:]: __import__('stages.' + name)\nsys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script, *STAGES], check=True, cwd=ROOT)


def test_features_and_diffusion_never_meet(graph):
    for one, other in (("features", "diffusion"), ("diffusion", "features")):
        for module in [module for module in graph.modules if module.startswith(f"stages.{one}.")]:
            reached = graph.find_upstream_modules(module)
            assert not [name for name in reached if name.startswith(f"stages.{other}")], module


def test_the_work_knows_nothing_of_the_dispatch(graph):
    for importer, imported in imports(graph, "stages"):
        assert imported.split(".")[0] not in {"prefect", "dvc", "dvclive", "pipeline", "ray"}, f"{importer}: {imported}"


def test_the_dispatch_goes_through_the_stages(graph):
    """pipeline imports the stages by their protocol, and of the core the results and what people review."""
    review = {f"stages.memorization.{name}" for name in ("candidates", "verdict_log", "verified")}
    for importer, imported in imports(graph, "pipeline"):
        if imported.startswith("stages."):
            allowed = {f"stages.{name}" for name in ("errors", "protocol", "audit", "reporting.terminal")}
            allowed |= {f"stages.files.{name}" for name in ("artifacts", "paths")}
            allowed |= review if importer.startswith("pipeline.review.") else set()
            assert imported in allowed, f"{importer} imports {imported}"


def test_only_the_flows_import_prefect(graph):
    using = {importer for importer, imported in imports(graph, "pipeline") if imported == "prefect"}
    flows = {"pipeline.flows", "pipeline.repro_flow", "pipeline.deployment"}
    assert using == {*flows, "pipeline.showcase", "pipeline.tracking"}


def test_only_the_cluster_imports_ray(graph):
    """Ray is an extra: everything else works without it."""
    using = {importer for importer, imported in imports(graph, "pipeline") if imported == "ray"}
    assert using == {"pipeline.ray_runner", "pipeline.cluster"}
    for importer, imported in imports(graph, "pipeline"):
        if imported in using:
            assert importer in {*using, "pipeline.cli", "pipeline.dispatch"}, f"{importer} imports {imported}"


def test_nothing_is_unpickled_or_extracted():
    """User files are read without running code in them; archives are read in place."""
    for path in [*(ROOT / "stages").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} != {"UnpicklingError"}:
                names.add(node.module)
        assert not names & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "tarfile"}, path
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            said = ast.unparse(call)
            assert not re.search(r"\b(extract|extractall|unpack_archive)$", ast.unparse(call.func)), f"{path}: {said}"
            if ast.unparse(call.func) in ("np.load", "numpy.load"):
                assert "allow_pickle=False" in said, f"{path}: {said}"
            if ast.unparse(call.func) == "torch.load":
                assert "weights_only=True" in said, f"{path}: {said}"


def asked(lines: list[str], extras: frozenset[str] = frozenset()) -> set[tuple[str, frozenset[str]]]:
    """The packages, each with its extras, that these requirements name for this interpreter."""
    return {
        (canonicalize_name(one.name), frozenset(one.extras))
        for one in map(Requirement, lines)
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in {"", *extras})
    }


def test_every_package_is_pinned_to_the_version_that_is_installed():
    """Whoever looks the pins up (pip-audit) sees all that runs. An extra that is absent is followed no further."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert len(pins) == len(lines)
    assert all(re.fullmatch(r"[0-9][0-9A-Za-z.]*", version) for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = asked(sum(project["optional-dependencies"].values(), project["dependencies"]))
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        try:
            new = asked(metadata.requires(name) or [], extras) - seen
            assert metadata.version(name) == pins[name], name
        except metadata.PackageNotFoundError:
            continue
        seen |= new
        waiting |= new
    names = {name for name, _ in seen}
    assert {"torch", "ray", "alembic"} <= names
    assert names - pins.keys() == set()


def test_the_containers_do_what_the_readme_says_and_publish_on_loopback_only():
    readme, guide = (ROOT / "README.md").read_text(), (ROOT / "docs" / "operations.md").read_text()
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = re.findall(r"docker compose run --rm worker (make (\w+))", guide)
    assert [command for command, _ in commands] == ["make repro", "make test"]
    for command, target in commands:
        assert f"\n    {command} " in readme
        assert target in targets
    image = (ROOT / "Dockerfile").read_text()
    assert image.rstrip().endswith('CMD ["make", "repro"]')
    assert "\nUSER 10001\n" in image  # not root
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert sorted(services) == ["database", "server", "worker"]
    published = [port for service in services.values() for port in service.get("ports", ())]
    assert published == ["127.0.0.1:4200:4200"]
    deployment = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    assert deployment["work_pool"]["name"] in services["worker"]["command"]


def test_packages_hold_no_code_of_their_own():
    """closure.code_files leaves __init__.py out: it may hold a docstring and nothing else."""
    for path in (ROOT / "stages").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), path


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
    reached = {name for name, text in lists.items() if "stages/diffusion/losses.py" in text}
    assert reached == {"train"}


def test_compiled_code_and_documentation_are_no_dependency():
    from dvc.repo import Repo

    with Repo(str(ROOT)) as repo:
        assert repo.dvcignore.is_ignored_file(str(ROOT / "stages" / "theory" / "README.md"))
        assert not repo.dvcignore.is_ignored_file(str(ROOT / "stages" / "theory" / "claims.py"))
        assert repo.dvcignore.is_ignored_dir(str(ROOT / "stages" / "diffusion" / "__pycache__"))
        assert not repo.dvcignore.is_ignored_dir(str(ROOT / "stages" / "diffusion"))


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
    assert body["cmd"] == f"scoresmooth stage {name}" + (" --variant ${key}" if per_variant else "")
    own = f"data/{name}/${{key}}" if per_variant else f"data/{name}"
    outs = [out if isinstance(out, str) else next(iter(out)) for out in body["outs"] + body.get("metrics", [])]
    assert all(out == own or out.startswith(f"{own}/") for out in outs)
    assert not [dep for dep in listed(stage)[0] if not dep.startswith(("data/", "${verify.blocks}"))]


def test_a_change_of_one_variant_reaches_its_own_stages_and_the_report_only(monkeypatch):
    """Counted on DVC's own graph of stages."""
    from dvc.repo import Repo

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
            assert reading == {f"train@{variant}", f"sample@{variant}", "report"}
            assert "report" in reading
            # DVC's arrows go from a stage to what it depends on
            after = {stage.addressing for stage in index if any(stages[n] in _reached(index, stage) for n in reading)}
            own = {f"{name}@{variant}" for name in ("train", "sample", "filter", "fid")}
            assert after | reading == own | {"report"}


def _reached(graph: Any, stage: Any) -> set[Any]:
    seen, waiting = set(), list(graph.successors(stage))
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(graph.successors(node))
    return seen
