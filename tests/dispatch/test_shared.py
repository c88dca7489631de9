"""Files exchanged by content: nothing is copied twice, damage is found, half-written copies are never taken."""

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline import node
from pipeline.checkpoints import SharedScratch
from pipeline.locks import is_locked
from pipeline.shared import SharedPlace
from stages.errors import InputError
from stages.files import shard_cache
from stages.files.artifacts import sha256_file
from stages.protocol import Shard


@pytest.fixture
def place(tmp_path):
    return SharedPlace((tmp_path / "place").as_uri())


def stored(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "place" / "files").iterdir())


def test_a_folder_travels_and_equal_files_are_stored_once(place, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name, content in (("a", b"one"), ("deep/b", b"two"), ("deep/c", b"one")):
        (folder / name).write_bytes(content)
    tree = place.put_tree(folder)
    assert sorted(tree) == ["a", "deep/b", "deep/c"]
    assert [path.name for path in stored(tmp_path)] == sorted({tree["a"], tree["deep/b"]})
    place.get_tree(tree, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in tree} == {
        "a": b"one",
        "deep/b": b"two",
        "deep/c": b"one",
    }


def test_what_is_there_is_not_stored_or_fetched_again(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    tree = place.put_tree(file)
    (kept,) = stored(tmp_path)
    os.utime(kept, (1, 1))
    place.put_tree(file)
    assert kept.stat().st_mtime == 1
    place.get_tree(tree, tmp_path / "copy")
    os.utime(tmp_path / "copy", (1, 1))
    place.get_tree(tree, tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_mtime == 1
    (tmp_path / "copy").write_bytes(b"changed")
    place.get_tree(tree, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"


def test_of_several_processes_on_a_node_one_fetches_a_file_and_its_digest_is_read_once(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shard_cache, "FRESH", -(10**18))  # count what was written just now as old
    file = tmp_path / "file"
    file.write_bytes(b"content" * 1000)
    tree, fetched, read = place.put_tree(file), [], []
    get, sha = place.get, shard_cache.sha256_file
    monkeypatch.setattr(place, "get", lambda digest, path: (fetched.append(path), time.sleep(0.2), get(digest, path)))
    monkeypatch.setattr(shard_cache, "sha256_file", lambda path: read.append(path) or sha(path))
    threads = [threading.Thread(target=place.get_tree, args=(tree, Path("copy"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [Path("copy")]
    assert (tmp_path / "copy").read_bytes() == b"content" * 1000
    read.clear()
    for _ in range(3):
        place.get_tree(tree, Path("copy"))
    assert read == []


def test_a_node_fetches_each_content_once_for_all_paths_and_projects(place, tmp_path, monkeypatch):
    """Two paths of one project, and an experiment's copy of that project, hold the same bytes."""
    file = tmp_path / "file"
    file.write_bytes(b"content" * 1000)
    tree, fetched = {"a": place.put(file), "deep/b": place.put(file)}, []
    get = place.get
    monkeypatch.setattr(place, "get", lambda digest, path: (fetched.append(digest), get(digest, path)))
    copies = [tmp_path / "node" / name for name in ("project", "experiment")]
    for own in copies:
        own.mkdir(parents=True)
        monkeypatch.chdir(own)
        for _ in range(2):
            place.get_tree(tree, Path("data"), node.kept_files(own))
        assert {name: (own / "data" / name).read_bytes() for name in tree} == dict.fromkeys(tree, file.read_bytes())
    assert fetched == [tree["a"]]
    (own / "data" / "a").write_bytes(b"changed in place, for all that link it")
    place.get_tree(tree, Path("data"), node.kept_files(own))
    assert (own / "data" / "a").read_bytes() == file.read_bytes()
    assert fetched == [tree["a"]] * 2


def test_a_file_that_no_copy_has_any_more_is_removed_from_a_node(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own, digests = tmp_path / "node" / "project", {}
    own.mkdir(parents=True)
    for name in ("used", "replaced"):
        (tmp_path / name).write_text(name)
        digests[name] = place.put(tmp_path / name)
        place.get_tree({"": digests[name]}, own / name, node.kept_files(own))
    (own / "replaced").unlink()
    node.prune(own)
    assert (node.kept_files(own) / digests["replaced"]).exists()  # it was had until now
    monkeypatch.setattr(node, "UNUSED_DAYS", 0)
    node.prune(own)
    assert not (node.kept_files(own) / digests["replaced"]).exists()
    assert (node.kept_files(own) / digests["used"]).exists()


def test_a_nodes_copies_lie_where_asked_and_unused_ones_are_removed(tmp_path):
    root = "/home/someone/project"
    assert node.node_folder(root, str(tmp_path)) == tmp_path / "home-someone-project"
    assert node.node_folder(root) == Path.home() / ".cache" / "scoresmooth" / "home-someone-project"
    own, old, foreign = (tmp_path / name for name in ("own", "old", "foreign"))
    for folder in (own, old, foreign):
        folder.mkdir()
    past = time.time() - (node.UNUSED_DAYS + 1) * 86400
    for folder in (own, old):
        (folder / node.USED).touch()
        os.utime(folder / node.USED, (past, past))
    node.prune(own)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["foreign", "own"]


def test_damage_in_the_place_is_found_and_a_cut_copy_replaced(place, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    digest = place.put(file)
    assert digest == sha256_file(file)
    (kept,) = stored(tmp_path)
    kept.write_bytes(b"CONTENT")
    with pytest.raises(OSError, match=f"{digest} is damaged"):
        place.get(digest, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    kept.write_bytes(b"cont")  # another size: it is stored again
    place.put(file)
    place.get(digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(FileNotFoundError):
        place.get("0" * 64, tmp_path / "other")


def test_other_protocols_and_unknown_ones(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"content")
    memory = SharedPlace("memory://scoresmooth-test")
    memory.get(memory.put(file), tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"content"
    with pytest.raises(InputError, match="execution.shared: nowhere://x: Protocol not known: nowhere"):
        SharedPlace("nowhere://x")


@pytest.mark.parametrize("url", ["file", "memory://scoresmooth-record"])
def test_a_record_names_the_newest_tree_and_the_rest_can_be_removed(tmp_path, url):
    place = SharedPlace((tmp_path / "place").as_uri() if url == "file" else url)
    assert place.read_record() is None
    digests = {}
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        digests[name] = place.put(tmp_path / name)
        place.write_record({name: digests[name]})
    assert place.read_record() == {"two": digests["two"]}
    place.keep({digests["two"]})
    place.get(digests["two"], tmp_path / "copy")
    with pytest.raises(FileNotFoundError):
        place.get(digests["one"], tmp_path / "other")
    place.clear()
    assert place.read_record() is None
    place.clear()  # what is not there needs no removing


def scratch(tmp_path: Path, node: str) -> tuple[Shard, SharedScratch]:
    """A shard whose scratch folder is a node's own."""
    shard = Shard("train", "train", "net", {}, (), ".txt").at(tmp_path / node / "key.txt")
    shard.scratch.mkdir(parents=True, exist_ok=True)
    return shard, SharedScratch((tmp_path / "place").as_uri(), shard)


def contents(shard: Shard) -> dict[str, str]:
    return {path.name: path.read_text() for path in shard.scratch.iterdir()}


def test_another_node_resumes_from_the_checkpoints_and_nothing_of_a_third_state_is_left(tmp_path):
    first, there = scratch(tmp_path, "first")
    with pytest.raises(SystemExit), there.mirrored(writes=True):
        for step in (10, 20, 30):
            (first.scratch / f"step-{step}").write_text(str(step))
            (first.scratch / f"step-{step - 10}").unlink(missing_ok=True)
        (first.scratch / ".step-40.half").write_text("half")  # what is being written
        raise SystemExit(143)
    second, here = scratch(tmp_path, "second")
    (second.scratch / "step-99").write_text("of an attempt that nobody else knows of")
    with here.mirrored(writes=False):
        assert contents(second) == {"step-30": "30"}
        (second.scratch / "mine").write_text("a process that does not lead stores nothing")
    third, elsewhere = scratch(tmp_path, "third")
    with elsewhere.mirrored(writes=True):
        assert contents(third) == {"step-30": "30"}
        (third.scratch / "step-50").write_text("50")
        (third.scratch / "step-30").unlink()
    assert [path.name for path in (tmp_path / "place/scratch/key/files").iterdir()] == [
        sha256_file(third.scratch / "step-50")
    ]
    elsewhere.forget()
    assert not (tmp_path / "place" / "scratch" / "key").exists()


def test_a_checkpoint_is_stored_while_the_work_goes_on(tmp_path):
    shard, there = scratch(tmp_path, "first")
    place = SharedPlace((tmp_path / "place/scratch/key").as_uri())
    with there.mirrored(writes=True):
        (shard.scratch / "step-1").write_text("1")
        until = time.monotonic() + 60
        while place.read_record() is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert list(place.read_record()) == ["step-1"]


def test_processes_of_one_node_fetch_one_after_the_other(tmp_path, monkeypatch):
    """Two ranks of a training share the node's folder. The file that one is fetching is not the other's to remove."""
    first, there = scratch(tmp_path, "first")
    with there.mirrored(writes=True):
        (first.scratch / "step-1").write_text("1")
    shard, _ = scratch(tmp_path, "node")
    lock, usual, seen = shard.scratch.with_suffix(".fetch.lock"), SharedPlace.get, []

    def get(place: SharedPlace, digest: str, path: Path) -> None:
        seen.append(is_locked(lock))
        usual(place, digest, path)

    monkeypatch.setattr(SharedPlace, "get", get)
    (shard.scratch / ".step-1.half").write_text("another process is writing it")
    ranks = [scratch(tmp_path, "node")[1] for _ in range(4)]
    failures = []

    def fetch(rank: SharedScratch) -> None:
        try:
            with rank.mirrored(writes=False):
                assert (shard.scratch / "step-1").read_text() == "1"
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=fetch, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen == [True]  # the others found it there
    assert (shard.scratch / ".step-1.half").exists()
