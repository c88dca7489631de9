"""The project's Prefect server: who may use it, how it is recognised, and what is never shown."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import stat
from pathlib import Path

import pytest
from small_project import SmallProject

from pipeline import guarded_prefect, server, server_login
from pipeline.guarded_prefect import Guard, Watch
from stages.errors import InputError


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The server's empty folder, in a project that is the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "user"))
    server.HOME.mkdir(parents=True)
    return tmp_path / server.HOME


async def application(scope, receive, send):
    await send({"type": "passed"})


def ask(
    kind: str = "http", path: str = "/", query: bytes = b"", watch: Watch | None = None, **headers: str
) -> list[dict]:
    """What the guard sends in answer to a request with these headers."""
    sent = []

    async def send(message):
        sent.append(message)

    named = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1:80", **headers}.items() if value]
    scope = {"type": kind, "path": path, "query_string": query, "headers": named}
    asyncio.run(Guard(application, "user:secret", watch)(scope, None, send))
    return sent


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),
        ({"host": "localhost:8080"}, True),  # through ssh -L 8080:127.0.0.1:PORT
        ({"host": "[::1]:80"}, True),
        ({"host": "LOCALHOST"}, True),
        ({"origin": "http://127.0.0.1:80"}, True),
        ({"host": "evil.example:80"}, False),  # DNS rebinding
        ({"host": "127.0.0.1.evil.example"}, False),
        ({"host": "127.0.0.1@evil.example"}, False),
        ({"host": "evil.example/127.0.0.1"}, False),
        ({"host": "[127.0.0.1"}, False),
        ({"host": ""}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "http://127.0.0.1:81"}, False),  # another program of this machine
        ({"origin": "null"}, False),
    ],
)
def test_only_its_own_pages_may_use_the_server(kind, headers, passes):
    (first, *_) = ask(kind, **headers)
    refused = {"http": 403, "websocket": 1008}[kind]
    assert passes == (first["type"] == "passed")
    assert passes or refused in (first.get("status"), first.get("code"))


def test_the_server_proves_that_it_knows_the_login():
    """HMAC-SHA256, computed here by its definition."""
    _, body = ask(path=server_login.IDENTITY, query=b"nonce=abc")
    answer = json.loads(body["body"])
    assert answer["pid"] == os.getpid()
    message = f"abc {os.getpid()}".encode()
    assert answer["proof"] == hmac.new(b"user:secret", message, hashlib.sha256).hexdigest()


def test_the_login_is_new_secret_and_kept(home):
    login = server_login.make_login(home)
    path = server_login.login_path(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(login) > 40
    assert server_login.make_login(home) == server_login.read_login(home) == login
    for damage in (b"", b"scoresmooth:ab", b"\xff\xfe", login.encode() + b"\nmore"):
        path.write_bytes(damage)
        assert server_login.make_login(home) != login
    path.chmod(0o644)
    server_login.make_login(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_users_own_login_is_used(home, monkeypatch):
    monkeypatch.setenv(server_login.SERVER_LOGIN, "admin:own")
    assert server_login.make_login(home) == server_login.read_login(home) == "admin:own"


@pytest.fixture
def watch(home) -> Watch:
    lock = home / "server.alive.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT)
    (home / "prefect.db").write_bytes(b"history")
    yield Watch(home, handle, server.record(4321, 99), "user:secret")
    os.close(handle)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": Path.unlink,
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another process": lambda path: path.write_text('{"port": 1, "pid": 1}'),
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["server.json", "login"])
def test_the_server_restores_the_files_it_is_found_by(home, watch, name, damage):
    assert watch.look() is None
    before = (home / name).read_bytes()
    damage(home / name)
    server._recorded()  # reads the damaged record without an exception
    assert watch.look() is None
    assert (home / name).read_bytes() == before
    assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert (server._recorded(), server.database_in_use()) == (server.Server(4321, 99), f"SQLite in {server.HOME}")


@pytest.mark.parametrize("name", ["server.alive.lock", "prefect.db"])
def test_the_server_ends_when_its_folder_or_database_is_gone(home, watch, name):
    assert watch.look() is None
    (home / "another").write_bytes((home / name).read_bytes())
    (home / name).unlink()
    assert "removed" in watch.look()
    (home / "another").rename(home / name)  # another file of that name
    assert "removed" in watch.look()


@pytest.mark.parametrize("password", ["pa/ss", "pa%2Fss", "pa:ss", "pa?ss", "pa#ss", "p@ss", "pass", "%70ass"])
def test_no_password_of_a_database_is_shown(home, monkeypatch, password):
    monkeypatch.setenv(server.DATABASE, f"postgresql+asyncpg://me:{password}@db.example:5433/history?password=ss2")
    said = server.database()
    assert said.startswith("postgresql+asyncpg at db.example:5433/history")
    assert "ss" not in said
    assert "ss" not in json.dumps(server.record(1, 2)).replace("asyncpg", "")


@pytest.mark.parametrize("url", ["nonsense", "postgresql://me:pass@host:port/x", "://"])
def test_a_wrong_address_of_a_database_is_one_line(home, monkeypatch, url):
    monkeypatch.setenv(server.DATABASE, url)
    with pytest.raises(InputError, match=f"{server.DATABASE} is not the address of a database") as caught:
        server.ensure(1)
    assert "pass" not in str(caught.value)
    assert not server._alive()


def test_a_server_that_the_user_chose_is_respected(home, monkeypatch):
    def no_server(*_):
        raise AssertionError("the project's own server is not wanted")

    monkeypatch.setattr(server, "ensure", no_server)
    before = dict(os.environ)
    profiles = Path(os.environ["PREFECT_HOME"]) / "profiles.toml"
    profiles.parent.mkdir()
    profiles.write_text('active = "team"\n[profiles.team]\nPREFECT_API_URL = "https://prefect.example/api"\n')
    assert server.connect(print, 1) == "https://prefect.example"
    assert dict(os.environ) == before
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api/")
    assert server.connect(print, 1) == "http://127.0.0.1:1"
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert server.chosen_api() is None  # the profile has no server: the project's own is used
    profiles.write_text("active = [")
    with pytest.raises(InputError, match="profiles.toml is not a file of Prefect's profiles"):
        server.chosen_api()


@pytest.mark.parametrize("login", ["", "anna:secret@"])
def test_a_chosen_server_that_is_not_there_is_one_line(tmp_path, login):
    project = SmallProject(tmp_path / "project")
    variables = {"PREFECT_API_URL": f"http://{login}127.0.0.1:1/api", "PREFECT_HOME": str(tmp_path / "user")}
    assert project.run("stage", "ingest", code=1, **variables).splitlines() == [
        "error: no Prefect server answers at http://127.0.0.1:1/api, which PREFECT_API_URL or the profile names: start "
        "it, or unset that"
    ]


def test_a_holder_that_never_lets_go_is_named(home):
    said = []
    with server.locked(server.HOME / "server.start.lock"):
        server.PATIENCE, before = 0.1, server.PATIENCE
        try:
            with pytest.raises(
                server.ServerDown, match=f"process {os.getpid()} has held .*server.start.lock for 0.5 s"
            ):
                server.ensure(0.5, said.append)
        finally:
            server.PATIENCE = before
    assert said == [f"process {os.getpid()} is starting or stopping the Prefect server: waiting for it"]


def test_a_server_whose_database_was_replaced_is_not_used(home, watch, monkeypatch):
    """At once: the server itself notices half a second later, and SQLite may have made a new, empty file by then."""
    watch.look()
    _, body = ask(path=server_login.IDENTITY, query=b"nonce=abc", watch=watch)
    monkeypatch.setattr(server, "proven", lambda *_: json.loads(body["body"]))
    found, path = server.Server(4321, 99), home / "prefect.db"
    assert server._keeps_its_database(found)
    path.rename(home / "kept")
    assert not server._keeps_its_database(found)
    path.write_bytes(b"")
    assert not server._keeps_its_database(found)
    (home / "kept").replace(path)
    assert server._keeps_its_database(found)
    path.unlink()
    (home / "server.json").write_text(json.dumps({**watch.record, "sqlite": False}))  # PostgreSQL
    assert server._keeps_its_database(found)


def test_the_report_is_shown_to_who_knows_the_login_and_reaches_nothing(home, monkeypatch):
    login = f"Basic {base64.b64encode(b'user:secret').decode()}"
    report = home.parents[1] / "data/report/report.html"
    monkeypatch.setattr(server, "REPORT_FILE", report)
    for wrong in ("", "Basic", f"Basic {base64.b64encode(b'user:other').decode()}"):
        first, body = ask(path=guarded_prefect.REPORT, authorization=wrong)
        assert first["status"] == 401
        assert dict(first["headers"])[b"www-authenticate"].startswith(b"Basic ")
    assert ask(path=guarded_prefect.REPORT, authorization=login)[0]["status"] == 404
    report.parent.mkdir(parents=True)
    report.write_text("<p>répoŕt")
    first, body = ask(path=guarded_prefect.REPORT, authorization=login)
    assert (first["status"], body["body"].decode()) == (200, "<p>répoŕt")
    assert b"sandbox" in dict(first["headers"])[b"content-security-policy"]
    assert ask(path=guarded_prefect.REPORT, authorization=login, origin="http://evil.example")[0]["status"] == 403
