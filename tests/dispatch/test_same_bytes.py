"""`dvc repro` and `scoresmooth repro --jobs 2` give the same outs, where these depend on the number of threads, too."""

import shutil

import pytest
import yaml
from small_project import SmallProject

from pipeline.repro import ONE_THREAD, SAME_THREADS

THREADS = """
import os
_work = work
def work(shard):
    path = _work(shard)
    with path.open("a") as file:
        file.write(os.environ.get("OMP_NUM_THREADS", "all"))
    return path
"""
"""The end of a stage whose bytes depend on the number of threads that it is given."""


class Threaded(SmallProject):
    """A project in which the user sets no number of threads."""

    def environment(self, **variables: str) -> dict[str, str]:
        found = super().environment(**variables)
        del found["OMP_NUM_THREADS"]
        return found


def recorded(project: SmallProject) -> dict[str, str]:
    """Stage -> the md5 of its outs, from dvc.lock."""
    found = yaml.safe_load((project.folder / "dvc.lock").read_text())["stages"]
    return {name: stage["outs"][0]["md5"] for name, stage in found.items()}


@pytest.mark.long
def test_dvc_and_scoresmooth_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    project = Threaded(tmp_path)
    project.params["execution"]["processes"] = ["train", "sample"]
    project.write_params()
    for name in ("train", "sample"):
        assert name in (*SAME_THREADS, *ONE_THREAD)
        project.write_stage(name, THREADS)
    project.write_dvc()
    try:
        project.run("repro", "sample", "--jobs", "2")
        together = recorded(project)
        assert len(together) == 5
        assert (project.folder / "data/sample/net/samples.bin").read_bytes().endswith(b"1")  # one thread was set
        (project.folder / "dvc.lock").unlink()
        for folder in ("data", ".dvc/cache", ".scoresmooth/shards"):
            shutil.rmtree(project.folder / folder)
        project.log()
        project.dvc("repro")
        assert len(project.log()) == 1 + 10 + 2 * 4  # all was computed again
        assert recorded(project) == together
    finally:
        project.stop()
