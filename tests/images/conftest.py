"""A folder of its own for every test of a stage."""

from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the working directory, where the stages look for their files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
