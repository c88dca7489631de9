"""The review page's server and client for tests: five pairs, a reviewer in this process, a server in its own."""

import contextlib
import http.client
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
from fastapi.testclient import TestClient

from pipeline.review.app import make_app
from pipeline.review.guard import Guard
from pipeline.review.session import Session
from stages.files.images import image_id
from stages.memorization.candidates import NAME, write_candidates
from stages.memorization.verdict_log import LOG, VerdictLog

ROOT = Path(__file__).parents[2]
PORT = 8765
HOME = f"http://127.0.0.1:{PORT}"
SAMPLES, TRAIN = (np.random.default_rng(n).integers(0, 256, (10, 8, 8, 3)).astype(np.uint8) for n in (0, 1))
PAIRS = 5  # the sixth row has the pixels of the first


def write_folder(folder: Path) -> Path:
    """Write six candidates, of which two are the same pair, into a folder and return it."""
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
    write_candidates(folder / NAME, pairs, following, samples, TRAIN, metadata)
    return folder


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
