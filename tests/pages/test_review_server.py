"""scoresmooth review as a server: killed, twice at once, with wrong paths and options."""

import contextlib
import json
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from browser import wait_for
from review_server import PAIRS, Server, raw, serving

from pipeline.review.serve import Address, run, verdicts_folder
from stages.errors import InputError
from stages.memorization.candidates import NAME
from stages.memorization.verdict_log import LOG, read_decisions


def test_kill_loses_nothing_that_was_answered(folder):
    """Two clients write while the server is killed; then a line is torn; a second server finds every answered act."""
    answered: list[str] = []

    def write(server: Server, name: str, pairs: list[dict[str, Any]]) -> None:
        with contextlib.suppress(httpx.HTTPError):
            for number in range(10_000):
                id = f"{name}-{number:08}"
                server.decide(id, pairs[number % PAIRS], "copy" if number % 2 else "not")
                answered.append(id)

    with serving(folder, "--reviewer", "anna") as server:
        pairs = server.pairs()
        tabs = [threading.Thread(target=write, args=(server, name, pairs)) for name in ("one", "two")]
        for tab in tabs:
            tab.start()
        wait_for(lambda: len(answered) > 30)
        server.end(signal.SIGKILL)
        for tab in tabs:
            tab.join()
    lines = (folder / LOG).read_bytes().splitlines()
    kept = [json.loads(line)["id"] for line in lines]
    assert set(answered) <= set(kept)
    assert len(kept) == len(set(kept)) <= len(answered) + 2  # each tab had at most one on its way
    with (folder / LOG).open("ab") as file:
        file.write(b'{"id": "torn')
    with serving(folder, "--reviewer", "anna") as server:
        last = {(found["sample_id"], found["train_id"]): found["verdict"] for found in map(json.loads, lines)}
        mine = httpx.get(f"{server.address}api/verdicts", timeout=20).json()["mine"]
        assert {int(number): verdict for number, verdict in mine.items()} == {
            number: last[pair["sample_id"], pair["train_id"]] for number, pair in enumerate(pairs)
        }
        said = server.end(signal.SIGTERM)
    assert "the last line was torn (12 bytes)" in said
    assert (folder / "verdicts.torn").read_bytes() == b'{"id": "torn\n'
    assert pq.read_table(folder / "verdicts.parquet").num_rows == PAIRS


def test_two_servers_share_one_log(folder):
    with serving(folder, "--reviewer", "anna") as anna, serving(folder, "--reviewer", "bert") as bert:
        pairs = anna.pairs()
        anna.decide("anna-0001", pairs[0], "copy")
        bert.decide("bert-0001", pairs[0], "not", "bert")
        state = anna.decide("anna-0002", pairs[1], "unsure")
        assert state["others"] == {"0": {"bert": "not"}}
        assert anna.end(signal.SIGINT).endswith("verdicts.parquet\n")
        assert anna.process.returncode == 0
    decisions, _ = read_decisions(folder / LOG)
    assert [len(decisions.of(name)) for name in ("anna", "bert")] == [2, 1]


PATHS = [
    "/../secret", "/..%2fsecret", "/%2e%2e/secret", "/%2e%2e%2fsecret", "//secret", "/page.css/../../secret", "/secret",
    "/./../secret", "/..\\secret", "/candidates.parquet", "/verdicts.jsonl", "/session.py", "/app.py", "/etc/passwd",
    "/picture/{version}/0/../../../secret", "/picture/{version}/0/..%2f..%2fsecret.png",
    "/picture/..%2f..%2fsecret/0/sample.png", "/picture/{version}/0/sample.png%00",
    "/docs", "/openapi.json", "/redoc", "/static/page.js",
]  # fmt: skip


def test_no_path_leads_outside(folder):
    (folder.parent / "secret").write_text("hidden")
    (folder / "secret").write_text("hidden")
    with serving(folder) as server:
        version = httpx.get(f"{server.address}api/pairs").json()["version"]
        assert raw(server.port, f"/picture/{version}/0/sample.png")[0] == 200
        for path in PATHS:
            status, body = raw(server.port, path.format(version=version))
            assert status in (400, 404, 422), path
            assert b"hidden" not in body
        taken = rf"cannot listen on 127\.0\.0\.1 port {server.port} \(.*\): try --port 0"
        with pytest.raises(InputError, match=taken):
            run(folder, "anna", None, Address("127.0.0.1", server.port, False))


LOOPBACK = Address("127.0.0.1", 0, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"address": Address("0.0.0.0", 0, False)}, r"--host 0\.0\.0\.0 is not loopback: add --remote"),
        ({"address": Address("example.org", 0, False)}, r"--host example\.org is not loopback"),
        ({"reviewer": ""}, r"--reviewer '': give a name of 1 to 40 printable characters"),
        ({"reviewer": "a\nb"}, r"printable"),
        ({"reviewer": "x" * 41}, r"1 to 40"),
        ({"folder": Path("nowhere")}, r"nowhere/candidates\.parquet is missing: name data/filter/VARIANT"),
        ({"verdicts": Path("/dev/null/x")}, r"/dev/null/x/verdicts\.jsonl cannot be written \(Not a directory\)"),
    ],
)
def test_wrong_options_are_one_line(folder, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        run(**{"folder": folder, "reviewer": "anna", "verdicts": None, "address": LOOPBACK, **changes})
    assert "\n" not in str(caught.value)


def test_nothing_to_review_is_said(folder):
    table = pq.read_table(folder / NAME)
    pq.write_table(table.slice(0, 0), folder / NAME)
    with pytest.raises(InputError, match="holds no pairs: no sample is suspected"):
        run(folder, "anna", None, LOOPBACK)


def test_loopback_is_known():
    loopback = {"127.0.0.1": True, "127.9.9.9": True, "::1": True, "localhost": True, "0.0.0.0": False, "::": False}
    assert {host: Address(host, 0, False).loopback for host in loopback} == loopback


def test_verdicts_outlive_the_stage(folder, tmp_path, capsys):
    """DVC removes data/filter/VARIANT before it makes it anew: verdicts are kept outside of it."""
    inside = tmp_path / "data" / "filter" / "net"
    shutil.copytree(folder, inside)
    assert verdicts_folder(inside) == inside  # an audit's folder may have any name
    (tmp_path / "dvc.yaml").write_text("")
    assert verdicts_folder(inside).resolve() == tmp_path / "data" / "verdicts" / "net"
    with contextlib.chdir(tmp_path):
        run(Path("data/filter/net"), "anna", None, None)
    line = "in params.yaml: filter.verdicts: {net: data/verdicts/net/verdicts.jsonl}, then dvc repro filter@net"
    assert line in capsys.readouterr().err
    assert pq.read_table(tmp_path / "data" / "verdicts" / "net" / "verdicts.parquet").num_rows == 0
    with contextlib.chdir(inside):
        assert verdicts_folder(Path(".")).resolve() == (tmp_path / "data" / "verdicts" / "net").resolve()
