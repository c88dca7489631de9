"""Disks that fill up and folders that cannot be written: the loss is reported, and the next run computes what is
missing, to the same bytes. docs/faults.md has the table."""

import json
import subprocess

import pytest
from full_disks import fill, mounted
from watching import logged, results, samples, undisturbed, until

from stages.errors import InputError
from stages.files.images import scratch_pixels

pytestmark = pytest.mark.faults


def test_disk_full_while_a_shard_is_written(dispatched):
    dispatched.params["sample"]["count"] = 4000  # shards of some 50 kB
    dispatched.write_params()
    with mounted(dispatched.folder / ".scoresmooth/shards/sample", "size=1m") as disk:
        dispatched.hold(2)
        process = dispatched.start_stages("sample@net")
        until(lambda: logged(dispatched, 2))
        filler = fill(disk)
        dispatched.release()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in output
        assert 1 <= len(results(dispatched, "sample")) <= 2  # the second one may have met the full disk
        assert not list(disk.glob(".*"))  # nothing half-written stays
        done = len(list(disk.glob("*.manifest")))
        filler.unlink()
        dispatched.log()
        dispatched.stages("sample@net")
        assert dispatched.log() == [f"sample net {n}/4" for n in range(done + 1, 5)]
        resumed = samples(dispatched)
        assert undisturbed(dispatched) == resumed


def test_disk_full_while_a_checkpoint_is_written(dispatched):
    dispatched.params["train"]["steps"] = 14
    dispatched.write_params()
    with mounted(dispatched.folder / ".scoresmooth/shards/train", "size=1m") as disk:
        dispatched.hold(3)
        process = dispatched.start_stages("train@net")
        until(lambda: logged(dispatched, 3))
        filler = fill(disk)
        dispatched.release()
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in output, output
        filler.unlink()
        dispatched.log()
        dispatched.stages("train@net")
        assert dispatched.log() == [f"train net step {n}" for n in range(3, 14)]
        assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKLMN"]


def test_read_only_folder_of_outs(dispatched):
    with mounted(dispatched.folder / "data/sample", "ro"):
        output = dispatched.stages("sample@net", code=1)
    assert "Read-only file system: " in output
    assert len(dispatched.log()) == 4
    dispatched.stages("sample@net")
    assert dispatched.log() == []
    resumed = samples(dispatched)
    assert undisturbed(dispatched) == resumed


def test_an_empty_cached_shard_is_computed_again(dispatched):
    dispatched.stages("sample@net")
    expected = samples(dispatched)
    dispatched.log()
    results(dispatched, "sample")[1].write_bytes(b"")
    output = dispatched.stages("sample@net")
    assert "the cached result is damaged (it has 0 bytes instead of" in output
    assert len(dispatched.log()) == 1
    assert samples(dispatched) == expected


def test_no_room_for_the_pixels_is_an_error_and_no_signal(tmp_path):
    """A page of a mapped file that finds no room would end the process with SIGBUS."""
    with mounted(tmp_path / "disk", "size=1m") as disk:
        words = r"disk has no room for 2,000,000 bytes of pixels \(No space left"
        with pytest.raises(InputError, match=words), scratch_pixels(disk, (2_000_000,)) as pixels:
            pixels[:] = 1
        with scratch_pixels(disk, (500_000,)) as pixels:
            pixels[:] = 1


@pytest.mark.long
def test_disk_full_while_dvc_stores_an_out(project):
    project.write_dvc()
    project.dvc("repro", "-q", "train@net")
    project.params["sample"] |= {"count": 8000, "seed": 5}
    project.write_params()
    with mounted(project.folder / ".dvc/cache", "size=1m") as disk:
        filler = fill(disk)
        command = [*project.dvc_command(), "repro", "--single-item", "sample@net"]
        done = subprocess.run(
            command, cwd=project.folder, env=project.environment(), capture_output=True, text=True, timeout=120
        )
        assert done.returncode != 0
        assert "No space left on device" in done.stdout + done.stderr
        filler.unlink()
        project.log()
        project.dvc("repro", "-q", "--single-item", "sample@net")
        assert project.log() == []  # the shards were there
        assert "up to date" in project.dvc("repro", "--single-item", "sample@net")
        resumed = samples(project)
        assert undisturbed(project) == resumed
