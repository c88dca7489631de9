"""The log of verdicts: nothing is lost, torn lines are said, damage is named; and Cohen's kappa."""

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import cohen_kappa_score

from stages.errors import InputError
from stages.memorization.statistics import cohen_kappa
from stages.memorization.verdict_log import CHOICES, Act, VerdictLog, agreement, now, read_decisions
from stages.memorization.verified import outcomes

A, B, C = ("s1", "t1"), ("s2", "t2"), ("s3", "t3")


def act(id: str, pair: tuple[str, str], verdict: str, reviewer: str = "anna") -> Act:
    return Act(id, now(), reviewer, pair, verdict)


def standing(log: VerdictLog, reviewer: str = "anna") -> dict[tuple[str, str], str | None]:
    return {pair: found.verdict for pair, found in log.decisions.of(reviewer).items()}


@pytest.fixture
def log(tmp_path):
    opened = VerdictLog(tmp_path / "reviews" / "verdicts.jsonl")
    yield opened
    opened.close()


def test_every_act_is_a_line_and_the_last_one_stands(log):
    for number, (pair, verdict) in enumerate([(A, "copy"), (B, "not"), (A, "unsure")]):
        log.append(act(str(number), pair, verdict))
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["sample_id"], line["verdict"]) for line in lines] == [("s1", "copy"), ("s2", "not"), ("s1", "unsure")]
    assert standing(log) == {A: "unsure", B: "not"}
    decisions, torn = read_decisions(log.path)
    assert torn == 0
    assert {pair: found.verdict for pair, found in decisions.of("anna").items()} == standing(log)


def test_undo_is_a_line_and_restores_what_stood_before(log):
    log.append(act("1", A, "copy"))
    log.append(act("2", B, "not"))
    log.append(act("3", A, "unsure"))
    log.append(act("4", A, "copy", "bert"))
    assert log.undo("5", now(), "anna").pair == A
    assert standing(log) == {A: "copy", B: "not"}
    assert log.undo("6", now(), "anna").pair == B
    assert log.undo("7", now(), "anna").pair == A
    assert log.undo("8", now(), "anna") is None
    assert standing(log) == {}
    assert standing(log, "bert") == {A: "copy"}
    assert len(log.path.read_text().splitlines()) == 7
    again = VerdictLog(log.path)
    assert (standing(again), standing(again, "bert")) == ({}, {A: "copy"})
    again.close()


def test_what_is_sent_twice_counts_once(log):
    for _ in range(2):
        log.append(act("1", A, "copy"))
        log.append(act("2", B, "copy"))
        assert log.undo("3", now(), "anna").pair == B
    assert standing(log) == {A: "copy"}
    assert len(log.path.read_text().splitlines()) == 3


def test_a_verdict_is_synced_to_disk_before_it_counts(log, monkeypatch):
    synced, sync = [], os.fsync

    def recording(file: int) -> None:
        synced.append((file, os.fstat(file).st_size, len(log.decisions.acts)))
        sync(file)

    monkeypatch.setattr("os.fsync", recording)
    log.append(act("1", A, "copy"))
    first = log.path.stat().st_size
    log.undo("2", now(), "anna")
    assert [(size, known) for _, size, known in synced] == [(first, 0), (log.path.stat().st_size, 1)]
    assert all(os.path.sameopenfile(file, log._file) for file, _, _ in synced)


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_torn_last_line_is_said_kept_aside_and_nothing_else_is_lost(tmp_path, cut):
    path = tmp_path / "verdicts.jsonl"
    whole = act("1", A, "copy").to_line()
    torn = act("2", B, "not").to_line()[:-cut]
    path.write_bytes(whole + torn)
    decisions, bytes_torn = read_decisions(path)  # a reader leaves the file alone
    assert bytes_torn == len(torn)
    assert list(decisions.of("anna")) == [A]
    assert path.read_bytes() == whole + torn
    log = VerdictLog(path)
    assert log.said == [
        f"{path}: the last line was torn ({len(torn)} bytes): a process died or the disk was full while a verdict was "
        "being written. It was moved to verdicts.torn; all 1 lines before it stand"
    ]
    assert path.read_bytes() == whole
    assert path.with_suffix(".torn").read_bytes() == torn + b"\n"
    log.append(act("3", C, "unsure"))
    log.close()
    assert list(read_decisions(path)[0].of("anna")) == [A, C]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", r"line 2 is damaged \(Expecting value"),
        ("[1]", r"line 2 is damaged \(it is not an object of strings"),
        ('{"id": "x"}', r"line 2 is damaged \(it has the keys id\)"),
        (act("2", A, "copy").to_line().decode().replace("copy", "maybe").strip(), r"its verdict is 'maybe'"),
        (Act("2", now(), "bert", undoes="1").to_line().decode().strip(), r"takes back '1', which is not a standing"),
        (Act("2", now(), "anna", undoes="9").to_line().decode().strip(), r"takes back '9', which is not a standing"),
    ],
    ids=["no JSON", "no object", "other keys", "no verdict", "of another reviewer", "of no verdict"],
)
def test_a_damaged_line_is_named(tmp_path, line, message):
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(act("1", A, "copy").to_line() + line.encode() + b"\n" + act("3", B, "copy").to_line())
    for read in (read_decisions, VerdictLog):
        with pytest.raises(InputError, match=message):
            read(path)


def test_a_log_cut_while_in_use_is_refused(log):
    log.append(act("1", A, "copy"))
    log.path.write_bytes(b"")
    with pytest.raises(InputError, match=r"was cut while it was in use"):
        log.append(act("2", B, "copy"))
    assert log.path.read_bytes() == b""


def test_a_full_disk_is_an_error_and_the_next_writer_mends(log, monkeypatch):
    log.append(act("1", A, "copy"))
    write = os.write
    monkeypatch.setattr("os.write", lambda file, line: write(file, line[:20]))
    with pytest.raises(OSError, match="only 20 of"):
        log.append(act("2", B, "copy"))
    monkeypatch.undo()
    assert standing(log) == {A: "copy"}
    log.append(act("2", B, "copy"))
    assert len(log.said) == 1
    assert list(read_decisions(log.path)[0].of("anna")) == [A, B]


def write_many(path: Path, reviewer: str, count: int) -> None:
    log = VerdictLog(path)
    for number in range(count):
        log.append(act(f"{reviewer}-{number}", (f"s{number}", "t"), CHOICES[number % 3], reviewer))
        if number % 5 == 4:
            log.undo(f"{reviewer}-undo-{number}", now(), reviewer)
    log.close()


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    path, count = tmp_path / "verdicts.jsonl", 40
    context = multiprocessing.get_context("fork")
    names = ["anna", "bert", "cleo"]
    processes = [context.Process(target=write_many, args=(path, name, count)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    decisions, torn = read_decisions(path)
    assert (torn, len(decisions.acts)) == (0, 3 * (count + count // 5))
    expected = {(f"s{n}", "t"): CHOICES[n % 3] for n in range(count) if n % 5 != 4}
    for name in names:
        assert {pair: found.verdict for pair, found in decisions.of(name).items()} == expected


def test_the_table_says_what_the_log_says(log):
    log.append(act("1", A, "copy"))
    log.append(act("2", B, "not", "bert"))
    log.append(act("3", A, "not"))
    log.append(act("4", C, "unsure"))
    log.undo("5", now(), "anna")
    path = log.compact()
    rows = pq.read_table(path).to_pylist()
    assert [(r["sample_id"], r["reviewer"], r["verdict"]) for r in rows] == [
        ("s1", "anna", "not"),
        ("s2", "bert", "not"),
    ]
    from_table, from_log = read_decisions(path)[0], read_decisions(log.path)[0]
    assert outcomes([A, B, C], from_table) == outcomes([A, B, C], from_log) == ["not", "not", "undecided"]
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InputError, match=r"it has no column sample_id: name the verdicts\.jsonl instead"):
        read_decisions(path)
    path.write_bytes(b"no table")
    with pytest.raises(InputError, match=r"is not a Parquet table"):
        read_decisions(path)
    path.unlink()
    with pytest.raises(InputError, match=r"verdicts\.parquet is missing: make it with scoresmooth review"):
        read_decisions(path)


def test_people_who_differ_make_a_pair_disputed(log):
    for number, (pair, verdict, name) in enumerate(
        [(A, "copy", "anna"), (A, "copy", "bert"), (B, "copy", "anna"), (B, "unsure", "bert"), (C, "unsure", "anna")]
    ):
        log.append(act(str(number), pair, verdict, name))
    assert outcomes([A, B, C, ("s1", "t2")], log.decisions) == ["copy", "disputed", "unsure", "undecided"]


def test_kappa_by_hand(log):
    """Cohen's table: 20 yes/yes, 5 yes/no, 10 no/yes, 15 no/no: p_o = 0.7, p_e = 0.5, so κ = 0.4."""
    table = {("yes", "yes"): 20, ("yes", "no"): 5, ("no", "yes"): 10, ("no", "no"): 15}
    assert cohen_kappa(table) == pytest.approx(0.4)
    assert cohen_kappa({("copy", "copy"): 7}) is None
    assert cohen_kappa({}) is None
    assert cohen_kappa({("copy", "not"): 1, ("not", "copy"): 1}) == -1
    log.append(act("1", A, "copy"))
    log.append(act("2", B, "not"))
    log.append(act("3", B, "copy", "bert"))
    log.append(act("4", C, "copy", "bert"))
    assert agreement(log.decisions.of("anna"), log.decisions.of("bert")) == Counter({("not", "copy"): 1})


@pytest.mark.parametrize("seed", range(20))
def test_kappa_against_another_implementation(seed):
    rng = np.random.default_rng(seed)
    one = rng.choice(CHOICES, 30, p=rng.dirichlet([1, 1, 1]))
    other = np.where(rng.random(30) < 0.6, one, rng.choice(CHOICES, 30))
    counts = Counter(zip(one.tolist(), other.tolist()))
    expected = cohen_kappa_score(one, other) if len({*one, *other}) > 1 else None
    assert cohen_kappa(counts) == (None if expected is None else pytest.approx(expected))
