"""The review server: who may talk to it, what it shows, and that no verdict is lost."""

import contextlib
import io
import json
import os
import re

import httpx
import numpy as np
import pytest
from PIL import Image
from review_server import HOME, PAIRS, PORT, SAMPLES, TRAIN, Client

from pipeline.review.guard import COOKIE
from stages.memorization.verdict_log import LOG


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
