"""DVC remotes: what one person computed, another pulls and does not compute again."""

import shutil

from small_project import SmallProject


def test_a_colleague_pulls_and_recomputes_nothing(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for folder in (mine, theirs):
        folder.mkdir()
    project, colleague = SmallProject(mine), SmallProject(theirs)
    project.write_dvc()
    try:
        project.run("repro", "--jobs", "2")
        project.dvc("remote", "add", "--default", "shared", str(tmp_path / "remote"))
        project.dvc("push", "-q")
    finally:
        project.stop()
    colleague.write_dvc()
    shutil.copy(mine / ".dvc" / "config", theirs / ".dvc" / "config")
    shutil.copy(mine / "dvc.lock", theirs / "dvc.lock")
    colleague.dvc("pull", "-q")
    assert "up to date" in colleague.dvc("repro")
    assert "up to date" in colleague.run("repro")
    assert colleague.log() == []
    for out in ("sample/closed/samples.bin", "sample/net/samples.bin", "train/net/score.json"):
        assert (theirs / "data" / out).read_bytes() == (mine / "data" / out).read_bytes()
