"""Clocks that jump make no result stale and lose none."""

import os
import time

import pytest
from clocks import CLOCK, set_clock
from watching import logged, results, samples, undisturbed, until

from pipeline import cache
from stages.files.artifacts import sha256_file
from stages.protocol import Shard

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_makes_no_stale_digest(tmp_path, monkeypatch, jump):
    """A file changed within the resolution of its time stamp, by a clock that has just been set."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "input.bin"
    now = time.time_ns() + jump * 10**9
    path.write_bytes(b"one")
    os.utime(path, ns=(now, now))
    monkeypatch.setattr(time, "time_ns", lambda: now)
    shard = Shard("sample", "samples", "1/1", {}, ("input.bin",))
    first = cache.place(shard, "code")
    path.write_bytes(b"two")
    os.utime(path, ns=(now, now))
    second = cache.place(shard, "code")
    assert first.path != second.path
    assert cache.input_digest("input.bin") == sha256_file(path)


@pytest.mark.parametrize("jump", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_while_a_stage_runs_loses_nothing(dispatched, jump):
    """Half of the results bear the time after the jump, as the kernel would have stamped them."""
    dispatched.prelude = CLOCK
    before = {path for path in dispatched.folder.rglob("*") if path.is_file() and not path.is_symlink()}
    dispatched.hold(2)
    process = dispatched.start_stages("sample@net")
    until(lambda: logged(dispatched, 2))
    set_clock(dispatched, jump)
    dispatched.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert dispatched.log() == [f"sample net {n}/4" for n in range(1, 5)]
    then = time.time() + jump
    for path in results(dispatched, "sample")[2:]:
        for written in (path, path.with_suffix(".manifest"), path.with_suffix(".lock")):
            assert written not in before
            os.utime(written, (then, then))
    for ahead in (jump, 0, -jump):
        set_clock(dispatched, ahead)
        dispatched.stages("sample@net")
        assert dispatched.log() == []
    found = samples(dispatched)
    assert undisturbed(dispatched) == found
