"""The project's own Prefect server: a detached local process that every stage finds and takes for no other."""

import dataclasses
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from pipeline.locks import is_locked, locked
from stages.errors import InputError
from stages.files.artifacts import read_json, write_json
from stages.files.paths import CACHE

HOME = CACHE / "prefect"
HOST = "127.0.0.1"

NO_TELEMETRY = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

UNUSED_SERVICES = ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP")
"""Services for deployments, work pools and automations, which otherwise only poll the database."""

SCHEDULES = "SCORESMOOTH_SCHEDULES"
"""Environment variable: if set when the server starts, it also runs deployments."""

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
"""Prefect's environment variable for the database: postgresql+asyncpg://USER:PASSWORD@HOST/NAME. Unset: SQLite."""

PRUNING = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 86400),
}
"""The server deletes runs that ended more than 90 days ago, with their logs and artifacts."""


class ServerDown(RuntimeError):
    """The local Prefect server could not be started."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running server: its port on the loopback interface and its process id."""

    port: int
    pid: int

    @property
    def address(self) -> str:
        """Address of the web UI."""
        return f"http://{HOST}:{self.port}"


def environment() -> dict[str, str]:
    """Prefect's settings for the server and its clients: its home is in the project, and nothing is sent elsewhere."""
    home = HOME.absolute()
    loopback = f"{HOST},localhost"
    return {
        **NO_TELEMETRY,
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",  # saves a request per process; the server has it off
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), loopback))),
        "no_proxy": ",".join(filter(None, (os.environ.get("no_proxy"), loopback))),
    }


def connect(say: Callable[[str], None], timeout: float) -> str | None:
    """Make this process a client of the project's server, start that if needed, and return the UI's address.

    PREFECT_API_URL in the environment takes precedence: then no server is started. If the server cannot be started, the
    flow gets a temporary one (ephemeral mode: slow to start, no history) and this returns None. Call it before prefect
    is imported.
    """
    os.environ.update(environment())
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"].removesuffix("/").removesuffix("/api")
    try:
        server, started = ensure(timeout)
    except ServerDown as error:
        say(f"warning: {error}; using a temporary server for this stage (slow to start, its runs are not kept)")
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        # a separate database: the usual one may be the reason that the server is down
        database = HOME.absolute() / "ephemeral.db"
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{database}"
        return None
    os.environ["PREFECT_API_URL"] = f"{server.address}/api"
    if started:
        say(f"Prefect UI: {server.address} (stop it with: scoresmooth server stop)")
    return server.address


def ensure(timeout: float = 180.0) -> tuple[Server, bool]:
    """Return the project's server, and whether this call started it. Raises ServerDown after `timeout` seconds."""
    HOME.mkdir(parents=True, exist_ok=True)
    with locked(HOME / "server.start.lock"):
        server = running()
        if server:
            _check_database()
        if server and is_ours(server.port):
            return server, False
        if server is None:
            server = _spawn(_choose_port())
        deadline = time.monotonic() + timeout
        while not is_ours(server.port):
            if not _alive():
                raise ServerDown(f"the Prefect server ended while starting (see {HOME / 'server.log'})")
            if time.monotonic() > deadline:
                raise ServerDown(f"the Prefect server did not answer within {timeout:g} s (see {HOME / 'server.log'})")
            time.sleep(0.1)
        return server, True


def database() -> str:
    """Describe the database of the history for a person, without its password."""
    parts = urllib.parse.urlsplit(os.environ.get(DATABASE, ""))
    if not parts.scheme:
        return f"SQLite in {HOME}"
    return f"{parts.scheme} at {parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def database_in_use() -> str:
    """Describe the running server's database, as `database` does."""
    return str(read_json(HOME / "server.json").get("database", "an unknown database"))


def _check_database() -> None:
    """Raise InputError if the running server uses another database than this process's environment asks for."""
    used = database_in_use()
    if DATABASE in os.environ and used != database():
        raise InputError(f"{DATABASE} is set but the server runs on {used}: run scoresmooth server stop first")


def running() -> Server | None:
    """The server whose process lives, whether or not it answers; None without one."""
    return _recorded() if _alive() else None


def _recorded() -> Server | None:
    """The server that was started last; None without a readable record of it."""
    try:
        record = read_json(HOME / "server.json")
        return Server(int(record["port"]), int(record["pid"]))
    except (InputError, KeyError, TypeError, ValueError):
        return None


def gone(url: str) -> bool:
    """Whether `url` is the API of this project's own server and that server has ended."""
    server = _recorded()
    return server is not None and url == f"{server.address}/api" and not _alive()


def stop(grace: float = 20.0) -> bool:
    """Stop the project's server; return False if none was running."""
    HOME.mkdir(parents=True, exist_ok=True)
    with locked(HOME / "server.start.lock"):
        server = running()
        if server is None:
            return False
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.kill(server.pid, number)
            deadline = time.monotonic() + grace
            while _alive() and time.monotonic() < deadline:
                time.sleep(0.05)
            if not _alive():
                return True
        raise ServerDown(f"the Prefect server (process {server.pid}) cannot be stopped")


def is_ours(port: int) -> bool:
    """Whether the server that answers on `port` has its home in this project."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{HOST}:{port}/api/admin/settings", timeout=10) as response:
            return json.load(response).get("home") == str(HOME.absolute())
    except (OSError, urllib.error.URLError, ValueError, AttributeError):
        return False


def _alive() -> bool:
    # the server inherited this lock; the kernel drops it with the server's process
    return is_locked(HOME / "server.alive.lock")


def _choose_port() -> int:
    """The previous server's port if it is free, so that open pages of the UI keep working; otherwise any free one."""
    previous = _recorded()
    for port in (previous.port if previous else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise ServerDown(f"no free port on {HOST}")


def _spawn(port: int) -> Server:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    unused = () if SCHEDULES in os.environ else UNUSED_SERVICES
    off = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in unused}
    variables = {
        **PRUNING,
        **os.environ,
        **environment(),
        **off,
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_UI_API_URL": "/api",  # relative to the pages' own address; the default is port 4200 always
    }
    variables.pop("PREFECT_API_URL", None)
    alive = os.open(HOME / "server.alive.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        with (HOME / "server.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                pass_fds=(alive,),
                start_new_session=True,  # neither Ctrl-C nor the end of this stage stops it
            )
    finally:
        os.close(alive)
    write_json(HOME / "server.json", {"port": port, "pid": process.pid, "database": database()})
    return Server(port, process.pid)
