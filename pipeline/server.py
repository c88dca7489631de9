"""The project's own Prefect server: a detached local process that every stage finds and takes for no other."""

import contextlib
import dataclasses
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline.locks import is_locked, locked
from pipeline.server_login import CLIENT_LOGIN, SERVER_LOGIN, login_path, make_login, proven, proven_pid, read_login
from stages.errors import InputError
from stages.files.artifacts import read_json
from stages.files.paths import CACHE, DATA, STATE

HOME = STATE / "prefect"
HOST = "127.0.0.1"
REPORT_FILE = CACHE.absolute().parent / DATA / "report" / "report.html"
"""The report that the server shows: the project's own, not an experiment's."""

NO_TELEMETRY = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}

NO_CERTIFICATES = Path(__file__).with_name("loopback.pem")
"""A certificate whose key nobody has: loopback is plain HTTP, but every client of Prefect reads all certificates."""

UNUSED_SERVICES = ("SCHEDULER", "LATE_RUNS", "TRIGGERS", "FOREMAN", "PAUSE_EXPIRATIONS", "CANCELLATION_CLEANUP")
"""Services for deployments, work pools and automations, which otherwise only poll the database."""

SCHEDULES = "SCORESMOOTH_SCHEDULES"
"""Environment variable: if set when the server starts, it also runs deployments."""

OWN = "SCORESMOOTH_SERVER"
"""Environment variable: the API of the project's own server that this process and its children use."""

DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
"""Prefect's environment variable for the database: postgresql+asyncpg://USER:PASSWORD@HOST/NAME. Unset: SQLite."""

PRUNING = {
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": str(90 * 86400),
}
"""The server deletes runs that ended more than 90 days ago, with their logs and artifacts."""


PATIENCE = 5.0
"""Seconds after which a process that waits for the server says so, and within which a server restores its record."""


class ServerDown(InputError):
    """The local Prefect server could not be started, found or stopped: one line at the command line."""


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
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",  # saves a request per process; the server has it off
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_API_SSL_CERT_FILE": str(NO_CERTIFICATES),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
        "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), loopback))),
        "no_proxy": ",".join(filter(None, (os.environ.get("no_proxy"), loopback))),
    }


def connect(say: Callable[[str], None], timeout: float) -> str | None:
    """Make this process a client of the project's server, start that if needed, and return the UI's address.

    A server that the user chose (PREFECT_API_URL, or the active profile of `prefect config`) takes precedence: then
    Prefect's settings stay as they are, and no server is started. If the server cannot be started, the flow gets a
    temporary one (ephemeral mode: slow to start, no history) and this returns None. Call it before prefect is imported.
    """
    chosen = chosen_api()
    if chosen is not None:
        return chosen.removesuffix("/").removesuffix("/api")
    try:
        server, started = ensure(timeout, say)
    except ServerDown as error:
        say(f"warning: {error}; using a temporary server for this stage (slow to start, its runs are not kept)")
        os.environ.update(environment())
        os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "true"
        os.environ[SERVER_LOGIN] = os.environ[CLIENT_LOGIN] = make_login(HOME)
        # a separate database: the usual one may be the reason that the server is down
        database = HOME.absolute() / "ephemeral.db"
        os.environ["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{database}"
        return None
    become_client(server)
    if started:
        say(f"Prefect UI: {server.address} ({how_to_log_in()}; stop it with: scoresmooth server stop)")
    return server.address


def become_client(server: Server) -> None:
    """Make this process and its children clients of the project's server. Call it before prefect is imported."""
    os.environ.update(environment())
    os.environ["PREFECT_API_URL"] = os.environ[OWN] = f"{server.address}/api"
    os.environ[CLIENT_LOGIN] = read_login(HOME)


def how_to_log_in() -> str:
    """Tell a person what the UI's login page wants."""
    return f"the UI asks for the text in {login_path(HOME)}"


def where() -> str:
    """Tell a person where the UI is."""
    if chosen := chosen_api():
        return chosen.removesuffix("/").removesuffix("/api")
    found = running()
    return f"{found.address} ({how_to_log_in()})" if found else "not running: scoresmooth server start"


def chosen_api() -> str | None:
    """The API of the server that the user chose by PREFECT_API_URL or by the active profile of `prefect config`."""
    if "PREFECT_API_URL" in os.environ:
        return os.environ["PREFECT_API_URL"]
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    try:
        profiles = tomllib.loads(path.read_text(encoding="utf-8"))
        name = os.environ.get("PREFECT_PROFILE", profiles.get("active"))
        return profiles.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
    except OSError:
        return None  # without profiles
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} is not a file of Prefect's profiles ({error}): mend or remove it") from error


def ensure(timeout: float = 180.0, say: Callable[[str], None] = lambda _: None) -> tuple[Server, bool]:
    """Return the project's server, and whether this call started it. Raises ServerDown after `timeout` seconds.

    A server whose folder or database was removed is replaced by a new one.
    """
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with _starting(deadline, timeout, say):
        if _alive():
            server = _answer(deadline, timeout, say)
            _check_database()
            if _keeps_its_database(server):
                return server, False
            say(f"{HOME / 'prefect.db'} was removed: starting the Prefect server anew")
            _end(server.pid, 20.0)
        _spawn(_choose_port())
        return _answer(deadline, timeout, say), True


def _keeps_its_database(server: Server) -> bool:
    """Whether the file of the server's SQLite database is still the one that it opened.

    The server itself notices only half a second later, and what it then reads and writes is lost or an error.
    """
    if not _recorded_entry("sqlite", True):
        return True
    path, answer = HOME / "prefect.db", proven(server.address, read_login(HOME)) or {}
    opened = answer.get("database")
    return path.exists() and opened in (None, [path.stat().st_dev, path.stat().st_ino])


@contextlib.contextmanager
def _starting(deadline: float, timeout: float, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of those who start or stop the server. Tell who holds it, and give up at the deadline."""
    path, told = HOME / "server.start.lock", time.monotonic() + PATIENCE
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(path, wait=False))
            except BlockingIOError:
                holder = path.read_text(errors="replace").strip() or "unknown"
                if time.monotonic() > deadline:
                    raise ServerDown(f"process {holder} has held {path} for {timeout:g} s: end it") from None
                if time.monotonic() > told:
                    say(f"process {holder} is starting or stopping the Prefect server: waiting for it")
                    told = deadline
                time.sleep(0.1)
                continue
            yield
            return


def _answer(deadline: float, timeout: float, say: Callable[[str], None]) -> Server:
    """Wait until the living server proves that it is ours. Raises ServerDown if it ends or at the deadline."""
    told = time.monotonic() + 6 * PATIENCE  # a start takes up to that long
    while True:
        server = _recorded()
        pid = proven_pid(server.address, read_login(HOME)) if server else None
        if server and pid is not None:
            return Server(server.port, pid)
        if not _alive():
            raise ServerDown(f"the Prefect server ended while starting (see {HOME / 'server.log'})")
        if time.monotonic() > deadline:
            remedy = f"see {HOME / 'server.log'}; scoresmooth server stop ends it"
            raise ServerDown(f"the Prefect server did not answer within {timeout:g} s ({remedy})")
        if time.monotonic() > told:
            say("waiting for the Prefect server to answer")
            told = deadline
        time.sleep(0.1)


def database() -> str:
    """Describe the database of the history for a person, without its password."""
    url = os.environ.get(DATABASE, "")
    if not url:
        return f"SQLite in {HOME}"
    from sqlalchemy.engine import make_url  # what Prefect reads it with; rarely needed and slow to import
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):  # its message quotes the password
        form = "postgresql+asyncpg://USER:PASSWORD@HOST/NAME"
        raise InputError(f"{DATABASE} is not the address of a database: write {form}") from None
    host = (parts.host or "").rpartition("@")[2]  # a password with an "@" that is not written as %40
    return f"{parts.drivername} at {host}{f':{parts.port}' if parts.port else ''}/{parts.database or ''}"


def record(port: int, pid: int) -> dict[str, Any]:
    """The contents of server.json, by which the server that runs in this process is found."""
    return {"port": port, "pid": pid, "database": database(), "sqlite": DATABASE not in os.environ}


def database_in_use() -> str:
    """Describe the running server's database, as `database` does."""
    return str(_recorded_entry("database", "an unknown database"))


def _check_database() -> None:
    """Raise InputError if the running server uses another database than this process's environment asks for."""
    used = database_in_use()
    if DATABASE in os.environ and used != database():
        raise InputError(f"{DATABASE} is set but the server runs on {used}: run scoresmooth server stop first")


def running() -> Server | None:
    """The server whose process lives, whether or not it answers; None without one. Raises ServerDown if it is lost."""
    deadline = time.monotonic() + PATIENCE
    while _alive():
        server = _recorded()
        if server:
            return server
        if time.monotonic() > deadline:
            raise ServerDown(
                f"the Prefect server runs but does not restore {HOME / 'server.json'}: server stop ends it"
            )
        time.sleep(0.1)
    return None


def _recorded() -> Server | None:
    """The server that was started last; None without a readable record of it."""
    try:
        return Server(int(_recorded_entry("port", None)), int(_recorded_entry("pid", None)))
    except (TypeError, ValueError):
        return None


def _recorded_entry(key: str, default: Any) -> Any:
    """An entry of server.json, or `default` where there is none."""
    try:
        return read_json(HOME / "server.json").get(key, default)
    except (ValueError, AttributeError, OSError):
        return default


def gone(url: str) -> bool:
    """Whether `url` is the API of the project's own server that this process uses, and that server has ended."""
    if url != os.environ.get(OWN):
        return False
    server = _recorded()
    return not _alive() or (server is not None and url != f"{server.address}/api")


def stop(grace: float = 20.0) -> bool:
    """Stop the project's server; return False if none was running."""
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _starting(time.monotonic() + 60.0, 60.0, lambda text: print(text, file=sys.stderr)):
        if not _alive():
            return False
        server = _recorded()
        pid = proven_pid(server.address, read_login(HOME)) if server else None
        _end(pid or _holder(), grace)
        return True


def _holder() -> int:
    """The server's process id, found by its open lock: a record can name another process. Raises ServerDown."""
    lock = os.stat(HOME / "server.alive.lock")
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = b"prefect\0server\0start" in (entry / "cmdline").read_bytes()
            held = (file.stat() for file in (entry / "fd").iterdir()) if ours else ()
            if any((found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino) for found in held):
                return int(entry.name)
        except OSError:  # it has just ended, or it is another user's
            continue
    raise ServerDown(f"the process that holds {HOME / 'server.alive.lock'} is not found: end it by hand")


def _end(pid: int, grace: float) -> None:
    """End the server's process. Raises ServerDown if it cannot be ended."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + grace
        while _alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not _alive():
            return
    raise ServerDown(f"the Prefect server (process {pid}) cannot be stopped")


def is_ours(port: int) -> bool:
    """Whether the server that answers on `port` is this project's."""
    return proven_pid(f"http://{HOST}:{port}", read_login(HOME)) is not None


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


def _spawn(port: int) -> None:
    database()  # a wrong address is an error here and not in the server's log
    unused = () if SCHEDULES in os.environ else UNUSED_SERVICES
    off = {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in unused}
    variables = {
        **PRUNING,
        **os.environ,
        **environment(),
        **off,
        SERVER_LOGIN: make_login(HOME),
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port}",  # the default lets every page in
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_UI_API_URL": "/api",  # relative to the pages' own address; the default is port 4200 always
    }
    variables.pop("PREFECT_API_URL", None)
    alive = os.open(HOME / "server.alive.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    root = CACHE.absolute().parent  # not an experiment's copy of the project, which DVC deletes
    command = [sys.executable, "-m", "pipeline.guarded_prefect", "server", "start", "--host", HOST, "--port", str(port)]
    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        (HOME / "server.json").unlink(missing_ok=True)  # it is an earlier server's; this one writes its own
        with (HOME / "server.log").open("ab") as log:
            subprocess.Popen(
                [*command, "--alive", str(alive)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=variables,
                cwd=root if (root / "pipeline" / "guarded_prefect.py").is_file() else None,
                pass_fds=(alive,),
                start_new_session=True,  # neither Ctrl-C nor the end of this stage stops it
            )
    finally:
        os.close(alive)
