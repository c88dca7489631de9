"""The walls of the house: what may import what, how far each stage's code reaches, and how large a file may be.

pyproject.toml holds the arrows as contracts of import-linter; the tables below hold what those cannot say.
"""

import ast
import graphlib
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

from pipeline import closure
from pipeline.params import STAGES

ROOT = Path(__file__).parent.parent

REACH = {
    "ingest": (22, ["files", "images"]),
    "deduplicate": (25, ["engine", "features", "files", "images", "search"]),
    "embed": (14, ["features", "files"]),
    "index": (25, ["engine", "features", "files", "search"]),
    "train": (26, ["diffusion", "files"]),
    "choose": (60, ["diffusion", "engine", "features", "files", "search"]),
    "sample": (42, ["diffusion", "engine", "files", "search"]),
    "filter": (68, ["engine", "features", "files", "images", "memorization", "search"]),
    "fid": (29, ["engine", "features", "files", "images"]),
    "verify": (
        106,
        ["beyond", "diffusion", "engine", "features", "files", "images", "memorization", "search", "theory"],
    ),
    "report": (57, ["engine", "files", "memorization", "reporting", "search", "theory"]),
    "audit": (105, ["engine", "features", "files", "images", "memorization", "reporting", "search"]),
    "copybench": (64, ["engine", "features", "files", "images", "memorization", "search"]),
    "risk": (40, ["engine", "files", "images", "memorization", "search"]),
}
"""Stage: how many files its results depend on, at most, and in which folders they may lie (besides stages/ itself).
Every file more is one whose edit computes the stage again. Raise a number only with a reason in the commit."""

ARROWS = {
    "files": set(),
    "engine": set(),
    "search": {"engine"},
    "images": {"search", "engine", "files"},
    "features": {"files", "engine"},
    "diffusion": {"search", "engine", "files"},
    "memorization": {"images", "features", "search", "engine", "files"},
    "theory": {"diffusion", "features", "memorization", "search"},
    "beyond": {"diffusion", "features", "memorization", "search", "theory"},
    "reporting": {"images", "memorization", "files"},
}
"""Folder of stages/: the folders that it may import, besides the files of BASE."""

BASE = ("errors", "protocol", "device")

STALE = {
    "engine": {
        "deduplicate",
        "index",
        "choose",
        "sample",
        "filter",
        "fid",
        "verify",
        "report",
        "audit",
        "copybench",
        "risk",
    },
    "theory": {"verify", "report"},
    "beyond": {"verify"},
    "reporting": {"report", "audit"},
}
"""Folder: the stages whose cached results an edited comment in it may make stale, and no others."""

LONGEST_FILE = 400
"""Lines of a Python file, at most."""

MEDIAN_FUNCTION = 8
"""Lines of the median function of stages/ and pipeline/, at most."""

FUNCTION_IMPORTS = 241
"""Imports inside functions of stages/ and pipeline/, at most. Each delays a slow import that not every caller needs."""

ENTRIES = ("audit", "copybench", "risk")
"""Commands of stages/ that dvc.yaml has no stage for."""


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("scoresmooth", "stages", "pipeline", include_external_packages=True, cache_dir=None)


def part(module: str) -> str:
    """The folder or file of `stages` that a module belongs to: stages.files.images -> files."""
    return module.split(".")[1] if "." in module else ""


def imports(graph: grimp.ImportGraph, prefix: str) -> list[tuple[str, str]]:
    """(importer, imported) of all direct imports in modules below `prefix`."""
    modules = [module for module in graph.modules if module == prefix or module.startswith(f"{prefix}.")]
    return [(module, other) for module in modules for other in graph.find_modules_directly_imported_by(module)]


def python_files(*folders: str) -> list[Path]:
    """The Python files below these folders of the project, sorted."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def reached(stage: str) -> tuple[int, set[str]]:
    """How many files the results of a stage depend on, and in which folders of stages/ they lie."""
    files = [Path(file) for file in closure.code_files(stage)]
    return len(files), {file.parts[1] for file in files if len(file.parts) > 2}


def test_the_contracts_of_import_linter_hold():
    command = ["lint-imports", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_folder_and_file_of_stages_is_known(graph):
    parts = {part(module) for module in graph.modules if module.startswith("stages.")}
    assert parts == {*ARROWS, *BASE, *STAGES, *ENTRIES}


@pytest.mark.parametrize("name", ARROWS)
def test_folders_import_only_what_lies_below_them(name, graph):
    for importer, imported in imports(graph, f"stages.{name}"):
        if imported.startswith("stages."):
            assert part(imported) in {name, *ARROWS[name], *BASE}, f"{importer} imports {imported}"


def test_no_files_import_each_other_in_a_circle(graph):
    """Imports inside functions count."""
    modules = [module for module in graph.modules if module.split(".")[0] in ("scoresmooth", "stages", "pipeline")]
    below = {module: graph.find_modules_directly_imported_by(module) for module in modules}
    list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError, which names the circle


def test_the_code_of_a_stage_reaches_no_further_than_stated():
    found = {stage: reached(stage) for stage in (*STAGES, *ENTRIES)}
    wrong = []
    for stage, (count, folders) in found.items():
        most, allowed = REACH.get(stage, (0, []))
        wrong += [f"{stage} reaches {folder}" for folder in sorted(folders.difference(allowed))]
        wrong += [f"{stage} depends on {count} files, {most} are allowed"] if count > most else []
    rows = [f"    {stage!r}: ({count}, {sorted(folders)})," for stage, (count, folders) in found.items()]
    assert not wrong, "\n".join([*wrong, "REACH as it is now:", *rows]).replace("'", '"')


DIGESTS = """
import json, sys
from pathlib import Path
from pipeline import closure

assert closure.ROOT == Path.cwd()
def digests(): return {stage: closure.code_digest(stage) for stage in sys.argv[2].split(",")}
before, stale = digests(), {}
for folder in sys.argv[1].split(","):
    files = {path: path.read_text() for path in Path("stages", folder).rglob("*.py") if path.name != "__init__.py"}
    for path, text in files.items():
        path.write_text(text + "# a comment\\n")
    stale[folder] = [stage for stage, digest in digests().items() if digest != before[stage]]
    for path, text in files.items():
        path.write_text(text)
assert digests() == before
print(json.dumps(stale))
"""


def test_an_edited_comment_reaches_only_the_stages_that_use_its_folder(tmp_path):
    """In a copy of the code. In particular no network is trained again after an edit in engine/."""
    for name in ("stages", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", DIGESTS, ",".join(STALE), ",".join((*STAGES, *ENTRIES))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for folder, stages in json.loads(done.stdout).items():
        assert stages, f"no stage uses {folder}"
        assert set(stages) <= STALE[folder], f"a comment in {folder} makes stale: {', '.join(stages)}"


def test_no_file_is_long():
    files = python_files("scoresmooth", "stages", "pipeline", "benchmarks", "tests", "examples")
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def functions(*folders: str) -> list[ast.FunctionDef]:
    """All functions and methods in these folders."""
    trees = [ast.parse(path.read_text()) for path in python_files(*folders)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def test_functions_are_short():
    lengths = [node.end_lineno - node.lineno + 1 for node in functions("scoresmooth", "stages", "pipeline")]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION


def test_imports_are_at_the_top():
    nodes = {node for function in functions("scoresmooth", "stages", "pipeline") for node in ast.walk(function)}
    assert sum(isinstance(node, ast.Import | ast.ImportFrom) for node in nodes) <= FUNCTION_IMPORTS


def imported_names(tree: ast.AST) -> Iterator[str]:
    """The modules that `tree` imports, as they are written there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_test_module_imports_another():
    """What tests share lies in tests/support and in the conftest.py of their folder."""
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in python_files("tests")
        for name in imported_names(ast.parse(path.read_text()))
        if re.search(r"(^|\.)(test_\w+|conftest)$", name)
    ]
    assert found == []


def test_no_script_changes_the_import_path():
    """Benchmarks and tools run as modules: python -m benchmarks.NAME."""
    found = [
        path
        for path in python_files("scoresmooth", "stages", "pipeline", "benchmarks", "examples")
        if "sys.path" in path.read_text()
    ]
    assert found == []


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


def test_the_dispatch_goes_through_the_stages(graph):
    """pipeline imports the stages by their protocol; of the core only files, results and what people review."""
    review = {f"stages.memorization.{name}" for name in ("candidates", "verdict_log", "verified")}
    for importer, imported in imports(graph, "pipeline"):
        if imported.startswith("stages."):
            allowed = {
                f"stages.{name}" for name in ("errors", "protocol", "audit", "copybench", "risk", "reporting.terminal")
            }
            allowed |= review if importer.startswith("pipeline.review.") else set()
            assert imported in allowed or part(imported) == "files", f"{importer} imports {imported}"


def test_the_package_for_users_is_thin(graph):
    """`import scoresmooth` takes the audit, the sources of images and files; everything else lies behind the audit."""
    below = {imported for _, imported in imports(graph, "scoresmooth") if imported.startswith("stages.")}
    assert below == {
        "stages.audit",
        "stages.errors",
        "stages.files.artifacts",
        "stages.memorization.audit_settings",
    } | {f"stages.images.sources.{name}" for name in ("open", "saved_dataset")}


def test_only_the_flows_and_the_server_import_prefect(graph):
    using = {importer for importer, imported in imports(graph, "pipeline") if imported == "prefect"}
    flows = {"pipeline.flows", "pipeline.repro_flow", "pipeline.deployment"}
    flows |= {"pipeline.cancelling", "pipeline.guarded_prefect", "pipeline.heartbeats"}
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
    for path in python_files("scoresmooth", "stages", "pipeline"):
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


def test_packages_hold_no_code_of_their_own():
    """closure.code_files leaves __init__.py out: it may hold a docstring and nothing else."""
    for path in (ROOT / "stages").rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body), path
