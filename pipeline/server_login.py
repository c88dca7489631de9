"""The login of the project's own Prefect server: who may use it, and how a server proves that it is this project's."""

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SERVER_LOGIN = "PREFECT_SERVER_API_AUTH_STRING"
"""Prefect's environment variable for the login that a server asks for, USER:PASSWORD. Unset: one is generated."""

CLIENT_LOGIN = "PREFECT_API_AUTH_STRING"
"""Prefect's environment variable for the login that a client sends."""

IDENTITY = "/scoresmooth/identity"
"""Path at which the server proves that it knows the login: ?nonce=TEXT -> {pid, proof}."""

GENERATED = re.compile(r"scoresmooth:[\w-]{43}")


def login_path(home: Path) -> Path:
    """The file of the login in the server's folder; only its owner can read it."""
    return home / "login"


def read_login(home: Path) -> str:
    """The login of the running server; "" where the file is missing or unreadable."""
    try:
        return login_path(home).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def make_login(home: Path) -> str:
    """The login for a server that starts now: the environment's, else the earlier one, else a new one. Store it."""
    login = os.environ.get(SERVER_LOGIN) or read_login(home)
    if login != os.environ.get(SERVER_LOGIN) and not GENERATED.fullmatch(login):
        login = f"scoresmooth:{secrets.token_urlsafe(32)}"
    write_private(login_path(home), login + "\n")
    return login


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, atomically."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def proof(login: str, nonce: str, pid: int) -> str:
    """What only a process that knows the login can answer to `nonce`."""
    return hmac.new(login.encode(), f"{nonce} {pid}".encode(), hashlib.sha256).hexdigest()


def proven(address: str, login: str, timeout: float = 10.0) -> dict[str, Any] | None:
    """What the server at `address` says of itself if it proves that it knows the login, which is not sent to it.

    pid: its process. database: device and inode of its SQLite file when it began to use it, or None.
    """
    nonce = secrets.token_hex(16)
    connection = HTTPConnection(urlsplit(address).netloc, timeout=timeout)  # urllib would read all certificates
    try:
        with contextlib.closing(connection):
            connection.request("GET", f"{IDENTITY}?nonce={nonce}")
            answer = json.loads(connection.getresponse().read(4096))
        pid = int(answer["pid"])
        known = hmac.compare_digest(str(answer["proof"]).encode(), proof(login, nonce, pid).encode())
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return None
    return answer if login and known else None


def proven_pid(address: str, login: str) -> int | None:
    """The process id of the server at `address`, if it is ours."""
    answer = proven(address, login)
    return None if answer is None else int(answer["pid"])
