"""Shards that are killed or refused memory: each is tried once more with half the working memory (docs/faults.md)."""

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from dispatched import Dispatched
from watching import logged, processes, samples, undisturbed, until

from pipeline import oom

pytestmark = pytest.mark.faults


def test_a_killed_training_process_goes_on_from_its_checkpoint_in_another_one(dispatched):
    dispatched.params["train"]["steps"] = 13
    dispatched.write_params()
    dispatched.hold(4)
    process = dispatched.start_stages("train@net")
    until(lambda: logged(dispatched, 4))
    (child,) = processes(dispatched, "pipeline.child")
    os.kill(child, signal.SIGKILL)
    dispatched.release()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "train net: killed (out of memory?), at " in output
    assert "MiB: trying once more with half the working memory" in output
    assert dispatched.log() == [f"train net step {n}" for n in range(13)]
    assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKLM"]


def grow(dispatched: Dispatched, stage: str, mark: str, code: str) -> None:
    """Have the stage's work run `code` after the line `mark`; there `share` is the share of its memory."""
    path, share = dispatched.folder / "stages" / f"{stage}.py", 'share = float(os.environ["SCORESMOOTH_MEMORY_SHARE"])'
    before = path.read_text()
    assert before.count(mark) == 1
    path.write_text(before.replace(mark, f"{mark}; import os, signal; {share}; {code}"))


def test_a_shard_without_memory_is_tried_again_with_half_of_it(dispatched):
    """Killed as by the kernel, and refused memory as by a limit: the second attempt may use half of the first one's."""
    kill = "share == 1 and first == 2 and os.kill(os.getpid(), signal.SIGKILL)"
    refuse = "share == 1 and first == 4 and bytearray(1 << 62)"
    dispatched.params["execution"]["processes"] = ["train", "sample"]
    dispatched.write_params()
    grow(dispatched, "sample", 'first, last = shard.settings["span"]', f"{kill}; {refuse}")
    output = dispatched.stages("sample@net")
    tried = [line for line in output.splitlines() if "trying once more with half the working memory" in line]
    assert [line.split(",")[0] for line in tried] == [
        "sample net 2/4: killed (out of memory?)",
        "sample net 3/4: refused memory (MemoryError)",
    ]
    assert dispatched.log() == [f"sample net {n}/4" for n in range(1, 5)]
    found = samples(dispatched)
    dispatched.write_stage("sample")
    assert undisturbed(dispatched) == found


@pytest.mark.parametrize(
    ("stage", "mark", "remedy"),
    [
        ("train", 'checkpoint = shard.scratch / "checkpoint.txt"', "set train.optimization.microbatch"),
        ("filter", 'log("filter")', "raise filter.shards (this changes no result)"),
    ],
)
def test_a_shard_without_memory_twice_is_one_line(dispatched, stage, mark, remedy):
    path = dispatched.folder / "stages" / f"{stage}.py"
    if stage == "filter":
        path.write_text(
            path.read_text().replace("return []", 'return [Shard("filter", "samples", "net 1/1", {}, (), ".txt")]')
            + '\ndef work(shard):\n    log("filter")\n    return write_text(shard.path, "")\n'
        )
        mark = 'def work(shard):\n    log("filter")'
    dispatched.params["execution"]["processes"] = ["train", "filter"]
    dispatched.params["train"]["steps"] = 12
    dispatched.write_params()
    enough = path.read_text()
    grow(dispatched, stage, mark, "os.kill(os.getpid(), signal.SIGKILL)")
    output = dispatched.stages(f"{stage}@net", code=1)
    assert output.count("trying once more") == 1
    name = "net" if stage == "train" else "net 1/1"
    (line,) = [line for line in output.splitlines() if f"{stage} {name}: out of memory twice: " in line]
    assert re.search(r"killed \(out of memory\?\), at \d+ MiB; with half the working memory: killed .* MiB\. ", line)
    assert remedy in line
    assert "execution.jobs (1)" in line
    path.write_text(enough)
    dispatched.log()
    dispatched.stages(f"{stage}@net")
    if stage == "train":
        assert dispatched.log() == [f"train net step {n}" for n in range(12)]
        assert json.loads((dispatched.folder / "data/train/net/score.json").read_text()) == ["ABCDEFGHIJKL"]
    else:
        assert dispatched.log() == ["filter", "filter"]  # its work and its gathering


@contextlib.contextmanager
def memory_limit(bytes_: int) -> Iterator[Path]:
    """Make a control group with a memory limit; yield the file that processes are added to. Skips without the right."""
    first = Path("/sys/fs/cgroup/memory") / oom._group("memory") if oom._group("memory") is not None else None
    group = (first or Path("/sys/fs/cgroup")) / f"scoresmooth-test-{os.getpid()}"
    name = "memory.limit_in_bytes" if first else "memory.max"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"a control group needs root: {error}")
    try:
        try:
            (group / name).write_text(str(bytes_))
        except OSError as error:
            pytest.skip(f"a control group with a limit of memory: {error}")
        yield group / "cgroup.procs"
    finally:
        until(lambda: not (group / "cgroup.procs").read_text().split())
        group.rmdir()


def test_the_kernel_kills_a_shard_that_takes_too_much_and_half_fits(dispatched):
    """A control group of 512 MiB, and a shard that takes 700 MiB."""
    dispatched.params["execution"]["processes"] = ["train", "sample"]
    dispatched.write_params()
    take = "block = bytearray(int(700 * share) << 20); block[::4096] = bytes(len(block[::4096]))"
    grow(dispatched, "sample", 'first, last = shard.settings["span"]', take)
    with memory_limit(512 << 20) as members:
        process = dispatched.start_stages("sample@net")
        members.write_text(str(process.pid))
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
    assert output.count("trying once more with half the working memory") == 4
    assert "sample net 1/4: killed by the kernel, out of memory, at " in output
    found = samples(dispatched)
    dispatched.write_stage("sample")
    assert undisturbed(dispatched) == found
