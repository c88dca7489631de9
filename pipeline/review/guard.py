"""Protects the review server: only its own page may use it, under its own name.

A page elsewhere could make a browser send requests to a server on loopback, under a name of its own that it resolves
to 127.0.0.1 (DNS rebinding) or from another origin. So every request must name this server in Host, and a request that
changes something must come from this server's origin, as JSON.
"""

import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

COOKIE = "scoresmooth_review"
LONGEST = 4096
"""Bytes of the longest request body."""

HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the review application.

    Args:
        app: the application.
        hosts: the values of Host that name this server, in lower case, with the port.
        any_address: accept every IP address as Host (a server that listens on all of them; rebinding needs a name).
        port: the port, for `any_address`.
        token: the secret that a request must hold, in the cookie or once as ?token=…; None on loopback.
    """

    def __init__(self, app: App, hosts: set[str], any_address: bool, port: int, token: str | None) -> None:
        self.app, self.hosts, self.any_address, self.port, self.token = app, hosts, any_address, port, token

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Refuse the request, or pass it on and add the headers that isolate the page from other sites."""
        if scope["type"] != "http":
            raise RuntimeError(f"the review server speaks HTTP only, not {scope['type']}")
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refusal = self._refusal(scope["method"], headers)
        if refusal:
            await _answer(send, 403, refusal)
        elif self.token is not None and not self._has_cookie(headers):
            await self._enter(scope, send)
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refusal(self, method: str, headers: dict[str, list[str]]) -> str | None:
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._is_me(hosts[0].lower()):
            return f"Host {', '.join(hosts) or '(none)'} is not this server's: open the address that it printed"
        if method in ("GET", "HEAD"):
            return None
        origins = headers.get("origin", [])
        site = headers.get("sec-fetch-site", ["same-origin"])
        if (origins and origins != [f"http://{hosts[0]}"]) or site != ["same-origin"]:
            return f"Origin {', '.join(origins) or '(none)'} is not this server's: only its own page may write"
        if headers.get("content-type", [""])[0].split(";")[0].strip().lower() != "application/json":
            return "only application/json is read"
        lengths = headers.get("content-length", [])
        if len(lengths) != 1 or not lengths[0].isdigit() or int(lengths[0]) > LONGEST:
            return f"a request must say its length, at most {LONGEST} bytes"
        return None

    def _is_me(self, host: str) -> bool:
        if host in self.hosts:
            return True
        name, _, port = host.rpartition(":")
        return self.any_address and port == str(self.port) and _is_address(name.removeprefix("[").removesuffix("]"))

    def _has_cookie(self, headers: dict[str, list[str]]) -> bool:
        try:
            cookie = SimpleCookie("; ".join(headers.get("cookie", []))).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._matches(cookie.value)

    def _matches(self, value: str) -> bool:
        return self.token is not None and secrets.compare_digest(value.encode(), self.token.encode())

    async def _enter(self, scope: MutableMapping[str, Any], send: Send) -> None:
        """The address with the token sets the cookie; anything else is refused."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])
        if scope["method"] != "GET" or scope["path"] != "/" or not self._matches(given[0]):
            await _answer(send, 401, "open the address that the server printed, with its token")
            return
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, "", {"location": "/", "set-cookie": cookie})


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    body = text.encode()
    plain = {"content-type": "text/plain; charset=utf-8", "content-length": str(len(body)), "cache-control": "no-store"}
    encoded = _encoded({**plain, **HEADERS, **(headers or {})})
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *_encoded(HEADERS)]
        await send(message)

    return sending
