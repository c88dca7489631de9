"""The review server: its address, the folder of its verdicts, and its shutdown."""

import dataclasses
import ipaddress
import os
import secrets
import signal
import socket
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.stage_run import say
from stages.errors import InputError
from stages.memorization.candidates import NAME
from stages.memorization.verdict_log import LOG, VerdictLog

if TYPE_CHECKING:
    from pipeline.review.session import Session

LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Address:
    """Where to listen. remote: hosts other than loopback are allowed, and a token is required."""

    host: str
    port: int
    remote: bool

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host == "localhost" or (_address(self.host) or ipaddress.ip_address("0.0.0.0")).is_loopback

    @property
    def everywhere(self) -> bool:
        """Whether it stands for all addresses of this machine."""
        found = _address(self.host)
        return found is not None and found.is_unspecified


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def run(folder: Path, reviewer: str, verdicts: Path | None, address: Address | None) -> None:
    """Serve the pairs of `folder` until interrupted, then write verdicts.parquet. Without an address only write it.

    Raises InputError for a wrong folder, name or address.
    """
    _check_name(reviewer)
    if address is not None and not address.loopback and not address.remote:
        raise InputError(f"--host {address.host} is not loopback: add --remote to let others in, with a token")
    if not (folder / NAME).is_file():
        text = "name data/filter/VARIANT, which dvc repro writes, or the folder of an audit"
        raise InputError(f"{folder / NAME} is missing: {text}")
    log = VerdictLog((verdicts or verdicts_folder(folder)) / LOG)
    try:
        if address is not None:
            _serve(folder, reviewer, log, address)
        say(f"verdicts as a table: {log.compact()}")
        _say_mended(log)
        if verdicts is None and log.path.parent != folder:
            name = log.path.parent.name
            file = f"data/verdicts/{name}/{LOG}"  # from the project's root
            say(f"to count them, in params.yaml: filter.verdicts: {{{name}: {file}}}, then dvc repro filter@{name}")
    finally:
        log.close()


def verdicts_folder(folder: Path) -> Path:
    """The folder of the verdicts on a folder's pairs: data/verdicts/VARIANT for data/filter/VARIANT, else the same.

    DVC removes data/filter/VARIANT before the stage runs again; people's verdicts must outlive that.
    """
    place = Path(os.path.abspath(folder))  # also for "." and "..", links kept: DVC may link its outs
    data = place.parent.parent
    if place.parent.name == "filter" and data.name == "data" and (data.parent / "dvc.yaml").is_file():
        return Path(os.path.relpath(data / "verdicts" / place.name))
    return folder


def _check_name(reviewer: str) -> None:
    odd = [letter for letter in reviewer if unicodedata.category(letter)[0] not in "LMNPZS"]
    if not reviewer.strip() or reviewer != reviewer.strip() or len(reviewer) > LONGEST_NAME or odd:
        raise InputError(f"--reviewer {reviewer!r}: give a name of 1 to {LONGEST_NAME} printable characters")


def _say_mended(log: VerdictLog) -> None:
    for line in log.said:
        say(line)
    log.said.clear()


def _serve(folder: Path, reviewer: str, log: VerdictLog, address: Address) -> None:
    import uvicorn

    from pipeline.review.app import make_app
    from pipeline.review.guard import Guard
    from pipeline.review.session import Session

    session = Session(folder, log, reviewer)
    _say_mended(log)
    listening = _listen(address)
    port = listening.getsockname()[1]
    token = None if address.loopback else secrets.token_urlsafe(24)
    guard = Guard(make_app(session), _names(address, port), address.everywhere, port, token)
    _announce(session, address, port, token)
    quiet = {"log_level": "warning", "access_log": False, "server_header": False}
    http_only = {"ws": "none", "proxy_headers": False, "lifespan": "off"}
    config = uvicorn.Config(guard, timeout_graceful_shutdown=2, **quiet, **http_only)
    # uvicorn ends on either signal, and then raises it again
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        listening.close()


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((address.host, address.port))
        listening.listen()  # so that a second server on the port fails here
    except OSError as error:
        listening.close()
        text = f"cannot listen on {address.host} port {address.port} ({error.strerror}): try --port 0"
        raise InputError(text) from error
    return listening


def _names(address: Address, port: int) -> set[str]:
    """The Host values that name this server; one that listens on all addresses also has the machine's names."""
    names = {"localhost", "127.0.0.1", "[::1]"} if address.loopback else {_bracketed(address.host).lower()}
    if address.everywhere:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _announce(session: "Session", address: Address, port: int, token: str | None) -> None:
    host = socket.gethostname() if address.everywhere else _bracketed(address.host)
    say(f"{len(session.pairs)} pairs to judge, as {session.reviewer}; verdicts go to {session.log.path}")
    suspected, offered = session.overview()["suspected"], session.overview()["offered"]
    if suspected is not None and suspected > offered:
        say(f"{offered} of {suspected} suspected samples are offered, lowest rho first: filter.candidates limits them")
    if session.stale:
        say(f"{session.stale} earlier verdicts are on pairs that are no longer listed: they stay in the file")
    if token:
        say("anyone who knows the token can write verdicts, and the token crosses the network unencrypted")
    # the one line on stdout: what a script or a person opens
    print(f"http://{host}:{port}/" + (f"?token={token}" if token else ""), flush=True)
    say("Ctrl-C ends it")
