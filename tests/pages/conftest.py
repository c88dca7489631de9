"""The fixtures of the review page's tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from review_server import Client, write_folder


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
