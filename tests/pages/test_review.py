"""The review server: who may talk to it, what it shows, and that no verdict is lost."""

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser import Browser, Tab, find_browser, wait_for
from fastapi.testclient import TestClient
from PIL import Image

from pipeline.review.app import make_app
from pipeline.review.guard import COOKIE, Guard
from pipeline.review.serve import Address, run, verdicts_folder
from pipeline.review.session import Session
from stages.errors import InputError
from stages.files.images import image_id
from stages.memorization.candidates import NAME, write_candidates
from stages.memorization.verdict_log import LOG, VerdictLog, read_decisions

ROOT = Path(__file__).parents[2]
PORT = 8765
HOME = f"http://127.0.0.1:{PORT}"
SAMPLES, TRAIN = (np.random.default_rng(n).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8) for n in (0, 1))
PAIRS = 5  # the sixth row has the pixels of the first


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with six candidates, of which two are the same pair."""
    samples = np.array(SAMPLES)
    samples[5] = samples[0]
    rows, nearest = np.arange(6), np.array([3, 1, 2, 3, 4, 3])
    pairs = pa.table(
        {
            "sample_index": rows,
            "sample_id": [image_id(samples[row]) for row in rows],
            "train_index": nearest,
            "train_id": [image_id(TRAIN[row]) for row in nearest],
            "distance": rows / 10,
            "ratio": rows / 10,
            "verdict": ["copy"] * 6,
            "reason": ["<b>because</b>"] * 6,
        }
    )
    following = np.tile([6, 7, 8, 9], (6, 1))
    following[1, 2:] = -1
    metadata = {"variant": "net", "suspected": 8}
    write_candidates(tmp_path / "run" / NAME, pairs, following, samples, TRAIN, metadata)
    return tmp_path / "run"


class Client(TestClient):
    """One reviewer's page, in this process."""

    def __init__(self, folder: Path, reviewer: str = "anna", token: str | None = None, **guard: Any) -> None:
        self.session = Session(folder, VerdictLog(folder / LOG), reviewer)
        hosts = guard.pop("hosts", {f"127.0.0.1:{PORT}"})
        app = Guard(make_app(self.session), hosts, guard.pop("any_address", False), PORT, token)
        super().__init__(app, base_url=guard.pop("base_url", HOME), follow_redirects=False)
        self.number = 0

    def decide(self, pair: int, verdict: str, **changes: Any) -> httpx.Response:
        self.number += 1
        row = self.session.pairs[pair]
        body = {"id": f"{self.session.reviewer}-{self.number:08}", "reviewer": self.session.reviewer}
        body |= {"sample_id": row["sample_id"], "train_id": row["train_id"], "verdict": verdict, **changes}
        return self.post("/api/decide", json=body, headers={"origin": HOME})

    def undo(self) -> httpx.Response:
        self.number += 1
        body = {"id": f"{self.session.reviewer}-{self.number:08}", "reviewer": self.session.reviewer}
        return self.post("/api/undo", json=body, headers={"origin": HOME})

    def close(self) -> None:
        super().close()
        self.session.log.close()


@pytest.fixture
def client(folder) -> Iterator[Client]:
    with contextlib.closing(Client(folder)) as made:
        yield made


def pixels(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as picture:
        return np.asarray(picture)


# ---------------------------------------------------------------------------------------------- what is shown


def test_pictures_are_the_pixels_and_the_difference_is_amplified(client):
    def get(pair: int, kind: str, query: str = "") -> httpx.Response:
        return client.get(f"/picture/{client.session.version}/{pair}/{kind}.png{query}")

    np.testing.assert_array_equal(pixels(get(1, "sample")), SAMPLES[1])
    np.testing.assert_array_equal(pixels(get(3, "train")), TRAIN[3])
    np.testing.assert_array_equal(pixels(get(0, "next-2")), TRAIN[8])
    for gain in (1, 4):
        expected = np.minimum(np.abs(SAMPLES[1].astype(int) - TRAIN[1].astype(int)) * gain, 255)
        np.testing.assert_array_equal(pixels(get(1, "difference", f"?gain={gain}")), expected)
    assert get(1, "next-1").status_code == 200
    for pair, kind in ((1, "next-2"), (PAIRS, "sample"), (-1, "sample")):
        assert get(pair, kind).status_code == 404
    assert client.get("/picture/0000/1/sample.png").status_code == 404  # of another table
    assert get(1, "next-9").status_code == get(1, "difference", "?gain=0").status_code == 422


def test_equal_pairs_are_shown_once(client):
    found = client.get("/api/pairs").json()
    assert [pair["samples"] for pair in found["pairs"]] == [[0, 5], [1], [2], [3], [4]]
    assert (found["title"], found["offered"], found["suspected"]) == ("net", 6, 8)
    assert (found["width"], found["height"]) == (8, 8)


def test_a_verdict_is_on_disk_when_it_is_answered(client, folder):
    state = client.decide(2, "copy").json()
    assert state["mine"] == {"2": "copy"}
    (line,) = (folder / LOG).read_text().splitlines()
    row = client.session.pairs[2]
    expected = {"reviewer": "anna", "sample_id": row["sample_id"], "train_id": row["train_id"], "verdict": "copy"}
    assert expected.items() <= json.loads(line).items()
    assert client.decide(2, "not").json()["mine"] == {"2": "not"}
    undone = client.undo().json()
    assert (undone["undone"], undone["mine"]) == (2, {"2": "copy"})
    assert client.undo().json()["mine"] == {}
    assert client.undo().json()["undone"] is None
    assert len((folder / LOG).read_text().splitlines()) == 4


def test_sending_again_changes_nothing(client, folder):
    for _ in range(3):
        assert client.decide(1, "copy", id="the-same-id").json()["mine"] == {"1": "copy"}
    assert len((folder / LOG).read_text().splitlines()) == 1


def test_others_show_once_decided_and_agreement_is_counted(folder):
    with contextlib.closing(Client(folder, "anna")) as anna, contextlib.closing(Client(folder, "bert")) as bert:
        for pair, verdict in enumerate(["copy", "copy", "not", "unsure"]):
            anna.decide(pair, verdict)
        state = bert.get("/api/verdicts").json()
        assert (state["mine"], state["others"]) == ({}, {})
        assert state["agreement"] == [{"reviewer": "anna", "pairs": 0, "alike": 0, "kappa": None}]
        assert bert.decide(0, "copy").json()["others"] == {"0": {"anna": "copy"}}
        bert.decide(1, "not")
        state = bert.decide(2, "not").json()
        assert state["others"] == {"0": {"anna": "copy"}, "1": {"anna": "copy"}, "2": {"anna": "not"}}
        # copy/copy, copy/not, not/not: p_o = 2/3, p_e = (2/3)(1/3) + (1/3)(2/3) = 4/9
        assert state["agreement"][0]["kappa"] == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
        assert (state["agreement"][0]["pairs"], state["agreement"][0]["alike"]) == (3, 2)
        assert bert.undo().json()["others"] == {"0": {"anna": "copy"}, "1": {"anna": "copy"}}
        assert anna.get("/api/verdicts").json()["others"] == {"0": {"bert": "copy"}, "1": {"bert": "not"}}


# ---------------------------------------------------------------------------------------------- who may talk


HOSTS = [
    "evil.example:8765", "evil.example", "127.0.0.1", "127.0.0.1:80", "localhost.evil.example:8765", "",
    "127.0.0.1:8765.evil.example", "127.0.0.1:8765@evil.example", "0.0.0.0:8765", "[::ffff:127.0.0.1]:8765",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", ["/", "/page.js", "/api/pairs", "/api/verdicts", "/picture/0/0/sample.png"])
def test_a_foreign_host_is_refused(client, host, path):
    assert client.get(path).status_code in (200, 404)
    answer = client.get(path, headers={"host": host})
    assert answer.status_code == 403
    assert "is not this server's" in answer.text


WRITES = [
    ({"origin": "http://evil.example"}, "Origin http://evil.example is not"),
    ({"origin": "null"}, "Origin null is not"),
    ({"origin": "http://127.0.0.1:9999"}, "is not this server's"),
    ({"origin": "https://127.0.0.1:8765"}, "is not this server's"),
    ({"origin": "http://localhost:8765"}, "is not this server's"),
    ({"sec-fetch-site": "cross-site"}, "is not this server's"),
    ({"sec-fetch-site": "same-site", "origin": HOME}, "is not this server's"),
    ({"content-type": "text/plain"}, "only application/json"),
    ({"content-type": "application/x-www-form-urlencoded"}, "only application/json"),
    ({"host": "evil.example:8765", "origin": "http://evil.example:8765"}, "Host evil.example:8765 is not"),
]


@pytest.mark.parametrize(("headers", "message"), WRITES)
@pytest.mark.parametrize("path", ["/api/decide", "/api/undo"])
def test_writing_from_elsewhere_is_refused(client, folder, headers, message, path):
    row = client.session.pairs[0]
    body = {"id": "12345678", "reviewer": "anna"}
    if path == "/api/decide":
        body |= {"sample_id": row["sample_id"], "train_id": row["train_id"], "verdict": "copy"}
    sent = {"content-type": "application/json", **headers}
    answer = client.post(path, content=json.dumps(body), headers=sent)
    assert answer.status_code == 403
    assert message in answer.text
    assert (folder / LOG).read_bytes() == b""
    assert client.post(path, content=json.dumps(body), headers={"content-type": "application/json"}).status_code == 200


def test_wrong_requests_write_nothing(client, folder):
    assert client.decide(0, "maybe").status_code == 422
    assert client.decide(0, "copy", id="x").status_code == 422
    assert client.decide(0, "copy", more=1).status_code == 422
    assert client.decide(0, "copy", reviewer="bert").status_code == 409
    assert client.decide(0, "copy", train_id="elsewhere").status_code == 409
    assert (
        client.post("/api/decide", content=b"{" + b" " * 5000, headers={"content-type": "application/json"}).status_code
        == 403
    )
    assert client.get("/api/decide").status_code == 405
    assert (
        client.delete("/api/pairs", headers={"content-type": "application/json", "content-length": "0"}).status_code
        == 405
    )
    assert (folder / LOG).read_bytes() == b""


def test_a_disk_that_is_full_is_said(client, monkeypatch):
    write = os.write
    monkeypatch.setattr("os.write", lambda file, line: write(file, line[:5]))
    answer = client.decide(0, "copy", id="the-same-id")
    assert answer.status_code == 507
    assert "is the disk full?" in answer.json()["detail"]
    monkeypatch.undo()
    assert client.decide(0, "copy", id="the-same-id").json()["mine"] == {"0": "copy"}


def test_the_page_needs_nothing_from_outside_and_keeps_itself_apart(client):
    for path in ("/", "/page.css", "/page.js"):
        answer = client.get(path)
        assert not re.search(r"https?://|url\(|@import|innerHTML", answer.text), path
    for answer in (client.get("/"), client.get("/none"), client.get("/", headers={"host": "evil.example"})):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers
    assert client.options("/api/decide", headers={"origin": "http://evil.example"}).status_code == 403


def test_others_than_loopback_need_the_token(folder):
    address = f"http://192.0.2.7:{PORT}"
    with contextlib.closing(
        Client(folder, token="secret-token", hosts=set(), any_address=True, base_url=address)
    ) as far:
        for path in ("/", "/api/pairs", "/?token=wrong", "/api/pairs?token=secret-token"):
            assert far.get(path).status_code == 401
        assert far.decide(0, "copy").status_code == 403  # its Origin is another
        assert far.post("/api/undo?token=secret-token", json={}).status_code == 401
        assert far.get("/?token=secret-token", headers={"host": f"evil.example:{PORT}"}).status_code == 403
        entered = far.get("/?token=secret-token")
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        assert entered.headers["set-cookie"] == f"{COOKIE}=secret-token; HttpOnly; SameSite=Strict; Path=/"
        assert far.get("/").status_code == 200
        assert far.get("/", headers={"cookie": f"{COOKIE}=wrong", "host": f"[2001:db8::1]:{PORT}"}).status_code == 401


# ---------------------------------------------------------------------------------------------- the real server


class Server:
    """`scoresmooth review` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "pipeline.cli", "review", str(folder), "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.address = (self.process.stdout.readline() or self.process.communicate()[1]).strip()
        self.port = int(self.address.rstrip("/").rpartition(":")[2])

    def decide(self, id: str, pair: dict[str, Any], verdict: str, reviewer: str = "anna") -> dict[str, Any]:
        body = {"id": id, "reviewer": reviewer, "verdict": verdict}
        body |= {name: pair[name] for name in ("sample_id", "train_id")}
        return httpx.post(f"{self.address}api/decide", json=body, timeout=20).raise_for_status().json()

    def pairs(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.address}api/pairs", timeout=20).json()["pairs"]

    def end(self, number: int) -> str:
        """Send a signal; what the server said."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=30)
        return said


@contextlib.contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    server = Server(folder, *options)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def raw(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a path that is sent as it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest("GET", path, skip_host=True)
    connection.putheader("Host", f"127.0.0.1:{port}")
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read()


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


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    if find_browser() is None:
        pytest.skip("there is no Chromium on this machine")
    with Browser(tmp_path_factory.mktemp("profile")) as made:
        yield made


def ready(tab: Tab) -> None:
    wait_for(lambda: tab.run("document.getElementById('pair').getAttribute('aria-busy') == 'false'"))


def at(tab: Tab, pair: int) -> None:
    """Wait until the tab shows a pair (counted from 0), pictures and all."""
    wait_for(lambda: tab.text("#count").startswith(f"pair {pair + 1} of {PAIRS} "))
    ready(tab)
    assert f"/{pair}/sample.png" in tab.run("document.querySelector('#sample img').src")


def on_disk(folder: Path) -> dict[int, str]:
    """Standing verdicts of anna by the pair's place."""
    table = pq.read_table(folder / NAME, columns=["sample_id", "train_id"]).to_pylist()
    places = {(row["sample_id"], row["train_id"]): place for place, row in reversed(list(enumerate(table)))}
    return {places[pair]: act.verdict for pair, act in read_decisions(folder / LOG)[0].of("anna").items()}


def test_keys_in_a_real_browser(folder, browser):
    with serving(folder, "--reviewer", "anna") as server:
        tab = browser.open(server.address)
        at(tab, 0)
        tab.press("c", repeat=True)  # a key held down judges nothing
        tab.press("c")
        at(tab, 1)
        tab.press("n")
        at(tab, 2)
        tab.press("ArrowRight")
        at(tab, 3)
        tab.press("u")
        at(tab, 4)
        tab.press("Enter")  # the next open one is the third, past the end
        at(tab, 2)
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not", 3: "unsure"})
        tab.press("z")
        at(tab, 3)
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not"})
        tab.press("ArrowLeft")
        tab.press("ArrowLeft")
        at(tab, 1)
        tab.click("[data-verdict=copy]")  # a decided pair that is changed stays in view
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "copy"})
        at(tab, 1)
        assert tab.text("#state") == "copy"
        tab.press("d")
        assert "<b>because</b>" in tab.text("#facts")
        before = tab.run("document.querySelector('#difference img').src")
        tab.press("+")
        wait_for(lambda: tab.run("document.querySelector('#difference img').src") != before)
        tab.press("?")
        assert tab.run("document.getElementById('help').open")
        tab.press("n")  # the overlay keeps the keys
        tab.press("Escape")
        assert not tab.run("document.getElementById('help').open")
        assert on_disk(folder) == {0: "copy", 1: "copy"}


def test_a_second_tab_sees_it_and_a_dead_server_is_waited_for(folder, browser):
    """Two tabs; the server is killed and verdicts go on; a new server on the port gets them all, once."""
    with serving(folder, "--reviewer", "anna") as server:
        one, two = browser.open(server.address), browser.open(server.address)
        at(one, 0)
        one.press("c")
        at(one, 1)
        two.call("Page.bringToFront")
        wait_for(lambda: "1 decided" in two.text("#count"))
        one.call("Page.bringToFront")
        wait_for(lambda: one.run("load(2).done"))  # the pictures ahead are there before the server dies
        server.end(signal.SIGKILL)
        one.press("n")
        at(one, 2)
        one.press("u")
        wait_for(lambda: "2 verdicts wait in this browser" in one.text("#trouble"))
        assert on_disk(folder) == {0: "copy"}
    with serving(folder, "--reviewer", "anna", "--port", str(server.port)):
        wait_for(lambda: on_disk(folder) == {0: "copy", 1: "not", 2: "unsure"})
        wait_for(lambda: one.run("document.getElementById('trouble').hidden"))
        assert len((folder / LOG).read_text().splitlines()) == 3


def test_everything_fits_and_nothing_jumps(folder, browser):
    size = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
    boxes = "[...document.querySelectorAll('.frame, button')].map(e => JSON.stringify(e.getBoundingClientRect()))"
    with serving(folder, "--reviewer", "anna") as server:
        for width, height in ((1280, 800), (820, 1180), (390, 844)):
            tab = browser.open(server.address, width, height)
            at(tab, 0)
            assert tab.run(size) == [width, height]
            before = tab.run(boxes)
            tab.press("c")
            at(tab, 1)
            wait_for(lambda: on_disk(folder) == {0: "copy"})
            assert tab.run(boxes) == before
            side, zoom = tab.run("[document.querySelector('#train img').clientWidth, devicePixelRatio]")
            assert side * zoom % 8 == 0  # whole multiples of the picture's pixels
            assert tab.run("getComputedStyle(document.querySelector('#train img')).imageRendering") == "pixelated"
            tab.press("z")
            wait_for(lambda: on_disk(folder) == {})
