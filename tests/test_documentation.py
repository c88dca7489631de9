"""The documents name only files, commands and benchmarks that exist."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

from pipeline.cli import app
from stages.memorization.vocabulary import MEANING

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md", ROOT / "stages/theory/README.md"
]  # fmt: skip


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request) -> Path:
    """One document of the project."""
    return request.param


def test_links_lead_to_files_and_headings(document):
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", document.read_text(encoding="utf-8")):
        linked = document.parent / target if target else document
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_commands_of_scoresmooth_exist(document):
    known = get_command(app)
    for name, below in re.findall(r"(?:^    |`)scoresmooth ([a-z]+)(?: ([a-z]+))?", document.read_text(), re.MULTILINE):
        assert name in known.commands, name
        if hasattr(known.commands[name], "commands") and below:
            assert below in known.commands[name].commands, f"{name} {below}"


def test_benchmarks_and_modules_exist(document):
    text = document.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ((?:benchmarks|stages)\.[a-z0-9_.]*[a-z0-9_])", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_make_targets_exist(document):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"(?:^    |`)make ([a-z]+)", document.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(named) <= set(targets)


def test_the_readme_defines_the_words_as_the_code_does():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [row for row in (f"| {word} | {meaning} |" for word, meaning in MEANING.items()) if row not in text] == []
