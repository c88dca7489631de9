"""The shard cache: what determines a key, and that a result is used only after it was found intact."""

import fcntl
import hashlib
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.files import shard_cache as cache
from stages.files.artifacts import write_text
from stages.files.locks import is_locked, locked
from stages.files.shard_cache import State
from stages.protocol import Shard


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "input.txt").write_text("input")
    return tmp_path


def shard(**changes):
    fields = {
        "stage": "sample",
        "task": "samples",
        "name": "1/2",
        "settings": {"span": [0, 4]},
        "inputs": ("input.txt",),
        "suffix": ".txt",
    }
    return Shard(**{**fields, **changes})


class Work:
    """Work that counts its calls."""

    def __init__(self, text="result"):
        self.text, self.calls = text, 0

    def __call__(self, shard, lock):
        self.calls += 1
        assert is_locked(shard.path.with_suffix(".lock"))
        write_text(shard.scratch / "checkpoint", "half-way")
        write_text(shard.path, self.text)


def obtain(placed, work, said=None):
    return cache.obtain(placed, work, (said if said is not None else []).append)


def key(code="code", **changes):
    return cache.place(shard(**changes), code).path.name


def test_key_is_code_settings_and_inputs_but_not_the_name(folder):
    first = key()
    assert key(name="other") == first
    assert key("new code") != first
    assert key(settings={"span": [0, 5]}) != first
    assert key(inputs=()) != first
    assert key(suffix=".bin") != first
    (folder / "input.txt").write_text("other")  # the same size
    assert key() != first
    (folder / "input.txt").write_text("input")
    assert key() == first


def test_key_of_a_folder_is_its_files_and_their_names(folder):
    images = folder / "images"
    (images / "cat").mkdir(parents=True)
    (images / "cat" / "1.png").write_text("1")
    first = key(inputs=("images",))
    assert key(inputs=("images",)) == first
    (images / "cat" / "1.png").rename(images / "cat" / "2.png")
    assert key(inputs=("images",)) != first


def test_missing_input_is_an_input_error():
    with pytest.raises(InputError, match=r"absent\.txt is missing"):
        key(inputs=("absent.txt",))


def test_digest_is_remembered_until_the_file_changes(folder, monkeypatch):
    path = folder / "input.txt"
    old = time.time() - 100
    os.utime(path, (old, old))
    monkeypatch.setattr(cache, "FRESH", -(10**18))  # ctime is now: count it as old
    reads = []
    real = cache.sha256_file
    monkeypatch.setattr(cache, "sha256_file", lambda file: reads.append(file) or real(file))
    assert cache.input_digest("input.txt") == cache.input_digest("input.txt")
    assert len(reads) == 1
    path.write_text("tupni")
    os.utime(path, (old, old))  # same size, same modification time
    cache.input_digest("input.txt")
    assert len(reads) == 2


def test_digest_of_a_file_whose_name_is_not_unicode(folder, monkeypatch):
    monkeypatch.setattr(cache, "FRESH", -(10**18))
    path = os.fsdecode(b"\xff.png")
    try:
        Path(path).write_bytes(b"pixels")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    assert cache.input_digest(path) == cache.input_digest(path) == hashlib.sha256(b"pixels").hexdigest()


def test_digest_of_a_file_written_just_now_is_not_remembered(folder, monkeypatch):
    reads = []
    real = cache.sha256_file
    monkeypatch.setattr(cache, "sha256_file", lambda file: reads.append(file) or real(file))
    cache.input_digest("input.txt")
    cache.input_digest("input.txt")
    assert len(reads) == 2


def test_shards_that_are_placed_together_read_each_file_once(folder, monkeypatch):
    """Also files that were written just now, whose digests are not remembered on disk: all of a stage's inputs are."""
    (folder / "images").mkdir()
    for name in ("a", "b", "c"):
        (folder / "images" / name).write_text(name)
    reads, real, known = [], cache.sha256_file, {}
    monkeypatch.setattr(cache, "sha256_file", lambda file: reads.append(str(file)) or real(file))
    shards = [shard(settings={"n": n}, inputs=("input.txt", "images", "images/b")) for n in range(3)]
    together = [cache.place(each, "code", known=known) for each in shards]
    assert sorted(reads) == ["images/a", "images/b", "images/c", "input.txt"]
    assert together == [cache.place(each, "code") for each in shards]


def test_a_folders_digests_take_one_transaction_for_each_batch(folder, monkeypatch):
    monkeypatch.setattr(cache, "FRESH", -(10**18))
    monkeypatch.setattr(cache, "TOGETHER", 40)
    (folder / "images").mkdir()
    for n in range(100):
        (folder / "images" / f"{n:03}.png").write_bytes(bytes([n]))
    asked, real = [], cache._ask_digests
    monkeypatch.setattr(cache, "_ask_digests", lambda *args: asked.append(args) or real(*args))
    first = cache.input_digest("images")
    assert len(asked) == 6  # three batches, each a question and an answer
    (folder / "images" / "050.png").write_bytes(b"x")
    second = cache.input_digest("images")
    assert first != second
    assert len(asked) == 6 + 4  # one batch has something new
    files = [[f"{n:03}.png", hashlib.sha256(b"x" if n == 50 else bytes([n])).hexdigest()] for n in range(100)]
    assert second == cache.sha256_json(files)


def test_computed_once_then_found():
    placed, work = cache.place(shard(), "code"), Work()
    assert cache.check(placed).state is State.MISSING
    record = obtain(placed, work)
    assert cache.check(placed).ready
    assert obtain(placed, work) == record
    assert work.calls == 1
    assert record["size"] == len("result")
    assert not placed.scratch.exists()


def flip(path):
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "sha256"),
        (lambda path: path.write_bytes(path.read_bytes()[:3]), "3 bytes instead of 6"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.unlink(), "gone"),
        (lambda path: path.with_suffix(".manifest").write_text('{"size": 6'), "manifest"),
        (lambda path: path.with_suffix(".manifest").write_text("{}"), "manifest"),
        (lambda path: path.with_suffix(".manifest").write_text("[1]"), "manifest"),
    ],
)
def test_a_damaged_result_is_computed_again_with_a_line_that_says_why(damage, reason):
    placed, work, said = cache.place(shard(), "code"), Work(), []
    record = obtain(placed, work)
    damage(placed.path)
    assert cache.check(placed).state is State.DAMAGED
    assert obtain(placed, work, said) == record
    assert work.calls == 2
    assert placed.path.read_text() == "result"
    assert len(said) == 1
    assert reason in said[0]
    assert "sample 1/2" in said[0]


def test_a_result_without_manifest_is_not_used():
    """The manifest is written last: without it the work may have been cut off."""
    placed, work = cache.place(shard(), "code"), Work()
    write_text(placed.path, "half")
    obtain(placed, work)
    assert work.calls == 1
    assert placed.path.read_text() == "result"


def test_failed_work_leaves_its_scratch_and_no_result():
    placed = cache.place(shard(), "code")

    def fail(shard, lock):
        write_text(shard.scratch / "checkpoint", "half-way")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError):
        obtain(placed, fail)
    assert (placed.scratch / "checkpoint").read_text() == "half-way"
    assert cache.check(placed).state is State.MISSING
    assert not is_locked(placed.path.with_suffix(".lock"))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_user_wants(folder, umask, mode):
    before = os.umask(umask)
    try:
        path = write_text("some.json", "{}")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_unfinished_files_of_killed_processes_do_not_stay():
    placed, forgotten = (cache.place(shard(settings={"n": n}), "code") for n in range(2))
    for each in (placed, forgotten):
        obtain(each, Work())
        each.path.with_name(f".{each.path.name}.0123abcd{each.path.suffix}").write_text("half")
    cache.manifest_path(placed).unlink()
    obtain(placed, Work())
    assert not list(placed.path.parent.glob(f".{placed.path.stem}.*"))
    past = time.time() - 10 * 86400
    os.utime(cache.manifest_path(forgotten), (past, past))
    cache.prune(days=5)
    assert not list(placed.path.parent.glob(".*"))


def test_prune_removes_what_was_not_used_lately_and_spares_what_is_locked():
    kept, old, busy = (cache.place(shard(settings={"n": n}), "code") for n in range(3))
    for placed in (kept, old, busy):
        obtain(placed, Work())
    past = time.time() - 10 * 86400
    for placed in (old, busy):
        os.utime(cache.manifest_path(placed), (past, past))
    with busy.path.with_suffix(".lock").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        freed = cache.prune(days=5)
    assert cache.check(kept).ready
    assert cache.check(busy).ready
    assert cache.check(old).state is State.MISSING
    assert freed >= len("result")
    assert cache.size()["sample"][0] == 4  # two results, two manifests


def test_a_lock_held_elsewhere_is_announced_and_waited_for(folder):
    path, said, held = folder / "some.lock", [], threading.Event()

    def hold():
        with locked(path):
            held.set()
            time.sleep(0.3)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    assert is_locked(path)
    with pytest.raises(BlockingIOError), locked(path, wait=False):
        pass
    with locked(path, said.append):
        assert said == [str(os.getpid())]
    holder.join()
    assert not is_locked(path)


DAMAGES = {
    "not a database": lambda path: path.write_bytes(b"digests" * 1000),
    "pages overwritten": lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "another table": lambda path: path.unlink() or sqlite3.connect(path).execute("CREATE TABLE digests (a)"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_digests_are_begun_anew(folder, damage, capsys):
    file = cache.SHARDS.parent / "digests.sqlite"
    past = time.time() - 60
    os.utime("input.txt", (past, past))
    time.sleep(2.1)  # so that its digest is remembered
    good = cache.input_digest("input.txt")
    damage(file)
    assert cache.input_digest("input.txt") == good
    assert f"{file} is damaged" in capsys.readouterr().err
    assert cache.input_digest("input.txt") == good
    assert capsys.readouterr().err == ""


def test_a_file_on_a_failing_disk_has_a_digest_that_is_not_kept(folder, monkeypatch):
    good, reads = cache.input_digest("input.txt"), cache.sha256_file

    def fail(path):
        raise OSError(5, "Input/output error")

    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"pixels")
    whole = cache.input_digest("images")
    monkeypatch.setattr(cache, "sha256_file", fail)
    assert cache.input_digest("input.txt") == "unreadable: Input/output error"
    assert cache.input_digest("images") not in (whole, good)
    monkeypatch.setattr(cache, "sha256_file", reads)
    assert (cache.input_digest("input.txt"), cache.input_digest("images")) == (good, whole)
