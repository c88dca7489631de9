"""A small project with a server, whose training pauses before its third step, for tests that end it there."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from small_project import SmallProject
from watching import orphans, until


@contextlib.contextmanager
def served_project(folder: Path) -> Iterator[SmallProject]:
    """A project in this folder with its server started and its images ingested."""
    project = SmallProject(folder)
    project.write_dvc()
    try:
        project.run("server", "start")
        project.run("repro", "ingest")
        yield project
    finally:
        project.stop()


@contextlib.contextmanager
def held_training(project: SmallProject) -> Iterator[None]:
    """The project with another training to do, which pauses before its third step; nothing may outlive the test."""
    project.params["train"]["steps"] += 1
    project.write_params()
    project.log()
    project.hold(2)
    yield
    project.release()
    until(lambda: not orphans(project))
