"""Small projects to kill, starve and fill up."""

import shutil

import pytest
from dispatched import Dispatched
from small_project import SmallProject
from watching import TRAIN, orphans, until


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    project = SmallProject(tmp_path_factory.mktemp("faults"))
    try:
        project.run("stage", "ingest")
        project.run(*TRAIN)
        yield project
    finally:
        project.stop()


@pytest.fixture
def project(started):
    """The project with its network trained, without samples."""
    started.release()
    started.reset()
    for folder in ("data/sample", ".scoresmooth/shards/sample"):
        shutil.rmtree(started.folder / folder, ignore_errors=True)
    started.log()
    yield started
    started.release()
    until(lambda: not orphans(started))


@pytest.fixture
def dispatched(tmp_path):
    """A project that runs without Prefect, with its network trained, without samples."""
    project = Dispatched(tmp_path)
    project.stages("ingest", "train@net")
    project.log()
    yield project
    project.release()
    until(lambda: not orphans(project))
