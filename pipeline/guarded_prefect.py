"""The process of the project's own Prefect server: Prefect's application behind a guard, and a watch over its files.

A web page elsewhere could make a browser send requests to loopback, from another origin or under a name of its own that
it resolves to 127.0.0.1 (DNS rebinding). Prefect itself accepts every Host, and has no setting against that.

    python -m pipeline.guarded_prefect server start --host 127.0.0.1 --port N --alive FD

FD is the inherited descriptor of the locked file HOME/server.alive.lock, which tells that this process lives.
"""

import argparse
import base64
import hmac
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

from pipeline import server
from pipeline.server_login import IDENTITY, SERVER_LOGIN, login_path, proof, write_private

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PERIOD = 0.5
"""Seconds between two looks at the server's files."""

REPORT = "/scoresmooth/report.html"
"""Where the server's pages link to the report: a browser opens no file from a page of http."""

ALONE = (b"content-security-policy", b"sandbox allow-scripts allow-popups")
"""The report's scripts run as a page of nowhere: they reach neither Prefect's API nor what the UI has stored."""

LAST_WORDS = 10.0
"""Seconds that the server has to end by itself when its folder is gone."""


class Guard:
    """ASGI middleware: every request must name loopback in Host, and one from a page must come from this server's own.

    The port in Host is free, since `ssh -L` forwards from another one. watch: knows the server's database.
    """

    def __init__(self, app: App, login: str, watch: "Watch | None" = None) -> None:
        self.app, self.login, self.watch = app, login, watch

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse the request, prove this server's identity, or pass the request on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif refusal := _refusal(scope["headers"]):
            await _refuse(scope["type"], refusal, send)
        elif scope["type"] == "http" and scope["path"] == IDENTITY:
            nonce = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("nonce", [""])[0]
            answer = {"pid": os.getpid(), "proof": proof(self.login, nonce, os.getpid())}
            answer["database"] = self.watch.database if self.watch else None
            await _answer(send, 200, json.dumps(answer))
        elif scope["type"] == "http" and scope["path"] == REPORT:
            await self._report(dict(scope["headers"]).get(b"authorization", b""), send)
        else:
            await self.app(scope, receive, send)

    async def _report(self, given: bytes, send: Send) -> None:
        """Serve the report to who knows the login, for which the browser asks."""
        if not hmac.compare_digest(given, b"Basic " + base64.b64encode(self.login.encode())):
            asking = (b"www-authenticate", b'Basic realm="the login of scoresmooth"')
            await _answer(send, 401, "Log in as in the Prefect UI.", b"text/plain", asking)
            return
        try:
            content = server.REPORT_FILE.read_text(encoding="utf-8")
        except OSError:
            await _answer(send, 404, "There is no report yet: scoresmooth repro report.", b"text/plain")
        else:
            await _answer(send, 200, content, b"text/html; charset=utf-8", ALONE)


def _refusal(headers: list[tuple[bytes, bytes]]) -> str | None:
    """Why a request with these headers is refused; None where it is not."""
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
    if len(hosts) != 1 or _host_name(hosts[0]) not in LOOPBACK:
        return f"Host {', '.join(hosts) or '(none)'} is not this server's: use the address that it printed"
    if origins and origins != [f"http://{hosts[0]}"]:
        return f"Origin {', '.join(origins)} is not this server's: only its own pages may use it"
    return None


def _host_name(host: str) -> str | None:
    try:
        parts = urlsplit(f"//{host}")
        return None if "@" in host or parts.path else parts.hostname
    except ValueError:
        return None


async def _refuse(kind: str, reason: str, send: Send) -> None:
    if kind == "websocket":  # closed before it is accepted: the client sees 403
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
    else:
        await _answer(send, 403, json.dumps({"detail": reason}))


async def _answer(
    send: Send, status: int, text: str, kind: bytes = b"application/json", *more: tuple[bytes, bytes]
) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})


class Watch:
    """Restores the files by which the server is found, and ends it when its folder or its database is gone.

    alive: the descriptor of the locked file. record: the contents of server.json.
    """

    def __init__(self, home: Path, alive: int, record: dict[str, Any], login: str) -> None:
        self.home, self.record, self.login = home, record, login
        self.lock = _inode(alive)
        self.database: tuple[int, int] | None = None  # device and inode of the SQLite file that it uses

    def look(self) -> str | None:
        """Look once; return why the server must end, or None."""
        if _inode(self.home / "server.alive.lock") != self.lock:
            return f"{self.home} was removed"
        if self.record["sqlite"]:
            found = _inode(self.home / "prefect.db")
            if self.database not in (None, found):
                return f"{self.home / 'prefect.db'} was removed or replaced"
            self.database = found
        try:
            self._restore(self.home / "server.json", json.dumps(self.record, indent=2, sort_keys=True) + "\n")
            self._restore(login_path(self.home), self.login + "\n")
        except OSError as error:  # a full disk: the next look tries again
            print(f"{self.home}: {error}", file=sys.stderr, flush=True)
        return None

    def _restore(self, path: Path, text: str) -> None:
        try:
            found = path.read_bytes()
        except OSError:
            found = b""
        if found != text.encode():
            write_private(path, text)

    def run(self) -> NoReturn:
        """Look every PERIOD seconds until the server must end."""
        while (reason := self.look()) is None:
            time.sleep(PERIOD)
        print(f"the server ends: {reason}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_WORDS)
        os._exit(1)


def _inode(file: Path | int) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.guarded_prefect")
    parser.add_argument("words", nargs=2, help="server start: what `ps` shows")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alive", type=int, required=True)
    given = parser.parse_args()
    login = os.environ[SERVER_LOGIN]
    record = server.record(given.port, os.getpid())
    watch = Watch(server.HOME, given.alive, record, login)
    threading.Thread(target=watch.run, daemon=True).start()
    # seconds: after the watch has begun, so that a starting server is found as well
    import uvicorn
    from prefect.server.api.server import create_app

    app = Guard(create_app(final=True), login, watch)
    uvicorn.run(app, host=given.host, port=given.port, log_level="warning", timeout_graceful_shutdown=5)


if __name__ == "__main__":
    main()
