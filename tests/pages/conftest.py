"""A report and a review page to test."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from report_project import IMAGES, write_project
from review_server import Client, write_folder

from stages.protocol import run_plain


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with six candidates, of which two are the same pair."""
    return write_folder(tmp_path / "run")


@pytest.fixture
def client(folder) -> Iterator[Client]:
    with contextlib.closing(Client(folder)) as made:
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> Path:
    """A project whose report is written; tests only read it."""
    root = tmp_path_factory.mktemp("rendered")
    with contextlib.chdir(root):
        write_project(root, IMAGES)
        run_plain("report")
    return root


@pytest.fixture
def page(rendered, monkeypatch) -> str:
    """The rendered page; the working directory is its project."""
    monkeypatch.chdir(rendered)
    return Path("data/report/report.html").read_text(encoding="utf-8")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty project, and the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
